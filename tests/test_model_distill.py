"""ModelDistill: the loss by hand, a whole run that is stopped and resumed, and what a bad teacher gets."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from data.transforms import Batch
from models.model_distill import ModelDistill
from models.model_plain import ModelPlain
from models.network_fer_resnet import FerResNet
from models.select_network import NETWORKS, define_G
from tests.helpers import NORMALIZE, ONE_RANK, changed, class_batch, messages, net_options, same_tensors
from tests.run_helpers import LAST, NewRun, Run, differences, flip_bit, kill, new_run, server
from utils.utils_error import UserError
from utils.utils_option import NetOptions, Options

__all__ = ["new_run", "server"]  # fixtures

TEACHER: dict[str, Any] = {"net_type": "fer_resnet", "widths": [8], "depths": [1]}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "teacher.pth")


def write_teacher(path: Path, seed: int = 5, **netG: Any) -> Path:
    """A self-contained model with random weights."""
    torch.manual_seed(seed)
    net = define_G(NetOptions(**{**TEACHER, **netG}))
    state = {"netG": {**TEACHER, **netG}, "model_state_dict": net.state_dict(), "input": {"transforms": [NORMALIZE]}}
    torch.save(state, path)
    return path


def options_with(teacher: Path | list[Path] | None, **train: Any) -> Options:
    options = net_options({"distill_weight": 0.7, "distill_temperature": 2.0, **train})
    named = [str(each) for each in teacher] if isinstance(teacher, list) else teacher and str(teacher)
    path = options.path.model_copy(update={"pretrained_netT": named})
    return options.model_copy(update={"path": path})


def distilled(teacher: Path | list[Path] | None, **train: Any) -> ModelDistill:
    return ModelDistill(options_with(teacher, **train), ONE_RANK, seed=3)


def loss_by_hand(student: torch.Tensor, taught: list[torch.Tensor], target: torch.Tensor) -> float:
    """Hinton's sum in double precision, one sample after the other."""
    total = 0.0
    for row, label in enumerate(target.tolist()):
        logits = student[row].double()
        hard = -float((logits.exp() / logits.exp().sum()).log()[label])
        *wise, q = (x.div(2).exp() / x.div(2).exp().sum() for x in (*(each[row].double() for each in taught), logits))
        p = sum(wise, torch.zeros(7)) / len(wise)
        total += 0.3 * hard + 0.7 * 4 * float((p * (p / q).log()).sum())
    return total / len(target)


def answers(teacher: Path, batch: Batch) -> torch.Tensor:
    net = define_G(NetOptions(**TEACHER)).eval()
    net.load_state_dict(torch.load(teacher, weights_only=True)["model_state_dict"])
    return net(batch["input"]).detach()


def test_the_loss_is_the_one_of_the_paper(teacher: Path) -> None:
    model, batch = distilled(teacher), class_batch(1)
    model.feed_data(batch)
    student = torch.randn(8, 7, generator=torch.Generator().manual_seed(1))
    taught = [answers(teacher, batch)]
    assert float(model.train_loss(student)) == pytest.approx(loss_by_hand(student, taught, batch["target"]), rel=1e-5)
    plain = ModelPlain(options_with(teacher), ONE_RANK, seed=3)
    plain.feed_data(batch)
    assert float(plain.train_loss(student)) != pytest.approx(float(model.train_loss(student)), rel=1e-3)


def test_several_teachers_teach_the_mean_of_their_probabilities(teacher: Path, tmp_path: Path) -> None:
    teachers, batch = [teacher, write_teacher(tmp_path / "second.pth", seed=6)], class_batch(1)
    model = distilled(teachers)
    model.feed_data(batch)
    student = torch.randn(8, 7, generator=torch.Generator().manual_seed(1))
    taught = [answers(each, batch) for each in teachers]
    assert not torch.allclose(*taught)
    assert float(model.train_loss(student)) == pytest.approx(loss_by_hand(student, taught, batch["target"]), rel=1e-5)
    assert len(set(model.record()["teacher"].split())) == 2
    (tmp_path / "second.pth").unlink()
    with pytest.raises(UserError, match=r"second.pth is missing; train the teacher first"):
        distilled(teachers).record()


def test_a_teacher_with_a_flipped_bit_teaches_nobody(teacher: Path) -> None:
    flip_bit(teacher)
    torch.load(teacher, weights_only=True)  # control: torch does not notice
    with pytest.raises(UserError, match=r"teacher\.pth: damaged: the checksum"):
        distilled(teacher).record()


def test_without_weight_it_trains_like_the_plain_model(teacher: Path) -> None:
    plain, model = ModelPlain(options_with(teacher), ONE_RANK, seed=3), distilled(teacher, distill_weight=0.0)
    taught = distilled(teacher)
    for each in (plain, model, taught):
        each.optimize_parameters([class_batch(1)], 1)
    assert same_tensors(plain.netG.state_dict(), model.netG.state_dict())
    assert not same_tensors(plain.netG.state_dict(), taught.netG.state_dict())


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), (None, torch.float32)])
def test_the_teacher_computes_in_the_precision_of_training(teacher: Path, amp: str | None, dtype: torch.dtype) -> None:
    model = distilled(teacher, amp=amp)
    seen: list[torch.dtype] = []
    first = next(module for module in model.teachers[0].net.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    model.optimize_parameters([class_batch(1)], 1)
    assert seen == [dtype]


def test_the_teacher_stays_as_it_is_and_tests_do_not_need_it(teacher: Path) -> None:
    model = distilled(teacher)
    before = copy.deepcopy(model.teachers[0].net.state_dict())
    for current_iter in (1, 2):
        model.optimize_parameters([class_batch(current_iter)], current_iter)
    assert same_tensors(before, model.teachers[0].net.state_dict())
    assert set(model.state()) == {"G", "optimizerG"}
    teacher.unlink()
    alone = distilled(teacher)
    assert torch.isfinite(alone.test_loss(alone.test(class_batch(1))))


class Watching(FerResNet):
    """Keeps a mean of what it sees, in evaluation too."""

    def __init__(self, **netG: Any) -> None:
        super().__init__(**netG)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.get_buffer("mean").lerp_(images.mean(), 0.5)
        return super().forward(images - self.get_buffer("mean"))


def test_a_teacher_learns_nothing_from_what_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in no set of the run: a resume would begin with the one of the file."""
    monkeypatch.setattr(NETWORKS, "_entries", {**NETWORKS._entries, "watching": Watching})
    model = distilled(write_teacher(tmp_path / "watching.pth", net_type="watching"))
    for current_iter in (1, 2):
        model.optimize_parameters([class_batch(1)], current_iter)
    assert model.teachers[0].net.get_buffer("mean") == 0


def test_the_record_tells_one_teacher_from_another(tmp_path: Path) -> None:
    first, other = write_teacher(tmp_path / "first.pth", seed=5), write_teacher(tmp_path / "other.pth", seed=6)
    same = tmp_path / "same.pth"
    same.write_bytes(first.read_bytes())
    assert distilled(first).record() == distilled(same).record() != distilled(other).record()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "path.pretrained_netT: missing"),
        ("gone", r"teacher.pth is missing; train the teacher first"),
        ({"a": torch.zeros(2)}, "no self-contained model"),
    ],
)
def test_a_file_that_is_no_teacher_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "teacher.pth"
    if isinstance(content, dict):
        torch.save(content, path)
    with pytest.raises(UserError, match=said):
        distilled(None if content is None else path).record()


@pytest.mark.parametrize("synthetic", [None, "synthetic_faces, because there is no data"])
def test_a_teacher_that_learned_from_generated_samples_is_named(
    teacher: Path, synthetic: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({**torch.load(teacher), "synthetic": synthetic}, teacher)
    distilled(teacher).record()
    expected = f"path.pretrained_netT: {teacher} learned from generated samples ({synthetic})." if synthetic else ""
    assert messages(caplog.records) == expected


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    model = distilled(write_teacher(tmp_path / "teacher.pth", num_classes=8))
    with pytest.raises(UserError, match=r"answers \(8, 8\) where netG answers \(8, 7\)"):
        model.optimize_parameters([class_batch(1)], 1)


@pytest.mark.parametrize("kind", [list, tuple])
def test_the_classes_must_be_the_same_in_the_same_order(teacher: Path, kind: type) -> None:
    torch.save({**torch.load(teacher), "class_names": kind("abcdefg")}, teacher)
    distilled(teacher).check_classes(tuple("abcdefg"))
    with pytest.raises(UserError, match=r"knows the classes \['a', .*, and the data has \['b', 'a'"):
        distilled(teacher).check_classes(tuple("bacdefg"))
    with pytest.raises(UserError, match="the data set names none"):
        distilled(teacher).check_classes(())


@pytest.fixture
def run(new_run: NewRun, teacher: Path) -> Run:
    return distilling(new_run, teacher)


def distilling(new_run: NewRun, teacher: Path) -> Run:
    return new_run(model="distill", path__pretrained_netT=str(teacher), train__distill_temperature=2.0)


def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one(new_run: NewRun, run: Run, teacher: Path) -> None:
    killed = distilling(new_run, teacher)
    assert run.launch().status == 0
    killed.launch(accidents=[kill("step", 6)])
    resumed = killed.launch()
    assert "EXACT" in resumed.output
    assert differences(run, killed) == []


def test_a_resume_says_that_the_teacher_has_changed(run: Run, teacher: Path) -> None:
    run.launch(accidents=[kill("step", 6)])
    write_teacher(teacher, seed=6)
    resumed = run.launch()
    assert resumed.status == 0
    assert "the updates differ (teacher: " in resumed.output
    assert run.committed()[-1] == LAST


def test_a_resume_without_the_teacher_is_not_called_exact(new_run: NewRun, teacher: Path) -> None:
    taught = distilling(new_run, teacher)
    taught.launch(accidents=[kill("step", 6)])
    options = changed(taught.options, model="plain", path__pretrained_netT=None)
    alone = Run(taught._server, taught.option_file.parent, options).launch()
    assert alone.status == 0, alone.output
    assert "SAME-DATA: every sample once an epoch, same rates; the updates differ (teacher: " in alone.output


def test_a_teacher_that_saw_other_inputs_is_refused(new_run: NewRun, teacher: Path) -> None:
    run = distilling(new_run, teacher)
    options = changed(run.options, datasets__test__transforms=[{**NORMALIZE, "mean": 0.4}])
    ended = Run(run._server, run.option_file.parent / "other", options).launch()
    assert ended.status == 2
    assert "a teacher must see what netG sees" in ended.output
