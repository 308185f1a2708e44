"""What a fresh machine gets: pins that fit pyproject.toml, an environment that is made once, a CI run that can fail."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PYPROJECT["optional-dependencies"]
RANGES = [Requirement(text) for text in [*PYPROJECT["dependencies"], *EXTRAS["dev"], *EXTRAS["export"]]]
LINES = [
    line
    for line in (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
NVIDIA = re.compile(r"nvidia-.*|cuda-.*|triton")  # what a CUDA build of torch brings along

needs_make = pytest.mark.skipif(
    os.name != "posix" or not shutil.which("make") or not shutil.which("bash"), reason="make and bash are missing"
)


def _pins() -> dict[str, Version]:
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in LINES)}


def test_every_line_is_one_exact_public_version() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in LINES), LINES
    assert len(_pins()) == len(LINES), "a package is pinned twice"
    assert not {"pip", "setuptools", "wheel"} & _pins().keys()


@pytest.mark.parametrize("wanted", RANGES, ids=lambda wanted: wanted.name)
def test_a_pin_satisfies_the_range_of_pyproject(wanted: Requirement) -> None:
    assert _pins()[canonicalize_name(wanted.name)] in wanted.specifier


def test_the_pins_that_must_not_move() -> None:
    assert LINES[0] == "torch==2.13.0"
    assert _pins()["opencv-python-headless"] < Version("5"), "5.0 dropped the face cascades"
    assert "opencv-python" not in _pins(), "it does not import on machines without libGL"
    assert PYPROJECT["requires-python"] == ">=3.11"


def test_whatever_a_dependency_needs_is_pinned() -> None:
    assert {name for name in _closure() if not NVIDIA.fullmatch(name)} - {"setuptools"} <= _pins().keys()


def _closure() -> set[str]:
    """Names of the project's dependencies and, as installed here, of everything that they need in turn."""
    found: set[str] = set()
    waiting = list(RANGES)
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the Makefile and CI script, and `python`, which only writes down how it is called."""
    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", "requirements.txt", ".ci/run"):
        shutil.copy(PROJECT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" >>calls\nif [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
    )
    python.chmod(0o755)
    return tmp_path


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}  # not what an outer make passes on
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=60, check=False)


def _calls(folder: Path, words: str) -> int:
    path = folder / "calls"
    return path.read_text().count(words) if path.exists() else 0


@needs_make
def test_make_installs_once_and_again_when_a_pin_changes(project: Path) -> None:
    for _ in range(2):
        done = _run(project.parent, "make", "-C", str(project), "test", f"PYTHON={project / 'python'}")
        assert done.returncode == 0, done.stderr
    assert (_calls(project, "-m venv"), _calls(project, "-m pip install"), _calls(project, "-m pytest")) == (1, 1, 2)
    stamp = project / ".venv" / "installed"
    os.utime(project / "requirements.txt", ns=(stamp.stat().st_mtime_ns + 10**9,) * 2)
    assert _run(project, "make", "train", f"PYTHON={project / 'python'}").returncode == 0
    assert (_calls(project, "-m venv"), _calls(project, "-m pip install")) == (1, 2)
    assert _calls(project, "main_train.py -opt options/fer.json") == 1


@needs_make
def test_make_says_when_there_is_no_suitable_python(project: Path) -> None:
    (project / "python").write_text("#!/bin/sh\nexit 1\n")  # as a Python older than 3.11 answers
    done = _run(project, "make", "test", f"PYTHON=no-such-python {project / 'python'}")
    assert done.returncode != 0
    assert "No Python 3.11 or newer" in done.stderr
    assert "make test PYTHON=" in done.stderr
    assert not (project / ".venv").exists()


@needs_make
def test_a_failed_installation_is_tried_again(project: Path) -> None:
    script = (project / "python").read_text()
    (project / "python").write_text(script + 'if [ "$2" = pip ]; then exit 1; fi\n')
    assert _run(project, "make", "test", f"PYTHON={project / 'python'}").returncode != 0
    assert (_calls(project, "-m pip"), _calls(project, "-m pytest")) == (1, 0)
    assert _run(project, "make", "test").returncode != 0
    assert _calls(project, "-m pip") == 2


@needs_make
def test_make_clean_leaves_experiments_and_data(project: Path) -> None:
    kept = [project / name / "__pycache__" / "x" for name in ("experiments/fer", ".venv/lib", "trainsets")]
    gone = [project / name / "x" for name in ("data/__pycache__", "__pycache__", ".mypy_cache")]
    for path in [*kept, *gone]:
        path.parent.mkdir(parents=True)
        path.touch()
    assert _run(project, "make", "clean").returncode == 0
    assert all(path.exists() for path in kept)
    assert not any(path.parent.exists() for path in gone)


@needs_make
@pytest.mark.parametrize("failing", ["", "lint", "types", "test"])
def test_ci_runs_everything_and_fails_if_anything_does(project: Path, failing: str) -> None:
    targets = "".join(
        f"{each}:\n\t@echo ran {each}; test {each} != '{failing}'\n" for each in ("lint", "types", "test")
    )
    (project / "Makefile").write_text(targets)
    done = _run(project.parent, "bash", str(project / ".ci" / "run"))
    assert [f"ran {each}" in done.stdout for each in ("lint", "types", "test")] == [True] * 3
    assert (done.returncode != 0) == bool(failing)
    assert (f"failed: {failing}" in done.stderr) == bool(failing)


def test_the_ci_script_is_executable() -> None:
    assert os.name != "posix" or os.access(PROJECT / ".ci" / "run", os.X_OK)
