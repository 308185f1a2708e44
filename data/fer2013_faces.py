"""The decoded faces of one FER2013 split as one array record, and the cache file that holds exactly that record."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from utils.utils_error import UserError
from utils.utils_file import cache_paths, write_cache

SIDE = 48
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
Split = Literal["Training", "PublicTest", "PrivateTest"]
SPLITS: tuple[Split, ...] = get_args(Split)
PROBLEMS_SHOWN = 10
# Part of every key: raise it when the same source would be decoded to other arrays than before.
DECODER_VERSION = 1

logger = logging.getLogger("longhaul")


def _record_type(count: int) -> np.dtype[np.void]:
    fields: list[Any] = [
        ("key", "S64"),
        ("digest", "S64"),
        ("targets", "<i8", (count,)),
        ("rows", "<i8", (count,)),
        ("images", "u1", (count, 1, SIDE, SIDE)),
    ]
    return np.dtype(fields)


class Faces:
    """One split: `images` (N, 1, 48, 48) uint8, `targets` (N,) int64, `rows` (N,) int64, where each face came from.

    The three are views of one record, so that a split is one .npy file that several ranks can map and share.
    """

    def __init__(self, record: NDArray[np.void]) -> None:
        self.record = record
        self.images: NDArray[np.uint8] = np.asarray(record["images"][0])
        self.targets: NDArray[np.int64] = np.asarray(record["targets"][0])
        self.rows: NDArray[np.int64] = np.asarray(record["rows"][0])

    @classmethod
    def empty(cls, count: int) -> "Faces":
        """Room for `count` faces, not yet filled."""
        return cls(np.empty(1, _record_type(count)))

    def __len__(self) -> int:
        return len(self.targets)

    def digests(self) -> tuple[str, bytes]:
        """Hex SHA-256 over images and targets, the identity of the data; and over the whole record, for the cache."""
        sha = hashlib.sha256(self.images.data)
        sha.update(self.targets.data)
        fingerprint = sha.hexdigest()
        sha.update(self.rows.data)
        sha.update(bytes(self.record["key"][0]))
        return fingerprint, sha.hexdigest().encode()


def cached_faces(source: Path, split: str, key: str, decode: Callable[[], dict[str, Faces]]) -> tuple[Faces, str]:
    """The faces of `split` and their fingerprint: from the cache, else all that `decode` gives, cached for next time.

    `key` identifies the content of `source`; a cache of another key, or one that is damaged, is replaced.
    """
    key = hashlib.sha256(f"{DECODER_VERSION}:{key}".encode()).hexdigest()
    if (found := _load(source, split, key)) is not None:
        return found
    logger.info("%s: decoding the images once; later launches take them from a cache", source)
    decoded = decode()
    fingerprints: dict[str, str] = {}
    failures: list[str] = []
    for name, faces in decoded.items():
        faces.record["key"] = key
        fingerprints[name], faces.record["digest"] = faces.digests()
        failures = _store(source, name, faces) or failures
    if failures:
        logger.warning("%s: going on without a cache, each launch will decode again: %s", source, "; ".join(failures))
    return decoded[split], fingerprints[split]


def refuse(where: Path, what: str, problems: Sequence[str], remedy: str) -> UserError:
    """The error that lists the first ten of `problems` and counts the rest; `what` is one of them."""
    lines = [
        f"{where}: {len(problems)} {what}{'s' if len(problems) > 1 else ''}",
        *(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN]),
    ]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"  ... and {len(problems) - PROBLEMS_SHOWN} more")
    return UserError("\n".join([*lines, remedy]))


def _cache_name(split: str) -> str:
    return f"{split}.cache.npy"


def _load(source: Path, split: str, key: str) -> tuple[Faces, str] | None:
    for path in cache_paths(source, _cache_name(split)):
        if not path.is_file():
            continue
        try:
            # Copy on write: the pages are shared, yet the array counts as writable, as torch demands.
            faces = Faces(np.lib.format.open_memmap(path, mode="c"))
            fingerprint, digest = faces.digests()
            intact = digest == bytes(faces.record["digest"][0]) and faces.record.dtype == _record_type(len(faces))
            current = faces.record["key"][0] == key.encode()
        except Exception as error:  # whatever damage makes numpy raise, the answer is the same
            logger.warning("%s: the cache cannot be read and is built again (%s)", path, error)
            continue
        if not intact:
            logger.warning("%s: the cache is damaged and is built again", path)
        elif current:
            return faces, fingerprint
    return None


def _store(source: Path, split: str, faces: Faces) -> list[str]:
    """Write the cache at the first place that takes it; returns why none did."""
    return write_cache(source, _cache_name(split), lambda file: np.lib.format.write_array(file, faces.record))
