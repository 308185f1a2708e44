"""The synthetic faces: a function of (seed, usage, index), in FER2013's form, neither trivial nor hopeless."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier

from data import synthetic_faces
from data.fer2013_faces import EMOTIONS, SPLITS, Split
from data.synthetic_faces import draw_face, labelled_face, write_synthetic_faces
from utils.utils_error import UserError

FEW = {"num_training": 12, "num_public_test": 5, "num_private_test": 4}
NEUTRAL, SURPRISE = EMOTIONS.index("neutral"), EMOTIONS.index("surprise")


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="ascii") as file:
        return list(csv.DictReader(file))


def draw_split(usage: Split, num_faces: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels (N, 2304) and labels (N,)."""
    labels, faces = zip(*(labelled_face(0, usage, index) for index in range(num_faces)), strict=True)
    return np.stack(faces).reshape(num_faces, -1).astype(np.float64), np.array(labels)


def portrait(emotion: int, person: int) -> NDArray[np.float64]:
    return draw_face(emotion, np.random.default_rng(person)).astype(np.float64)


def test_the_file_is_in_the_official_form(tmp_path: Path) -> None:
    path = write_synthetic_faces(tmp_path, **FEW)
    assert path.read_bytes().startswith(b"emotion,pixels,Usage\n")
    rows = read_rows(path)
    assert Counter(row["Usage"] for row in rows) == {"Training": 12, "PublicTest": 5, "PrivateTest": 4}
    for row in rows:
        assert set(row) == {"emotion", "pixels", "Usage"}
        assert row["emotion"] in {"0", "1", "2", "3", "4", "5", "6"}
        values = row["pixels"].split(" ")
        assert len(values) == 48 * 48
        assert all(value == str(int(value)) and 0 <= int(value) <= 255 for value in values)


def test_the_file_holds_the_drawn_faces(tmp_path: Path) -> None:
    rows = read_rows(write_synthetic_faces(tmp_path, **FEW, seed=3))
    training = [row for row in rows if row["Usage"] == "Training"]
    emotion, face = labelled_face(3, "Training", 7)
    assert training[7]["emotion"] == str(emotion)
    assert [int(value) for value in training[7]["pixels"].split()] == face.ravel().tolist()


def test_equal_arguments_give_equal_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    first = write_synthetic_faces(tmp_path / "a", **FEW)
    again = write_synthetic_faces(tmp_path / "b", **FEW)
    other = write_synthetic_faces(tmp_path / "a", **FEW, seed=1)
    assert first.name == again.name != other.name
    assert first.read_bytes() == again.read_bytes()
    assert not {row["pixels"] for row in read_rows(first)} & {row["pixels"] for row in read_rows(other)}


def test_a_larger_file_begins_with_the_smaller_one(tmp_path: Path) -> None:
    small = read_rows(write_synthetic_faces(tmp_path, num_training=4, num_public_test=3, num_private_test=2))
    large = read_rows(write_synthetic_faces(tmp_path, **FEW))
    for usage in SPLITS:
        few, many = ([row for row in rows if row["Usage"] == usage] for rows in (small, large))
        assert few == many[: len(few)]


def test_no_face_occurs_twice(tmp_path: Path) -> None:
    rows = read_rows(write_synthetic_faces(tmp_path, num_training=20, num_public_test=20, num_private_test=20))
    assert len({row["pixels"] for row in rows}) == 60


def test_a_file_that_is_there_is_reused(tmp_path: Path) -> None:
    path = write_synthetic_faces(tmp_path, **FEW)
    path.write_bytes(b"kept")
    assert write_synthetic_faces(tmp_path, **FEW) == path
    assert path.read_bytes() == b"kept"


@pytest.mark.parametrize("change", [{"num_training": 13}, {"num_public_test": 6}, {"num_private_test": 5}, {"seed": 1}])
def test_other_arguments_get_another_file(tmp_path: Path, change: dict[str, int]) -> None:
    assert write_synthetic_faces(tmp_path, **FEW) != write_synthetic_faces(tmp_path, **{**FEW, **change})


def test_a_changed_drawing_gets_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_synthetic_faces(tmp_path, **FEW)
    monkeypatch.setattr(synthetic_faces, "DRAWING_VERSION", synthetic_faces.DRAWING_VERSION + 1)
    assert write_synthetic_faces(tmp_path, **FEW) != before


def test_an_interrupted_drawing_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seed: int, usage: Split, index: int) -> tuple[int, NDArray[np.uint8]]:
        if usage == "PublicTest":
            raise KeyboardInterrupt
        return labelled_face(seed, usage, index)

    monkeypatch.setattr(synthetic_faces, "labelled_face", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_faces(tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == []


def test_what_was_killed_in_drawing_days_ago_is_removed(tmp_path: Path) -> None:
    path = write_synthetic_faces(tmp_path, **FEW)
    left = path.with_name(f".{path.name}.4711-0a1b.tmp")
    path.rename(left)
    os.utime(left, (0, 0))
    write_synthetic_faces(tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_training", 0),
        ("num_training", 10_000_000),
        ("num_public_test", -1),
        ("num_private_test", 2.5),
        ("num_private_test", True),
        ("seed", -1),
        ("seed", "0"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        write_synthetic_faces(tmp_path, **{**FEW, name: value})
    message = str(error.value)
    assert f"{name}: {value!r}" in message
    assert "whole number from" in message
    assert list(tmp_path.iterdir()) == []


def test_the_classes_are_balanced_as_chance_has_it() -> None:
    counts = np.bincount(draw_split("Training", 420)[1], minlength=7)
    assert counts.min() > 35
    assert counts.max() < 85
    assert len(set(counts.tolist())) > 1


def test_one_person_shows_seven_different_expressions_and_stays_that_person() -> None:
    people = [[portrait(emotion, person) for emotion in range(7)] for person in range(6)]
    for faces in people:
        for first in range(7):
            for second in range(first):
                assert np.abs(faces[first] - faces[second]).mean() > 1.0
    flat = np.stack([face.ravel() for faces in people for face in faces])
    likeness = np.corrcoef(flat).reshape(6, 7, 6, 7).mean(axis=(1, 3))
    assert (likeness.argmax(axis=1) == np.arange(6)).all()


def test_the_mouth_is_open_in_surprise_and_not_when_neutral() -> None:
    mouths = [[portrait(e, person)[32:39, 21:27].mean() for person in range(60)] for e in (SURPRISE, NEUTRAL)]
    assert np.mean(mouths[0]) < np.mean(mouths[1]) - 15.0


def test_every_face_has_contrast() -> None:
    assert min(float(portrait(person % 7, person).std()) for person in range(100)) > 20.0


def test_a_linear_classifier_beats_chance_and_stays_far_from_solving_it() -> None:
    (pixels, labels), (test_pixels, test_labels) = draw_split("Training", 1200), draw_split("PublicTest", 500)
    mean, deviation = pixels.mean(axis=0), pixels.std(axis=0)
    classifier: Any = RidgeClassifier(alpha=2e3)
    classifier.fit((pixels - mean) / deviation, labels)
    accuracy = classifier.score((test_pixels - mean) / deviation, test_labels)
    assert 0.25 < accuracy < 0.75
