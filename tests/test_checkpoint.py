"""Checkpoint sets: committed whole or not at all, verified before they are trusted, never deleted when damaged."""

import collections
import dataclasses
import errno
import hashlib
import io
import json
import logging
import os
import pickle
import random
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import messages
from tests.run_helpers import PARTS, flip_bit, in_child, punch_hole, truncate
from utils.utils_checkpoint import (
    CheckpointFolder,
    Manifest,
    ResumePoint,
    find_last_checkpoint,
    set_file_name,
)
from utils.utils_error import UserError
from utils.utils_file import TEMPORARY_NAME, sha256_of
from utils.utils_progress import Progress
from utils.utils_state_file import DamagedFileError, check_finite, load_state, write_model, write_state

NUM_RENAMES = len(PARTS) + 1
DAMAGES = {"flipped bit": flip_bit, "zero hole": punch_hole, "truncation": truncate, "missing file": Path.unlink}


class Recorded(Exception):
    """Raised by a test in the middle of the protocol."""


class Payload:
    """Unpickling it runs code that leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.file),)


def states(seed: int) -> dict[str, Any]:
    """A set of three parts; in the middle of each file there are 16 KiB of random numbers."""
    generator = torch.Generator().manual_seed(seed)

    def tensor() -> torch.Tensor:
        return torch.randn(64, 64, generator=generator)

    moments = {"step": torch.tensor(float(seed)), "exp_avg": tensor()}
    return {
        "G": collections.OrderedDict(weight=tensor(), running_mean=tensor()[0].clone()),
        "E": {"weight": tensor(), "running_mean": tensor()[0].clone()},
        "optimizerG": {"state": {0: moments}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]},
    }


def manifest(iteration: int) -> Manifest:
    return Manifest(
        iteration=iteration, epoch=1, reason="periodic", progress=Progress(0.5, 2), stream={"seed": 0},
        machine={"ranks": 1},
    )  # fmt: skip


def commit(folder: Path, *iterations: int, max_to_keep: int = 0) -> CheckpointFolder:
    folder.mkdir(exist_ok=True)
    checkpoints = CheckpointFolder(folder)
    for iteration in iterations:
        checkpoints.commit(states(iteration), manifest(iteration), max_to_keep)
    return checkpoints


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def set_names(*iterations: int) -> set[str]:
    return {f"{each}_{part}.pth" for each in iterations for part in PARTS} | {f"{i}_manifest.json" for i in iterations}


def quarantined(folder: Path) -> set[str]:
    return names(folder / "quarantine") if (folder / "quarantine").exists() else set()


def holds(point: ResumePoint | None, iteration: int) -> bool:
    """Whether the resume point is that iteration, and its files hold what was committed for it."""
    if point is None or point.iteration != iteration:
        return False
    return all(_equal(load_state(path), states(iteration)[part]) for part, path in point.files.items())


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(_equal(first[key], second[key]) for key in first)
    return first == second


def test_a_committed_set_is_found_and_holds_what_was_saved(tmp_path: Path) -> None:
    checkpoints = commit(tmp_path, 4, 8)
    point = checkpoints.find_resume_point(PARTS)
    assert holds(point, 8)
    assert not holds(point, 4)  # control: another set is noticed
    assert names(tmp_path) == set_names(4, 8)


def test_manifest_records_bytes_hashes_and_what_it_was_given(tmp_path: Path) -> None:
    commit(tmp_path, 4)
    content = json.loads((tmp_path / "4_manifest.json").read_text())
    assert (content["iteration"], content["epoch"], content["reason"]) == (4, 1, "periodic")
    assert content["progress"] == dataclasses.asdict(Progress(0.5, 2))
    assert content["saved_at"]
    for part in PARTS:
        data = (tmp_path / f"4_{part}.pth").read_bytes()
        assert content["files"][part] == {
            "name": f"4_{part}.pth",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }


def test_files_are_synced_before_their_renames_and_the_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    replace, fsync = os.replace, os.fsync

    def recording_replace(source: Any, target: Any) -> None:
        events.append(("rename", Path(target).name))
        replace(source, target)

    def recording_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        events.append(("fsync", TEMPORARY_NAME.sub(r"\g<name>", name)))
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", recording_replace)
    monkeypatch.setattr(os, "fsync", recording_fsync)
    commit(tmp_path, 4)
    renamed = [name for kind, name in events if kind == "rename"]
    assert set(renamed[:-1]) == {f"4_{part}.pth" for part in PARTS}
    assert renamed[-1] == "4_manifest.json"
    for name in renamed:
        assert events.index(("fsync", name)) < events.index(("rename", name))
    before_commit = events[: events.index(("rename", "4_manifest.json"))]
    last_part = max(place for place, event in enumerate(before_commit) if event[0] == "rename")
    assert ("fsync", tmp_path.name) in before_commit[last_part:]
    assert events[-1] == ("fsync", tmp_path.name)


def crash_before_rename(checkpoints: CheckpointFolder, iteration: int, number: int, crash: Callable[[], None]) -> None:
    """Commit a set; `crash` is called before rename `number` (from 0)."""
    replace, count = os.replace, iter(range(NUM_RENAMES))

    def crashing_replace(source: Any, target: Any) -> None:
        if next(count) == number:
            crash()
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", crashing_replace)
        checkpoints.commit(states(iteration), manifest(iteration), 0)


def raise_recorded() -> None:
    raise Recorded


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("number", range(NUM_RENAMES))
@pytest.mark.parametrize("crash", ["exception", "SIGKILL"])
def test_a_crash_before_any_rename_leaves_the_previous_set(tmp_path: Path, crash: str, number: int) -> None:
    checkpoints = commit(tmp_path, 4)
    before = {name: sha256_of(tmp_path / name) for name in names(tmp_path)}
    if crash == "exception":
        with pytest.raises(Recorded):
            crash_before_rename(checkpoints, 8, number, raise_recorded)
        assert not [name for name in names(tmp_path) if TEMPORARY_NAME.fullmatch(name)]
    else:
        status = in_child(lambda: crash_before_rename(checkpoints, 8, number, kill_self))
        assert status == -signal.SIGKILL
    assert holds(CheckpointFolder(tmp_path).find_resume_point(PARTS), 4)
    assert {name: sha256_of(tmp_path / name) for name in before} == before
    assert not {name for name in names(tmp_path) if name.startswith("8_")}
    assert len(quarantined(tmp_path)) == number
    assert holds(commit(tmp_path, 8).find_resume_point(PARTS), 8)


def test_without_a_crash_the_same_commit_becomes_the_resume_point(tmp_path: Path) -> None:
    checkpoints = commit(tmp_path, 4)
    crash_before_rename(checkpoints, 8, NUM_RENAMES, kill_self)
    assert holds(checkpoints.find_resume_point(PARTS), 8)


def test_files_renamed_before_a_crash_are_reported_with_the_steps_of_each_part(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    checkpoints = commit(tmp_path, 4)
    with pytest.raises(Recorded):
        crash_before_rename(checkpoints, 8, 1, raise_recorded)
    (moved,) = {name for name in names(tmp_path) if name.startswith("8_")}
    checkpoints.find_resume_point(PARTS)
    warned = messages(logged.records, logging.WARNING)
    assert moved in warned
    for part in PARTS:
        assert f"{part} at {8 if moved == set_file_name(8, part) else 4}" in warned
    assert quarantined(tmp_path) == {moved}


def test_parts_that_agree_give_no_warning(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    commit(tmp_path, 4, 8).find_resume_point(PARTS)
    assert not messages(logged.records, logging.WARNING)


def test_parts_that_are_not_enabled_do_not_count(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    checkpoints = commit(tmp_path, 4)
    (tmp_path / "9_E.pth").write_bytes(b"stale")
    point = checkpoints.find_resume_point(("G", "optimizerG"))
    assert point is not None
    assert point.iteration == 4
    assert set(point.files) == {"G", "optimizerG"}
    assert "do not belong together" not in messages(logged.records)


def test_a_set_without_a_part_that_is_enabled_since_is_no_mismatch(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    """The average was switched off in between, and is on again."""
    checkpoints = commit(tmp_path, 4)
    checkpoints.commit({part: states(8)[part] for part in ("G", "optimizerG")}, manifest(8), 0)
    assert holds(checkpoints.find_resume_point(PARTS), 8)
    assert not messages(logged.records, logging.WARNING)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_file_is_named_and_its_set_is_set_aside_and_passed_over(
    tmp_path: Path, part: str, damage: str, logged: pytest.LogCaptureFixture
) -> None:
    checkpoints = commit(tmp_path, 4, 8)
    DAMAGES[damage](tmp_path / f"8_{part}.pth")
    left = {name: sha256_of(tmp_path / name) for name in names(tmp_path) if name.startswith("8_")}
    assert holds(checkpoints.find_resume_point(PARTS), 4)
    assert f"8_{part}.pth" in messages(logged.records, logging.ERROR)
    assert {name: sha256_of(tmp_path / "quarantine" / name) for name in quarantined(tmp_path)} == left
    assert names(tmp_path) == set_names(4)


@pytest.mark.parametrize("damage", ["flipped bit", "zero hole"])
def test_torch_itself_notices_neither_a_flipped_bit_nor_a_hole(tmp_path: Path, damage: str) -> None:
    commit(tmp_path, 8)
    DAMAGES[damage](tmp_path / "8_G.pth")
    assert not _equal(torch.load(tmp_path / "8_G.pth", weights_only=True), states(8)["G"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_set_with_a_damaged_manifest_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = commit(tmp_path, 4, 8)
    DAMAGES[damage](tmp_path / "8_manifest.json")
    assert holds(checkpoints.find_resume_point(PARTS), 4)
    assert names(tmp_path) == set_names(4)
    assert {f"8_{part}.pth" for part in PARTS} <= quarantined(tmp_path)


def test_every_single_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    commit(tmp_path, 4, 8)
    path = tmp_path / "8_manifest.json"
    whole = path.read_bytes()
    choose = random.Random(0)
    for place in choose.sample(range(len(whole)), 100):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << choose.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(Exception, match=r"8_manifest\.json"):
            CheckpointFolder(tmp_path).verify(path)
    path.write_bytes(whole)
    assert CheckpointFolder(tmp_path).verify(path).iteration == 8


def test_the_newest_of_the_sets_that_verify_is_taken(tmp_path: Path) -> None:
    checkpoints = commit(tmp_path, 2, 4, 6, 10)
    flip_bit(tmp_path / "10_E.pth")
    truncate(tmp_path / "6_manifest.json")
    assert holds(checkpoints.find_resume_point(PARTS), 4)
    assert names(tmp_path) == set_names(2, 4)


@pytest.mark.parametrize("name", ["8_G.pth", "8_manifest.json"])
def test_a_set_that_the_disk_cannot_give_back_is_passed_over(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    checkpoints = commit(tmp_path, 4, 8)
    refuse_reading(monkeypatch, tmp_path / name, errno.EIO)
    assert holds(checkpoints.find_resume_point(PARTS), 4)
    assert quarantined(tmp_path) == set_names(8)
    assert f"{name} cannot be read: Input/output error" in messages(logged.records, logging.ERROR)


@pytest.mark.parametrize("name", ["8_G.pth", "8_manifest.json"])
def test_a_set_that_may_not_be_read_is_left_where_it_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = commit(tmp_path, 4, 8)
    refuse_reading(monkeypatch, tmp_path / name, errno.EACCES)
    with pytest.raises(UserError, match=rf"{name} cannot be read: Permission denied; it was left where it is"):
        checkpoints.find_resume_point(PARTS)
    assert names(tmp_path) == set_names(4, 8)


def refuse_reading(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Opening this file fails with that errno."""
    opened = io.open

    def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
        if file == path:
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)


def test_nothing_but_damaged_sets_is_a_clear_error_and_nothing_is_deleted(tmp_path: Path) -> None:
    checkpoints = commit(tmp_path, 4, 8)
    flip_bit(tmp_path / "4_G.pth")
    flip_bit(tmp_path / "8_G.pth")
    with pytest.raises(UserError, match=r"none of the 2 checkpoint sets.*quarantine.*launch again"):
        checkpoints.find_resume_point(PARTS)
    assert quarantined(tmp_path) == set_names(4, 8)
    assert checkpoints.find_resume_point(PARTS) is None


def test_a_second_damaged_set_of_one_iteration_does_not_overwrite_the_first(tmp_path: Path) -> None:
    commit(tmp_path, 4)
    for _ in range(2):
        commit(tmp_path, 8)
        flip_bit(tmp_path / "8_G.pth")
        CheckpointFolder(tmp_path).find_resume_point(PARTS)
    assert len(quarantined(tmp_path)) == 2 * len(set_names(8))


@pytest.mark.parametrize(
    ("max_to_keep", "kept"), [(2, (6, 10)), (3, (4, 6, 10)), (9, (2, 4, 6, 10)), (0, (2, 4, 6, 10))]
)
def test_only_the_newest_sets_are_kept_by_number_not_by_name(
    tmp_path: Path, max_to_keep: int, kept: tuple[int, ...]
) -> None:
    commit(tmp_path, 2, 4, 6, 10, max_to_keep=max_to_keep)
    assert names(tmp_path) == set_names(*kept)


def test_pruning_spares_everything_that_is_no_set(tmp_path: Path) -> None:
    others = {"best_model.pth", "final_model.pth", "notes.txt", "best_2_G.pth"}
    for name in others:
        (tmp_path / name).write_text("mine")
    commit(tmp_path, 2, 4, 6, max_to_keep=2)
    assert names(tmp_path) == set_names(4, 6) | others


def test_pruning_takes_the_manifest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = commit(tmp_path, 2, 4)
    removed: list[str] = []
    unlink = Path.unlink

    def recording_unlink(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", recording_unlink)
    checkpoints.commit(states(6), manifest(6), 2)
    assert removed[0] == "2_manifest.json"
    assert set(removed) == set_names(2)


def test_a_kill_while_pruning_leaves_the_newest_sets(tmp_path: Path) -> None:
    checkpoints = commit(tmp_path, 2, 4)

    def die_at_the_second_unlink() -> None:
        unlink, count = Path.unlink, iter(range(9))

        def dying_unlink(path: Path, missing_ok: bool = False) -> None:
            if next(count) == 1:
                kill_self()
            unlink(path, missing_ok)

        Path.unlink = dying_unlink  # type: ignore[method-assign]
        checkpoints.commit(states(6), manifest(6), 2)

    assert in_child(die_at_the_second_unlink) == -signal.SIGKILL
    assert holds(checkpoints.find_resume_point(PARTS), 6)
    left = names(tmp_path) - set_names(4, 6)
    assert left == {f"2_{part}.pth" for part in PARTS}
    for began_at, moved in ((2, set()), (0, left)):  # what was there when our first launch began is not ours
        assert holds(checkpoints.find_resume_point(PARTS, began_at), 6)
        assert quarantined(tmp_path) == moved
    assert names(tmp_path) == set_names(4, 6)


def test_a_set_is_committed_even_if_an_old_one_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, **_: bool) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    commit(tmp_path, 2, 4)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        checkpoints = commit(tmp_path, 6, max_to_keep=2)
    assert "2_manifest.json" in messages(logged.records, logging.WARNING)
    assert holds(checkpoints.find_resume_point(PARTS), 6)
    commit(tmp_path, 8, max_to_keep=2)
    assert names(tmp_path) == set_names(6, 8)


def test_a_committed_set_is_never_rewritten(tmp_path: Path) -> None:
    checkpoints = commit(tmp_path, 4)
    before = {name: (sha256_of(tmp_path / name), (tmp_path / name).stat().st_ino) for name in names(tmp_path)}
    checkpoints.commit(states(99), manifest(4), 0)
    assert {name: (sha256_of(tmp_path / name), (tmp_path / name).stat().st_ino) for name in names(tmp_path)} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", PARTS)
def test_non_finite_values_are_never_committed(tmp_path: Path, part: str, value: float) -> None:
    checkpoints = commit(tmp_path, 4)
    bad = states(8)
    tensor = bad[part]["state"][0]["exp_avg"] if part == "optimizerG" else bad[part]["weight"]
    tensor[3, 3] = value
    with pytest.raises(FloatingPointError, match=rf"8_{part}\.pth"):
        checkpoints.commit(bad, manifest(8), 2)
    assert names(tmp_path) == set_names(4)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float64(0.5), "numpy"),
        (np.zeros(3), "numpy"),
        (Path("here"), "pathlib"),
        (collections.deque([1]), "deque"),
        (Payload(Path("never")), "mkdir"),
    ],
    ids=["numpy scalar", "numpy array", "path", "deque", "code"],
)
def test_what_weights_only_refuses_fails_at_save_by_name(tmp_path: Path, value: Any, name: str) -> None:
    checkpoints = commit(tmp_path, 4)
    bad = states(8)
    bad["optimizerG"]["param_groups"][0]["lr"] = value
    with pytest.raises(TypeError, match=rf"8_optimizerG\.pth.*{name}"):
        checkpoints.commit(bad, manifest(8), 2)
    assert names(tmp_path) == set_names(4)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = commit(tmp_path, 4)
    usage = collections.namedtuple("usage", "total used free")
    needed = sum(
        tensor.nbytes
        for state in (states(8)["G"], states(8)["E"], states(8)["optimizerG"]["state"][0])
        for tensor in state.values()
    )
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage(10**9, 10**9, needed))
    with pytest.raises(OSError, match=r"free.*needs.*older sets are untouched"):
        checkpoints.commit(states(8), manifest(8), 2)
    assert names(tmp_path) == set_names(4)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage(10**9, 0, 2 * needed))
    checkpoints.commit(states(8), manifest(8), 2)
    assert names(tmp_path) == set_names(4, 8)


def test_two_saves_of_one_state_are_byte_identical(tmp_path: Path) -> None:
    commit(tmp_path / "one", 4)
    commit(tmp_path / "two", 4)
    other = CheckpointFolder(tmp_path)
    other.commit(states(5), manifest(4), 0)
    for part in PARTS:
        first, second, third = (folder / f"4_{part}.pth" for folder in (tmp_path / "one", tmp_path / "two", tmp_path))
        assert first.read_bytes() == second.read_bytes()
        assert first.read_bytes() != third.read_bytes()


def test_everything_committed_loads_with_weights_only(tmp_path: Path) -> None:
    commit(tmp_path, 4)
    for part in PARTS:
        assert _equal(torch.load(tmp_path / f"4_{part}.pth", weights_only=True), states(4)[part])


@pytest.mark.parametrize("is_glance", [False, True])
def test_a_file_of_a_gpu_is_loaded_onto_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_glance: bool
) -> None:
    """As KAIR saves them: else all ranks would load it onto the first GPU, and a machine without one not at all."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")
        kair(tmp_path, 5, parts=("optimizerG",))
    with pytest.raises(RuntimeError, match="CUDA"):  # control
        torch.load(tmp_path / "5_optimizerG.pth", weights_only=True)
    loaded = load_state(tmp_path / "5_optimizerG.pth", is_glance)
    assert {tensor.device.type for tensor in loaded["state"][0].values()} == {"cpu"}
    assert _equal(loaded, states(5)["optimizerG"])


def test_loading_runs_nothing_that_a_file_holds(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"weight": torch.zeros(2), "payload": Payload(trace)}, path)
    with pytest.raises(UserError, match=r"evil\.pth.*refused.*nothing in it was run.*mkdir"):
        load_state(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # control: the payload works
    assert trace.exists()


def test_a_plain_pickle_is_refused_too(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Payload(trace), protocol=2))
    with pytest.raises(UserError, match=r"evil\.pth"):
        load_state(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"just some text\n", b"\x00" * 4096, b"PK\x03\x04"], ids=repr)
def test_what_is_no_checkpoint_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "5_G.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"5_G\.pth: not a readable checkpoint"):
        load_state(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5_G\.pth: no such file"):
        load_state(tmp_path / "5_G.pth")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=tmp_path.name):
        load_state(tmp_path)


@pytest.mark.parametrize("length", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_a_clear_error(tmp_path: Path, length: float) -> None:
    commit(tmp_path, 4)
    path = tmp_path / "4_G.pth"
    path.write_bytes(path.read_bytes()[: int(length * path.stat().st_size)])
    with pytest.raises(UserError, match=r"4_G\.pth"):
        load_state(path)


def test_a_damaged_file_loads_or_is_a_clear_error_whatever_the_damage(tmp_path: Path) -> None:
    commit(tmp_path, 4)
    path = tmp_path / "4_optimizerG.pth"
    whole = path.read_bytes()
    said: list[str] = []
    for flipped in with_flipped_bits(whole):
        path.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about what it finds in the file
            try:
                load_state(path)
            except UserError as error:
                said.append(str(error))
    assert len(said) > 20
    assert all("4_optimizerG.pth" in each for each in said)


def with_flipped_bits(whole: bytes) -> Iterator[bytes]:
    """Copies with one bit flipped in the first or the last 600 bytes, where the structure is."""
    choose = random.Random(0)
    for place in [*range(0, 600, 3), *range(len(whole) - 600, len(whole), 3)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << choose.randrange(8)
        yield bytes(flipped)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], None),
        (["5000_G.pth", "10000_G.pth", "9000_G.pth"], (10000, "10000_G.pth")),
        (["latest_G.pth"], None),
        (["latest_G.pth", "5000_G.pth"], (5000, "5000_G.pth")),
        (["best_5000_G.pth", "100_G.pth"], (100, "100_G.pth")),
        (["005000_G.pth"], (5000, "005000_G.pth")),
        (["005000_G.pth", "5000_G.pth"], (5000, "5000_G.pth")),
        (["6000_G.pth.tmp", "5000_G.pth"], (5000, "5000_G.pth")),
        (["6000_g.pth", "6000_GG.pth", "6000_G_pth", "-7000_G.pth", "7e3_G.pth", "5000_G.pth"], (5000, "5000_G.pth")),
        (["6000_E.pth", "7000_optimizerG.pth", "5000_G.pth"], (5000, "5000_G.pth")),
        ([".8000_G.pth.77.tmp", "notes.txt", "best_model.pth"], None),
        (["0_G.pth"], (0, "0_G.pth")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("folder_name", ["models", "a[b]*?"])
def test_lookup_by_name(tmp_path: Path, folder_name: str, entries: list[str], expected: tuple[int, str] | None) -> None:
    folder = tmp_path / folder_name
    folder.mkdir()
    for entry in entries:
        (folder / entry).touch()
    iteration, path = find_last_checkpoint(str(folder))
    if expected is None:
        assert (iteration, path) == (0, None)
    else:
        assert (iteration, path) == (expected[0], str(folder / expected[1]))
        assert path is not None
        assert Path(path).exists()


def test_lookup_treats_each_net_type_on_its_own(tmp_path: Path) -> None:
    for name in ("3_G.pth", "5_E.pth", "7_optimizerG.pth"):
        (tmp_path / name).touch()
    found = {part: find_last_checkpoint(tmp_path, part) for part in PARTS}
    assert {part: iteration for part, (iteration, _) in found.items()} == {"G": 3, "E": 5, "optimizerG": 7}
    assert find_last_checkpoint(tmp_path, net_type="D") == (0, None)


@pytest.mark.parametrize("exists", [True, False])
def test_lookup_returns_the_pretrained_path_with_0_where_there_is_nothing(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "models"
    if exists:
        folder.mkdir()
    assert find_last_checkpoint(folder, pretrained_path="weights.pth") == (0, "weights.pth")
    assert find_last_checkpoint(folder) == (0, None)


def test_lookup_prefers_the_folder_to_the_pretrained_path(tmp_path: Path) -> None:
    (tmp_path / "5_G.pth").touch()
    assert find_last_checkpoint(tmp_path, "G", "weights.pth") == (5, str(tmp_path / "5_G.pth"))


def kair(folder: Path, *iterations: int, parts: tuple[str, ...] = PARTS) -> CheckpointFolder:
    """Files as KAIR writes them: torch.save, no manifest."""
    for iteration in iterations:
        for part in parts:
            torch.save(states(iteration)[part], folder / f"{iteration}_{part}.pth")
    return CheckpointFolder(folder)


@pytest.mark.parametrize("section", [None, "progress"])
def test_sets_of_another_version_are_left_where_they_are(tmp_path: Path, section: str | None) -> None:
    commit(tmp_path, 4)
    path = tmp_path / "4_manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    (content[section] if section else content)["invented"] = 1
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))
    before = names(tmp_path)
    with pytest.raises(UserError, match=r"4_manifest\.json: written by another version of Longhaul .*invented"):
        CheckpointFolder(tmp_path).find_resume_point(PARTS)
    assert names(tmp_path) == before
    assert not quarantined(tmp_path)


def test_kair_folder_resumes_from_its_newest_files(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    checkpoints = kair(tmp_path, 5, 10)
    point = checkpoints.find_resume_point(PARTS)
    assert holds(point, 10)
    assert point is not None
    assert point.manifest is None
    assert set(point.files) == set(PARTS)
    assert "no manifests" in messages(logged.records, logging.WARNING)
    assert not quarantined(tmp_path)


def test_kair_folder_with_an_incomplete_newest_step(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    checkpoints = kair(tmp_path, 5)
    kair(tmp_path, 10, parts=("G", "E"))
    assert holds(checkpoints.find_resume_point(PARTS), 5)
    warned = messages(logged.records, logging.WARNING)
    for step in ("G at 10", "E at 10", "optimizerG at 5"):
        assert step in warned
    assert "iteration 5" in warned


def test_kair_folder_with_a_truncated_newest_file(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    checkpoints = kair(tmp_path, 5, 10)
    truncate(tmp_path / "10_E.pth")
    assert holds(checkpoints.find_resume_point(PARTS), 5)
    assert "10_E.pth" in messages(logged.records, logging.ERROR)
    assert (tmp_path / "10_E.pth").exists()


def test_a_set_of_ours_takes_the_place_of_no_file_of_kair(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    checkpoints = kair(tmp_path, 5)
    kair(tmp_path, 10, parts=("G", "E"))
    kept = {name: sha256_of(tmp_path / name) for name in ("10_G.pth", "10_E.pth")}
    assert holds(checkpoints.find_resume_point(PARTS), 5)
    checkpoints.commit({part: states(7)[part] for part in PARTS}, manifest(10), 0)
    assert {name: sha256_of(tmp_path / "quarantine" / name) for name in quarantined(tmp_path)} == kept
    assert "10_G.pth is of no committed set; moved to quarantine/." in messages(logged.records, logging.WARNING)


def test_a_second_attempt_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """A full disk may have had room for the parts and none for the manifest: a copy of them would not help."""
    checkpoints = CheckpointFolder(tmp_path)
    with pytest.raises(Recorded):
        crash_before_rename(checkpoints, 8, NUM_RENAMES - 1, raise_recorded)
    assert names(tmp_path) == {f"8_{part}.pth" for part in PARTS}
    checkpoints.commit(states(8), manifest(8), 0)
    assert holds(checkpoints.find_resume_point(PARTS), 8)
    assert not quarantined(tmp_path)


def test_parts_whose_manifest_found_no_room_go_with_the_next_set(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path)
    with pytest.raises(Recorded):
        crash_before_rename(checkpoints, 8, NUM_RENAMES - 1, raise_recorded)
    checkpoints.commit(states(12), manifest(12), 0)
    assert names(tmp_path) == {*(f"12_{part}.pth" for part in PARTS), "12_manifest.json"}


def test_kair_folder_with_a_flipped_bit(tmp_path: Path) -> None:
    checkpoints = kair(tmp_path, 5, 10)
    flip_bit(tmp_path / "10_G.pth")
    assert holds(checkpoints.find_resume_point(PARTS), 5)


def test_kair_folder_with_any_flipped_bit_has_a_resume_point(tmp_path: Path) -> None:
    checkpoints = kair(tmp_path, 5, 10, parts=("G",))
    taken = []
    for flipped in with_flipped_bits((tmp_path / "10_G.pth").read_bytes()):
        (tmp_path / "10_G.pth").write_bytes(flipped)
        point = checkpoints.find_resume_point(("G",))
        assert point is not None
        taken.append(point.iteration)
    assert 5 in taken


def test_kair_folder_without_optimizer_is_accepted_with_a_warning(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    checkpoints = kair(tmp_path, 5, 10, parts=("G",))
    point = checkpoints.find_resume_point(PARTS)
    assert holds(point, 10)
    assert point is not None
    assert set(point.files) == {"G"}
    warned = messages(logged.records, logging.WARNING)
    assert "optimizerG at none" in warned
    assert "G at 10" in warned


def test_an_absent_or_empty_folder_has_no_resume_point(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).find_resume_point(PARTS) is None
    assert CheckpointFolder(tmp_path / "absent").find_resume_point(PARTS) is None


@pytest.mark.parametrize("number", range(NUM_RENAMES))
@pytest.mark.parametrize("began_at", [0, 5])
def test_a_crash_in_our_very_first_commit_gives_no_folder_of_kair(tmp_path: Path, began_at: int, number: int) -> None:
    checkpoints = kair(tmp_path, *([began_at] if began_at else []))
    with pytest.raises(Recorded):
        crash_before_rename(checkpoints, 8, number, raise_recorded)
    point = checkpoints.find_resume_point(PARTS, began_at)
    assert holds(point, began_at) if began_at else point is None
    assert len(quarantined(tmp_path)) == number


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "5_G.pth")
    refuse_reading(monkeypatch, tmp_path / "5_G.pth", errno.EACCES)
    with pytest.raises(UserError, match=r"5_G\.pth: not a readable checkpoint \(Permission denied\)"):
        load_state(tmp_path / "5_G.pth")


def test_a_model_file_is_whole_and_finite_or_not_written(tmp_path: Path) -> None:
    path = tmp_path / "best_model.pth"
    write_model(path, {"iter": 4, "model_state_dict": {"weight": torch.ones(2)}})
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match=r"best_model\.pth"):
        write_model(path, {"iter": 5, "model_state_dict": {"weight": torch.tensor(float("nan"))}})
    with pytest.raises(TypeError, match=r"best_model\.pth"):
        write_model(path, {"iter": 5, "metrics": {"accuracy": np.float64(1)}})
    assert path.read_bytes() == before
    assert torch.load(path, weights_only=True)["iter"] == 4
    assert names(tmp_path) == {"best_model.pth"}


def test_only_files_without_a_manifest_carry_checksums(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path).commit(states(1), manifest(4), 2)
    write_model(tmp_path / "best_model.pth", states(1)["G"])

    def crcs(name: str) -> set[bool]:
        with zipfile.ZipFile(tmp_path / name) as archive:
            return {entry.CRC != 0 for entry in archive.infolist()}

    assert {part: crcs(f"4_{part}.pth") for part in PARTS} == {part: {False} for part in PARTS}
    assert crcs("best_model.pth") == {True}
    load_state(tmp_path / "4_G.pth")  # a file without checksums is not a damaged one
    flip_bit(tmp_path / "best_model.pth")
    torch.load(tmp_path / "best_model.pth", weights_only=True)  # control: torch does not notice
    with pytest.raises(DamagedFileError, match=r"best_model\.pth: damaged: the checksum of .* does not hold"):
        load_state(tmp_path / "best_model.pth")
    assert load_state(tmp_path / "best_model.pth", is_glance=True).keys() == states(1)["G"].keys()  # reads no weights
    with open(tmp_path / "part", "wb") as file:
        write_state(file, "part", states(1)["G"], with_crc=False)
    assert torch.serialization.get_crc32_options()  # whoever else saves on this thread gets them


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_value_that_is_not_finite_is_found(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    state = {"weight": torch.tensor([largest, largest, -1.0, largest], dtype=dtype), "none": torch.empty(0)}
    check_finite("x", state)  # although its sum overflows
    for place in range(4):
        damaged = {**state, "weight": state["weight"].clone()}
        damaged["weight"][place] = bad
        with pytest.raises(FloatingPointError, match="weight"):
            check_finite("x", damaged)
    with pytest.raises(FloatingPointError):
        check_finite("x", {"weight": torch.tensor([float("inf"), -float("inf")], dtype=dtype)})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e5m2])
def test_numbers_of_rarer_kinds_are_looked_at_too(dtype: torch.dtype) -> None:
    check_finite("x", {"weight": torch.tensor([1.0, 2.0]).to(dtype)})
    with pytest.raises(FloatingPointError):
        check_finite("x", {"weight": torch.tensor([1.0, float("nan")]).to(dtype)})
