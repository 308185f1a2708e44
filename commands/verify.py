"""verify: the metrics of one file alone, on one split, against those that its run recorded.

Exit status: 0 as recorded, or nothing was recorded; 1 they differ, or cannot be right; 2 the model, the options or the
data are wrong.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from commands.outputs import check_output, write_output
from commands.trained_model import TrainedModel, load_trained_model
from data.loaders import TestLoader
from data.select_dataset import DataSource
from models.evaluate import evaluate
from models.model_plain import Batch, ModelPlain
from utils.utils_device import device_name
from utils.utils_dist import Dist, process_group
from utils.utils_error import UserError
from utils.utils_logger import print_block
from utils.utils_metrics import MetricValue, with_unit
from utils.utils_visualise import save_figure
from views.select_view import define_view
from views.view_base import View

logger = logging.getLogger("longhaul")

_TOLERANCE = 1e-5  # relative: other ranks sum in another order, and a spreadsheet leaves metrics.csv six digits
_TOLERANCE_OF_DEVICES = 0.01

SUMMARY = "metrics of one file alone, against those that its run recorded"
EXAMPLES = """
    python main_test.py verify experiments/fer
    python main_test.py verify experiments/fer/models/best_model.pth --split PrivateTest --tta
    python main_test.py verify experiments/fer/models/1563_E.pth --json verified.json
    python main_test.py verify best_model.pth --set datasets.test.dataroot=fer2013.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", help="another split of datasets.test, for example PrivateTest")
    parser.add_argument("--tta", action="store_true", help="average over mirror images and small shifts")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything that is found; null: not finite")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for the confusion matrix (default: images/ of its experiment)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status: see the module.

    A read-only experiment has no other, only no pictures. A place that was named and cannot be written is an OSError.
    """
    trained = load_trained_model(args.model, args.opt, args.set)
    if args.json:
        check_output("--json", args.json, trained.reads())
    with process_group(trained.opt.train.num_threads) as dist:
        measured = measure(trained, trained.load(dist), dist, args.split, args.tta)
    _print(trained, measured)
    if args.json:
        write_output(args.json, json.dumps(_as_json(measured.found), indent=2, allow_nan=False) + "\n")
        logger.info("Written: %s", args.json)
    try:
        _draw(trained, measured, args.output)
    except OSError as error:
        if args.output:
            raise
        logger.warning("No pictures: %s; --output names another folder for them.", error)
    return 1 if measured.found["differing"] or measured.found["doubts"] else 0


@dataclasses.dataclass(frozen=True)
class Measured:
    """One test of one model: its metrics, and `found`, everything that is known of it, as JSON values."""

    source: DataSource
    view: View
    result: Mapping[str, MetricValue]
    found: Mapping[str, Any]


def measure(
    trained: TrainedModel, model: ModelPlain, dist: Dist, split: str | None = None, is_averaged: bool = False,
    observe: Callable[[Batch, torch.Tensor, torch.Tensor], None] | None = None,
) -> Measured:  # fmt: skip
    """Test a loaded model on a split (None: that of its options), `is_averaged` over several views of each input."""
    source = trained.test_source(split)
    view = define_view(source.dataset, source.class_names)
    metrics = list(dict.fromkeys([*trained.opt.val.metrics, *view.metrics]))

    def averaged(batch: Batch) -> torch.Tensor:
        return view.average([model.test({**batch, "input": each}) for each in view.inputs(batch["input"])])

    if is_averaged and (type(view).inputs is View.inputs or torch.as_tensor(source.dataset[0]["input"]).ndim != 3):
        raise UserError("--tta: nothing is known of this task that could be averaged; leave it out")
    start = time.perf_counter()
    loader = TestLoader(source, dist)
    result = evaluate(
        model, loader, metrics, source.num_classes,
        observe=observe, predict=averaged if is_averaged else None,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    assert result is not None, "nobody asked to stop"
    found = _findings(trained, source, view, model, result, len(source.dataset) / seconds, is_averaged)
    return Measured(source, view, result, found)


def _findings(
    trained: TrainedModel, source: DataSource, view: View, model: ModelPlain, result: Mapping[str, MetricValue],
    images_per_s: float, is_averaged: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is known, as JSON values."""
    split = source.options.arguments.get("split")
    is_other_data = split == trained.recorded_split and not _are_the_data(trained, source)
    recorded = trained.recorded if split == trained.recorded_split and not (is_averaged or is_other_data) else {}
    other_device = trained.device if trained.device not in (None, device_name(model.dist.device)) else None
    tolerance = _TOLERANCE if other_device is None else _TOLERANCE_OF_DEVICES
    shared = [name for name in recorded if name in result]
    if other_device:  # a sample that changes sides is much in one cell of a confusion matrix
        shared = [name for name in shared if isinstance(recorded[name], float)]
    return {
        "model": str(trained.path),
        "network": trained.opt.netG.net_type,
        "iteration": trained.iteration,
        "epoch": trained.epoch,
        "num_parameters": sum(parameter.numel() for parameter in model.tested_net.parameters()),
        "file_bytes": trained.path.stat().st_size,
        "data": source.title,
        "num_samples": len(source.dataset),
        "synthetic": source.synthetic,
        "is_other_data": is_other_data,
        "test_time_average": is_averaged,
        "images_per_s": round(images_per_s, 1),
        "metrics": dict(result),
        "classes": view.rows(result),
        "recorded": {name: recorded[name] for name in shared},
        "differing": [name for name in shared if not _equal(recorded[name], result[name], tolerance)],
        "recorded_on_other_device": other_device,
        "doubts": view.doubts(result),
    }


def _draw(trained: TrainedModel, measured: Measured, output: Path | None) -> None:
    """Write pictures and tables into the folder `output`, else into images/ of the experiment, if there is one."""
    view, result, found = measured.view, measured.result, measured.found
    if folder := output or (trained.experiment and trained.experiment / "images"):
        figures = view.figures(result, f"{trained.path.name} on {found['data']}{measured.source.mark}")
        tables = view.tables(result)
        if figures or tables:
            folder.mkdir(parents=True, exist_ok=True)
        elif output:
            logger.warning("--output: this task has no pictures and no tables; nothing is written into %s.", output)
        for name, figure in figures.items():
            path = folder / f"{_stem(trained, found)}_{name}.png"
            save_figure(figure, path)
            logger.info("Written: %s", path)
        for name, rows in tables.items():
            path = folder / f"{_stem(trained, found)}_{name}.csv"
            with open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
            logger.info("Written: %s", path)


def _equal(recorded: Any, measured: MetricValue, tolerance: float) -> bool:
    """Whether two results are equal, within a relative tolerance for floats; so are NaN and NaN."""
    if isinstance(recorded, list) and isinstance(measured, list):
        return len(recorded) == len(measured) and all(map(_equal, recorded, measured, itertools.repeat(tolerance)))
    if isinstance(recorded, float) and isinstance(measured, float):
        both_nan = math.isnan(recorded) and math.isnan(measured)
        return both_nan or math.isclose(recorded, measured, rel_tol=tolerance)
    return recorded == measured


def _as_json(value: Any) -> Any:
    """What other readers of JSON take too: null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _are_the_data(trained: TrainedModel, source: DataSource) -> bool:
    """Whether the source holds what the run was tested on, as far as the file says what that was."""
    if trained.fingerprint is not None:
        return trained.fingerprint == source.fingerprint
    return bool(trained.synthetic) == bool(source.synthetic) or trained.path.name[0].isdigit()


def _stem(trained: TrainedModel, found: Mapping[str, Any]) -> str:
    marks = "_other_data" * found["is_other_data"] + "_tta" * found["test_time_average"]
    data = re.sub(r"[ /\\]", "_", found["data"])  # a split may be a path
    return f"verify_{trained.path.stem}_{data}{marks}"


def _print(trained: TrainedModel, measured: Measured) -> None:
    source, found = measured.source, measured.found
    epoch = "" if found["epoch"] is None else f", epoch {found['epoch']}"
    lines = {
        "model": f"{found['model']}: {found['network']}, iteration {found['iteration']:,}{epoch}",
        "size": f"{found['num_parameters']:,} parameters, {found['file_bytes'] / 1e6:.2f} MB",
        "data": f"{found['num_samples']:,} samples of {found['data']}"
        + (f", {source.options.dataroot}" if source.options.dataroot and not source.synthetic else ""),
        "SYNTHETIC": source.synthetic or "",
        "test-time average": "mirror images and small shifts" if found["test_time_average"] else "",
        "speed": f"{found['images_per_s']:,.0f} images/s",
    }
    lines |= {name: with_unit(name, value) for name, value in found["metrics"].items() if isinstance(value, float)}
    lines["recorded"] = _recorded_text(trained, found)
    print_block("Verify", [*lines.items(), *(("", line) for line in _table(found["classes"]))])
    for doubt in found["doubts"]:
        logger.warning("  CANNOT BE RIGHT: %s", doubt)


def _recorded_text(trained: TrainedModel, found: Mapping[str, Any]) -> str:
    if found["test_time_average"]:
        return "not compared: the run measured one view of each input"
    if found["is_other_data"]:
        return "not compared: the run was tested on other data"
    if found["differing"]:
        pairs = ((name, trained.recorded[name], found["metrics"][name]) for name in found["differing"])
        shown = [f"{name} {old:.6g}, now {new:.6g}" for name, old, new in pairs if isinstance(new, float)]
        return f"DIFFERENT: {'; '.join(shown) or ', '.join(found['differing'])}"
    if not found["recorded"]:
        return "no result of this file on these data"
    other = found["recorded_on_other_device"]
    return "the same" if other is None else f"the same within 1 %, as measured on another device ({other})"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Right-aligned columns under their names."""
    if not rows:
        return []

    def text(value: Any) -> str:
        return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    cells = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
