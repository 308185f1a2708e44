"""What is measured on GPUs alone: the script runs, in a form of seconds on the CPU, and says what it could not do."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_fer2013 import HEADING, REHEARSAL, option_overrides
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_rehearsal_fills_the_table() -> None:
    done = run("--cpu_rehearsal", "--batch_size", "8")
    assert done.returncode == 0, done.stderr
    table = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    assert tuple(cell.strip() for cell in table[0]) == HEADING
    assert [len(line) for line in table] == [len(HEADING)] * 3
    cells = dict(zip(HEADING, (cell.strip() for cell in table[2]), strict=True))
    assert cells["batch size"] == "8"
    assert float(cells["images/s"]) > 0
    assert cells["GPU busy"] == "-"


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
