"""FER2013 as a CSV file: what is read, and what is refused in which words."""

import csv
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from data.dataset_fer2013 import EMOTIONS, Fer2013
from data.fer2013_csv import parse_block, parse_pixels
from tests.fer2013_files import forbid_parsing, random_faces, refusal, row_of, small_csv, user_cache, write_csv

__all__ = ["user_cache"]  # a fixture

OFFICIAL_SIZE = 48 * 48


@pytest.mark.parametrize("split", ["Training", "PublicTest"])
def test_csv_equals_an_independent_parse(tmp_path: Path, split: str) -> None:
    path = small_csv(tmp_path, 300)  # more than one chunk and one block
    with open(path, newline="") as file:
        rows = [(number, row) for number, row in enumerate(csv.DictReader(file), start=2) if row["Usage"] == split]
    dataset = Fer2013(path, split)  # type: ignore[arg-type]
    resident = dataset.resident()
    pixels = [[int(value) for value in row["pixels"].split()] for _, row in rows]
    assert resident["input"].tolist() == np.reshape(pixels, (-1, 1, 48, 48)).tolist()
    assert resident["target"].tolist() == [int(row["emotion"]) for _, row in rows]
    assert [dataset.name(i) for i in range(len(dataset))] == [f"fer2013.csv:row {number}" for number, _ in rows]
    assert (resident["input"].dtype, resident["target"].dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_quotes_and_line_ends_change_nothing(
    tmp_path: Path, quoting: Literal[1, 2], ending: str, encoding: str
) -> None:
    plain = Path(small_csv(tmp_path, 300))
    copied = open(tmp_path / "quoted.csv", "w", newline="", encoding=encoding)  # noqa: SIM115
    with open(plain, newline="") as file, copied as copy:
        rows = [[emotion, pixels.replace("7 ", "7\n", 1), usage] for emotion, pixels, usage in csv.reader(file)]
        csv.writer(copy, quoting=quoting, lineterminator=ending).writerows(rows)
    quoted, expected = Fer2013(str(tmp_path / "quoted.csv"), "Training"), Fer2013(str(plain), "Training")
    assert quoted.fingerprint == expected.fingerprint
    assert quoted.name(150) == expected.name(150).replace("fer2013", "quoted")


@pytest.mark.parametrize("ending", [b"\r\n", b"\r"])
def test_line_ends_without_quotes_change_nothing(tmp_path: Path, ending: bytes) -> None:
    plain = Path(small_csv(tmp_path, 300))
    (tmp_path / "other.csv").write_bytes(plain.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", ending))
    other, expected = Fer2013(str(tmp_path / "other.csv"), "Training"), Fer2013(str(plain), "Training")
    assert other.fingerprint == expected.fingerprint
    assert other.name(150) == expected.name(150).replace("fer2013", "other")


def test_a_header_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_bytes(b'"emotion' + b"x" * 200_000 + b'",pixels,Usage\n')
    assert "odd.csv: the header cannot be read: field larger than field limit" in refusal(str(tmp_path / "odd.csv"))


def test_sample(tmp_path: Path) -> None:
    dataset = Fer2013(small_csv(tmp_path), "Training")
    sample = dataset[3]
    assert sample["name"] == "fer2013.csv:row 6"
    assert sample["input"].shape == (1, 48, 48)
    assert sample["target"].shape == ()
    assert torch.equal(sample["input"], dataset.resident()["input"][3])
    assert int(sample["target"]) == 4
    sample["input"].zero_()
    assert dataset[3]["input"].any(), "changing a sample in place changed the data set"
    assert dataset.class_names == EMOTIONS
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("header", ["emotion, Usage, pixels", "Usage,pixels,id,emotion", "\ufeffpixels,emotion,Usage"])
def test_columns_in_any_order(tmp_path: Path, header: str) -> None:
    faces = random_faces(5)
    cells = [{"emotion": str(i), "pixels": " ".join(map(str, faces[i].ravel())), "Usage": "Training"} for i in range(5)]
    order = [name.strip(" \ufeff") for name in header.split(",")]
    rows = [",".join(cell.get(name, "0") for name in order) for cell in cells]
    reordered = Fer2013(write_csv(tmp_path / "icml_face_data.csv", rows, header), "Training")
    official = Fer2013(write_csv(tmp_path / "b.csv", [row_of(faces[i], i) for i in range(5)]), "Training")
    assert reordered.fingerprint == official.fingerprint
    assert reordered.resident()["input"][:, 0].numpy().tolist() == faces.tolist()


def test_folder_with_the_csv(tmp_path: Path) -> None:
    path = small_csv(tmp_path)
    assert Fer2013(str(tmp_path), "Training").fingerprint == Fer2013(path, "Training").fingerprint


def test_fingerprint_is_the_identity_of_images_and_labels(tmp_path: Path) -> None:
    faces = random_faces(4)
    rows = [row_of(face, i) for i, face in enumerate(faces)]
    first = Fer2013(write_csv(tmp_path / "a.csv", rows), "Training")
    other_split = row_of(faces[0], 3, "PublicTest")
    moved = Fer2013(write_csv(tmp_path / "b.csv", [other_split, *rows]), "Training")
    relabelled = Fer2013(write_csv(tmp_path / "c.csv", [row_of(faces[0], 5), *rows[1:]]), "Training")
    faces[2, 7, 7] ^= 1
    changed = Fer2013(write_csv(tmp_path / "d.csv", [row_of(face, i) for i, face in enumerate(faces)]), "Training")
    pixels_and_labels = first.resident()["input"].numpy().tobytes() + np.arange(4, dtype="<i8").tobytes()
    assert first.fingerprint == moved.fingerprint == hashlib.sha256(pixels_and_labels).hexdigest()
    assert len({first.fingerprint, relabelled.fingerprint, changed.fingerprint}) == 3


GOOD = " ".join(["7"] * OFFICIAL_SIZE)


def with_pixel(place: int, text: str) -> str:
    values = ["7"] * OFFICIAL_SIZE
    values[place - 1] = text
    return " ".join(values)


BAD_ROWS = {
    "one pixel less": (f"0,{GOOD[:-2]},Training", "2303 pixels instead of 2304"),
    "one pixel more": (f"0,{GOOD} 7,Training", "2305 pixels instead of 2304"),
    "too large": (f"0,{with_pixel(17, '256')},Training", "pixel 17 is '256'"),
    "three hundreds": (f"0,{with_pixel(1, '300')},Training", "pixel 1 is '300'"),
    "four digits": (f"0,{with_pixel(2304, '1234')},Training", "pixel 2304 is '1234'"),
    "negative": (f"0,{with_pixel(2, '-3')},Training", "pixel 2 is '-3'"),
    "decimal": (f"0,{with_pixel(3, '7.0')},Training", "pixel 3 is '7.0'"),
    "nan pixel": (f"0,{with_pixel(4, 'nan')},Training", "pixel 4 is 'nan'"),
    "foreign digit": (f"0,{with_pixel(5, '٣')},Training", "pixel 5 is '٣'"),
    "comma in quotes": (f'0,"{with_pixel(6, "7,7")}",Training', "pixel 6 is '7,7'"),
    "no pixels": ("0,,Training", "pixels is empty"),
    "no emotion": (f",{GOOD},Training", "emotion is empty"),
    "emotion NaN": (f"nan,{GOOD},Training", "emotion is 'nan'"),
    "emotion 7": (f"7,{GOOD},Training", "emotion is '7'"),
    "emotion -1": (f"-1,{GOOD},Training", "emotion is '-1'"),
    "usage": (f"0,{GOOD},Trainign", "Usage is 'Trainign'"),
    "no usage": (f"0,{GOOD},", "Usage is empty"),
    "short row": (f"0,{GOOD}", "Usage is empty"),
    "surplus cell": (f"0,{GOOD},Training,1", "row 6: 4 cells, 3 columns"),
    "surplus cells": (f"0,{GOOD},Training,1,2", "row 6: 5 cells, 3 columns"),
    "blank": ("", "emotion is empty; pixels is empty; Usage is empty"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_is_named(tmp_path: Path, case: str) -> None:
    row, reason = BAD_ROWS[case]
    rows = [f"0,{GOOD},Training"] * 70
    rows[4] = row
    message = refusal(write_csv(tmp_path / "fer2013.csv", rows))
    assert message.startswith(f"{tmp_path / 'fer2013.csv'}: 1 bad row\n  row 6: ")
    assert reason in message
    assert "0..255" in message
    assert not list(tmp_path.glob("*.npy")), "a refused file left a cache"


def test_first_row_may_be_the_bad_one(tmp_path: Path) -> None:
    message = refusal(write_csv(tmp_path / "fer2013.csv", [f"0,{GOOD},Training,1,2", f"0,{GOOD},Training"]))
    assert "row 2: 5 cells, 3 columns" in message


def test_two_wrongs_in_two_rows_do_not_make_a_right(tmp_path: Path) -> None:
    rows = [f"0,{GOOD[:-2]},Training", f"0,{GOOD} 7,Training"]  # together they have 2 x 2304 pixels
    message = refusal(write_csv(tmp_path / "fer2013.csv", rows))
    assert "row 2: 2303 pixels" in message
    assert "row 3: 2305 pixels" in message


def test_ten_bad_rows_at_once_and_the_rest_counted(tmp_path: Path) -> None:
    rows = [f"{9 if i % 50 == 1 else 0},{GOOD},Training" for i in range(600)]  # 12 bad ones in several chunks
    message = refusal(write_csv(tmp_path / "fer2013.csv", rows))
    assert "12 bad rows" in message
    assert [line.split(":")[0] for line in message.splitlines()[1:11]] == [f"  row {3 + 50 * i}" for i in range(10)]
    assert "... and 2 more" in message.splitlines()[11]


def test_bad_row_of_another_split_stops_too(tmp_path: Path) -> None:
    assert "row 3" in refusal(write_csv(tmp_path / "a.csv", [f"0,{GOOD},Training", f"8,{GOOD},PublicTest"]))


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_empty_lines_are_no_rows_at_the_end_alone(tmp_path: Path, ending: str) -> None:
    path = Path(small_csv(tmp_path))
    whole, text = Fer2013(str(path), "Training"), path.read_text()
    path.write_text(text + 3 * ending, newline="")
    assert len(Fer2013(str(path), "Training")) == len(whole)
    lines = text.splitlines()
    path.write_text("\n".join([*lines[:3], "", *lines[3:], ""]))
    assert "row 4: emotion is empty" in refusal(tmp_path)


def test_truncated_last_row(tmp_path: Path) -> None:
    path = Path(small_csv(tmp_path))
    path.write_bytes(path.read_bytes()[:-3000])
    message = refusal(path)
    assert "row 13: " in message
    assert "pixels instead of 2304" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no column emotion, pixels, Usage"),
        (bytes(range(256)) * 50, "no column emotion"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "no column emotion"),
        (b"emotion,pixels\n0,1 2 3\n", "no column Usage"),
        (b"label,image\n0,1 2 3\n", "no column emotion, pixels, Usage"),
        (b"emotion,pixels,Usage\n", "no rows at all"),
        (b'emotion,pixels,Usage\n0,"1 2 3,Training\n', "row 2: pixel 3 is '3,Training'"),
        (
            b'emotion,pixels,Usage\n0,"1' + b" 2" * 70_000,
            "row 2 on: field larger than field limit (131072); no row behind 1",
        ),
        (b"emotion,pixels,Usage\n0,1 2 3\xff,Training\n", r"row 2: pixel 3 is '3\\xff'"),
    ],
)
def test_not_the_expected_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    message = refusal(path)
    assert str(path) in message
    assert words in message


def test_absent_split_says_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_csv(tmp_path)
    message = refusal(path, "PrivateTest")
    assert "no row has Usage PrivateTest; the file has 8 Training, 4 PublicTest" in message
    forbid_parsing(monkeypatch)
    assert refusal(path, "PrivateTest") == message


def test_unknown_split_and_missing_dataroot(tmp_path: Path) -> None:
    assert "'training' is unknown; allowed are Training" in refusal(small_csv(tmp_path), "training")
    assert "nowhere.csv: no such file" in refusal(tmp_path / "nowhere.csv")


def test_is_available(tmp_path: Path) -> None:
    assert not Fer2013.is_available(str(tmp_path / "nowhere.csv"))
    assert not Fer2013.is_available(str(tmp_path))
    path = small_csv(tmp_path)
    assert Fer2013.is_available(path)
    assert Fer2013.is_available(str(tmp_path))
    (tmp_path / "images" / "Train").mkdir(parents=True)
    assert Fer2013.is_available(str(tmp_path / "images"))


def test_every_pixel_value_is_parsed_without_the_slow_path() -> None:
    values = np.arange(3 * OFFICIAL_SIZE) * 37 % 256
    cells = [" ".join(map(str, part)).encode() for part in values.reshape(3, -1)]
    block = parse_block(cells)
    assert block is not None
    assert block.tolist() == values.reshape(3, -1).tolist()


def test_fast_parser_takes_no_wrong_number() -> None:
    wrong = [*map(str, range(256, 1300)), "0000", "-1", "", "1_0", "+5", "1e1", "0x1", "²"]
    for place in (1, 1000, OFFICIAL_SIZE):
        assert [number for number in wrong if parse_block([with_pixel(place, number).encode()]) is not None] == []


def test_unusual_but_valid_texts_are_read() -> None:
    odd = f"  {with_pixel(9, '0009').replace('7 7', '007   7', 1)}\t"
    images, reasons = parse_pixels([text.encode() for text in [GOOD] * 40 + [odd] + [GOOD] * 40])
    assert not reasons
    expected = np.full((81, OFFICIAL_SIZE), 7)
    expected[40, 8] = 9
    assert images.tolist() == expected.tolist()
