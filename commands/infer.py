"""infer: what the model says of images, folders, videos or a camera.

Faces are found by OpenCV's cascade, if they are frontal and 24 pixels wide or more (in a large image, 1/40 of it), and
are cropped as FER2013's are. --no_detect takes whole images, such as FER2013's own. A folder stands for its images and
videos and those of its subfolders; of images with several frames the first is taken. What cannot be read is named with
the reason, and the rest goes on. An image without a face is named, and no failure.

Exit status: 0 all inputs were read; 1 one was unreadable or empty; 2 the model or the arguments are wrong; 130 stopped
by Ctrl-C, after writing what was done. q in the window ends a camera with 0.
"""

import argparse
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from commands.infer_files import AnnotatedFiles, Tables, check_not_an_input
from commands.media import Frame, Medium, find_media, quiet_opencv, read_frames
from commands.outputs import check_output
from commands.trained_model import load_trained_model
from commands.window import Window
from utils.utils_dist import process_group
from utils.utils_error import UserError, check_at_least_one
from views.view_base import Box, Finding, View, whole

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger("longhaul")

SUMMARY = "what the model says of images, folders, videos or a camera"
EXAMPLES = """
    python main_test.py infer experiments/fer --input photo.jpg
    python main_test.py infer experiments/fer --input photos 'more/**/*.png' --csv said.csv --output annotated
    python main_test.py infer best_model.pth --input fer2013/test --no_detect --no_draw --json said.json
    python main_test.py infer best_model.pth --input clip.mp4 --every 5
    python main_test.py infer best_model.pth --input 0 --show
"""

_WAITING_BYTES = 2**28
"""Of the frames that wait until a batch is full."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="X",
        help="images, folders, globs (quoted or not), video files, or the index of a camera, such as 0",
    )  # fmt: skip
    parser.add_argument("--no_detect", action="store_true", help="look for no faces: each image is one face already")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="of a video, only every N-th frame (default: 1)"
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=64,
        metavar="N",
        help="inputs that go through the network together (default: 64)",
    )
    parser.add_argument("--csv", type=Path, metavar="OUT", help="write a row for each face, with all probabilities")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the same, and what could not be read")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="for annotated copies, videos without sound (default: images/infer of its experiment, else infer; "
        "of a camera none)",
    )  # fmt: skip
    parser.add_argument("--no_draw", action="store_true", help="write no annotated copies")
    parser.add_argument(
        "--show", action="store_true", help="show the results in a window: a key for the next image, q to end"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status: see the module."""
    check_at_least_one("--every", args.every)
    check_at_least_one("--batch_size", args.batch_size)
    quiet_opencv()
    trained = load_trained_model(args.model, args.opt, args.set)
    folder = args.output or trained.pictures("infer")
    view = trained.view()
    if trained.input_dtype not in (None, "uint8") and type(view).crop is View.crop:
        logger.warning(
            "%s was trained on inputs of %s, and is shown the bytes of an image / 255: what it says is right only if "
            "its data set makes the same of a file; `crop` of a view of your own can make something else.",
            trained.path, trained.input_dtype,
        )  # fmt: skip
    for option, path in (("--csv", args.csv), ("--json", args.json)):
        if path is not None:
            check_output(option, path, trained.reads())
    if args.csv is not None and args.csv == args.json:
        raise UserError(f"--csv and --json: both are {args.csv}; give two names")
    tables = Tables(args.csv, args.json, trained.path, view)
    media = find_media(args.input, folder, tables.problem)
    check_not_an_input("--csv and --json", filter(None, (args.csv, args.json)), media)
    is_live = any(medium.is_live for medium in media)
    is_copied = not args.no_draw and (args.output is not None or not is_live)
    copies = AnnotatedFiles(folder, media) if is_copied else None
    with contextlib.ExitStack() as stack:
        window = stack.enter_context(contextlib.closing(Window())) if args.show else None
        stack.enter_context(tables)
        if copies is not None:
            stack.enter_context(contextlib.closing(copies))
        dist = stack.enter_context(process_group(trained.opt.train.num_threads))
        inference = _Inference(
            view, trained.predictor(dist), trained.input_shape, not args.no_detect, args.every,
            batch_size=1 if window or is_live else args.batch_size,
        )  # fmt: skip
        shown = _Shown(view, inference.subject, tables, copies, window)
        frames = stack.enter_context(_progress_bar(read_frames(media, tables.problem), media))
        is_stopped = shown.all(inference.answers(frames))
    if is_stopped:
        logger.warning("Stopped by Ctrl-C; what was done until then is written.")
    is_written = copies is not None and copies.num_written > 0
    shown.summary([path for path in (folder if is_written else None, args.csv, args.json) if path])
    return 130 if is_stopped else 1 if tables.failed else 0


class _Inference:
    """Frames -> what the network says of what is found in them; inputs of several frames share a batch."""

    def __init__(
        self, view: View, predict: Callable[[torch.Tensor], torch.Tensor],
        input_shape: tuple[int, int, int] | None, detect: bool, every: int, batch_size: int,
    ) -> None:  # fmt: skip
        self.subject = view.subject if detect else ""
        self._find = view.find if detect else lambda image: [whole(image)]
        self._view, self._predict, self._input_shape = view, predict, input_shape
        self._every, self._batch_size = every, batch_size

    def answers(self, frames: Iterable[Frame]) -> Iterator[tuple[Frame, list[Finding] | None]]:
        """Each frame in turn with its findings; None for those of a video that --every leaves out."""
        waiting: list[tuple[Frame, list[Box] | None]] = []
        inputs: list[NDArray[np.uint8]] = []
        num_bytes = 0
        for frame in frames:
            boxes = self._boxes(frame)
            inputs += [self._view.crop(frame.image, box, self._input_shape) for box in boxes or ()]
            waiting.append((frame, boxes))
            num_bytes += frame.image.nbytes
            if len(inputs) >= self._batch_size or self._batch_size == 1 or num_bytes >= _WAITING_BYTES:
                yield from self._answered(waiting, inputs)
                waiting, inputs, num_bytes = [], [], 0
        yield from self._answered(waiting, inputs)

    def _boxes(self, frame: Frame) -> list[Box] | None:
        if frame.number is not None and (frame.number - 1) % self._every:
            return None
        return self._find(frame.image)

    def _answered(
        self, waiting: Sequence[tuple[Frame, list[Box] | None]], inputs: Sequence[NDArray[np.uint8]]
    ) -> Iterator[tuple[Frame, list[Finding] | None]]:
        outputs = self._outputs(inputs)
        for frame, boxes in waiting:
            yield frame, None if boxes is None else [Finding(box, next(outputs)) for box in boxes]

    def _outputs(self, inputs: Sequence[NDArray[np.uint8]]) -> Iterator[torch.Tensor]:
        for _, group in itertools.groupby(inputs, key=np.shape):
            while batch := list(itertools.islice(group, self._batch_size)):
                yield from self._predict(torch.from_numpy(np.stack(batch))).cpu()


class _Shown:
    """What people get to see: lines, tables, annotated copies, a window, and a summary."""

    def __init__(
        self, view: View, subject: str, tables: Tables, copies: AnnotatedFiles | None, window: Window | None
    ) -> None:
        self._view, self._subject, self._tables, self._copies, self._window = view, subject, tables, copies, window
        self._num_frames, self._num_found = Counter[Medium](), Counter[Medium]()
        self._found: list[Finding] = []
        self._start = time.perf_counter()

    def all(self, answers: Iterator[tuple[Frame, list[Finding] | None]]) -> bool:
        """Show everything, or until the window is closed; True if Ctrl-C came before the end."""
        try:
            for frame, found in answers:
                if found is not None:
                    self._tell(frame, found)
                    self._found = found
                if not self._picture(frame):
                    break
        except KeyboardInterrupt:
            return True
        return False

    def summary(self, written: Sequence[Path]) -> None:
        """How much was done, how fast, and where the files are."""
        for medium, num_frames in self._num_frames.items():
            if medium.is_video and not self._num_found[medium]:
                logger.info("%s: no %s found in %s", medium.name, self._subject, _counted(num_frames, "frame"))
        num_frames = self._num_frames.total()
        found = f", {_counted(self._num_found.total(), self._subject)}" * bool(self._subject)
        speed = num_frames / (time.perf_counter() - self._start)
        failed = f"; {len(self._tables.failed):,} could not be read" * bool(self._tables.failed)
        where = f"; written: {', '.join(map(str, written))}" * bool(written)
        logger.info("%s%s (%.0f images/s)%s%s", _counted(num_frames, "image"), found, speed, failed, where)

    def _tell(self, frame: Frame, found: Sequence[Finding]) -> None:
        medium = frame.medium
        self._num_frames[medium] += 1
        self._num_found[medium] += len(found)
        self._tables.add(frame, found)
        place = medium.name if frame.seconds is None else f"{medium.name} at {frame.seconds:.2f} s"
        for number, (box, output) in enumerate(found, 1):
            where = f"  {self._subject} {number} at ({box.left}, {box.top}, {box.width}, {box.height})"
            logger.info("%s%s  %s", place, where * bool(self._subject), self._view.headline(output))
        if not found and not medium.is_video:
            logger.info("%s: no %s found; --no_detect takes the whole image", place, self._subject)

    def _picture(self, frame: Frame) -> bool:
        """Write and show the annotated frame, those between with what was last said; False to stop."""
        if self._copies is None and self._window is None:
            return True
        picture = self._view.annotate(frame.image, self._found)  # the first of each medium is answered
        if self._copies is not None and (self._found or frame.medium.is_video):
            self._copies.add(frame, picture)
        return self._window is None or self._window.show(picture, wait=not frame.medium.is_video)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _progress_bar(frames: Iterable[Frame], media: Sequence[Medium]) -> "tqdm[Frame]":
    """The same frames, with a bar on a terminal where there are many."""
    from tqdm import tqdm

    numbers = [medium.num_frames() for medium in media]
    total = sum(numbers) if all(numbers) else None
    return tqdm(frames, total=total, unit="image", leave=False, dynamic_ncols=True, disable=total == 1 or None)
