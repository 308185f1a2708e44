"""What a user's own network, loss, schedule or data set may do, and what it is told that it may not."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image
from torch.nn.utils import prune

from commands.trained_model import load_trained_model
from data.transforms import TRANSFORMS
from models.model_plain import ModelPlain
from tests.helpers import ONE_RANK, net_options
from tests.own_parts import NUM_CLASSES, NUM_SAMPLES, Launch, Linear, Numbers, Resident, launch, refused
from tests.trained_models import Command, command
from utils.utils_dist import Dist
from utils.utils_error import UserError
from views.select_view import define_view

__all__ = ["command", "launch"]  # fixtures


def test_batch_norm_of_all_ranks_needs_gpus() -> None:
    model = ModelPlain(net_options(), ONE_RANK, seed=0)
    model.dist = Dist(world_size=2)
    with pytest.raises(UserError, match=r"netG \(fer_resnet\): torch's SyncBatchNorm works on GPUs alone"):
        model.wrap(nn.SyncBatchNorm.convert_sync_batchnorm(model.netG))


class Registering(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        self.register_buffer("steps", torch.ones(64))
        return self.layer(x * self.get_buffer("steps"))


class Reshaping(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.ones(3))

    def forward(self, x: torch.Tensor) -> Any:
        self.steps = torch.ones(64)
        return self.layer(x * self.steps)


@pytest.mark.parametrize("net", [Registering, Reshaping])
def test_a_buffer_that_no_resume_could_load_is_refused(
    launch: Launch, capsys: pytest.CaptureFixture[str], net: type
) -> None:
    assert "netG (own): its forward pass makes 'steps', or gives" in refused(launch, capsys, net=net)


class Scripted(Linear):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.norm = torch.jit.script(nn.BatchNorm1d(64))  # type: ignore[no-untyped-call]

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(self.norm(x))


class Normed(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(self.norm(x))


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_scripted_layer_trains_as_the_layer(launch: Launch, tmp_path: Path, nonfinite: str) -> None:
    for task, net in (("scripted", Scripted), ("plain", Normed)):
        assert launch(task, net=net, train__nonfinite=nonfinite) == 0
    scripted, plain = (torch.load(tmp_path / task / "models/6_E.pth") for task in ("scripted", "plain"))
    assert scripted.keys() == plain.keys()
    assert all(torch.equal(scripted[name], value) for name, value in plain.items())


class Replacing(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        self.layer.weight = nn.Parameter(self.layer.weight.detach() * 0.99)
        return self.layer(x)


def test_a_network_that_replaces_its_parameters_is_refused(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(launch, capsys, net=Replacing)
    assert "netG (own): its forward pass puts another parameter in the place of 'layer.weight'" in said


class Pruned(Linear):
    """Prunes its weights in the third iteration, which names them anew."""

    passes = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.passes += self.training
        if self.passes == 4:  # the first pass looks whether the data fit
            prune.l1_unstructured(self.layer, "weight", 0.5)  # type: ignore[no-untyped-call]
        return self.layer(x)


def test_a_network_that_becomes_another_one_is_named_once(launch: Launch, tmp_path: Path) -> None:
    assert launch(net=Pruned) == 0
    log = (tmp_path / "own" / "train.log").read_text()
    named = "netG: 'layer.weight', 'layer.weight_mask', 'layer.weight_orig' came or went in training."
    assert log.count(named) == log.count("came or went") == 1


class Thawed(Linear):
    """Trains from the third iteration on what was built frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64).requires_grad_(False)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.passes += self.training
        self.first.requires_grad_(self.passes > 3)
        return self.layer(self.first(x))


def test_a_layer_that_no_optimizer_knows_is_named_once(launch: Launch, tmp_path: Path) -> None:
    assert launch(net=Thawed) == 0
    log = (tmp_path / "own" / "train.log").read_text()
    assert "own, 4,355 parameters, 4,160 of them frozen; netE is tested" in log
    assert log.count("netG: frozen when the optimizer was built, and not trained") == 1
    assert "'first.weight', 'first.bias'; build them trainable" in log


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv3d(1, 2, 3), nn.Conv2d(4, NUM_CLASSES, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.layer(x.view(-1, 1, 4, 4, 4)).flatten(1, 2)).flatten(1)


def test_channels_last_leaves_weights_of_five_dimensions_alone(launch: Launch) -> None:
    assert launch(net=Volume, train__channels_last=True) == 0


class Masked(Linear):
    persistent = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]), persistent=self.persistent)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x) + self.get_buffer("mask").nan_to_num(neginf=-9.0)


class MaskedInNoFile(Masked):
    persistent = False


def test_what_no_set_could_hold_is_refused_before_training(
    launch: Launch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(launch, capsys, net=Masked)
    assert "No checkpoint set of this run could be saved: G would hold non-finite values in mask" in said
    assert "persistent=False" in said
    assert launch(net=MaskedInNoFile) == 0
    assert all(value.isfinite().all() for value in torch.load(tmp_path / "own/models/6_E.pth").values())
    log = (tmp_path / "own" / "train.log").read_text()
    assert "Test Loss = " in log
    assert "Test Loss = nan" not in log


def test_a_schedule_may_give_numpy_s_numbers(launch: Launch, tmp_path: Path) -> None:
    assert launch(schedule=lambda current_iter, _train: np.cos(np.float32(current_iter / 10))) == 0
    assert (tmp_path / "own" / "models" / "6_manifest.json").exists()


@pytest.mark.parametrize("factor", [float("nan"), -0.1, float("inf"), None])
def test_a_schedule_that_gives_no_rate_is_named(
    launch: Launch, capsys: pytest.CaptureFixture[str], factor: float | None
) -> None:
    assert launch(schedule=lambda current_iter, _train: 1.0 if current_iter < 4 else factor) == 2
    said = capsys.readouterr()
    assert f"train.G_scheduler_type: own gives the factor {factor} in iteration 4" in said.out + said.err


class WithFingerprint(Resident):
    given: Any = None

    def __init__(self, dataroot: str, split: str = "train") -> None:
        super().__init__(dataroot, split)
        self.fingerprint = self.given


@pytest.mark.parametrize("given", [("train", 24), b"train", None])
def test_a_fingerprint_is_a_text(
    launch: Launch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    monkeypatch.setattr(WithFingerprint, "given", given)
    assert f"own has the fingerprint {given!r}; it must be a text" in refused(launch, capsys, data=WithFingerprint)


class OfNumpy(Resident):
    """Names and fingerprint as np.unique and an array of texts give them, and inputs that are a view."""

    class_names = tuple(np.array(Resident.class_names))

    def __init__(self, dataroot: str, split: str = "train") -> None:
        super().__init__(dataroot, split)
        self.fingerprint = np.str_(self.fingerprint)
        self._input = self._input.T.contiguous().T


def test_numpy_s_texts_reach_no_file(launch: Launch, tmp_path: Path) -> None:
    assert launch(data=OfNumpy) == 0
    for name in ("best_model.pth", "final_model.pth"):
        content = torch.load(tmp_path / "own" / "models" / name, weights_only=True)
        assert content["class_names"] == list(Resident.class_names)


class NamedLate(Resident):
    """Knows its classes once it is open, as folders of images do."""

    class_names = property(lambda _: ("none", "one", "two"))  # type: ignore[assignment]


def test_a_set_of_data_whose_class_does_not_know_its_classes_is_loaded(launch: Launch, tmp_path: Path) -> None:
    assert launch(data=NamedLate) == 0
    assert load_trained_model(tmp_path / "own/models/best_model.pth", None, []).class_names == ("none", "one", "two")
    assert load_trained_model(tmp_path / "own/models/6_E.pth", None, []).class_names == ()


class JointsNamedLate(Resident):
    class_names = ()
    joint_names = property(lambda _: ("wrist", "thumb"))


def test_a_class_that_does_not_know_its_joints_has_a_view() -> None:
    assert define_view(JointsNamedLate, ()).joint_names == ()
    assert define_view(JointsNamedLate("x"), ()).joint_names == ("wrist", "thumb")


class Misnamed(Resident):
    view = "clasification"


def test_a_view_that_nobody_has_written_is_named_before_training(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(launch, capsys, data=Misnamed)
    assert 'Misnamed.view: "clasification" is not a view; did you mean "classification"?' in said


class Bytes(Resident):
    """Class ids as bytes, which 255 would divide, and which wrap at 256."""

    class_names = tuple(map(str, range(24)))

    def resident(self) -> dict[str, Any]:
        return {"input": self._input, "target": torch.arange(NUM_SAMPLES, dtype=torch.uint8)}


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 24)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


class Longs(Bytes):
    def resident(self) -> dict[str, Any]:
        return {**super().resident(), "target": torch.arange(NUM_SAMPLES)}


@pytest.mark.parametrize("is_mixed", [False, True])
def test_class_ids_of_one_byte_are_class_ids(launch: Launch, tmp_path: Path, is_mixed: bool) -> None:
    mixed = {"datasets__train__transforms": [{"type": "mixup", "alpha": 0.5}]}
    metrics = {"val__metrics": ["accuracy", "confusion_matrix"], **(mixed if is_mixed else {})}
    assert launch("bytes", data=Bytes, net=Wide, **metrics) == launch("longs", data=Longs, net=Wide, **metrics) == 0
    found = [torch.load(tmp_path / task / "models" / "final_model.pth")["metrics"] for task in ("bytes", "longs")]
    assert found[0] == found[1]
    assert len(found[0]["confusion_matrix"]) == 24


class Tuples(Numbers):
    def __getitem__(self, index: int) -> Any:
        return tuple(super().__getitem__(index).values())


class Labelled(Numbers):
    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {"image": sample["input"], "label": sample["target"]}


class TupleOfNumbers(Tuples):
    class_names = ()


class FromOne(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input, "target": self._target + 1}


class TooShort(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input[:20], "target": self._target}


class Nameless(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input, "label": self._target}


def with_part(key: str, value: Any) -> type:
    class WithPart(Numbers):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), key: value}

    return WithPart


class Arrays(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input.numpy(), "target": self._target}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (Tuples, 'datasets.train: own gives a tuple for a sample; it must give {"input": ..., "target": ...,'),
        (TupleOfNumbers, "datasets.train: own gives a tuple for a sample"),
        (Labelled, "datasets.train: own gives a dict of ['image', 'label'] for a sample; it must give"),
        (
            with_part("input", Image.new("L", (8, 8))),
            "datasets.train: own: the input of a sample is a Image; it must be a tensor, an array or a number",
        ),
        (with_part("input", [0.5] * 64), "the input of a sample is a list; it must be a tensor, an array or a number"),
        (with_part("target", "two"), "the target of a sample is a str; it must be a tensor, an array or a number"),
        (with_part("name", Path("face.png")), "the name of a sample is a PosixPath; it must be a tensor, an array or"),
        (with_part("box", None), "the box of a sample is a NoneType; it must be a tensor, an array or a number, or a"),
        (FromOne, "targets from 1 to 3, and 3 classes are 0 to 2"),
        (Nameless, "resident() has no 'target'; it must give 'input' and 'target'"),
        (TooShort, "resident()['input'] is 20 rows; it must be a tensor of 24 rows"),
        (Arrays, "resident()['input'] is a ndarray; it must be a tensor of 24 rows"),
    ],
)
def test_what_a_data_set_hands_over_is_looked_at(
    launch: Launch, capsys: pytest.CaptureFixture[str], data: type, named: str
) -> None:
    assert named in refused(launch, capsys, data=data)


class SeveralLabels(Numbers):
    """Each sample may be of several classes."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "target": torch.ones(NUM_CLASSES)}


class SeveralResidentLabels(Resident):
    def resident(self) -> dict[str, Any]:
        return {**super().resident(), "target": torch.ones(NUM_SAMPLES, NUM_CLASSES)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[index] for key, value in self.resident().items()}


class SeveralShownLabels(SeveralLabels):
    view = "plain"


@pytest.mark.parametrize("data", [SeveralLabels, SeveralResidentLabels])
def test_what_the_view_of_classes_cannot_show_needs_another_one(
    launch: Launch, capsys: pytest.CaptureFixture[str], data: type
) -> None:
    said = refused(launch, capsys, data=data, loss=nn.BCEWithLogitsLoss)
    assert "datasets.train: own has class_names and targets of the shape (3,)" in said
    assert 'give the data set a view: "plain"' in said


def test_several_labels_are_shown_by_another_view(
    launch: Launch, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"val__metrics": ["mae"], "val__best_metric": "mae", "val__best_mode": "min", "val__save_img": True}
    assert launch(data=SeveralShownLabels, loss=nn.BCEWithLogitsLoss, **options) == 0
    assert "could not be written" not in (tmp_path / "own" / "train.log").read_text()
    assert command("verify", tmp_path / "own") == 0
    assert "recorded  " in capsys.readouterr().out


class Unreadable(Numbers):
    def __init__(self, dataroot: str, split: str = "train") -> None:
        super().__init__(dataroot, split)
        self.missing = 5 if split == "train" else None

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.missing:
            raise FileNotFoundError(2, "No such file or directory", "five.jpg")
        return super().__getitem__(index)


def test_a_sample_that_cannot_be_read_is_named(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(data=Unreadable) == 2
    said = capsys.readouterr()
    assert "datasets.train: sample 5 cannot be read: [Errno 2] No such file" in said.out + said.err
    assert "Traceback" not in said.out + said.err


class UnreadableTest(Unreadable):
    def __init__(self, dataroot: str, split: str = "train") -> None:
        super().__init__(dataroot, split)
        self.missing = 5 if split == "test" else None


def test_a_test_sample_that_cannot_be_read_is_named(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "  datasets.test: sample 5 cannot be read" in refused(launch, capsys, data=UnreadableTest)


class OddOnesAreShorter(Numbers):
    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {**sample, "input": sample["input"][: 64 - index % 2]}


class BoxesOfManyFaces(Numbers):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "boxes": torch.zeros(index, 4)}


def test_what_else_a_sample_has_fits_a_batch_too(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "datasets.train: the boxes is [" in refused(launch, capsys, data=BoxesOfManyFaces)


def test_samples_that_fit_no_batch_are_refused(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(
        r"datasets\.train: the input is \[6(\d)\] in (\d+) and \[6(\d)\] in (\d+), and a batch needs samples of one",
        refused(launch, capsys, data=OddOnesAreShorter),
    )
    assert found is not None
    lengths = {int(found[2]) % 2: found[1], int(found[4]) % 2: found[3]}
    assert lengths == {0: "4", 1: "3"}


class InPlace:
    """Changes the batch, and forgets to return it."""

    is_random = False

    def __call__(self, batch: dict[str, Any], _positions: Any, _seed: int) -> None:
        batch["input"].mul_(2)


def test_a_transform_that_returns_no_batch_is_refused(
    launch: Launch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TRANSFORMS, "_entries", {**TRANSFORMS._entries, "own": InPlace})
    said = refused(launch, capsys, datasets__train__transforms=[{"type": "own"}])
    assert "InPlace: a transform returns the batch, a dict, and this one returns a NoneType" in said


class Pair(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x), x


class Detached(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x).detach()


class Frozen(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Complex(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(1, dtype=torch.complex64))


class Sparse(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4, 4, sparse=True)


class Lazy(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(NUM_CLASSES)


class EachSample(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__(reduction="none")


class AsNumber(nn.CrossEntropyLoss):
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> Any:
        return super().forward(output, target).item()


class Learned(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class AsText:
    def update(self, output: torch.Tensor, target: torch.Tensor) -> None: ...

    def to(self, _device: torch.device) -> "AsText":
        return self

    def compute(self, _sum: Any = None) -> Any:
        return "good"


class AsCube(AsText):
    def compute(self, _sum: Any = None) -> Any:
        return torch.zeros(2, 3, 4)


class AsNothing(AsText):
    def compute(self, _sum: Any = None) -> Any:
        return torch.zeros(0)


class AsCount(AsText):
    def compute(self, _sum: Any = None) -> Any:
        return torch.tensor(7)


def test_a_whole_number_of_a_metric_is_a_number_like_any_other(launch: Launch, tmp_path: Path) -> None:
    """It may choose the best model, as in a count of errors."""
    assert launch(metric=AsCount, val__best_metric="own", val__best_mode="min") == 0
    best = torch.load(tmp_path / "own" / "models" / "best_model.pth")
    assert repr(best["metrics"]["own"]) == "7.0"


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"net": Pair}, "netG (own) answers with a tuple, and model: plain takes one tensor"),
        ({"net": Detached}, "depends on no parameter of netG that is trained"),
        ({"net": Frozen}, "netG: no parameter is trained"),
        ({"net": Complex}, "netG: 'turn' is torch.complex64"),
        ({"net": Sparse}, "netG: 'words' has sparse gradients"),
        ({"net": Lazy}, "netG (own): 'layer.weight' has no shape before the first forward pass"),
        ({"loss": EachSample}, "own gives a loss of shape (4,)"),
        ({"loss": AsNumber}, "own gives a loss that is a float"),
        ({"loss": Learned}, "own has parameters ('scale'), which nobody trains"),
        ({"metric": AsText}, "val.metrics: own computes a str"),
        ({"metric": AsCube}, "val.metrics: own computes values of the shape (2, 3, 4), and can be a number, a list"),
        ({"metric": AsNothing}, "val.metrics: own computes values of the shape (0,)"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_our_words(
    launch: Launch, capsys: pytest.CaptureFixture[str], parts: dict[str, type], named: str
) -> None:
    assert named in refused(launch, capsys, **parts)


class RunningMean(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.get_buffer("mean").lerp_(output.detach().mean(), 0.1)
        return super().forward(output, target)


class ClassWeights(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__(weight=torch.ones(NUM_CLASSES))


@pytest.mark.parametrize(("loss", "times"), [(RunningMean, 1), (ClassWeights, 0)])
def test_what_changes_and_is_in_no_file_is_named_once(
    launch: Launch, tmp_path: Path, loss: Callable[[], nn.Module], times: int
) -> None:
    assert launch(loss=loss) == 0
    log = (tmp_path / "own" / "train.log").read_text()
    assert log.count("lossfn.mean': changed in training and in no file") == times
    assert log.count("changed in training") == times
