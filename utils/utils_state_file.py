"""One file of tensors: written whole, hashed on the way, and loaded without ever executing anything in it.

The only place that calls torch.save and torch.load.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from utils.utils_error import UserError
from utils.utils_failpoint import reached
from utils.utils_file import atomic_write


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """What the manifest knows of one file."""

    name: str
    bytes: int
    sha256: str


class DamagedFileError(UserError):
    """A file that cannot be read, or not as it was written."""


def load_state(path: str | Path, is_glance: bool = False) -> Any:
    """Load a file of tensors and plain containers onto the CPU; nothing in it is ever executed.

    UserError names a file that is missing or holds anything else, DamagedFileError one that is damaged. is_glance: the
    checksums stay unchecked, and tensors on the disk until somebody uses them.
    """
    if not is_glance and (damage := crc_damage(Path(path))):
        raise DamagedFileError(f"{path}: damaged: {damage}; take another copy of it")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_glance)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # a damaged file makes the unpickler raise anything
        forbidden = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), None)
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise UserError(
                f"{path}: refused, because it holds more than tensors and plain containers; nothing in it was run. "
                f"{forbidden} Save the state dict alone, with torch.save(net.state_dict(), path)."
            ) from error
        raise DamagedFileError(f"{path}: not a readable checkpoint ({_damage(Path(path), error)})") from error


def _damage(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in better words than torch's where there are any."""
    if path.is_file():
        try:
            with open(path, "rb") as file:
                start = file.read(4)
        except OSError as refused:
            return str(refused.strerror)
        if not start:
            return "the file is empty"
        with contextlib.suppress(zipfile.BadZipFile):
            if start.startswith(b"PK") and not zipfile.is_zipfile(path):
                return "its end is missing: it was cut off"
        if not start.startswith((b"PK", b"\x80")):
            return "torch.save did not write it"
    return [*str(error).splitlines(), type(error).__name__][0]


def write_model(path: Path, content: Mapping[str, Any]) -> None:
    """Write one self-contained file (best_model.pth, final_model.pth) atomically; refuses non-finite weights."""
    check_finite(path.name, content)
    with atomic_write(path) as file:
        write_state(file, path.name, content)


class _HashingFile:
    """An append-only file for torch.save that hashes what passes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        written = self._file.write(data)
        self.bytes += written
        reached("temporary file partly written", Path(self._file.name))
        return written

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_state(file: IO[bytes], name: str, state: Any, with_crc: bool = True) -> FileRecord:
    """Save `state` to an open file of that name; TypeError names anything that `load_state` would refuse.

    with_crc: torch's checksums, for files whose record is kept nowhere; where it is, they would be work done twice.
    Torch has a switch per thread.
    """
    hashing = _HashingFile(file)
    computes_crc = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(with_crc)
    try:
        torch.save(state, hashing)  # type: ignore[arg-type]  # write and flush are all that it calls
    finally:
        torch.serialization.set_crc32_options(computes_crc)
    hashing.flush()
    # A wrong object must fail here, named, and not when the run wants to resume from it.
    _check_loadable(name, file.name)
    return FileRecord(name, hashing.bytes, hashing.hexdigest())


def check_savable(name: str, state: Any) -> None:
    """TypeError or FloatingPointError for what can be neither saved nor resumed from; writes nothing."""
    file = io.BytesIO()
    torch.save(_without_data(state), file)
    file.seek(0)
    _check_loadable(name, file)
    check_finite(name, state)


def _check_loadable(name: str, file: str | IO[bytes]) -> None:
    if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(file):
        raise TypeError(f"{name} would hold {', '.join(map(str, unsafe))}, which weights_only=True refuses to load")


def check_finite(name: str, state: Any) -> None:
    """Raise FloatingPointError, naming the first tensor of `state` that holds NaN or infinity."""
    for place, tensor in tensors_in(state):
        if (tensor.is_floating_point() or tensor.is_complex()) and not _is_finite(tensor.detach()):
            raise FloatingPointError(f"{name} would hold non-finite values in {place or 'it'}")


def _without_data(state: Any) -> Any:
    """A state like this one, with empty tensors: what it would be to torch.save, but for its size."""
    if isinstance(state, torch.Tensor):
        return state.new_empty(0)
    if type(state) in (dict, collections.OrderedDict):
        return {key: _without_data(value) for key, value in state.items()}
    return [_without_data(each) for each in state] if type(state) in (list, tuple) else state


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.itemsize == 1:  # float8 has no sum
        tensor = tensor.float()
    # NaN and infinity stay in a sum, which takes a tenth of the time; large values may overflow it, and are looked at.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def tensors_in(state: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(dotted place, tensor) of all tensors in nested mappings, lists and tuples."""
    if isinstance(state, torch.Tensor):
        yield place, state
    elif isinstance(state, (Mapping, list, tuple)):
        for key, value in state.items() if isinstance(state, Mapping) else enumerate(state):
            yield from tensors_in(value, f"{place}.{key}" if place else str(key))


def has_crc(path: Path) -> bool:
    """Whether a file carries torch.save's checksums: KAIR's parts do, and ours leave them to the manifest."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(entry.CRC for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def crc_damage(path: Path) -> str | None:
    """Which of a zip file's checksums, at which torch does not look, does not hold; None for a file without any."""
    try:
        if not zipfile.is_zipfile(path):  # torch's older format, or what loading will find to be none
            return None
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        return str(error)  # a damaged directory raises many things
    return f"the checksum of {damaged} does not hold" if damaged else None
