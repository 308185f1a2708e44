"""A folder that KAIR has left, without manifests: what a launch resumes from, by the names of its files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.serialization

from tests.helpers import same_tensors
from tests.run_helpers import Run, RunServer, run_options, server, truncate
from utils.utils_state_file import load_state

__all__ = ["server"]  # a fixture

NewRun = Callable[[str], Run]


@pytest.fixture(scope="module")
def new_run(server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> NewRun:
    options = run_options(tmp_path_factory.mktemp("data"))
    return lambda name: Run(server, tmp_path_factory.mktemp(name), options)


@pytest.fixture(scope="module")
def ours(new_run: NewRun) -> Run:
    """A run of ours that has sets of the iterations 4 and 8."""
    run = new_run("ours")
    assert run.launch("--set", "train.total_iter=8").status == 0
    return run


@pytest.fixture
def kairs(ours: Run, new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same as KAIR and BasicSR write it on a GPU: wrapped weights, and nothing but them."""
    run = new_run("kairs")
    shutil.copytree(ours.folder, run.folder)
    for path in (*run.models.glob("*.json"), *run.models.glob("*model.pth"), run.folder / "status.json"):
        path.unlink()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _storage: "cuda:0")
    for iteration in (4, 8):
        G, E = (torch.load(run.models / f"{iteration}_{part}.pth") for part in ("G", "E"))
        torch.save({"params": G}, run.models / f"{iteration}_G.pth")
        torch.save({"params": G, "params_ema": E}, run.models / f"{iteration}_E.pth")
        optimizer = run.models / f"{iteration}_optimizerG.pth"
        torch.save(torch.load(optimizer, weights_only=True), optimizer)
    monkeypatch.undo()
    return run


def resumed(run: Run, *arguments: str) -> str:
    """What the start says; the launch goes on to iteration 9."""
    ended = run.launch("--set", "train.total_iter=9", *arguments)
    assert ended.status == 0, ended.output
    return ended.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU loads such a file without a word")
def test_the_files_are_those_of_a_gpu(kairs: Run) -> None:
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(kairs.models / "8_G.pth", weights_only=True)


def test_wrapped_files_of_a_gpu_are_resumed_from(kairs: Run) -> None:
    before = {part: kairs.hashes(8)[part] for part in ("G", "E", "optimizerG")}
    output = resumed(kairs)
    assert "resumed from iteration 8: 8_G.pth, 8_E.pth, 8_optimizerG.pth" in output
    assert "NEW STREAM: the files carry no manifest" in output
    assert "do not belong together" not in output
    assert kairs.hashes(8) == before
    assert kairs.committed() == [9]


def test_they_go_on_as_a_set_of_ours_does(kairs: Run, ours: Run, new_run: NewRun) -> None:
    """One step from the same state, at the same place of the stream."""
    same = new_run("same")
    shutil.copytree(ours.folder, same.folder)
    assert "EXACT" in resumed(same)
    resumed(kairs)
    assert same_tensors(kairs.model("9_G.pth"), same.model("9_G.pth"))
    assert same_tensors(kairs.model("9_E.pth"), same.model("9_E.pth"))


def test_a_mismatch_is_a_warning_that_names_all_steps_and_the_chosen_one(kairs: Run) -> None:
    (kairs.models / "8_E.pth").unlink()
    output = resumed(kairs)
    assert "G at 8, E at 4, optimizerG at 8" in output
    assert "resumed from iteration 4" in output


def test_a_truncated_newest_file_is_passed_over(kairs: Run) -> None:
    truncate(kairs.models / "8_G.pth")
    output = resumed(kairs)
    assert "Iteration 8 is passed over: " in output
    assert "8_G.pth: not a readable checkpoint (its end is missing: it was cut off)" in output
    assert "resumed from iteration 4" in output
    assert "Traceback" not in output


def test_files_of_an_old_torch_are_resumed_from(kairs: Run) -> None:
    for path in kairs.models.glob("*.pth"):
        torch.save(load_state(path), path, _use_new_zipfile_serialization=False)
    assert "resumed from iteration 8" in resumed(kairs)


def test_a_folder_of_which_nothing_can_be_read_is_no_fresh_run(kairs: Run) -> None:
    for path in kairs.models.glob("*.pth"):
        truncate(path)
    before = sorted(path.name for path in kairs.models.iterdir())
    ended = kairs.launch("--set", "train.total_iter=9")
    assert ended.status == 2
    assert "of 2 iterations none can be read; restore them from a backup, or move them away" in ended.output
    assert [name for name in before if not (kairs.models / name).exists()] == []


def test_a_malicious_file_is_one_line_and_2(kairs: Run) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (kairs.folder / "executed",)

    torch.save({"params": Payload()}, kairs.models / "8_G.pth")
    ended = kairs.launch("--set", "train.total_iter=9")
    assert ended.status == 2
    assert "8_G.pth: refused" in ended.output
    assert "nothing in it was run" in ended.output
    assert "Traceback" not in ended.output
    assert not (kairs.folder / "executed").exists()
