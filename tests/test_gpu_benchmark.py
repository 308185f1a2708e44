"""What is measured on GPUs alone: the script runs, in a form of seconds on the CPU, and says what it could not do."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_fer2013
from benchmarks.gpu_fer2013 import HEADING, REHEARSAL, Loop, Plan, option_overrides, saves
from tables import TABLES
from utils import utils_option
from utils.utils_file import PROJECT_FOLDER


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_fer2013", *arguments]
    return subprocess.run(command, cwd=PROJECT_FOLDER, check=False, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "gpu_fer2013: there is no GPU, and nothing was measured\n"


def test_the_rehearsal_fills_the_table() -> None:
    done = run("--cpu_rehearsal", "--batch_size", "8")
    assert done.returncode == 0, done.stderr
    table = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    assert tuple(cell.strip() for cell in table[0]) == HEADING
    assert [len(line) for line in table] == [len(HEADING)] * 3
    cells = dict(zip(HEADING, (cell.strip() for cell in table[2]), strict=True))
    assert cells["batch size"] == "8"
    assert float(cells["images/s"]) > 0
    assert cells["GPU busy"] == cells["of a bare loop with CUDA graphs"] == "-"


class Watched(Loop):
    """What is done with a loop, in words."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def run(self, num_iters: int) -> None:
        self.done.append(f"{num_iters} iterations")

    def save(self) -> float:
        self.done.append("save")
        return 1.0

    def wait_for_save(self) -> None:
        self.done.append("wait")


def test_a_save_costs_what_is_queued_before_it_too() -> None:
    loop = Watched()
    cells = saves(loop, Plan(chunk=10, rounds=1))
    assert loop.done == ["save", "wait", "5 iterations", "save", "5 iterations", "wait", "10 iterations"]
    assert cells["a save: host stands still"] == "1.00 ± 0.00 ms"


def test_what_fails_is_said_and_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(*_: object) -> Iterator[dict[str, str]]:
        yield {"images/s": "5"}
        raise RuntimeError("no graph")

    monkeypatch.setattr(gpu_fer2013, "measure", measure)
    monkeypatch.setattr(gpu_fer2013, "whole_run", lambda *_: {"accuracy": "0.5"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as main sets it
    monkeypatch.setattr("sys.argv", ["gpu_fer2013", "--cpu_rehearsal", "--batch_size", "8", "16"])
    assert gpu_fer2013.main() == 1
    said = capsys.readouterr()
    for size, line in zip((8, 16), said.out.splitlines()[-2:], strict=True):
        cells = dict(zip(HEADING, line.strip("| ").split(" | "), strict=True))
        assert (cells["batch size"], cells["images/s"], cells["accuracy"]) == (str(size), "5", "0.5")
        assert cells["of a bare loop with CUDA graphs"] == cells["seconds in total"] == "failed"
    assert said.err.count("RuntimeError: no graph") == 2


@pytest.mark.parametrize("csv", [None, "/data/fer2013.csv"])
def test_the_shipped_options_take_the_changes(monkeypatch: pytest.MonkeyPatch, csv: str | None) -> None:
    if csv:
        monkeypatch.setenv("LONGHAUL_FER2013_CSV", csv)
    else:
        monkeypatch.delenv("LONGHAUL_FER2013_CSV", raising=False)
    overrides = option_overrides(REHEARSAL, 64, Path("/runs"))
    opt = utils_option.parse(PROJECT_FOLDER / "options" / "fer.json", overrides, TABLES)
    assert opt.datasets["train"].dataloader_batch_size == 64
    assert opt.datasets["test"].dataroot == opt.datasets["train"].dataroot == csv
    assert (opt.datasets["test"].fallback is None) == (csv is not None)
    assert opt.train.channels_last
    assert opt.train.amp == "bf16"
