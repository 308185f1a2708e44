"""What infer writes: annotated copies of images and videos, and tables of everything that the network says."""

import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from commands.media import Frame, Medium
from commands.outputs import write_output
from utils.utils_error import UserError
from utils.utils_image_file import write_image
from views.view_base import PLACE_COLUMNS, Finding, Image, View

logger = logging.getLogger("longhaul")


class AnnotatedFiles:
    """Annotated copies in a folder, which has the tree of the inputs below their common folder.

    JPEG and PNG keep their format, other images become PNG, and videos MP4 (MPEG-4), or AVI (Motion JPEG) where OpenCV
    cannot write the former; without sound. Raises UserError if a copy would replace an input.
    """

    def __init__(self, folder: Path, media: Sequence[Medium]) -> None:
        self._targets = _targets(folder, media)
        check_not_an_input("--output", self._targets.values(), media)
        for target, number in Counter(self._targets.values()).items():
            if number > 1:
                names = ", ".join(medium.name for medium, path in self._targets.items() if path == target)
                raise UserError(f"--output: the copies of {names} would both be {target}; give one of them at a time")
        self.num_written = 0
        self._video: cv2.VideoWriter | None = None
        self._video_of: Medium | None = None

    def add(self, frame: Frame, picture: Image) -> None:
        """Write an image, or the next frame of a video. Raises OSError."""
        target = self._targets[frame.medium]
        if not frame.medium.is_video:
            write_image(target, picture)
            self.num_written += 1
            return
        if self._video_of is not frame.medium:
            self.close()
            self.num_written += 1
            self._video = _open_video(target, frame.medium.fps, (picture.shape[1], picture.shape[0]))
            self._video_of = frame.medium
        assert self._video is not None
        self._video.write(picture)

    def close(self) -> None:
        """End the video that is being written."""
        if self._video is not None:
            self._video.release()
        self._video = self._video_of = None


class Tables:
    """--csv with a row for each finding, --json with an entry for each frame; written whole when the block ends."""

    def __init__(self, csv_file: Path | None, json_file: Path | None, model: Path, view: View) -> None:
        self._csv, self._json, self._model, self._view = csv_file, json_file, model, view
        self._frames: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []

    def __enter__(self) -> "Tables":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self._frames:  # what failed before its first frame says nothing worth an older table
            self.close()

    def problem(self, name: str, reason: str) -> None:
        """Say what cannot be read, and keep it for --json."""
        logger.error("%s: %s", name, reason)
        self.failed.append({"file": _printable(name), "reason": reason})

    def add(self, frame: Frame, found: Sequence[Finding]) -> None:
        """Keep what was found in a frame."""
        if self._csv is None and self._json is None:
            return
        findings = []
        for number, (box, output) in enumerate(found, 1):
            sides = {"left": box.left, "top": box.top, "width": box.width, "height": box.height}
            findings.append({"number": number, "box": sides, **self._view.says(output, box)})
        seconds = None if frame.seconds is None else round(frame.seconds, 3)
        self._frames.append(
            {"file": _printable(frame.medium.name), "frame": frame.number, "seconds": seconds, "found": findings}
        )

    def close(self) -> None:
        """Write the files that were asked for. Raises OSError."""
        if self._csv is not None:
            rows = [_row(frame, finding) for frame in self._frames for finding in frame["found"]]
            text = io.StringIO()
            columns = rows[0] if rows else (*PLACE_COLUMNS, *self._view.columns)
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_output(self._csv, text.getvalue())
        if self._json is not None:
            content = {"model": str(self._model), "frames": self._frames, "failed": self.failed}
            write_output(self._json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check_not_an_input(option: str, targets: Iterable[Path], media: Sequence[Medium]) -> None:
    """Raise UserError if one of the files to write is one of those to read."""
    inputs = {os.path.realpath(medium.path) for medium in media if medium.path is not None}
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise UserError(f"{option}: {target} is an input, and would be overwritten; choose another place")


def _printable(name: str) -> str:
    """A file's name in UTF-8, also where its bytes are none."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _row(frame: Mapping[str, Any], finding: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in finding.items() if name not in ("number", "box")}
    place = (frame["file"], frame["frame"], frame["seconds"], finding["number"], *finding["box"].values())
    return {**dict(zip(PLACE_COLUMNS, place, strict=True)), **said}


def _targets(folder: Path, media: Sequence[Medium]) -> dict[Medium, Path]:
    paths = [Path(os.path.abspath(medium.path)) for medium in media if medium.path is not None]  # noqa: PTH100
    try:
        common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    except ValueError:  # on several drives of Windows
        common = ""
    targets = {}
    for medium in media:
        if medium.path is None:
            relative = Path(medium.name.replace(" ", "_"))
        else:
            path = Path(os.path.abspath(medium.path))  # noqa: PTH100
            relative = path.relative_to(common or path.anchor)
        kept, other = ((".mp4",), ".mp4") if medium.is_video else ((".jpg", ".jpeg", ".png"), ".png")
        suffix = "" if relative.suffix.lower() in kept else other
        targets[medium] = folder / relative.with_name(relative.name + suffix)
    return targets


def _open_video(target: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    target.parent.mkdir(parents=True, exist_ok=True)
    for path, code in ((target, "mp4v"), (target.with_name(f"{target.name}.avi"), "MJPG")):
        video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, size)
        if video.isOpened():
            return video
    raise OSError(f"{target}: OpenCV can write neither MPEG-4 nor Motion JPEG there")
