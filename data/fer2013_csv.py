"""FER2013 as a CSV file: checked row by row, its pixels parsed by whole-array arithmetic."""

import codecs
import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
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
    with open(path, "rb", buffering=1 << 20) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        rows = _rows(_lines(file))
        try:
            header = [_text(cell) for cell in next(rows, [])]
        except csv.Error as error:
            raise UserError(f"{path}: the header cannot be read: {error}. Take the official fer2013.csv.") from None
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


def _lines(file: Iterable[bytes]) -> Iterator[bytes]:
    """Lines that end in LF, CR LF or, as those of old Macs, CR."""
    for line in file:
        if 0 <= line.find(b"\r") < len(line) - 2:
            yield from line.splitlines(keepends=True)
        else:
            yield line


def _rows(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """The cells of every row. Without a quote a line is split at its commas, many times as fast as csv does it.

    Empty lines at the end are no rows.
    """
    num_empty = 0
    for line in lines:
        if line in (b"\n", b"\r\n", b"\r"):
            num_empty += 1
            continue
        yield from [[b""]] * num_empty
        num_empty = 0
        if b'"' in line:
            texts = map(_text, itertools.chain([line], lines))  # csv takes further lines if a cell has some
            yield [cell.encode() for cell in next(csv.reader(texts))]
        else:
            cells = line.split(b",")
            cells[-1] = cells[-1].rstrip(b"\r\n")
            yield cells


def _text(cell: bytes) -> str:
    """What is not UTF-8 is found in its cell, and its row named."""
    return cell.decode(errors="backslashreplace")


def _find_columns(path: Path, header: Sequence[str]) -> list[int]:
    """Where COLUMNS stand: icml_face_data.csv has them in another order, and a space before two of the names."""
    known = {name.strip().lower(): place for place, name in enumerate(header)}
    if missing := [name for name in COLUMNS if name.lower() not in known]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; the header has {', '.join(header)[:200]!r}, and "
            f"{', '.join(COLUMNS)} are needed. Take the official fer2013.csv."
        )
    return [known[name.lower()] for name in COLUMNS]


def _decode(
    chunk: Sequence[list[bytes]], first_row: int, num_columns: int, places: Sequence[int], problems: list[str]
) -> Part:
    """Images, targets and indices into SPLITS; what is wrong with a row goes to `problems`."""
    full = [row + [b""] * (num_columns - len(row)) for row in chunk]
    emotions, usages = ([_text(row[place]) for row in full] for place in (places[0], places[2]))
    images, reasons = parse_pixels([row[places[1]] for row in full])
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


def parse_pixels(cells: Sequence[bytes]) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Lists of 2304 decimal numbers -> (len(cells), 2304), and for each cell that is none, its index and the reason."""
    images = np.zeros((len(cells), NUM_PIXELS), np.uint8)
    reasons: dict[int, str] = {}
    pending = [(i, min(i + BLOCK_ROWS, len(cells))) for i in range(0, len(cells), BLOCK_ROWS)]
    while pending:
        start, stop = pending.pop()
        block = parse_block(cells[start:stop])
        if block is not None:
            images[start:stop] = block
        elif stop - start > 1:  # halve until the odd cells are alone
            middle = (start + stop) // 2
            pending += [(start, middle), (middle, stop)]
        elif isinstance(values := _parse_text(_text(cells[start])), str):
            reasons[start] = values
        else:
            images[start] = values
    return images, reasons


def parse_block(cells: Sequence[bytes]) -> NDArray[np.uint8] | None:
    """(len(cells), 2304) if every cell is 2304 numbers 0..255 with one space between them, else None.

    Every byte gets the value of the number that ends there; then the bytes before the spaces are taken.
    """
    raw = np.frombuffer(b" ".join([*cells, b""]), np.uint8)
    spaces = np.flatnonzero(raw == ord(" "))
    ends = np.cumsum([len(cell) + 1 for cell in cells]) - 1
    if not np.array_equal(spaces[NUM_PIXELS - 1 :: NUM_PIXELS], ends):  # the last byte is the last of them
        return None
    digit = raw - np.uint8(ord("0"))
    is_digit = digit < 10
    two_digits = is_digit[1:] & is_digit[:-1]
    three_digits = two_digits[1:] & two_digits[:-1]
    if np.count_nonzero(is_digit) + len(spaces) != len(raw) or (three_digits[1:] & three_digits[:-1]).any():
        return None
    if not is_digit[0] or not (is_digit[1:] | is_digit[:-1]).all():  # a space where a number should be
        return None
    digit *= is_digit
    hundreds = digit[:-2] * three_digits
    if hundreds.max() > 2:
        return None
    hundreds *= np.uint8(100)
    values = np.zeros(len(raw) + 1, np.uint8)  # one more in front: each stands where the space behind it stood
    value = values[1:]
    np.multiply(digit[:-1], np.uint8(10), out=value[1:])
    value += digit
    value[2:] += hundreds
    if (value[2:] < hundreds).any():  # beyond 255: arithmetic is modulo 256
        return None
    return values.take(spaces).reshape(len(cells), NUM_PIXELS)


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
