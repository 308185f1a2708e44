#!/usr/bin/env python3
"""Check a trained model.

    python main_test.py verify experiments/fer/models/best_model.pth
    python main_test.py verify best_model.pth --split PrivateTest --set datasets.test.dataroot=fer2013.csv

`verify` tests the file alone, on the data set that selected it or on another split of it, and compares the result with
the one recorded when it was saved. Exit status: 0 the result is as recorded, or nothing was recorded for this split;
1 it differs; 2 the file, the options or the data are wrong.
"""

import argparse
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.select_dataset import DataSource, TestLoader, define_dataset
from main_train import TABLES
from models.evaluate import evaluate
from models.portable_model import unpack_model
from models.select_model import define_model
from utils import utils_option as option
from utils.utils_dist import Dist, process_group
from utils.utils_error import UserError
from utils.utils_logger import print_block, start_console
from utils.utils_memory import keep_freed_memory
from utils.utils_metrics import MetricValue
from utils.utils_option import Options
from utils.utils_option_file import apply_overrides

logger = logging.getLogger("longhaul")


def verify(path: Path, split: str | None, overrides: list[str]) -> int:
    """Test a self-contained model and print its metrics; returns the exit status."""
    content = unpack_model(path)
    opt = option.validate(apply_overrides(content["options"], overrides), str(path), TABLES)
    if "test" not in opt.datasets:
        raise UserError(f"{path}: its options have no datasets.test; add one with --set datasets.test.dataroot=...")
    tested = opt.datasets["test"]
    recorded_split = tested.arguments.get("split")
    if split is not None:
        tested = type(tested)(**{**dict(tested), **tested.arguments, "split": split})
    with process_group(opt.train.num_threads) as dist:
        source = define_dataset("test", tested)
        result = _measure(opt, dist, source, content["model_state_dict"])
    recorded = content.get("metrics") if split in (None, recorded_split) else None
    differing = [name for name in result if recorded and not _equal(recorded.get(name), result[name])]
    _print_result(path, content, source, result, recorded, differing)
    return 1 if differing else 0


def _measure(opt: Options, dist: Dist, source: DataSource, weights: Mapping[str, Any]) -> dict[str, MetricValue]:
    model = define_model(opt, dist, seed=0)
    try:
        model.tested_net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the options that lie beside them: {error}") from error
    result = evaluate(model, TestLoader(source, dist), opt.val.metrics, len(source.class_names) or None)
    assert result is not None, "nobody asked to stop"
    return result


def _equal(recorded: Any, measured: MetricValue) -> bool:
    """Whether two results are equal; a loss is a sum of floats, whose order depends on the number of ranks."""
    if isinstance(recorded, float) and isinstance(measured, float):
        return math.isclose(recorded, measured, rel_tol=1e-6)
    return recorded == measured


def _print_result(
    path: Path, content: Mapping[str, Any], source: DataSource, result: Mapping[str, MetricValue],
    recorded: Mapping[str, MetricValue] | None, differing: list[str],
) -> None:  # fmt: skip
    lines = {
        "model": f"{path}: {content['netG']['net_type']}, iteration {content['iter']:,}, epoch {content['epoch']}",
        "data": f"{len(source.dataset):,} samples of {source.options.dataset_type} {source.options.arguments}",
        "SYNTHETIC": source.synthetic or "",
    }
    for name, value in result.items():
        if isinstance(value, float):
            lines[name] = f"{value:.4f}"
        elif value and isinstance(value[0], float):
            pairs = zip(source.class_names, value, strict=True)
            lines[name] = ", ".join(f"{label} {each:.3f}" for label, each in pairs)
    if recorded is None:
        lines["recorded"] = "nothing for this split"
    elif not differing:
        lines["recorded"] = "the same"
    else:
        shown = {name: recorded.get(name) for name in differing if isinstance(result[name], float)}
        lines["recorded"] = f"DIFFERENT: {shown or ', '.join(differing)}"
    print_block("Verify", lines.items())


def main() -> int:
    """Run the command line; returns the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="metrics of one model file, against those recorded in it")
    command.add_argument("model", type=Path, help="best_model.pth or final_model.pth")
    command.add_argument("--split", help="another split of the data set, for example PrivateTest")
    command.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one option")
    args = parser.parse_args()
    keep_freed_memory()
    start_console(is_main=True)
    try:
        return verify(args.model, args.split, args.set)
    except UserError as error:
        logger.error("%s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
