"""samples: for each class, images that the model gets right, or wrong, with the probability of every class."""

import argparse
import logging
from pathlib import Path

from commands.outputs import check_folder
from commands.trained_model import load_trained_model
from data.loaders import TestLoader
from models.evaluate import evaluate
from utils.utils_dist import process_group
from utils.utils_error import UserError, check_at_least_one
from views.pictures import write_samples
from views.select_view import define_view
from views.test_outputs import TestOutputs, why_no_samples

logger = logging.getLogger("longhaul")

SUMMARY = "pictures of what the model gets right or wrong, class by class"
EXAMPLES = """
    python main_test.py samples experiments/fer
    python main_test.py samples experiments/fer --wrong --num_samples 5 --output wrong_faces
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_samples", type=int, default=3, metavar="N", help="pictures of each class (default: 3)")
    parser.add_argument("--wrong", action="store_true", help="those that the model gets wrong")
    parser.add_argument("--split", help="another split of datasets.test, for example PrivateTest")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for the pictures (default: images/samples of its experiment, else samples)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the pictures; exit status 0."""
    check_at_least_one("--num_samples", args.num_samples)
    trained = load_trained_model(args.model, args.opt, args.set)
    source = trained.test_source(args.split)
    folder = args.output or trained.pictures("samples")
    check_folder("--output", folder)
    view = define_view(source.dataset, source.class_names)
    if reason := why_no_samples(view, source.dataset):
        raise UserError(f"samples: {reason}")
    with process_group(trained.opt.train.num_threads) as dist:
        outputs = TestOutputs()
        evaluate(trained.load(dist), TestLoader(source, dist), (), observe=outputs.add)
    chosen = outputs.choose(view, source.dataset, args.num_samples, args.wrong)
    written = write_samples(view, chosen, args.wrong, folder, source.mark)
    if source.synthetic:
        logger.warning("SYNTHETIC DATA: %s", source.synthetic)
    logger.info("Pictures in %s: %d; the first of each row together in %s.", folder, len(written) - 1, written[-1])
    return 0
