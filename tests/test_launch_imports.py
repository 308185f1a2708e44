"""A launch imports what costs seconds only when it is used: nothing of it before the first iteration is done."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny_csv, tiny_option_mapping, write_options

PROJECT = Path(__file__).resolve().parent.parent

# Prints what is imported when the first iteration is done and when the launch has ended, a line each.
SCRIPT = """
import json, sys
import main_train
from models.model_plain import ModelPlain

update, heard = ModelPlain.optimize_parameters, []

def first_update(*arguments):
    update(*arguments)
    heard.append(json.dumps(sorted(sys.modules)))
    ModelPlain.optimize_parameters = update

ModelPlain.optimize_parameters = first_update
status = main_train.main()
print("\\n".join([*heard, json.dumps(sorted(sys.modules))]))
sys.exit(status)
"""

DRAWN_OR_WRITTEN = {"matplotlib", "tensorboard", "PIL"}
NEVER_HERE = {
    "torch._dynamo",
    "torch._inductor",
    "sympy",
    "scipy",
    "sklearn",
    "pandas",
    "onnx",
    "jinja2",
}


def launch(option_file: Path, *arguments: str) -> list[set[str]]:
    command = [sys.executable, "-c", SCRIPT, "-opt", str(option_file), *arguments]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return [set(json.loads(line)) for line in run.stdout.splitlines() if line.startswith("[")]


@pytest.fixture
def option_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGHAUL_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = tiny_option_mapping(tmp_path, tiny_csv(tmp_path))
    options["log"]["tensorboard"] = options["val"]["save_img"] = True
    return write_options(options, tmp_path / "tiny.json")


def test_nothing_heavy_is_imported_before_the_first_iteration_is_done(option_file: Path) -> None:
    at_first_iter, at_the_end = launch(option_file, "--set", "train.total_iter=2")
    assert at_first_iter & (DRAWN_OR_WRITTEN | NEVER_HERE) == set()
    assert at_the_end & NEVER_HERE == set()
    assert at_the_end >= DRAWN_OR_WRITTEN, "the launch used these, so the list must show them"
    resumed_at_first_iter, _ = launch(option_file)
    assert resumed_at_first_iter & (DRAWN_OR_WRITTEN | NEVER_HERE) == set()
    (finished,) = launch(option_file)
    assert finished & (DRAWN_OR_WRITTEN | NEVER_HERE) == set()


def test_a_dry_run_imports_nothing_heavy(option_file: Path) -> None:
    (imported,) = launch(option_file, "--dry_run")
    assert imported & (DRAWN_OR_WRITTEN | NEVER_HERE) == set()
    assert imported >= {"torch", "numpy"}
