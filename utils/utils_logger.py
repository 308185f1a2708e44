"""What people see of a run: console, train.log, metrics.csv, TensorBoard and a progress bar. Only rank 0 writes."""

import atexit
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.utils_metrics import MetricValue
from utils.utils_metrics_csv import MetricsFile
from utils.utils_tensorboard import TensorBoard
from utils.utils_visualise import confusion_figure

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger("longhaul")


class _ConsoleHandler(logging.Handler):
    """Prints records above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        text = self.format(record)
        if encoding := getattr(stream, "encoding", None):  # a console without all letters must not end a run either
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        with contextlib.suppress(OSError):  # a closed terminal or a full disk must not end a run; train.log has it all
            tqdm.write(text, file=stream)
            stream.flush()


class _LogFileHandler(logging.FileHandler):
    """train.log; the console says once if it cannot be written. The last lines are kept until there is room again."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            logger.error("train.log could not be written: %s", error)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # has been said
            super().close()


def start_console(is_main: bool) -> None:
    """Log to the console on rank 0, and only errors on the other ranks."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # started with 2>&-: else the next file, a model, would get what C code prints
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115  # as long as the process lives
    handler = _ConsoleHandler(logging.INFO if is_main else logging.ERROR)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%y-%m-%d %H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    atexit.register(_drop_what_the_console_refuses)


def _drop_what_the_console_refuses() -> None:
    """Lose what a closed terminal will not take; Python would end with status 120 over it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class RunLog:
    """The log of one launch, in the experiment folder; on other ranks everything is a no-op."""

    def __init__(self, folder: Path | None, tensorboard: bool, progress_bar: bool) -> None:
        self._tb_folder = folder / "tb" if tensorboard and folder is not None else None
        self._progress_bar = progress_bar and folder is not None
        self._tb: TensorBoard | None = None
        self._metrics: MetricsFile | None = None
        self._file_handler: logging.Handler | None = None
        self._bar: tqdm[Any] | None = None
        if folder is not None:
            self._file_handler = _LogFileHandler(folder / "train.log", encoding="utf-8")
            self._file_handler.setFormatter(
                logging.Formatter("%(asctime)s.%(msecs)03d  %(message)s", "%y-%m-%d %H:%M:%S")
            )
            logger.addHandler(self._file_handler)
            self._metrics = MetricsFile(folder / "metrics.csv")

    def start(self, start_iter: int, total_iter: int) -> None:
        """Begin to measure; later TensorBoard events than `start_iter` of an earlier launch are hidden."""
        self._start_iter, self._total_iter = start_iter, total_iter
        self._start_time = self._last_time = time.perf_counter()
        self._last_iter = start_iter
        self._paused_since_last = 0.0
        if self._tb_folder is not None:
            self._tb = TensorBoard(self._tb_folder, purge_step=start_iter + 1)
        if self._progress_bar:
            from tqdm import tqdm

            self._bar = tqdm(total=total_iter, initial=start_iter, unit="it", dynamic_ncols=True, leave=False)

    def step(self) -> None:
        """One iteration is done."""
        if self._bar is not None:
            self._bar.update()

    def training(self, current_iter: int, epoch: int, lr: float, log: Mapping[str, float], batch_size: int) -> None:
        """Log the means since the last call, the speed without tests, and the time left with them."""
        now = time.perf_counter()
        num_iters = current_iter - self._last_iter
        images_per_s = num_iters * batch_size / max(now - self._last_time - self._paused_since_last, 1e-9)
        left = (self._total_iter - current_iter) * (now - self._start_time) / (current_iter - self._start_iter)
        self._last_iter, self._last_time, self._paused_since_last = current_iter, now, 0.0
        values = " ".join(f"{name}: {value:.4e}" for name, value in log.items())
        logger.info(
            "<epoch:%3d, iter:%8s, lr:%.3e> %s | %.0f images/s, %s left",
            epoch, f"{current_iter:,}", lr, values, images_per_s, duration(left),
        )  # fmt: skip
        self._record(current_iter, epoch, "train", lr, images_per_s, log)

    def test(
        self, split: str, current_iter: int, epoch: int, lr: float, result: Mapping[str, MetricValue],
        value_names: Sequence[str], seconds: float,
    ) -> None:  # fmt: skip
        """Log one test; lists become a column for each class or joint, matrices a picture."""
        scalars = {name: value for name, value in result.items() if isinstance(value, float)}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scalars.items())
        logger.info("<epoch:%3d, iter:%8s> %s: %s (%.1f s)", epoch, f"{current_iter:,}", split, shown, seconds)
        for name, value in result.items():
            if isinstance(value, list) and isinstance(value[0], list):
                self._matrix(split, name, value, value_names, current_iter)
            elif isinstance(value, list):
                scalars |= _columns(name, value, value_names)
        columns = {"G_loss" if name == "loss" else name: value for name, value in scalars.items()}
        self._record(current_iter, epoch, split, lr, None, columns)

    def pause(self, seconds: float) -> None:
        """Leave these seconds, of a test and all that it brings, out of the speed of training."""
        self._paused_since_last += seconds

    def image(self, tag: str, image: Any, current_iter: int) -> None:
        """Add a (C, H, W) image in [0, 1] to TensorBoard."""
        if self._tb is not None:
            self._tb.add("image", tag, image, current_iter)

    def figure(self, tag: str, figure: Any, current_iter: int) -> None:
        """Add a figure to TensorBoard."""
        if self._tb is not None:
            self._tb.add("figure", tag, figure, current_iter)

    @property
    def wants_images(self) -> bool:
        """Whether pictures go anywhere."""
        return self._tb_folder is not None

    def failure(self, error: BaseException) -> None:
        """Write how the launch ended to train.log alone; the console gets it from whoever handles the error."""
        if self._file_handler is not None:
            info = (type(error), error, error.__traceback__)
            arguments = (logger.name, logging.ERROR, __file__, 0, "The launch ended with an error.", None, info)
            self._file_handler.emit(logging.LogRecord(*arguments))

    def close(self) -> None:
        """Flush and close everything."""
        if self._bar is not None:
            self._bar.close()
        if self._tb is not None:
            self._tb.close()
        if self._file_handler is not None:
            logger.removeHandler(self._file_handler)
            self._file_handler.close()

    def _matrix(self, split: str, name: str, rows: Any, value_names: Sequence[str], current_iter: int) -> None:
        if self._tb is not None:
            title = f"{split}: {name}, iteration {current_iter:,}".replace("_", " ")
            self._tb.add("figure", f"{split}/{name}", confusion_figure(rows, value_names, title), current_iter)

    def _record(
        self, current_iter: int, epoch: int, split: str, lr: float, speed: float | None, values: Mapping[str, float]
    ) -> None:
        if self._metrics is not None:
            speed_text = "" if speed is None else f"{speed:.1f}"
            row = {"iter": current_iter, "epoch": epoch, "split": split, "lr": lr, "images_per_s": speed_text, **values}
            try:
                self._metrics.append(row)
            except OSError as error:  # a full disk must not end a run that could still finish
                logger.error("metrics.csv could not be written: %s", error)
        if self._tb is not None:
            speed_and_rate = {} if speed is None else {"images_per_s": speed, "lr": lr}
            for name, value in {**values, **speed_and_rate}.items():
                self._tb.add("scalar", f"{split}/{name}", value, current_iter)


def _columns(name: str, values: Sequence[Any], value_names: Sequence[str]) -> dict[str, float]:
    """A metric with many values as a column for each class or joint; the thresholds of a curve have no names."""
    labels = value_names if len(value_names) == len(values) else range(len(values))
    return {f"{name.removesuffix('_per_class')}_{label}": each for label, each in zip(labels, values, strict=True)}


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def print_block(title: str, lines: Iterable[tuple[str, str]]) -> None:
    """Log some (label, text) under a title; empty texts are left out. Data that are not real stand out as a banner."""
    logger.info("%s", f" {title} ".center(80, "="))
    for label, text in lines:
        if not text:
            continue
        if label in ("SYNTHETIC", "RANDOM"):
            logger.warning("%s", f" {label} DATA: {text} ".center(80, "!"))
        else:
            logger.info("  %-17s %s", label, text)
    logger.info("%s", "=" * 80)
