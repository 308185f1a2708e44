"""How much of an accuracy is due to test inputs that also stand in the training data?

    python -m benchmarks.repeated_inputs MODEL... [--set KEY.PATH=VALUE ...]

The accuracy of each model on datasets.test, on those of its inputs that occur in datasets.train byte for byte, and on
the others. MODEL is what main_test.py takes.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.measure import table
from commands.trained_model import load_trained_model
from data.loaders import TestLoader
from data.select_dataset import define_dataset, input_digests
from models.evaluate import evaluate
from utils.utils_dist import process_group
from utils.utils_error import UserError


def repeated_and_right(path: Path, overrides: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each test sample, whether it occurs in datasets.train, and whether it is classified right: bool (N,), (N,)."""
    trained = load_trained_model(path, None, overrides)
    test, train = trained.test_source(None), define_dataset("train", trained.opt.datasets["train"])
    known = set(input_digests(train.dataset))
    repeated = [digest in known for digest in input_digests(test.dataset)]
    if not known or not repeated:
        raise UserError(f"{path}: only inputs of resident data sets can be compared, and {test.title} streams")
    right: list[torch.Tensor] = []
    with process_group(trained.opt.train.num_threads) as dist:
        evaluate(
            trained.load(dist), TestLoader(test, dist), (),
            observe=lambda _batch, output, target: right.append(output.argmax(dim=1) == target),
        )  # fmt: skip
    return torch.tensor(repeated), torch.cat(right).cpu()


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one option")
    args = parser.parse_args()
    rows = [["model", "all", "those in the training data", "the others"]]
    for path in args.models:
        repeated, right = repeated_and_right(path, args.set)
        rows.append([str(path), *map(_share, (right, right[repeated], right[~repeated]))])
    print(table(rows))


def _share(right: torch.Tensor) -> str:
    return f"{100 * right.double().mean():.2f} % of {len(right):,}" if len(right) else "-"


if __name__ == "__main__":
    main()
