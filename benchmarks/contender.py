"""Training loops in processes of their own, which measure a stretch of iterations whenever they are asked to.

Own processes, because one trainer's allocator settings, threads and caches must not serve, or hinder, another.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from utils.utils_file import PROJECT_FOLDER

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Pacer:
    """The loop's side: called after each iteration; after each stretch reports its CPU time and waits for the next.

    Takes over stdin and stdout: what the loop prints goes to stderr.
    """

    def __init__(self, num_iters: int) -> None:
        self._num_iters = num_iters
        self._left = 1  # what the first iteration builds is not measured
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start = time.process_time()

    def __call__(self) -> None:
        self._left -= 1
        if self._left:
            return
        seconds = time.process_time() - self._start
        print(seconds / self._num_iters, file=self._reports, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # nobody waits for what an unfinished run would still write
        self._left = self._num_iters
        self._start = time.process_time()


class Contender:
    """The benchmark's side: call it for the CPU seconds of an iteration, of all threads, over one more stretch.

    `errors` takes what the loop prints. RuntimeError with the end of that if the loop has ended.
    """

    def __init__(self, command: Sequence[str], errors: Path) -> None:
        self._errors = errors
        with open(errors, "w") as stderr:
            self._process = subprocess.Popen(
                command, cwd=PROJECT_FOLDER, env={**os.environ, **ONE_THREAD}, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip

    def ready(self) -> None:
        """Wait for the first iteration, then measure a stretch that does not count."""
        self._read()
        self()

    def __call__(self) -> float:
        print(file=self._stdin, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    @property
    def _stdin(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _read(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended:\n{self._errors.read_text()[-2000:]}")
        return float(line)


@contextlib.contextmanager
def contenders(commands: Mapping[str, Sequence[str]], folder: Path) -> Iterator[dict[str, Contender]]:
    """Name -> a loop that has warmed up, one thread each; all end with the block. `folder` takes what they print."""
    started: dict[str, Contender] = {}
    try:
        for number, (name, command) in enumerate(commands.items()):
            started[name] = Contender(command, folder / f"{number}.txt")
            started[name].ready()  # one by one: they share the cores
        yield started
    finally:
        for contender in started.values():
            contender.close()
