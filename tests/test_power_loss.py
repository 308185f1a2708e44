"""Power loss: every disk that a run can leave behind resumes from the newest set whose save had returned."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disk_record import Entries, Operation, Recorder, Returned, Sync
from tests.power_loss import record, replay
from tests.power_loss_runs import SCENARIOS, Manager, Relaunch, Run
from utils import checkpoint_manager, utils_checkpoint, utils_experiment
from utils.utils_checkpoint import CheckpointFolder, Manifest
from utils.utils_checkpoint_names import PARTS, list_manifests, manifest_name, set_file_name
from utils.utils_file import atomic_write, fsync_directory
from utils.utils_state_file import write_state

pytest.importorskip("posix", reason="needs the fsync of folders")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty folder to record."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        (Run, {"-4_manifest.json", "-4_optimizerG.pth", "+16_manifest.json", "+best_model.pth", "+status.json"}),
        (Relaunch, {"+quarantine", "-12_manifest.json", "-16_G.pth", "+12_manifest.json", "-8_manifest.json"}),
        (Manager, {"-checkpoint_epoch_0.pth", "-interrupt_checkpoint.pth", "-interrupt_checkpoint.loaded.pth"}),
    ],
)
def test_the_scenarios_do_what_they_say(disk: Path, kind: type[Run], done: set[str]) -> None:
    entries = [each for each in record(kind(disk)).operations if isinstance(each, Entries)]
    assert done <= {f"{'-' if number is None else '+'}{name}" for each in entries for name, number in each.names}


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_loss_at_any_operation_loses_no_set_whose_save_returned(disk: Path, name: str) -> None:
    scenario = SCENARIOS[name](disk)
    recorder = record(scenario)
    result = replay(scenario, recorder, recorder.operations, sample=3)
    assert result.problems == []
    assert result.num_prefixes == result.num_operations + 1
    assert result.num_states > 2 * result.num_prefixes


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_power_loss_with_all_that_the_disk_may_then_hold(disk: Path, name: str) -> None:
    scenario = SCENARIOS[name](disk)
    recorder = record(scenario)
    assert replay(scenario, recorder, recorder.operations).problems == []


@pytest.mark.parametrize("kill_at", range(8))
@pytest.mark.parametrize("kind", [Run, Manager])
def test_a_folder_that_a_killed_launch_made_is_not_taken_for_durable(disk: Path, kind: type[Run], kill_at: int) -> None:
    scenario = kind(disk)
    scenario.iterations = (4,)
    recorder = record(scenario, kill_at)
    returned = next(i for i, each in enumerate(recorder.operations) if isinstance(each, Returned))
    assert replay(scenario, recorder, recorder.operations[: returned + 1], sample=2).problems == []


def make_missing_folders(path: Path) -> None:
    for folder in [each for each in (*reversed(path.parents), path) if not each.is_dir()]:
        folder.mkdir()
        fsync_directory(folder.parent)


def test_it_is_noticed_when_it_is_taken_for_durable(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_manager, "make_folder", make_missing_folders)
    recorder = record(Manager(disk), kill_at=1)
    (problem,) = replay(Manager(disk), recorder, recorder.operations, sample=16, enough=1).problems
    assert "1 was saved, 0 is found" in problem


def sync_places(recorder: Recorder, name: str) -> list[int]:
    """Where in the record files or folders are synced whose first name contains `name`; at least once."""
    entries = (each for each in recorder.operations if isinstance(each, Entries) and each.new)
    numbers = {number for each in entries for first, number in each.names if name in first}
    synced = enumerate(recorder.operations)
    places = [place for place, each in synced if isinstance(each, Sync) and each.number in numbers]
    assert places
    return places


def without_syncs(recorder: Recorder, name: str) -> list[Operation]:
    left_out = sync_places(recorder, name)
    return [each for place, each in enumerate(recorder.operations) if place not in left_out]


def with_late_syncs(recorder: Recorder, name: str) -> list[Operation]:
    """Each fsync after the rename that follows it."""
    changed = list(recorder.operations)
    for place in sync_places(recorder, name):
        changed[place : place + 2] = changed[place + 1], changed[place]
    return changed


@pytest.mark.parametrize(
    ("kind", "change", "name", "problem"),
    [
        (Run, without_syncs, "4_G.pth", "none of the 1 checkpoint sets verifies"),
        (Run, without_syncs, "4_optimizerG.pth", "none of the 1 checkpoint sets verifies"),
        (Run, without_syncs, "4_manifest.json", "none of the 1 checkpoint sets verifies"),
        (Run, without_syncs, "best_model.pth", "best_model.pth: not a readable checkpoint"),
        (Run, without_syncs, "status.json", "JSONDecodeError"),
        (Run, without_syncs, "tiny", "4 was saved, 0 is found"),
        (Run, without_syncs, "models", "4 was saved, 0 is found"),
        (Manager, without_syncs, "best_model.pth", "best 1 was saved, 0 is found"),
        (Manager, without_syncs, "epoch_0.pth", "latest 1 was saved, 0 is found"),
        (Manager, without_syncs, "interrupt", "latest 4 was saved, 3 is found"),
        (Manager, without_syncs, "checkpoint", "1 was saved, 0 is found"),
        (Run, with_late_syncs, "4_manifest.json", "none of the 1 checkpoint sets verifies"),
        (Run, with_late_syncs, "best_model.pth", "best_model.pth: not a readable checkpoint"),
        (Run, with_late_syncs, "status.json", "JSONDecodeError"),
        (Manager, with_late_syncs, "best_model.pth", "best 1 was saved, 0 is found"),
    ],
)
def test_an_fsync_that_is_left_out_or_comes_after_the_rename_is_noticed(
    disk: Path, kind: type[Run], change: Callable[[Recorder, str], list[Operation]], name: str, problem: str
) -> None:
    scenario = kind(disk)
    scenario.iterations = (4,)
    recorder = record(scenario)
    result = replay(scenario, recorder, change(recorder, name), sample=16, enough=1)
    assert len(result.problems) == 1
    assert problem in result.problems[0]


class ThirdSet(Run):
    """A launch that saves one set more than are kept."""

    iterations = (12,)

    def prepare(self) -> None:
        self.launch([4, 8])
        self.found_before = {"set": 8, "best": 8}


def make_folder_carelessly(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def commit_manifest_first(
    self: CheckpointFolder, states: dict[str, object], manifest: Manifest, max_to_keep: int
) -> None:
    with contextlib.ExitStack() as stack:
        records = {}
        for part, state in states.items():
            name = set_file_name(manifest.iteration, part)
            records[part] = write_state(stack.enter_context(atomic_write(self.folder / name)), name, state)
        with atomic_write(self.folder / manifest_name(manifest.iteration), "w") as file:
            file.write(utils_checkpoint._manifest_text(dataclasses.replace(manifest, files=records)))
    self.prune(max_to_keep)


def prune_parts_first(self: CheckpointFolder, max_to_keep: int) -> None:
    manifests = list_manifests(self.folder)
    for iteration in sorted(manifests)[:-max_to_keep]:
        for part in PARTS:
            (self.folder / set_file_name(iteration, part)).unlink(missing_ok=True)
        fsync_directory(self.folder)
        manifests[iteration].unlink()


def prune_without_sync(self: CheckpointFolder, max_to_keep: int) -> None:
    manifests = list_manifests(self.folder)
    for iteration in sorted(manifests)[:-max_to_keep]:
        manifests[iteration].unlink()
        for part in PARTS:
            (self.folder / set_file_name(iteration, part)).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("kind", "owner", "name", "wrong", "problem"),
    [
        (ThirdSet, utils_checkpoint.CheckpointFolder, "prune", prune_parts_first, "4_G.pth is missing"),
        (ThirdSet, utils_checkpoint.CheckpointFolder, "prune", prune_without_sync, "4_G.pth is missing"),
        (Run, utils_checkpoint.CheckpointFolder, "commit", commit_manifest_first, "none of the 1 checkpoint sets"),
        (Run, utils_experiment, "make_folder", make_folder_carelessly, "4 was saved, 0 is found"),
        (Relaunch, utils_checkpoint, "make_folder", make_folder_carelessly, "a file in quarantine is lost"),
    ],
)
def test_a_wrong_order_is_noticed(
    disk: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Run], owner: object, name: str, wrong: object, problem: str
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    scenario = kind(disk)
    scenario.iterations = scenario.iterations[:1]
    recorder = record(scenario)
    result = replay(scenario, recorder, recorder.operations, sample=16, enough=1)
    assert len(result.problems) == 1
    assert problem in result.problems[0]
