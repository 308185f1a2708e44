"""The cache of decoded FER2013 faces: used when it is intact and current, and only then."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.dataset_fer2013 import Fer2013
from tests.fer2013_files import forbid_parsing, random_faces, small_csv, user_cache, write_csv
from utils.utils_file import PROJECT_FOLDER

__all__ = ["user_cache"]  # a fixture

GOOD = " ".join(["7"] * 48 * 48)
TRAINING = torch.tensor(random_faces(12)[np.arange(12) % 3 != 2])[:, None]  # what small_csv writes


def test_second_launch_parses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_csv(tmp_path)
    first = Fer2013(path, "Training")
    forbid_parsing(monkeypatch)
    second = Fer2013(path, "Training")
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.resident()["input"], first.resident()["input"])
    assert torch.equal(second.resident()["target"], first.resident()["target"])
    assert [second.name(i) for i in range(8)] == [first.name(i) for i in range(8)]
    assert len(Fer2013(path, "PublicTest")) == 4


def test_second_launch_maps_the_file_and_never_writes_to_it(tmp_path: Path) -> None:
    path = small_csv(tmp_path)
    Fer2013(path, "Training")
    cache = tmp_path / "fer2013.csv.Training.cache.npy"
    before = cache.read_bytes()
    mapped = Fer2013(path, "Training").resident()["input"]
    if Path("/proc/self/maps").exists():
        assert str(cache) in Path("/proc/self/maps").read_text()
    mapped.zero_()
    assert cache.read_bytes() == before


def test_changed_content_of_equal_size_and_time(tmp_path: Path) -> None:
    path = Path(write_csv(tmp_path / "fer2013.csv", [f"0,{GOOD},Training"]))
    stat = path.stat()
    first = Fer2013(str(path), "Training")
    path.write_text(path.read_text().replace("\n0,7", "\n1,8"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = Fer2013(str(path), "Training")
    assert path.stat().st_size == stat.st_size
    assert (int(first[0]["target"]), int(second[0]["target"])) == (0, 1)
    assert int(second[0]["input"].view(-1)[0]) == 8
    assert len(list(tmp_path.glob("*.npy"))) == 3, "the caches of the old content are still there"


def test_a_moved_or_touched_file_keeps_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(small_csv(tmp_path))
    first = Fer2013(str(path), "Training")
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    (tmp_path.with_name("moved") / "fer2013.csv").touch()
    forbid_parsing(monkeypatch)
    assert Fer2013(str(tmp_path.with_name("moved")), "Training").fingerprint == first.fingerprint


def flip(position: int) -> Callable[[bytearray], bytearray]:
    def damage(content: bytearray) -> bytearray:
        content[position] ^= 0x01
        return content

    return damage


DAMAGES: dict[str, Callable[[bytearray], bytearray]] = {
    "empty": lambda content: content[:0],
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "zeros at the end": lambda content: content[:-4096] + bytearray(4096),
    "last pixel": flip(-1),
    "another file": lambda _: bytearray(b"PK\x03\x04 no array at all"),
    "other type": lambda content: content.replace(b"<i8", b"<u8"),
    "header only": lambda content: content[:128],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_built_again(tmp_path: Path, damage: str, logged: pytest.LogCaptureFixture) -> None:
    path = small_csv(tmp_path)
    first = Fer2013(path, "Training")
    cache = tmp_path / "fer2013.csv.Training.cache.npy"
    intact = cache.read_bytes()
    cache.write_bytes(DAMAGES[damage](bytearray(intact)))
    second = Fer2013(path, "Training")
    assert second.fingerprint == first.fingerprint
    assert torch.equal(second.resident()["input"], TRAINING)
    assert cache.read_bytes() == intact
    assert "built again" in logged.text


def test_any_flipped_byte_of_the_head_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # hundreds of rebuilds, none of them to keep
    path = small_csv(tmp_path, 3)
    first = Fer2013(path, "Training")
    cache = tmp_path / "fer2013.csv.Training.cache.npy"
    intact = cache.read_bytes()
    for position in range(len(intact) - 2 * 48 * 48):  # header, key, digest, targets, rows
        cache.write_bytes(flip(position)(bytearray(intact)))
        dataset = Fer2013(path, "Training")
        assert dataset.fingerprint == first.fingerprint, position
        assert dataset.resident()["target"].tolist() == [0, 1], position
        assert [dataset.name(0), dataset.name(1)] == ["fer2013.csv:row 2", "fer2013.csv:row 3"], position


def test_folder_that_cannot_be_written(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    # Root may write anywhere, so the folder is made unwritable by folders in the place of the cache files.
    path = small_csv(tmp_path)
    for split in ("Training", "PublicTest", "PrivateTest"):
        (tmp_path / f"fer2013.csv.{split}.cache.npy").mkdir()
    first = Fer2013(path, "Training")
    assert len(list(user_cache.glob("*.npy"))) == 3
    assert not [record for record in logged.records if record.levelno >= logging.WARNING]
    forbid_parsing(monkeypatch)
    assert Fer2013(path, "Training").fingerprint == first.fingerprint


def test_no_place_for_a_cache_stops_nothing(
    tmp_path: Path, user_cache: Path, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_csv(tmp_path)
    user_cache.write_text("a file where the folder should be")

    def disk_full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", disk_full)
    dataset = Fer2013(path, "Training")
    assert torch.equal(dataset.resident()["input"], TRAINING)
    warnings = [record.getMessage() for record in logged.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fer2013.csv", "user_cache"]


def test_several_processes_build_at_once(tmp_path: Path) -> None:
    path = small_csv(tmp_path, 60)
    code = f"from data.dataset_fer2013 import Fer2013; print(Fer2013({path!r}, 'Training').fingerprint)"
    command = [sys.executable, "-W", "error", "-c", code]
    launched = [subprocess.Popen(command, cwd=PROJECT_FOLDER, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0].strip() for process in launched]
    assert [process.returncode for process in launched] == [0, 0]
    assert set(printed) == {Fer2013(path, "Training").fingerprint}
    assert not list(tmp_path.glob(".*.tmp"))
