"""Longhaul imports and trains where POSIX locks, some signals and Linux's own calls are missing, with one warning."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers import write_options

PROJECT = Path(__file__).parent.parent

# What Windows or macOS lack is removed, then the whole project is imported and trains. The libraries come first: they
# have their own ways to ask which system this is.
ELSEWHERE = """
import importlib, os, signal, sys, sysconfig
from pathlib import Path

import cv2, numpy, torch, torch.utils.data

sysconfig.get_config_vars()  # read once from a file named after the system

for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGKILL", "pthread_sigmask", "sigwait", "setitimer"):
    delattr(signal, name)
for name in ("sched_getaffinity", "pwrite", "pread", "getuid", "geteuid", "uname", "sysconf", "getpgid"):
    delattr(os, name)
sys.platform = "elsewhere"

for path in sorted(Path().glob("*/*.py")):
    if path.parts[0] in ("models", "data", "utils"):
        importlib.import_module(".".join(path.with_suffix("").parts))
import main_test, main_train

sys.argv = ["main_train.py", "-opt", sys.argv[1], "--dry_run"]
dry = main_train.main()
sys.argv.pop()
print("statuses", dry, main_train.main())
"""


def test_it_imports_and_trains_without_what_only_linux_has(
    tmp_path: Path, tiny_options: Callable[..., dict[str, Any]]
) -> None:
    options = tiny_options(
        train__total_iter=2,
        train__G_scheduler_warmup_iter=0,
        val={"metrics": [], "best_metric": "loss", "best_mode": "min"},
    )
    option_file = write_options(options, tmp_path / "tiny.json")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE, str(option_file)],
        cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "statuses 0 0" in done.stdout, done.stdout + done.stderr
    folder = tmp_path / "experiments" / "tiny"
    assert (folder / "models" / "final_model.pth").exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "DONE"
    warnings = done.stderr.strip().splitlines()
    assert len(warnings) == 1, done.stderr
    assert "locks" in warnings[0]
