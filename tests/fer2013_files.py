"""FER2013 files for the tests, and what is common to them."""

import logging
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.dataset_fer2013 import Fer2013
from utils.utils_error import UserError

HEADER = "emotion,pixels,Usage"


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's own cache folder."""
    folder = tmp_path / "user_cache"
    monkeypatch.setenv("LONGHAUL_CACHE", str(folder))
    return folder


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the project logs, also when another test has cut its logger off from the root."""
    logger = logging.getLogger("longhaul")
    before = logger.propagate
    logger.propagate = True
    with caplog.at_level(logging.INFO, logger="longhaul"):
        yield caplog
    logger.propagate = before


def random_faces(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 48, 48), dtype=np.uint8)


def row_of(face: NDArray[np.uint8], emotion: int | str = 0, usage: str = "Training") -> str:
    return f"{emotion},{' '.join(map(str, face.ravel()))},{usage}"


def write_csv(path: Path, rows: list[str], header: str = HEADER) -> str:
    path.write_text("\n".join([header, *rows, ""]))
    return str(path)


def small_csv(folder: Path, count: int = 12, seed: int = 0) -> str:
    """Labels 0..6 in turn; every third row PublicTest, none PrivateTest."""
    faces = random_faces(count, seed)
    usages = ["PublicTest" if i % 3 == 2 else "Training" for i in range(count)]
    return write_csv(folder / "fer2013.csv", [row_of(faces[i], i % 7, usages[i]) for i in range(count)])


def refusal(root: str | Path, split: str = "Training") -> str:
    with pytest.raises(UserError) as caught:
        Fer2013(str(root), split)  # type: ignore[arg-type]
    return str(caught.value)


def forbid_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the CSV was parsed although there is a cache")

    monkeypatch.setattr("data.dataset_fer2013.read_csv", fail)


def claiming(png: bytes, width: int, height: int) -> bytes:
    """The PNG with another size in its header, whose checksum is right."""
    header = png[12:16] + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]
