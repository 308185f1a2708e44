"""benchmarks.saving measures what it says, on a set of a few kilobytes."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import saving
from benchmarks.saving import Training, measure_in
from utils.utils_checkpoint import CheckpointFolder


def test_every_contender_is_measured_in_every_round_and_the_sets_are_whole(tmp_path: Path) -> None:
    training = Training(width=4, depth=2)
    rows = measure_in(tmp_path, training, rounds=2)
    assert [sorted(row.samples) for row in rows] == [
        ["DCP async_save", "KAIR style", "Longhaul", "memcpy", "memcpy of one block"],
        ["DCP async_save", "KAIR style", "Longhaul", "memcpy", "memcpy of one block"],
        ["Longhaul", "torch.save + fsync"],
        ["a step", "a step during a save"],
    ]
    for row in rows:
        assert row.ours in row.samples
        assert all(len(values) == 2 and min(values) > 0 for values in row.samples.values())
    point = CheckpointFolder(tmp_path).find_resume_point(("G", "E", "optimizerG"))
    assert point is not None
    assert point.iteration == 2 + 3 * 2
    assert training.num_bytes() == sum(
        tensor.nbytes for part in ("netG", "netE") for tensor in getattr(training, part).state_dict().values()
    ) + sum(tensor.nbytes for state in training.optimizer.state.values() for tensor in state.values())


def test_only_steps_beside_the_writer_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, commit = Training(width=4, depth=2), CheckpointFolder.commit
    num_steps, enough = 2 * saving.STEPS, threading.Event()
    done: list[None] = []

    def step(_: Training) -> None:
        done.append(None)
        if len(done) == num_steps:
            enough.set()

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert enough.wait(timeout=30)
        return commit(*args, **kwargs)

    ours = saving.Longhaul(tmp_path)
    monkeypatch.setattr(Training, "step", step)
    monkeypatch.setattr(CheckpointFolder, "commit", slow)
    saving.step_row("small", training, ours, rounds=1)
    ours.writer.close()
    assert enough.is_set()


def test_no_peer_pays_for_the_removal_of_its_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[Path]] = []

    def watched(save: Callable[[Path, saving.State], Any]) -> Callable[[Path, saving.State], Any]:
        def saved(folder: Path, state: saving.State) -> Any:
            found.append(list(folder.iterdir()))
            return save(folder, state)

        return saved

    for name in ("three_saves", "save_async"):
        monkeypatch.setattr(saving, name, watched(getattr(saving, name)))
    measure_in(tmp_path, Training(width=4, depth=2), rounds=2)
    assert found == [[]] * 4
