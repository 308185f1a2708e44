"""What a disk may hold after the power went, at any place of a record of operations."""

import itertools
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tests.disk_record import ROOT, Entries, Operation, Recorder, Sync, Truncate, Write

Tree = dict[str, bytes | None]  # relative path -> content, None for a folder; parents before children

_NUM_ALL = 4  # so many pending changes of names are tried in all combinations
_NUM_RANDOM = 8


class Disk:
    """The folder as programs see it, and how much of it is durable. POSIX promises no more than this:

    fsync of a file makes its content durable, not its name. fsync of a folder makes its names durable, those of
    folders in it too, not what they mean. Of the names that changed since, any subset may be found changed; of a file
    that was written since, nothing new, the first half, zeros of the full length, or all. What no durable name leads
    to is gone.

    One thing is granted that every journal gives: a rename to another folder does not lose the file. It may be found
    under both names, never under none.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._folders = {number: dict(names) for number, names in recorder.folders.items()}  # what is durable
        self._durable = dict(recorder.files)
        self._written = dict(recorder.files)
        self._pending: list[Entries] = []

    def apply(self, operation: Operation) -> None:
        """Do the next operation of the record."""
        match operation:
            case Entries():
                self._create(operation)
                self._pending.append(operation)
            case Write(file, offset, data):
                old = self._written[file]
                self._written[file] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
            case Truncate(file, length):
                self._written[file] = self._written[file][:length].ljust(length, b"\0")
            case Sync(number) if number in self._folders:
                self._sync_names(number)
            case Sync(number):
                self._durable[number] = self._written[number]

    def _create(self, operation: Entries) -> None:
        for _, number in operation.names:
            if number is not None and operation.new == "folder":
                self._folders[number] = {}
            elif number is not None and operation.new == "file":
                self._durable[number] = self._written[number] = b""

    def _sync_names(self, folder: int) -> None:
        done = [each for each in self._pending if each.folder == folder]
        arrivals = [each.after for each in done if each.after in self._pending]
        for each in (*arrivals, *done):
            assert each is not None
            _change(self._folders[each.folder], each)
            self._pending.remove(each)

    def everything(self) -> Tree:
        """The folder if nothing is lost: what programs see."""
        return self._tree(self._names(self._pending), self._written)

    def after_power_loss(self, choose: random.Random) -> Iterator[Tree]:
        """What may be found when the power goes now; all of it where little is pending, else the extremes and some."""
        for kept in _subsets(self._pending, choose):
            names = self._names(kept)
            found = {number for _, number in _walk(names)}
            unsynced = [number for number in found & self._durable.keys() if self._is_unsynced(number)]
            for contents in self._contents(sorted(unsynced), choose):
                yield self._tree(names, self._durable | contents)

    def _is_unsynced(self, number: int) -> bool:
        return self._durable[number] != self._written[number]

    def _names(self, kept: Collection[Entries]) -> dict[int, dict[str, int]]:
        """The names of each folder if only these pending changes are found."""
        names = {number: dict(entries) for number, entries in self._folders.items()}
        for each in self._pending:
            is_torn = each.after in self._pending and each.after not in kept
            if each in kept and not is_torn:
                _change(names[each.folder], each)
        return names

    def _tree(self, names: Mapping[int, Mapping[str, int]], contents: Mapping[int, bytes]) -> Tree:
        return {path: contents.get(number) for path, number in _walk(names)}

    def _contents(self, unsynced: Sequence[int], choose: random.Random) -> Iterator[dict[int, bytes]]:
        """What these files may hold: all alike, one unlike the others, and some mixtures."""
        versions = {number: _versions(self._durable[number], self._written[number]) for number in unsynced}
        mixtures = {(each,) * len(unsynced) for each in range(4)}
        for place, usual, other in itertools.product(range(len(unsynced)), (0, 3), range(4)):
            mixtures.add((usual,) * place + (other,) + (usual,) * (len(unsynced) - place - 1))
        mixtures |= {tuple(choose.choices(range(4), k=len(unsynced))) for _ in range(_NUM_RANDOM)}
        for mixture in sorted(mixtures):
            yield {number: versions[number][which] for number, which in zip(unsynced, mixture, strict=True)}


def _change(names: dict[str, int], entries: Entries) -> None:
    for name, number in entries.names:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def _versions(durable: bytes, written: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Nothing of what was written since the fsync, half of it, zeros in its place, all of it."""
    same = next((i for i, (a, b) in enumerate(zip(durable, written, strict=False)) if a != b), len(durable))
    new = written[same:]
    return durable, written[:same] + new[: len(new) // 2], written[:same] + bytes(len(new)), written


def _subsets(pending: Sequence[Entries], choose: random.Random) -> Iterator[Collection[Entries]]:
    if len(pending) <= _NUM_ALL:
        for size in range(len(pending) + 1):
            yield from itertools.combinations(pending, size)
        return
    yield from ((), pending)
    for each in pending:
        yield (each,)
        yield [other for other in pending if other is not each]
    for _ in range(_NUM_RANDOM):
        yield [each for each in pending if choose.random() < 0.5]


def _walk(names: Mapping[int, Mapping[str, int]], folder: int = ROOT, prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, number in sorted(names[folder].items()):
        yield prefix + name, number
        if number in names:
            yield from _walk(names, number, f"{prefix}{name}/")


def read_tree(folder: Path) -> Tree:
    """The real folder, to compare with."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in found}


def write_tree(tree: Tree, folder: Path) -> None:
    """Make the real folder equal to the tree, whatever it holds."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_dir():
            path.unlink()
        elif str(path.relative_to(folder)) not in tree:
            path.rmdir()
    for name, content in tree.items():
        if content is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)
