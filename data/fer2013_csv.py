"""FER2013 as a CSV file: checked row by row, its pixels parsed by whole-array arithmetic."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.fer2013_faces import EMOTIONS, SIDE, SPLITS, Faces, refuse
from utils.utils_error import UserError

COLUMNS = ("emotion", "pixels", "Usage")
NUM_PIXELS = SIDE * SIDE
CHUNK_ROWS = 256
BLOCK_ROWS = 32  # 270 kB of text: the arrays made of it stay in the processor's second-level cache
TARGETS = {str(target): target for target in range(len(EMOTIONS))}
REMEDY = (
    f"A row needs emotion 0..{len(EMOTIONS) - 1}, {NUM_PIXELS} pixels (integers 0..255, separated by spaces) and Usage "
    f"{', '.join(SPLITS)}. Mend or delete these rows, or take the official fer2013.csv."
)

Part = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


def read_csv(path: Path) -> dict[str, Faces]:
    """The faces of every split, in the order of the rows; a split that the file lacks is empty.

    `Faces.rows` holds row numbers as in the file, where the header is row 1. Raises UserError that names the missing
    columns, or all bad rows.
    """
    parts: dict[str, list[Part]] = {split: [] for split in SPLITS}
    problems: list[str] = []
    # Freeing one large block makes glibc keep smaller ones; else it maps and unmaps every temporary array of the
    # parser: 500,000 page faults, 1.2 s.
    np.empty(16 << 20, np.uint8)
    # What is not UTF-8 is found in its cell, and its row named.
    with open(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = _rows(file)
        header = next(rows, [])
        places = _find_columns(path, header)
        first_row = 2
        try:
            while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
                images, targets, splits = _decode(chunk, first_row, len(header), places, problems)
                for code, split in enumerate(SPLITS):
                    chosen = np.flatnonzero(splits == code)
                    parts[split].append((images[chosen], targets[chosen], chosen + first_row))
                first_row += len(chunk)
        except csv.Error as error:
            problems.append(f"a row from row {first_row} on: {error}; no row behind {first_row - 1} was checked")
    if problems:
        raise refuse(path, "bad row", problems, REMEDY)
    return {split: _join(parts[split]) for split in SPLITS}


def _rows(lines: Iterator[str]) -> Iterator[list[str]]:
    """The cells of every row. Without a quote a line is split at its commas, three times as fast as csv does it.

    Empty lines at the end are no rows.
    """
    num_empty = 0
    for line in lines:
        if line in ("\n", "\r\n"):
            num_empty += 1
            continue
        yield from [[""]] * num_empty
        num_empty = 0
        if '"' in line:
            yield next(csv.reader(itertools.chain([line], lines)))  # takes further lines if a cell has some
        else:
            yield line.rstrip("\r\n").split(",")


def _find_columns(path: Path, header: Sequence[str]) -> list[int]:
    """Where COLUMNS stand: icml_face_data.csv has them in another order, and a space before two of the names."""
    known = {name.strip("\ufeff ").lower(): place for place, name in enumerate(header)}
    if missing := [name for name in COLUMNS if name.lower() not in known]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; the header has {', '.join(header)[:200]!r}, and "
            f"{', '.join(COLUMNS)} are needed. Take the official fer2013.csv."
        )
    return [known[name.lower()] for name in COLUMNS]


def _decode(
    chunk: Sequence[list[str]], first_row: int, num_columns: int, places: Sequence[int], problems: list[str]
) -> Part:
    """Images, targets and indices into SPLITS; what is wrong with a row goes to `problems`."""
    full = [row + [""] * (num_columns - len(row)) for row in chunk]
    emotions, pixels, usages = ([row[place] for row in full] for place in places)
    images, reasons = parse_pixels(pixels)
    targets = np.array([TARGETS.get(text.strip(), -1) for text in emotions], np.int64)
    codes: dict[str, int] = {split: code for code, split in enumerate(SPLITS)}
    splits = np.array([codes.get(text.strip(), -1) for text in usages], np.int64)
    long = {i for i, row in enumerate(chunk) if len(row) > num_columns}
    for i in sorted({*long, *reasons, *np.flatnonzero((targets < 0) | (splits < 0)).tolist()}):
        why = [reasons[i]] if i in reasons else []
        if targets[i] < 0:
            why.insert(0, _say("emotion", emotions[i]))
        if splits[i] < 0:
            why.append(_say("Usage", usages[i]))
        if i in long:
            why.append(f"{len(chunk[i])} cells, {num_columns} columns")
        problems.append(f"row {first_row + i}: {'; '.join(why)}")
    return images, targets, splits


def _say(column: str, text: str) -> str:
    return f"{column} is {text[:30]!r}" if text.strip() else f"{column} is empty"


def _join(parts: list[Part]) -> Faces:
    """Consumes `parts`, to free each as soon as it is copied: a whole split twice in memory would be the peak."""
    faces = Faces.empty(sum(len(targets) for _, targets, _ in parts))
    end = len(faces)
    while parts:
        images, targets, rows = parts.pop()
        place = slice(end - len(targets), end)
        faces.images[place] = images.reshape(-1, 1, SIDE, SIDE)
        faces.targets[place], faces.rows[place] = targets, rows
        end -= len(targets)
    return faces


def parse_pixels(texts: Sequence[str]) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Lists of 2304 decimal numbers -> (len(texts), 2304), and for each text that is none, its index and the reason."""
    images = np.zeros((len(texts), NUM_PIXELS), np.uint8)
    reasons: dict[int, str] = {}
    pending = [(i, min(i + BLOCK_ROWS, len(texts))) for i in range(0, len(texts), BLOCK_ROWS)]
    while pending:
        start, stop = pending.pop()
        block = parse_block(texts[start:stop])
        if block is not None:
            images[start:stop] = block
        elif stop - start > 1:  # halve until the odd texts are alone
            middle = (start + stop) // 2
            pending += [(start, middle), (middle, stop)]
        elif isinstance(values := _parse_text(texts[start]), str):
            reasons[start] = values
        else:
            images[start] = values
    return images, reasons


def parse_block(texts: Sequence[str]) -> NDArray[np.uint8] | None:
    """(len(texts), 2304) if every text is 2304 numbers 0..255 with one space between them, else None.

    Every byte gets the value of the number that ends there; then the bytes before the spaces are taken. Arithmetic is
    modulo 256, so what exceeds 255 is found in its digits.
    """
    try:
        raw = np.frombuffer(" ".join([*texts, ""]).encode("ascii"), np.uint8)
    except UnicodeEncodeError:
        return None
    digit = raw - np.uint8(ord("0"))
    is_digit = digit < 10
    spaces = np.flatnonzero(raw == ord(" "))
    ends = np.cumsum([len(text) + 1 for text in texts]) - 1
    if len(spaces) != NUM_PIXELS * len(texts) or np.count_nonzero(is_digit) + len(spaces) != len(raw):
        return None
    distance = np.diff(spaces, prepend=-1)  # 2 to 4: numbers of one to three digits
    if distance.min() < 2 or distance.max() > 4 or not np.array_equal(spaces[NUM_PIXELS - 1 :: NUM_PIXELS], ends):
        return None
    digit *= is_digit
    value = digit.copy()
    value[1:] += digit[:-1] * np.uint8(10)
    hundreds = digit[:-2] * (is_digit[1:-1] & is_digit[2:])
    if ((hundreds > 2) | ((hundreds == 2) & (value[2:] > 55))).any():
        return None
    value[2:] += hundreds * np.uint8(100)
    return value.take(spaces - 1).reshape(len(texts), NUM_PIXELS)


def _parse_text(text: str) -> list[int] | str:
    """The numbers of one text, tolerant of any white space, or what is wrong with it."""
    numbers = text.split()
    if not numbers:
        return "pixels is empty"
    for place, number in enumerate(numbers, start=1):
        if not re.fullmatch("0*[0-9]{1,3}", number) or int(number) > 255:
            return f"pixel {place} is {number[:30]!r}, not an integer 0..255"
    if len(numbers) != NUM_PIXELS:
        return f"{len(numbers)} pixels instead of {NUM_PIXELS}"
    return [int(number) for number in numbers]
