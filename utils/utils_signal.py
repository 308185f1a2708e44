"""Stopping on request: a signal sets a flag, and all ranks agree on the iteration after which they stop."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch

from utils.utils_dist import Dist

logger = logging.getLogger("longhaul")

_SIGNAL_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")

SAVE_FAILED = 255
"""Stands where the number of a signal does: this run is to stop because a save has failed."""


def stop_signals() -> list[signal.Signals]:
    """The signals that save and stop, if the system has them: Ctrl-C, kill, a closed terminal, SLURM's warning."""
    return [getattr(signal, name) for name in _SIGNAL_NAMES if hasattr(signal, name)]


def ignore_stop_signals(_worker_id: int = 0) -> None:
    """Shield a DataLoader worker: launchers signal whole process groups, and the trainer still needs its batches."""
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop_signals())


@contextlib.contextmanager
def held_stop_signals() -> Iterator[None]:
    """Stop signals wait meanwhile; in processes that start meanwhile, until they call `ignore_stop_signals`.

    A DataLoader worker installs a handler of torch's, which would end it, before it calls anything of ours.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where nobody signals a group
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_compiling = contextlib.ExitStack()


def hold_stop_signals_while_compiling() -> None:
    """From now on stop signals wait while torch.compile compiles, and do not reach the compilers that it starts.

    Launchers and terminals signal them with the trainer. Where one is ended the launch fails, or torch takes its trial
    for a processor that lacks the instructions, and the kernels of that launch sum in another order.
    """
    from torch._dynamo.callback import callback_handler  # imports as long as torch itself; who compiles needs it anyway

    if _hold not in callback_handler.start_callbacks:
        callback_handler.register_start_callback(_hold)
        callback_handler.register_end_callback(_release)


def _hold(_compilation: object) -> None:
    _compiling.enter_context(held_stop_signals())


def _release(_compilation: object) -> None:
    _compiling.close()


def kill_workers() -> None:
    """Call at exit: Python ends its child processes with SIGTERM, and would wait for ever for one that ignores it."""
    for worker in multiprocessing.active_children():
        worker.kill()


def ignore_ended_children() -> None:
    """Undo DataLoader's SIGCHLD handler; call it when the workers run.

    The handler raises wherever the trainer stands when a worker is killed: in the middle of a save, or of the clean-up
    after the error that the same death caused. Whoever waits for the worker's next batch is told all the same.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class StopRequest:
    """While entered, turns stop signals into a request that all ranks see in the same iteration.

    The handler only sets a flag, and says so. Every iteration starts one MAX over the ranks and reads the previous one,
    so that nobody waits for the network; the ranks therefore stop one iteration after the first of them knew.
    """

    def __init__(self, dist: Dist) -> None:
        self._dist = dist
        self._requested = 0
        self._requested_at = 0.0
        self.signal_number = 0
        """The signal that all ranks agreed to stop on, SAVE_FAILED, or 0."""
        self._value = torch.zeros(1, dtype=torch.int32)
        self._work: torch.distributed.Work | None = None
        self._previous: dict[signal.Signals, Any] = {}
        # torchrun's agent is the parent; if it is killed, its workers would train on as orphans.
        self._agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> "StopRequest":
        for number in stop_signals():
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked to survive a closed terminal
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._work is not None and kind is None:
            self._work.wait()
        self._work = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> int:
        """The number of the signal on which all ranks stop now, or 0. Collective: once an iteration, on every rank."""
        if self.signal_number:
            return self.signal_number
        if self._agent is not None and os.getppid() != self._agent and not self._requested:
            logger.warning("The launcher is gone: saving and stopping.")
            self._requested, self._requested_at = signal.SIGTERM, time.monotonic()
        if self._dist.world_size == 1:
            self.signal_number = self._requested
            return self.signal_number
        if self._work is not None:
            self._work.wait()
            self.signal_number = int(self._value)
        self._work = None
        if not self.signal_number:
            self._value = torch.tensor([self._requested], dtype=torch.int32)
            self._work = self._dist.max_async(self._value)
        return self.signal_number

    def save_failed(self) -> None:
        """Stop as if a signal had come, with SAVE_FAILED for its number. From any thread of any rank."""
        self._requested = self._requested or SAVE_FAILED

    @property
    def seconds_since_signal(self) -> float:
        """Seconds since this rank got its first signal; 0 if it got none itself."""
        return time.monotonic() - self._requested_at if self._requested_at else 0.0

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._requested == signal.SIGINT:  # a second Ctrl-C: stop now
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not self._requested and self._dist.is_main:  # an iteration may take long, and a data set hang
            at_once = "; a second Ctrl-C stops at once" if number == signal.SIGINT else ""
            _say(f"{signal.Signals(number).name}: saves and stops after this iteration{at_once}.")
        self._requested_at = self._requested_at or time.monotonic()
        self._requested = number


def _say(text: str) -> None:
    """Write a line to stderr at once; from a signal handler, where the interrupted code may hold logging's locks."""
    with contextlib.suppress(OSError):  # a closed terminal
        start = "\n" if sys.stderr.isatty() else ""  # a progress bar stands on the line
        os.write(sys.stderr.fileno(), f"{start}{text}\n".encode())
