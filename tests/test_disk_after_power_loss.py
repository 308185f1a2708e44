"""The model of a disk that has lost power, and the recorder that feeds it: against disks worked out by hand."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disk_after_power_loss import Disk, Tree
from tests.disk_record import Recorder
from tests.power_loss import missed

posix = pytest.importorskip("posix", reason="needs the fsync of folders")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty folder to record."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def recorded(folder: Path, actions: Callable[[Path], object]) -> Recorder:
    recorder = Recorder(folder)
    with recorder.patched():
        actions(folder)
    return recorder


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write(path: Path, text: str = "abcd") -> None:
    path.write_text(text, encoding="utf-8")


def written(folder: Path) -> None:
    write(folder / "a")


def written_and_synced(folder: Path) -> None:
    written(folder)
    sync(folder / "a")


def durable(folder: Path) -> None:
    written_and_synced(folder)
    sync(folder)


def named_but_not_synced(folder: Path) -> None:
    written(folder)
    sync(folder)


def appended(folder: Path) -> None:
    durable(folder)
    with open(folder / "a", "a", encoding="utf-8") as file:
        file.write("ef")


def removed(folder: Path) -> None:
    durable(folder)
    (folder / "a").unlink()


def replaced(folder: Path) -> None:
    durable(folder)
    write(folder / "b", "new")
    sync(folder / "b")
    (folder / "b").replace(folder / "a")


def replaced_without_sync(folder: Path) -> None:
    durable(folder)
    write(folder / "b", "ne")
    (folder / "b").replace(folder / "a")
    sync(folder)


def in_a_folder_without_durable_name(folder: Path) -> None:
    (folder / "f").mkdir()
    durable(folder / "f")


def moved(folder: Path) -> None:
    (folder / "f").mkdir()
    durable(folder)
    (folder / "a").rename(folder / "f" / "a")


FOLDER: Tree = {"f": None}


@pytest.mark.parametrize(
    ("actions", "possible"),
    [
        (written, [{}, {"a": b""}, {"a": b"ab"}, {"a": bytes(4)}, {"a": b"abcd"}]),
        (written_and_synced, [{}, {"a": b"abcd"}]),
        (named_but_not_synced, [{"a": b""}, {"a": b"ab"}, {"a": bytes(4)}, {"a": b"abcd"}]),
        (durable, [{"a": b"abcd"}]),
        (appended, [{"a": b"abcd"}, {"a": b"abcde"}, {"a": b"abcd\0\0"}, {"a": b"abcdef"}]),
        (removed, [{}, {"a": b"abcd"}]),
        (replaced, [{"a": b"abcd"}, {"a": b"abcd", "b": b"new"}, {"a": b"new"}]),
        (replaced_without_sync, [{"a": b""}, {"a": b"n"}, {"a": bytes(2)}, {"a": b"ne"}]),
        (in_a_folder_without_durable_name, [{}, {**FOLDER, "f/a": b"abcd"}]),
        (
            moved,
            [
                {**FOLDER, "a": b"abcd"},
                {**FOLDER, "f/a": b"abcd"},
                {**FOLDER, "a": b"abcd", "f/a": b"abcd"},
            ],
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_a_disk_may_hold(disk: Path, actions: Callable[[Path], object], possible: list[Tree]) -> None:
    recorder = recorded(disk, actions)
    assert missed(recorder) == []
    model = Disk(recorder)
    for operation in recorder.operations:
        model.apply(operation)
    found = model.after_power_loss(random.Random(0))
    assert {frozenset(tree.items()) for tree in found} == {frozenset(tree.items()) for tree in possible}


@pytest.mark.parametrize(
    "escape",
    [
        lambda folder: posix.rename(folder / "a", folder / "b"),
        lambda folder: posix.unlink(folder / "a"),
        lambda folder: posix.mkdir(folder / "f"),
        lambda folder: os.link(folder / "a", folder / "b"),
        lambda folder: os.truncate(folder / "a", 1),
        lambda folder: os.close(posix.open(folder / "b", os.O_WRONLY | os.O_CREAT)),
    ],
)
def test_an_operation_that_escapes_the_recorder_is_noticed(disk: Path, escape: Callable[[Path], object]) -> None:
    durable(disk)
    recorder = recorded(disk, escape)
    assert len(recorder.escaped) == 1
    assert len(missed(recorder)) > 1  # by its event, and by what it did


def test_bytes_that_escape_the_recorder_are_noticed(disk: Path) -> None:
    def escape(folder: Path) -> None:
        with open(folder / "a", "w", encoding="utf-8") as file:
            os.write(file.fileno(), b"abcd")

    recorder = recorded(disk, escape)
    assert recorder.escaped == []
    assert missed(recorder) == ["a"]
