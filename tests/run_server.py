"""Forks runs of run_and_stop.py: importing torch costs seconds, and the tests launch many runs.

One JSON job a line on stdin: {"folder", "arguments", "environment"}. Each run is a process in a session of its own; its
output goes to <folder>/output, its id is answered on stdout, and its exit status (-n for signal n) to <folder>/status.
"""

import atexit
import faulthandler
import json
import os
import select
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Imported once, for all runs; DDP imports the compiler.
import torch._dynamo  # noqa: F401

from tests import run_and_stop

POLL_SECONDS = 0.01
SECONDS_TO_STUCK = 90  # then a run says where it stands


def serve() -> None:
    """Fork a child for every job until stdin ends."""
    tempfile.gettempdir()  # tries the folder by writing to it, once a process; no run shall be blamed for that
    running: dict[int, Path] = {}
    jobs = open(0, "rb", buffering=0)  # noqa: SIM115 - select must not miss what a buffer holds
    while True:
        if select.select([jobs], [], [], POLL_SECONDS if running else None)[0]:
            line = jobs.readline()
            if not line:
                return
            job = json.loads(line)
            child = os.fork()
            if child == 0:
                become(job)
                run_and_exit(job["arguments"])
            running[child] = Path(job["folder"])
            print(child, flush=True)
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                folder = running.pop(child)
                (folder / "status.tmp").write_text(str(os.waitstatus_to_exitcode(status)))
                (folder / "status.tmp").rename(folder / "status")


def become(job: dict[str, Any]) -> None:
    """Make a forked child the process that a shell would have started."""
    os.setsid()
    output = os.open(Path(job["folder"]) / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job["environment"])
    faulthandler.dump_traceback_later(SECONDS_TO_STUCK)


def run_and_exit(arguments: list[str]) -> NoReturn:
    """End as the interpreter does, but leave the memory to the system: taking the modules apart costs seconds."""
    try:
        status = run_and_stop.run(arguments)
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
