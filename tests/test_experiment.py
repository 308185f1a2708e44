"""The experiment folder: its lock, its status, its saved options, and what it saves."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tables import TABLES
from tests.helpers import EDITED_STATUSES, ONE_RANK, changed, messages, tiny_option_mapping, validated, write_options
from tests.test_lock import held_by_a_child
from utils import utils_experiment, utils_option
from utils.utils_checkpoint import Manifest
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_experiment import Experiment, machine_record
from utils.utils_history import saved_options
from utils.utils_progress import Progress
from utils.utils_state_file import write_model

PARTS = ("G", "optimizerG")
MACHINE = {"ranks": 1}


@pytest.fixture
def make(tmp_path: Path, logged: pytest.LogCaptureFixture) -> Callable[..., Experiment]:
    """An experiment in tmp_path/root/tiny; changes of options as tiny_options takes them."""
    assert logged is not None
    options = tiny_option_mapping(tmp_path / "root", str(tmp_path / "no.csv"))

    def make(dist: Dist = ONE_RANK, dry_run: bool = False, **changes: Any) -> Experiment:
        return Experiment(validated(changed(options, **changes)), dist, Path("options/my run.json"), dry_run)

    return make


def status(experiment: Experiment) -> tuple[str, int]:
    """State and last committed iteration, as status.json says."""
    content = json.loads((experiment.folder / "status.json").read_text())
    return content["state"], content["last_committed_iter"]


def manifest(iteration: int) -> Manifest:
    return Manifest(
        iteration=iteration, epoch=0, reason="periodic", progress=Progress(0.5, 2, 1, 3), stream={"seed": 0},
        machine=MACHINE,
    )  # fmt: skip


def save(experiment: Experiment, iteration: int, value: float = 1.0) -> None:
    states = {part: {"weight": torch.tensor([value])} for part in PARTS}
    experiment.save_set(states, manifest(iteration))
    assert experiment.save_failed == (value != value)


def everything(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_folder_is_root_and_task(tmp_path: Path, make: Callable[..., Experiment]) -> None:
    with make() as experiment:
        assert experiment.folder == tmp_path / "root" / "tiny"
        experiment.find_resume_point(PARTS)
        names = {path.name for path in experiment.folder.iterdir()}
    assert {"models", "options", ".lock", "status.json", "train.log"} <= names


def test_a_relative_root_is_relative_to_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Experiment]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = make(path__root="experiments")
    assert experiment.folder == Path(utils_experiment.__file__).resolve().parent.parent / "experiments" / "tiny"


@pytest.mark.parametrize("end", ["DONE", "PREEMPTED"])
def test_status_of_a_run_that_ends(make: Callable[..., Experiment], end: str) -> None:
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        assert status(experiment) == ("RUNNING", 0)
        save(experiment, 4)
        assert status(experiment) == ("RUNNING", 4)
        experiment.finish(end)
    assert status(experiment) == (end, 4)


def test_status_of_a_run_that_fails(make: Callable[..., Experiment]) -> None:
    experiment = make()

    def fail() -> None:
        with experiment:
            save(experiment, 4)
            raise RuntimeError("the reason")

    with pytest.raises(RuntimeError):
        fail()
    assert status(experiment) == ("FAILED", 4)
    assert "the reason" in (experiment.folder / "train.log").read_text()


def test_status_of_a_relaunch_knows_the_set_that_is_there(make: Callable[..., Experiment]) -> None:
    with make() as experiment:
        save(experiment, 4)
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        assert status(experiment) == ("RUNNING", 4)
    assert status(experiment)[1] == 4


def test_status_keeps_the_history_of_the_launches(make: Callable[..., Experiment]) -> None:
    killed = make()
    with killed:
        killed.find_resume_point(PARTS)
        save(killed, 4)
        as_killed = (killed.folder / "status.json").read_text()
    (killed.folder / "status.json").write_text(as_killed)
    with make() as preempted:
        preempted.find_resume_point(PARTS)
        save(preempted, 9)
        preempted.finish("PREEMPTED")
    with pytest.raises(RuntimeError), make():  # it never came to train
        raise RuntimeError
    with make() as last:
        last.find_resume_point(PARTS)
        last.finish("DONE")
    launches = json.loads((last.folder / "status.json").read_text())["launches"]
    assert [(each["from_iter"], each["to_iter"], each["state"]) for each in launches] == [
        (0, 4, "RUNNING"),
        (4, 9, "PREEMPTED"),
        (9, 9, "DONE"),
    ]
    assert launches[0]["launched"] <= launches[0]["ended"]
    assert launches[0]["machine"]["ranks"] == 1


@pytest.mark.parametrize("edited", EDITED_STATUSES)
def test_a_launch_ignores_what_somebody_wrote_into_the_status(
    make: Callable[..., Experiment], edited: dict[str, Any]
) -> None:
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        experiment.save_options()
        save(experiment, 4)
    path = experiment.folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edited}))
    with make() as experiment:
        resume = experiment.find_resume_point(PARTS)
        assert resume is not None
        assert resume.iteration == 4
        experiment.changes()
    for file in experiment.models.glob("4_*"):
        file.unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), **edited}))
    with make() as experiment:
        assert experiment.find_resume_point(PARTS) is None
    assert status(experiment) == ("FAILED", 0)


def test_a_first_set_that_a_kill_left_without_manifest_is_set_aside(make: Callable[..., Experiment]) -> None:
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        save(experiment, 4)
    (experiment.models / "4_manifest.json").unlink()
    with make() as experiment:
        assert experiment.find_resume_point(PARTS) is None
        assert (experiment.models / "quarantine" / "4_G.pth").exists()


@pytest.mark.parametrize("has_status", [True, False])
def test_the_models_of_a_run_that_starts_again_are_set_aside(
    make: Callable[..., Experiment], logged: pytest.LogCaptureFixture, has_status: bool
) -> None:
    names = {"best_model.pth", "final_model.pth"}
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        save(experiment, 4)
        for name in names:
            (experiment.models / name).write_text("of the first run")
    with make() as experiment:
        assert experiment.find_resume_point(PARTS) is not None
        assert names < {path.name for path in experiment.models.iterdir()}
    for path in experiment.models.glob("4_*"):
        path.unlink()
    if not has_status:
        (experiment.folder / "status.json").unlink()
    with make() as experiment:
        assert experiment.find_resume_point(PARTS) is None
    assert {path.name for path in (experiment.models / "quarantine").iterdir()} == names
    assert "best_model.pth is of a run that starts again" in messages(logged.records)


@pytest.mark.parametrize("were_there_first", [True, False])
def test_files_of_kair_are_resumed_from_also_by_the_second_launch(
    make: Callable[..., Experiment], were_there_first: bool
) -> None:
    with make() as experiment:
        if not were_there_first:
            experiment.find_resume_point(PARTS)
        for part in PARTS:
            torch.save({"weight": torch.ones(1)}, experiment.models / f"5000_{part}.pth")
    if were_there_first:
        (experiment.folder / "status.json").unlink(missing_ok=True)
    for _ in range(2):
        with make() as experiment:
            point = experiment.find_resume_point(PARTS)
            assert point is not None
            assert (point.iteration, point.manifest) == (5000, None)
            assert status(experiment) == ("RUNNING", 5000)


def test_a_failed_save_is_known_and_does_not_count_as_committed(make: Callable[..., Experiment]) -> None:
    with make() as experiment:
        save(experiment, 4)
        save(experiment, 8, float("nan"))
        assert experiment.save_failed
        experiment.finish("DONE")
    assert status(experiment)[1] == 4


def test_what_is_saved_is_found_again_with_its_progress(make: Callable[..., Experiment]) -> None:
    with make() as experiment:
        assert experiment.find_resume_point(PARTS) is None
        save(experiment, 4)
        save(experiment, 8)
    with make() as experiment:
        point = experiment.find_resume_point(PARTS)
        assert point is not None
        assert point.manifest is not None
        assert (point.iteration, point.manifest.reason) == (8, "periodic")
        assert point.manifest.progress == Progress(0.5, 2, 1, 3)
        assert point.manifest.stream == {"seed": 0}
        assert point.manifest.machine == MACHINE


def test_saved_options_reproduce_the_launch(tmp_path: Path, make: Callable[..., Experiment]) -> None:
    with make(train__total_epochs=3, train__G_optimizer_lr=0.125) as experiment:
        experiment.save_options()
    (path,) = (experiment.folder / "options").glob("*.json")
    assert path.name.startswith("my run_")
    assert utils_option.parse(path, (), TABLES) == experiment.opt
    other = changed(tiny_option_mapping(tmp_path / "root", str(tmp_path / "no.csv")), train__G_optimizer_lr=0.25)
    assert utils_option.parse(write_options(other, tmp_path / "o.json"), (), TABLES) != experiment.opt


def test_two_launches_within_a_second_save_two_option_files(make: Callable[..., Experiment]) -> None:
    for _ in range(3):
        with make() as experiment:
            experiment.save_options()
    assert len(list((experiment.folder / "options").glob("my run_*.json"))) == 3


def test_a_launch_comes_after_those_before_it_whatever_the_clock_says(make: Callable[..., Experiment]) -> None:
    with make(train__G_optimizer_lr=0.5) as experiment:
        utils_option.save(experiment.opt, experiment.folder / "options" / "another_991231_235959.json")
    for lr, change in ((0.25, "0.5 -> 0.25"), (0.125, "0.25 -> 0.125"), (0.5, "0.125 -> 0.5")):
        with make(train__G_optimizer_lr=lr) as experiment:
            assert experiment.changes() == [f"train.G_optimizer_lr: {change}"]
            experiment.save_options()


def test_changes_are_those_since_the_last_launch_that_trained(make: Callable[..., Experiment]) -> None:
    for _ in range(2):
        with make() as experiment:
            experiment.save_options()
    assert experiment.changes() == []
    with make(train__G_optimizer_lr=0.5):
        pass  # refused before it trained
    with make(train__G_optimizer_lr=0.5, train__total_iter=7) as experiment:
        assert experiment.changes() == ["train.G_optimizer_lr: 0.01 -> 0.5", "train.total_iter: 6 -> 7"]


def test_edited_code_and_another_commit_are_changes(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Experiment]
) -> None:
    """The last launch has what was edited in a commit, or comes with a commit of other files."""
    codes = [("a", "1"), ("a", "1"), ("a", "2"), ("b", "2"), (None, "3"), ("b", "4"), ("c", "5")]
    commit, edited = f"code: commit {'b' * 12} -> {'c' * 12}", "code: edited since then"
    unknown = "options/ is missing, empty or not readable, so changes of options are not known"
    said = [[unknown], [], [edited], [], [edited], [edited], [commit]]
    for (version, code), changes in zip(codes, said, strict=True):
        record = {"commit": version and version * 40, "code": code}
        monkeypatch.setattr(utils_experiment, "code_record", lambda record=record: record)
        with make() as experiment:
            experiment.find_resume_point(("G",))
            assert experiment.changes() == changes
            experiment.save_options()
    for path in (experiment.folder / "options").iterdir():
        path.unlink()
    assert "is missing, empty or not readable" in experiment.changes()[0]
    assert experiment.changes()[1:] == [commit], "what has changed of the code is known all the same"


def test_changes_are_those_since_the_launch_that_saved_the_set(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Experiment]
) -> None:
    """The second launch is killed before it saves one, the third is refused before it trains."""
    other = {"train__G_optimizer_lr": 0.5}
    for code, iteration, changes in (("a", 4, {}), ("b", None, other), ("b", None, other)):
        record = {"commit": code * 40, "code": code}
        monkeypatch.setattr(utils_experiment, "code_record", lambda record=record: record)
        with make(**changes) as experiment:
            experiment.find_resume_point(PARTS)
            if iteration or not experiment._earlier_launches[1:]:
                experiment.save_options()
            if iteration:
                save(experiment, iteration)
    with make(**other) as experiment:
        experiment.find_resume_point(PARTS)
        changed = f"code: commit {'a' * 12} -> {'b' * 12}"
        assert experiment.changes() == ["train.G_optimizer_lr: 0.01 -> 0.5", changed]
    monkeypatch.setattr(utils_experiment, "code_record", lambda: {"commit": "a" * 40, "code": "a"})
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        assert experiment.changes() == []


def test_other_ranks_write_nothing(tmp_path: Path, make: Callable[..., Experiment]) -> None:
    with make(Dist(rank=1, world_size=2)) as experiment:
        experiment.save_set({"G": {}}, manifest(4))
        experiment.save_model("best_model.pth", {})
        experiment.save_options()
        experiment.log.start(0, 10)
        experiment.log.training(2, 0, 0.1, {"G_loss": 1.0}, 8)
        experiment.finish("DONE")
    assert not (tmp_path / "root").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, make: Callable[..., Experiment]) -> None:
    with make(dry_run=True) as experiment:
        assert experiment.find_resume_point(PARTS) is None
        experiment.save_options()
    assert not (tmp_path / "root").exists()
    with make() as experiment:
        save(experiment, 4)
        save(experiment, 8)
    (experiment.models / "8_G.pth").write_bytes(b"damaged")
    before = everything(tmp_path)
    with make(dry_run=True) as experiment:
        experiment.find_resume_point(PARTS)
    assert everything(tmp_path) == before


def test_what_a_killed_writer_left_is_removed_and_nothing_else(make: Callable[..., Experiment]) -> None:
    with make() as experiment:
        save(experiment, 4)
    mine = [
        experiment.models / ".hidden",
        experiment.models / "8_G.pth.tmp",
        experiment.models / ".thesis.pth.4711.tmp",
        experiment.folder / "notes.tmp",
        experiment.folder / ".notes.md.4711.tmp",
    ]
    left = [
        experiment.models / ".8_G.pth.4711.tmp",
        experiment.models / ".8_manifest.json.4711.tmp",
        experiment.models / ".best_model.pth.4711.tmp",
        experiment.folder / ".status.json.4711.tmp",
        experiment.folder / ".metrics.csv.4711.tmp",
        experiment.folder / "options" / ".fer_260102_030405.json.1.tmp",
        experiment.folder / "options" / ".fer_260102_030405_2.json.1.tmp",
    ]
    for path in (*mine, *left):
        path.write_text("x")
    with make() as experiment:
        assert all(path.exists() for path in mine)
        assert not any(path.exists() for path in left)
        assert experiment.find_resume_point(PARTS) is not None


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_root_that_cannot_be_written_is_named(tmp_path: Path, make: Callable[..., Experiment], dry_run: bool) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(UserError, match=r"path\.root.*cannot be written"), make(dry_run=dry_run):
        pass


def test_a_status_that_cannot_be_written_ends_no_run(
    make: Callable[..., Experiment], logged: pytest.LogCaptureFixture
) -> None:
    with make() as experiment:
        (experiment.folder / "status.json").mkdir()
        save(experiment, 4)
        assert (experiment.models / "4_manifest.json").exists()
    assert "status.json could not be written" in messages(logged.records, logging.ERROR)


@pytest.mark.parametrize(("num_failures", "state"), [(1, "DONE"), (2, "FAILED")])
def test_what_no_other_save_comes_after_is_tried_again_at_the_end(
    make: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, num_failures: int, state: str
) -> None:
    failures = iter(range(num_failures))

    def fail_at_first(path: Path, content: Any) -> None:
        if next(failures, None) is not None:
            raise OSError(28, "No space left on device")
        write_model(path, content)

    monkeypatch.setattr(utils_experiment, "write_model", fail_at_first)
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        experiment.save_model("final_model.pth", {"iter": 4})
        experiment.finish("DONE")
        assert (experiment.models / "final_model.pth").exists() == (state == "DONE")
    assert status(experiment) == (state, 0)


def test_a_trainer_whose_folder_another_has_taken_writes_nothing_more(
    make: Callable[..., Experiment], logged: pytest.LogCaptureFixture
) -> None:
    """Somebody removed its lock."""
    with make() as experiment:
        experiment.find_resume_point(PARTS)
        save(experiment, 4)
        (experiment.folder / ".lock").unlink()
        with held_by_a_child(experiment.folder):
            before = everything(experiment.models), (experiment.folder / "status.json").read_bytes()
            states = {part: {"weight": torch.ones(1)} for part in PARTS}
            experiment.save_set(states, manifest(8))
            experiment.save_model("best_model.pth", {"iter": 8, "model_state_dict": {"weight": torch.ones(2)}})
            experiment.finish("DONE")
            assert experiment.save_failed
    assert (everything(experiment.models), (experiment.folder / "status.json").read_bytes()) == before
    errors = messages(logged.records, logging.ERROR)
    for name in ("checkpoint set", "best_model.pth", "status.json"):
        assert re.search(rf"{name} could not be (saved|written): .*another trainer", errors)


def test_a_model_is_written_beside_the_sets(make: Callable[..., Experiment]) -> None:
    with make() as experiment:
        experiment.save_model("best_model.pth", {"iter": 4, "model_state_dict": {"weight": torch.ones(2)}})
        experiment.finish("DONE")
        assert torch.load(experiment.models / "best_model.pth", weights_only=True)["iter"] == 4


def test_the_machine_record_names_what_decides_the_floats(make: Callable[..., Experiment]) -> None:
    record = machine_record(make(train__amp="bf16").opt, Dist(world_size=4, num_threads=3))
    assert record["ranks"] == 4
    assert record["threads per rank"] == 3
    assert record["torch"] == torch.__version__
    assert record["amp"] == "bf16"
    assert record == json.loads(json.dumps(record))


def test_another_choice_of_kernels_is_another_device(
    make: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN has other kernels for a processor without bf16 instructions, and torch calls both AVX512."""
    opt = make().opt
    here = machine_record(opt, Dist())["device"]
    assert torch.backends.cpu.get_cpu_capability() in here
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert machine_record(opt, Dist())["device"] != here


def test_on_a_gpu_the_processor_counts_too(make: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes what transforms draw; and some variables choose other kernels of the GPU's."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "H200")
    opt, gpu = make(train__amp=None).opt, Dist(device=torch.device("cuda", 0))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as every launch has it
    record = machine_record(opt, gpu)
    assert record["device"] == "H200"
    assert record["processor"] == machine_record(opt, Dist())["device"]
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert machine_record(opt, gpu)["device"] == "H200 (CUBLAS_WORKSPACE_CONFIG=:16:8)"


def test_gpus_that_are_linked_otherwise_sum_in_another_order(
    make: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight on one machine are a ring, four on each of two may be a tree; two ranks on CPUs have gloo's order."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "H200")
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91500)
    monkeypatch.delenv("NCCL_ALGO", raising=False)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    opt = make(train__amp=None).opt

    def on_gpus(ranks: int, of_machine: int) -> dict[str, Any]:
        device = torch.device("cuda", 0)
        return machine_record(opt, Dist(world_size=ranks, local_world_size=of_machine, device=device))

    together, apart = on_gpus(8, 8), on_gpus(8, 4)
    assert {key for key in together if together[key] != apart[key]} == {"ranks per machine"}
    assert (apart["NCCL"], apart["cuDNN"]) == ("2.28.9", 91500)
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    assert on_gpus(8, 4)["NCCL"] == "2.28.9 (NCCL_ALGO=Ring)"
    assert not {"NCCL", "ranks per machine"} & on_gpus(1, 1).keys()
    assert machine_record(opt, Dist(world_size=2, local_world_size=2)) == machine_record(opt, Dist(world_size=2))


def test_mkl_s_stripes_are_another_choice_of_kernels(
    make: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decide how several threads share the sums of a matrix product."""
    opt = make().opt
    here = machine_record(opt, Dist())["device"]
    monkeypatch.setenv("MKL_NUM_STRIPES", "1")
    assert machine_record(opt, Dist())["device"] != here


def test_what_the_compiler_is_told_is_recorded_where_it_is_used(
    make: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, plain = (make(train__compile=is_compiled).opt for is_compiled in (True, False))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "1")
    assert machine_record(compiled, Dist())["compile"] is True
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert machine_record(compiled, Dist())["compile"] == "True (TORCHDYNAMO_DISABLE=1)"
    assert machine_record(plain, Dist())["compile"] is False


def test_launches_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    """A copied folder has lost the times of its files."""
    folder = tmp_path / "options"
    folder.mkdir()
    names = ["b_261122_100000", "a_261122_100001", "a_261122_100001_2", "a_261122_100001_10", "z_261123_090000"]
    names.append("a_261122_100001_261123_100000")  # launched from a file that a launch had saved
    for name in reversed(names):
        (folder / f"{name}.json").write_text("{}")
    (folder / ".#a_261122_100001.json").symlink_to("nowhere")  # Emacs's lock
    (folder / "b_261124_100000.json").symlink_to("nowhere")
    assert [path.stem for path in saved_options(tmp_path)] == names
