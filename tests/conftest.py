"""Shared fixtures. Every test runs on one thread, in its own cache folder, and must leave nothing running."""

import contextlib
import logging
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from tests.fer2013_files import logged
from tests.helpers import changed, tiny_csv, tiny_option_mapping
from utils.utils_signal import stop_signals

__all__ = ["logged"]  # a fixture

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, unless tests/test_gpu.py is asked for by name: here runs have up to four ranks, each with a GPU."""
    if not any("test_gpu.py" in str(each) for each in config.invocation_params.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def signals_as_on_a_terminal() -> None:
    """A suite started with nohup or in the background ignores Ctrl-C and hang-ups, and so would the runs it tests."""
    for number in stop_signals():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's own cache folder; child processes inherit this one."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGHAUL_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or a process group; restore what is global."""
    logger = logging.getLogger("longhaul")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    threads, children = set(threading.enumerate()), _children()
    yield
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("default")
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
    left_group = torch.distributed.is_initialized()
    if left_group:
        torch.distributed.destroy_process_group()
    assert not left_group, "the test left a process group"
    assert _none_after_a_while(lambda: _new_threads(threads)), f"the test left threads: {_new_threads(threads)}"
    assert _none_after_a_while(lambda: _children() - children), f"the test left processes: {_children() - children}"


@pytest.fixture
def tiny_options(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Options of a run of a second, on a CSV in tmp_path; changes are given as train__total_iter=8."""
    options = tiny_option_mapping(tmp_path / "experiments", tiny_csv(tmp_path))
    return lambda **changes: changed(options, **changes)


def _new_threads(before: set[threading.Thread]) -> list[str]:
    # tqdm keeps one monitor thread for the life of the process.
    new = set(threading.enumerate()) - before
    return sorted(thread.name for thread in new if type(thread).__name__ != "TMonitor")


def _children() -> set[int]:
    """Ids of the child processes, zombies included, without Python's own tracker of shared memory; Linux only."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, AttributeError):
        return set()
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            found |= {int(stat.parent.name)} if int(parent) == os.getpid() else set()
    return found - {getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)}


def _none_after_a_while(left: Callable[[], Any], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while left():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
