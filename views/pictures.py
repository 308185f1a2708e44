"""Files of pictures: the samples of a test, and images/ of the best model while its run goes on."""

import gc
import itertools
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.utils_curves import curve_panels, curves_figure
from utils.utils_history import read_history
from utils.utils_visualise import save_figure
from views.test_outputs import RawSamples, TestOutputs, why_no_samples
from views.view_base import Result, Sample, View

if TYPE_CHECKING:
    from utils.utils_visualise import Figure

logger = logging.getLogger("longhaul")

_LARGEST_SHARE = 0.02  # of the time of a run may go into pictures
_NUM_SAMPLES = 3
_MOST_ROWS = _MOST_COLUMNS = 20  # of the picture of all; some more, and neither matplotlib nor a reader can take it in


def write_samples(
    view: View, chosen: Mapping[str, Sequence[Sample]], wrong: bool, folder: Path, mark: str = ""
) -> list[Path]:
    """Write each sample alone to `<folder>/<row>/`, and one picture of the first of all; returns the files, it last.

    mark: what the title of the latter adds.
    """
    kind, written = "wrong" if wrong else "right", []
    names = _folder_names(chosen)
    for row, samples in chosen.items():
        in_row = folder / names[row]
        in_row.mkdir(parents=True, exist_ok=True)
        for earlier in in_row.glob(f"{kind}_[0-9]*_*.png"):  # of another model, or of more samples
            earlier.unlink()
        for number, sample in enumerate(samples, 1):
            written.append(in_row / f"{kind}_{number}_{_file_name(sample.name)}.png")
            save_figure(view.samples_figure({row: [sample]}, row), written[-1])
    written.append(folder / f"{kind}.png")
    save_figure(_samples_figure(view, chosen, view.sample_titles[kind] + mark), written[-1])
    return written


def rows_to_show(chosen: Mapping[str, Sequence[Sample]]) -> dict[str, Sequence[Sample]]:
    """All rows, or of many the first that have a sample."""
    rows = {row: samples for row, samples in chosen.items() if samples} if len(chosen) > _MOST_ROWS else chosen
    return dict(itertools.islice((rows or chosen).items(), _MOST_ROWS))


def _samples_figure(view: View, chosen: Mapping[str, Sequence[Sample]], title: str) -> "Figure":
    """One picture of as much as it has room for."""
    shown = {row: samples[:_MOST_COLUMNS] for row, samples in rows_to_show(chosen).items()}
    of_all = f", {len(shown)} of {len(chosen):,} rows" if len(shown) < len(chosen) else ""
    return view.samples_figure(shown, title + of_all)


class BestModelPictures:
    """images/ of an experiment: curves, result and samples of the best model so far; the samples go to TensorBoard too.

    Drawing takes a second or two, in which training stands still. A best model that comes too soon after the last one
    waits for the next test or the end of the launch, so that pictures take at most a fiftieth of the time.
    """

    def __init__(
        self, experiment: Path, view: View, dataset: RawSamples, tensorboard: Callable[[str, Any, int], None]
    ) -> None:
        self._images, self._view, self._dataset = experiment / "images", view, dataset
        self._tensorboard = tensorboard
        self._pending: tuple[int, str, Result, TestOutputs] | None = None
        self._next_time = 0.0

    def tested(self, current_iter: int, title: str, result: Result, outputs: TestOutputs, is_best: bool) -> None:
        """Take note of a test, and draw what there is to draw if it is time."""
        if is_best:
            self._pending = current_iter, title, result, outputs
        if time.monotonic() >= self._next_time:
            self.draw()

    def draw(self) -> None:
        """Draw the best model that has not been drawn. A failure is logged: it must not end a run."""
        if self._pending is None:
            return
        start = time.monotonic()
        try:
            self._draw(*self._pending)
        except Exception as error:  # whatever it is, the run is worth more than its pictures
            logger.error("The pictures of the best model could not be written: %s", error)
        self._pending = None
        gc.collect()  # figures are webs of cycles: left alone, those of one drawing are still there in the next
        self._next_time = time.monotonic() + (time.monotonic() - start) / _LARGEST_SHARE

    def finish(self, best_iter: int | None) -> None:
        """Draw what is left to draw, and the curves to the end of the run."""
        self.draw()
        try:
            self._draw_curves(best_iter)
        except Exception as error:
            logger.error("The curves could not be written: %s", error)

    def _draw(self, current_iter: int, title: str, result: Result, outputs: TestOutputs) -> None:
        for name, figure in self._view.figures(result, title).items():
            save_figure(figure, self._images / f"best_{name}.png")
        for kind in () if why_no_samples(self._view, self._dataset) else ("right", "wrong"):
            chosen = outputs.choose(self._view, self._dataset, _NUM_SAMPLES, kind == "wrong")
            figure = _samples_figure(self._view, chosen, f"{self._view.sample_titles[kind]}, {title}")
            save_figure(figure, self._images / f"best_{kind}.png")
            self._tensorboard(f"test/best_{kind}", figure, current_iter)
        self._draw_curves(current_iter)

    def _draw_curves(self, best_iter: int | None) -> None:
        history = read_history(self._images.parent)
        panels = curve_panels(history, self._view.class_names or self._view.joint_names)
        if panels:
            figure = curves_figure(panels, history.folder.name, history.interruptions, best_iter)
            save_figure(figure, self._images / "curves.png")


def _folder_names(rows: Collection[str]) -> dict[str, str]:
    """Row -> the name of its folder: one class may be a "T-shirt/top", and another a "T-shirt_top"."""
    names: dict[str, str] = {}
    for row in rows:
        name = re.sub(r"[/\\]", "_", row)
        while name != row and name in (*rows, *names.values()):
            name += "_"
        names[row] = name
    return names


def _file_name(name: str) -> str:
    """What tells a sample from the others of its file or folder, without what a file's name may not hold."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", Path(name.rpartition(":")[2]).stem)
