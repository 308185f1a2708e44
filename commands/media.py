"""What --input names: images, folders, globs, videos and a camera, as one stream of frames."""

import dataclasses
import glob
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.utils_error import UserError
from utils.utils_image_file import IMAGE_SUFFIXES, UnreadableError, read_image
from views.view_base import Image

logger = logging.getLogger("longhaul")

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".mts", ".m2ts",
                  ".ts", ".ogv", ".3gp")  # fmt: skip

_MOST_CAMERA_DIGITS = 4  # OpenCV's indices are the number of a camera and that of its driver, as in 701

Problem = Callable[[str, str], None]
"""Told the name of an input and the reason why it, or the rest of it, cannot be read."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image; of a video or a camera the one with this number, from 1 on, at this time in seconds."""

    medium: "Medium"
    image: Image
    number: int | None = None
    seconds: float | None = None


class Medium:
    """A file or a camera. `name` is what people call it; `path` is None for a camera."""

    is_video = False
    is_live = False
    fps = 25.0
    """Frames per second of a video, known when its first frame is."""

    def __init__(self, name: str, path: Path | None) -> None:
        self.name = name
        self.path = path

    def num_frames(self) -> int:
        """How many frames there should be; 0 if nobody knows."""
        return 1

    def frames(self) -> Iterator[Frame]:
        """The frames that can be read; then UnreadableError, if these are not all."""
        assert self.path is not None
        yield Frame(self, read_image(self.path))


class Video(Medium):
    """A video file."""

    is_video = True

    def num_frames(self) -> int:
        capture = cv2.VideoCapture(str(self.path))
        try:
            return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        finally:
            capture.release()

    def frames(self) -> Iterator[Frame]:
        assert self.path is not None
        try:
            with open(self.path, "rb") as file:  # OpenCV never says what is wrong
                if not file.read(1):
                    raise UnreadableError("the file is empty")
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error
        capture = cv2.VideoCapture(str(self.path))
        try:
            yield from self._frames_of(capture)
        finally:
            capture.release()

    def _frames_of(self, capture: cv2.VideoCapture) -> Iterator[Frame]:
        self.fps = _frames_per_second(capture)
        promised, number, last = capture.get(cv2.CAP_PROP_FRAME_COUNT), 0, -1.0
        while True:
            is_read, image = capture.read()
            if not is_read:
                break
            number += 1
            # Phones vary the rate: each frame knows its own time, except in containers that have none.
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            last = seconds if seconds > last else (number - 1) / self.fps
            yield Frame(self, np.asarray(image, np.uint8), number, last)
        if not number:
            raise UnreadableError("not a video, or truncated or damaged: no frame of it can be read")
        if number < 0.98 * promised - 1:  # where a container does not count, the promise is an estimate
            raise UnreadableError(f"truncated or damaged: only {number:,} of its {promised:,.0f} frames can be read")


class Camera(Medium):
    """A camera, by its index; it has frames until somebody stops."""

    is_video = is_live = True

    def __init__(self, index: int) -> None:
        super().__init__(f"camera {index}", None)
        self._index = index

    def num_frames(self) -> int:
        return 0

    def frames(self) -> Iterator[Frame]:
        capture = cv2.VideoCapture(self._index)
        try:
            if not capture.isOpened():
                raise UnreadableError(
                    "it cannot be opened; is it connected, free, and are you allowed to read it (on Linux /dev/video*)?"
                )
            self.fps = _frames_per_second(capture)
            start = time.monotonic()
            for number in itertools.count(1):
                is_read, image = capture.read()
                if not is_read:
                    raise UnreadableError(f"no more images come after {number - 1:,}")
                yield Frame(self, np.asarray(image, np.uint8), number, time.monotonic() - start)
        finally:
            capture.release()


def quiet_opencv() -> None:
    """Keep OpenCV and FFmpeg from writing their own lines about damaged files between ours."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def find_media(inputs: Sequence[str], output: Path, problem: Problem) -> list[Medium]:
    """The media that are named, each once.

    A folder stands for the images and videos in it and in its subfolders, in the order of their names, without hidden
    ones and without `output`; a glob, also where the shell has not expanded it, for those that match. A whole number
    that is not the name of a file is the index of a camera.
    """
    media: list[Medium] = []
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    for text in inputs:
        path = Path(text)
        if os.path.isdir(text):  # noqa: PTH112  # unlike Path.is_dir it does not raise where one may not look
            files += _of_folder(path, output, problem, left_out)
        elif os.path.lexists(text):
            files.append(path)
        elif text.isdecimal() and len(text) <= _MOST_CAMERA_DIGITS:
            media.append(Camera(int(text)))
        elif glob.has_magic(text):
            files += _matching(text, problem, left_out)
        else:
            problem(text or "''", "no such file or folder")
    if media and len(inputs) > 1:
        raise UserError(f"--input: a camera is watched alone; {media[0].name} stands beside other inputs")
    if left_out:
        kinds = ", ".join(f"{number:,} {suffix or 'without a suffix'}" for suffix, number in left_out.most_common())
        logger.info("Left out, because their names are not those of images or videos: %s", kinds)
    named: dict[str, Path] = {}
    for path in files:
        named.setdefault(os.path.normpath(path.absolute()), path)
    for path in named.values():
        media.append((Video if path.suffix.lower() in VIDEO_SUFFIXES else Medium)(str(path), path))
    return media


def read_frames(media: Sequence[Medium], problem: Problem) -> Iterator[Frame]:
    """All frames of all media; what cannot be read is told, and the rest goes on."""
    for medium in media:
        try:
            yield from medium.frames()
        except UnreadableError as error:
            problem(medium.name, str(error))


def _of_folder(folder: Path, output: Path, problem: Problem, left_out: Counter[str]) -> list[Path]:
    found: list[Path] = []
    errors: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(here / name) != os.path.realpath(output)
        )
        found += _known((here / name for name in sorted(names) if not name.startswith(".")), left_out)
    for error in errors:
        problem(str(error.filename), error.strerror or str(error))
    if not found and not errors:
        problem(str(folder), f"the folder holds no image and no video ({_examples()})")
    return found


def _matching(pattern: str, problem: Problem, left_out: Counter[str]) -> list[Path]:
    names = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207
    found = _known(map(Path, names), left_out)
    if not found:
        problem(pattern, f"no image and no video matches ({_examples()})")
    return found


def _known(paths: Iterable[Path], left_out: Counter[str]) -> list[Path]:
    found = []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
            found.append(path)
        else:
            left_out[suffix] += 1
    return found


def _examples() -> str:
    return ", ".join((*IMAGE_SUFFIXES[:4], "...", *VIDEO_SUFFIXES[:4], "..."))


def _frames_per_second(capture: cv2.VideoCapture) -> float:
    """As the file or the camera says it; 25 where it says nothing that can be true."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0.1 <= fps <= 1000 else Medium.fps
