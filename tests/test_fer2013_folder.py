"""FER2013 as folders of images: the same data set as the CSV, with its own ways to be wrong."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data import fer2013_folder
from data.dataset_fer2013 import EMOTIONS, Fer2013
from tests.fer2013_files import claiming, random_faces, refusal, row_of, user_cache, write_csv

__all__ = ["user_cache"]  # a fixture


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def small_folder(root: Path, extension: str = "png") -> NDArray[np.uint8]:
    """Two faces of each emotion in train/ and one in validation/; returns all, sorted by emotion's name."""
    faces = random_faces(21)
    names = sorted(EMOTIONS)
    for i, face in enumerate(faces):
        split, number = ("train", i // 7) if i < 14 else ("validation", 0)
        write_image(root / split / names[i % 7] / f"im{number}.{extension}", face)
    return faces


def test_folder_equals_csv(tmp_path: Path) -> None:
    faces = small_folder(tmp_path / "images")
    targets = [EMOTIONS.index(name) for name in sorted(EMOTIONS)]
    training = [row_of(faces[i + 7 * k], targets[i]) for i in range(7) for k in range(2)]
    public_test = [row_of(faces[14 + i], targets[i], "PublicTest") for i in range(7)]
    csv = write_csv(tmp_path / "fer2013.csv", training + public_test)
    for split in ("Training", "PublicTest"):
        one, other = Fer2013(str(tmp_path / "images"), split), Fer2013(csv, split)
        assert torch.equal(one.resident()["input"], other.resident()["input"])
        assert torch.equal(one.resident()["target"], other.resident()["target"])
        assert one.fingerprint == other.fingerprint
    assert Fer2013(str(tmp_path / "images"), "Training").name(3) == "train/disgust/im1.png"


def test_jpeg_is_read_and_order_does_not_depend_on_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = small_folder(tmp_path, "JPEG")
    dataset = Fer2013(str(tmp_path), "Training")
    names = [dataset.name(i) for i in range(14)]
    assert names == [f"train/{name}/im{k}.JPEG" for name in sorted(EMOTIONS) for k in (0, 1)]
    error = dataset.resident()["input"][0, 0].numpy().astype(int) - faces[0]
    assert np.abs(error).mean() < 30, "random noise survives JPEG only roughly, but it does"
    scandir = os.scandir
    backwards = [sorted(scandir(folder), key=lambda e: e.name)[::-1] for folder in (tmp_path / "train").iterdir()]
    listed = {Path(entries[0].path).parent: entries for entries in backwards}
    monkeypatch.setattr(fer2013_folder.os, "scandir", lambda folder: listed[folder])
    again = Fer2013(str(tmp_path), "Training")
    assert again.fingerprint == dataset.fingerprint
    assert [again.name(i) for i in range(14)] == names


def test_synonyms_and_case(tmp_path: Path) -> None:
    face = random_faces(1)[0]
    for name in ("Anger", "DISGUSTED", "fearful", "Happiness", "Sadness", "surprised", "Neutral"):
        write_image(tmp_path / "Train" / name / "a.png", face)
    write_image(tmp_path / "val" / "sad" / "a.png", face)
    write_image(tmp_path / "Test" / "sad" / "a.png", 255 - face)
    assert sorted(Fer2013(str(tmp_path), "Training").resident()["target"].tolist()) == list(range(7))
    assert Fer2013(str(tmp_path), "PublicTest").name(0) == "val/sad/a.png"
    held_out = Fer2013(str(tmp_path), "PrivateTest").resident()
    assert held_out["input"][0, 0].tolist() == (255 - face).tolist(), "the splits must not mix"


def test_colour_depth_and_size_are_converted(tmp_path: Path) -> None:
    grey = cv2.GaussianBlur(random_faces(1)[0], (0, 0), 3)
    happy = tmp_path / "train" / "happy"
    write_image(happy / "a_colour.png", np.stack([grey] * 3, axis=2))
    write_image(happy / "b_alpha.png", np.stack([grey] * 3 + [np.full_like(grey, 9)], axis=2))
    checks = np.kron(np.ones((48, 48), int), [[-9, 9], [9, -9]])
    write_image(happy / "c_double.png", (np.kron(grey, np.ones((2, 2), int)) + checks).astype(np.uint8))
    write_image(happy / "d_half.png", grey[::2, ::2])
    write_image(happy / "e_red.png", np.dstack([0 * grey, 0 * grey, 0 * grey + 200]))
    images = Fer2013(str(tmp_path), "Training").resident()["input"][:, 0].numpy().astype(int)
    assert images.shape == (5, 48, 48)
    assert np.abs(images[0] - grey).max() <= 1
    assert np.abs(images[1] - grey).max() <= 1
    assert np.array_equal(images[2], grey), "shrinking by half takes the mean of four pixels"
    assert np.abs(images[3] - grey).mean() < 8
    assert np.abs(images[4] - round(0.299 * 200)).max() <= 1


@pytest.mark.parametrize("extension", ["webp", "BMP"])
def test_other_formats_are_read(tmp_path: Path, extension: str) -> None:
    faces = small_folder(tmp_path, extension)
    dataset = Fer2013(str(tmp_path), "Training")
    assert len(dataset) == 14
    assert dataset.name(0) == f"train/angry/im0.{extension}"
    error = dataset.resident()["input"][0, 0].numpy().astype(int) - faces[0]
    assert np.abs(error).mean() < (30 if extension == "webp" else 1e-9), "random noise survives WebP only roughly"


def test_unreadable_images_are_named_ten_at_once(tmp_path: Path) -> None:
    small_folder(tmp_path)
    sad = tmp_path / "train" / "sad"
    content = (sad / "im0.png").read_bytes()
    (sad / "a_empty.png").touch()
    (sad / "b_half.png").write_bytes(content[: len(content) // 2])
    (sad / "c_link.png").symlink_to("nowhere.png")
    (sad / "d_huge.png").write_bytes(claiming(content, 60_000, 60_000))
    for i in range(8):
        (sad / f"d_text{i}.jpg").write_text("no image")
    lines = refusal(tmp_path).splitlines()
    assert lines[0] == f"{tmp_path}: 12 unreadable images"
    assert lines[1] == "  train/sad/a_empty.png: the file is empty"
    assert lines[2] == "  train/sad/b_half.png: not an image, or damaged"
    assert lines[3] == "  train/sad/c_link.png: No such file or directory"
    assert lines[4] == "  train/sad/d_huge.png: not an image, or damaged"
    assert lines[10] == "  train/sad/d_text5.jpg: not an image, or damaged"
    assert lines[11] == "  ... and 2 more"


def test_other_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small_folder(tmp_path)
    expected = Fer2013(str(tmp_path), "Training").fingerprint
    assert "left out" not in caplog.text
    for name in ("a.tif", "b.TIF", "c.txt", "d", ".DS_Store", "._im0.png"):
        (tmp_path / "train" / "sad" / name).write_text("x")
    (tmp_path / "train" / "labels.csv").write_text("x")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    with caplog.at_level("INFO", "longhaul"):
        assert Fer2013(str(tmp_path), "Training").fingerprint == expected
    assert ".jpg, .jpeg, .png, .webp, .bmp: 2 .tif, 1 .txt, 1 without a suffix\n" in caplog.text


def test_unknown_class_folder(tmp_path: Path) -> None:
    small_folder(tmp_path)
    (tmp_path / "train" / "contempt").mkdir()
    message = refusal(tmp_path)
    assert "train: unknown class folder contempt; allowed are angry, disgust" in message


def test_missing_split_folders(tmp_path: Path) -> None:
    (tmp_path / "train" / "happy").mkdir(parents=True)
    assert "no images .jpg, .jpeg, .png" in refusal(tmp_path)
    (tmp_path / "test").mkdir()
    message = refusal(tmp_path, "PublicTest")
    assert "no folder validation or val" in message
    assert "the folder has train, test" in message
    assert f"{tmp_path.name}/validation/<emotion>/" in message
    (tmp_path / "val").mkdir()
    (tmp_path / "validation").mkdir()
    assert "val and validation both are the PublicTest split" in refusal(tmp_path, "PublicTest")
    (tmp_path / "empty").mkdir()
    assert "no folder train or training for the Training split. dataroot must be" in refusal(tmp_path / "empty")


def test_cache_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_folder(tmp_path)
    first = Fer2013(str(tmp_path), "Training")

    def fail(_path: Path) -> str:
        raise AssertionError("an image was decoded although there is a cache")

    with monkeypatch.context() as patched:
        patched.setattr(fer2013_folder, "read_face", fail)
        assert Fer2013(str(tmp_path), "Training").fingerprint == first.fingerprint
    image = tmp_path / "train" / "fear" / "im1.png"
    stat = image.stat()
    write_image(image, 255 - cv2.imread(str(image), cv2.IMREAD_GRAYSCALE))
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = Fer2013(str(tmp_path), "Training")
    assert changed.fingerprint != first.fingerprint
    (tmp_path / "train" / "fear").rename(tmp_path / "train" / "fearful")
    assert Fer2013(str(tmp_path), "Training").fingerprint == changed.fingerprint
    (tmp_path / "train" / "fearful").rename(tmp_path / "train" / "disgusted")
    assert (Fer2013(str(tmp_path), "Training").resident()["target"] == EMOTIONS.index("fear")).sum() == 0
