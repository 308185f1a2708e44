"""One trainer per folder; the lock dies with its holder, however that dies, and is not inherited."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import messages
from tests.run_helpers import in_child
from utils import utils_lock
from utils.utils_error import UserError
from utils.utils_lock import FolderLock


@contextlib.contextmanager
def held_by_a_child(folder: Path, then: Callable[[], None] = lambda: None) -> Iterator[int]:
    """A child process that holds the lock of `folder`, calls `then`, and lives until it is killed."""
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        with FolderLock(folder):
            then()
            os.write(ready_write, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready_read, 1)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            kill(child)
        os.close(ready_read)
        os.close(ready_write)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def take(folder: Path) -> None:
    with FolderLock(folder):
        pass


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with held_by_a_child(tmp_path) as child:
        before = (tmp_path / ".lock").read_bytes()
        with pytest.raises(UserError) as caught:
            take(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert f'"pid": {child}' in str(caught.value)
        assert socket.gethostname() in str(caught.value)
        assert (tmp_path / ".lock").read_bytes() == before
    take(tmp_path)


def test_the_holder_is_recorded(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("x" * 1000)  # an older, longer record
    with held_by_a_child(tmp_path) as child:
        holder = json.loads((tmp_path / ".lock").read_text())
    assert holder["pid"] == child
    assert holder["host"] == socket.gethostname()
    assert holder["start"]


def test_the_lock_is_free_after_a_sigkill_of_its_holder(tmp_path: Path) -> None:
    with held_by_a_child(tmp_path) as child:
        kill(child)
        take(tmp_path)


def test_a_forked_worker_does_not_keep_the_lock_of_a_dead_trainer(tmp_path: Path) -> None:
    read, write = os.pipe()

    def fork_worker() -> None:
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(write, str(worker).encode())

    with held_by_a_child(tmp_path, fork_worker) as child:
        worker = int(os.read(read, 100))
        try:
            kill(child)
            os.kill(worker, 0)  # it lives
            take(tmp_path)
        finally:
            os.kill(worker, signal.SIGKILL)
    os.close(read)
    os.close(write)


def test_a_lock_that_somebody_removed_is_taken_again(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        lock.check()
        (tmp_path / ".lock").unlink()
        lock.check()
        assert in_child(lambda: take(tmp_path)) != 0
    assert in_child(lambda: take(tmp_path)) == 0


def test_a_lock_that_another_trainer_has_taken_is_lost_for_good(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        (tmp_path / ".lock").unlink()
        with held_by_a_child(tmp_path), pytest.raises(OSError, match=r"somebody removed \.lock.* another trainer"):
            lock.check()
        with pytest.raises(OSError, match="another trainer"):  # it has written there
            lock.check()


def test_a_folder_that_is_made_anew_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    with FolderLock(folder) as lock:
        shutil.rmtree(folder)
        lock.check()  # nothing is there, and writing will say so
        folder.mkdir()
        for _ in range(2):
            with pytest.raises(OSError, match="another folder than the one"):
                lock.check()


def test_another_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with held_by_a_child(tmp_path / "a"):
        take(tmp_path / "b")


def test_a_process_may_take_the_lock_again(tmp_path: Path) -> None:
    take(tmp_path)
    take(tmp_path)
    assert in_child(lambda: take(tmp_path)) == 0


def test_without_posix_locks_there_is_one_warning_and_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(utils_lock, "HAS_LOCKS", False)
    with held_by_a_child(tmp_path):
        take(tmp_path)
    assert len([record for record in logged.records if record.levelno == logging.WARNING]) == 1
    assert "second launch" in messages(logged.records)


def test_a_file_system_without_locks_is_no_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    def lockf(_descriptor: int, _kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(utils_lock.fcntl, "lockf", lockf)
    take(tmp_path)
    assert "No locks available" in messages(logged.records, logging.WARNING)
    assert "second launch" in messages(logged.records, logging.WARNING)
