"""A record of all that this process does to one folder: what it makes, writes, renames, removes and syncs, in order."""

import builtins
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import pytest

ROOT = 0  # the number of the recorded folder itself


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Names of one folder that change together: name -> the number of what it now means, or None.

    new: what the call creates. after: for a name that leaves its folder by a rename, the name's arrival elsewhere.
    """

    folder: int
    names: tuple[tuple[str, int | None], ...]
    new: Literal["", "file", "folder"] = ""
    after: "Entries | None" = None


@dataclasses.dataclass(frozen=True)
class Write:
    """Bytes that reach a file."""

    file: int
    offset: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class Truncate:
    """A file gets another length."""

    file: int
    length: int


@dataclasses.dataclass(frozen=True)
class Sync:
    """fsync of a file or folder."""

    number: int


@dataclasses.dataclass(frozen=True)
class Returned:
    """No operation: a save has returned, and from here on `kind` must be found at least as new as `age`."""

    kind: str
    age: int


Operation = Entries | Write | Truncate | Sync | Returned


class Killed(BaseException):
    """Raised by every operation of a process that counts as dead."""


class _RecordedFile(io.FileIO):
    """A file whose writes are recorded when they leave Python's buffer."""

    def __init__(self, recorder: "Recorder", path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self._recorder = recorder

    def write(self, data: Any, /) -> int:
        with self._recorder.recording():
            written = super().write(data)
            self._recorder.add(
                Write(self._recorder.number(self.fileno()), self.tell() - written, bytes(data)[:written])
            )
        return written


class Recorder:
    """Records the operations below `folder`, which exists; what it holds counts as durable.

    Files and folders have numbers, because a name may come to mean another file. Whether something got past the
    patched functions is shown by two things that do not depend on them: `escaped` holds every change of the folder
    that Python itself announced (audit events) outside of them, and a Disk that has seen all operations must equal the
    folder, byte for byte. An fsync that got past would only make the disk look less durable than it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.operations: list[Operation] = []
        self.escaped: list[str] = []
        self.kill_at = sys.maxsize  # the process counts as dead when it has recorded so many operations
        self.folders: dict[int, dict[str, int]] = {}  # what was there before, by number
        self.files: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._inside = 0  # the thread that is in a patched function
        self._count = itertools.count(ROOT)
        self._numbers: dict[tuple[int, int], int] = {}  # by device and inode; a reused inode is numbered anew
        self._scan(folder)

    def _scan(self, path: Path) -> int:
        number = self._new_number(path)
        if path.is_dir():
            self.folders[number] = {each.name: self._scan(each) for each in sorted(path.iterdir())}
        else:
            self.files[number] = path.read_bytes()
        return number

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """One operation at a time is done and added."""
        with self._lock:
            if len(self.operations) >= self.kill_at:
                raise Killed
            self._inside = threading.get_ident()
            try:
                yield
            finally:
                self._inside = 0

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)

    def number(self, place: Any) -> int:
        """The number of a path or descriptor; KeyError where it is not below the folder."""
        found = os.stat(place)  # noqa: PTH116  # a descriptor too
        return self._numbers[found.st_dev, found.st_ino]

    def _new_number(self, path: Any) -> int:
        found = Path(path).stat()
        self._numbers[found.st_dev, found.st_ino] = number = next(self._count)
        return number

    def _is_below(self, place: Any) -> bool:
        """Whether a path lies below the folder, or a descriptor belongs to something that does."""
        if isinstance(place, int):
            with contextlib.suppress(KeyError, OSError):
                return self.number(place) >= ROOT
            return False
        return Path(os.fsdecode(place)).absolute().is_relative_to(self.folder)

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Record what is done in this block."""
        with pytest.MonkeyPatch.context() as patch, _audited(self._notice):
            for module in (builtins, io):
                patch.setattr(module, "open", functools.partial(self._open, io.open))
            for names, recorded in _RECORDED.items():
                for name in names:
                    patch.setattr(os, name, self._choosing(getattr(os, name), recorded))
            yield

    def _choosing(self, real: Callable[..., Any], recorded: Callable[..., Any]) -> Callable[..., Any]:
        """A function for os that is `recorded` below the folder and `real` elsewhere."""

        def chosen(place: Any, *others: Any, **more: Any) -> Any:
            if not self._is_below(place):
                return real(place, *others, **more)
            with self.recording():
                return recorded(self, real, place, *others, **more)

        return chosen

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() == self._inside:
            return
        num_places = _CHANGES.get(event, 0)
        if event == "open" and (arguments[2] or 0) & _WRITING:
            num_places = 1
        if any(self._is_below(place) for place in arguments[:num_places]):
            self.escaped.append(f"{event} {arguments[:num_places]}")

    def _open(self, real: Callable[..., Any], file: Any, mode: str = "r", *others: Any, **more: Any) -> IO[Any]:
        if mode.strip("bt") == "r" or isinstance(file, int) or not self._is_below(file):
            return real(file, mode, *others, **more)
        return self._open_for_writing(file, mode, *others, **more)

    def _open_for_writing(
        self, file: Any, mode: str, buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None
    ) -> IO[Any]:
        assert buffering == -1, "the recorder knows no other buffering"
        assert "+" not in mode, "the recorder knows no file that is read and written"
        with self.recording():
            existed = Path(file).exists()
            raw = _RecordedFile(self, file, mode.strip("bt"))
            self._opened(file, existed, "w" in mode)
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _opened(self, path: Any, existed: bool, emptied: bool) -> None:
        if not existed:
            self.add(Entries(*self._entry(path, self._new_number(path)), new="file"))
        elif emptied:
            self.add(Truncate(self.number(path), 0))

    def _entry(self, path: Any, number: int | None) -> tuple[int, tuple[tuple[str, int | None]]]:
        """The number of the folder of `path`, and what its name now means."""
        return self.number(Path(path).parent), ((Path(path).name, number),)

    def _os_open(self, real: Callable[..., Any], path: Any, flags: int, *others: Any, **more: Any) -> int:
        existed = Path(path).exists()
        descriptor: int = real(path, flags, *others, **more)
        if flags & _WRITING:
            self._opened(path, existed, bool(flags & os.O_TRUNC))
        return descriptor

    def _fsync(self, _real: Callable[..., Any], descriptor: int) -> None:
        self.add(Sync(self.number(descriptor)))  # the real one would only take time

    def _rename(self, real: Callable[..., Any], source: Any, target: Any) -> None:
        number = self.number(source)
        real(source, target)
        (old, left), (new, arrived) = self._entry(source, None), self._entry(target, number)
        if old == new:
            self.add(Entries(old, left + arrived))
            return
        arrival = Entries(new, arrived)
        self.add(arrival)
        self.add(Entries(old, left, after=arrival))

    def _unlink(self, real: Callable[..., Any], path: Any) -> None:
        real(path)
        self.add(Entries(*self._entry(path, None)))

    def _mkdir(self, real: Callable[..., Any], path: Any, *mode: Any) -> None:
        real(path, *mode)
        self.add(Entries(*self._entry(path, self._new_number(path)), new="folder"))

    def _ftruncate(self, real: Callable[..., Any], descriptor: int, length: int) -> None:
        real(descriptor, length)
        self.add(Truncate(self.number(descriptor), length))

    def _pwrite(self, real: Callable[..., Any], descriptor: int, data: bytes, offset: int) -> int:
        written: int = real(descriptor, data, offset)
        self.add(Write(self.number(descriptor), offset, data[:written]))
        return written


_RECORDED: dict[tuple[str, ...], Callable[..., Any]] = {
    ("open",): Recorder._os_open,
    ("fsync", "fdatasync"): Recorder._fsync,
    ("rename", "replace"): Recorder._rename,
    ("unlink", "remove"): Recorder._unlink,
    ("mkdir",): Recorder._mkdir,
    ("ftruncate",): Recorder._ftruncate,
    ("pwrite",): Recorder._pwrite,
}

# Audit events of what changes a folder -> how many of their arguments are paths or descriptors.
_CHANGES = {f"os.{name}": 1 for name in ("mkdir", "remove", "rmdir", "truncate")}
_CHANGES |= {f"os.{name}": 2 for name in ("rename", "link", "symlink")}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_audiences: list[Callable[[str, tuple[Any, ...]], None]] = []


@contextlib.contextmanager
def _audited(audience: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    _install_hook()
    _audiences.append(audience)
    try:
        yield
    finally:
        _audiences.remove(audience)


@functools.cache
def _install_hook() -> None:
    """Once: Python has no way to take an audit hook back."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        for audience in _audiences:
            audience(event, arguments)

    sys.addaudithook(hook)
