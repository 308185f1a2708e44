"""How far does a linear classifier get on a CSV in fer2013 form?

    python -m benchmarks.linear_baseline [FILE]

Multinomial logistic regression on standardised pixels. The regularisation is chosen on PublicTest, so that figure
flatters the classifier a little; PrivateTest is untouched by the choice. Without FILE: the faces that options/fer.json
generates, kept in the user's cache folder.
"""

import argparse
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.measure import hardware
from data.fer2013_faces import SPLITS
from data.synthetic_faces import write_synthetic_faces
from utils.utils_file import cache_folder

INVERSE_REGULARISATIONS = (1e-5, 1e-4, 1e-3, 1e-2)
MAX_STEPS = 200
NUM_FACES = (2_000, 700, 700)  # the fallback of options/fer.json

Split = tuple[NDArray[np.float32], NDArray[np.int64]]


def read_splits(path: Path) -> dict[str, Split]:
    """Usage -> (pixels (N, 2304) standardised by the training split, labels (N,))."""
    table = pd.read_csv(path)
    pixels = np.array([np.fromstring(text, np.float32, sep=" ") for text in table["pixels"]])
    training = (table["Usage"] == "Training").to_numpy()
    pixels -= pixels[training].mean(axis=0)
    pixels /= pixels[training].std(axis=0) + 1e-6
    labels = table["emotion"].to_numpy(np.int64)
    masks = {usage: (table["Usage"] == usage).to_numpy() for usage in SPLITS}
    return {usage: (pixels[mask], labels[mask]) for usage, mask in masks.items()}


def accuracies_percent(splits: dict[str, Split], inverse_regularisation: float) -> list[float]:
    """Percent classified right in each split, in the order of SPLITS, after fitting on Training."""
    untyped: Any = LogisticRegression
    fit = untyped(C=inverse_regularisation, max_iter=MAX_STEPS)
    fit.fit(*splits["Training"])
    return [100.0 * float(fit.score(*splits[usage])) for usage in SPLITS]


def main() -> None:
    """Fit once for each regularisation and print a line for each, then the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, help="a CSV with the columns emotion, pixels, Usage")
    path = parser.parse_args().file or write_synthetic_faces(cache_folder(), *NUM_FACES)
    splits = read_splits(path)
    print(f"{path.name}: n = " + ", ".join(f"{len(labels):,} {usage}" for usage, (_, labels) in splits.items()))
    versions = f"scikit-learn {sklearn.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    print(f"{versions}; {hardware()}")
    warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest regularisation overfits long before it converges
    rows = []
    for inverse in INVERSE_REGULARISATIONS:
        start = time.perf_counter()
        rows.append(accuracies_percent(splits, inverse))
        figures = ", ".join(f"{usage} {value:.1f} %" for usage, value in zip(SPLITS, rows[-1], strict=True))
        print(f"C = {inverse:g}: {figures} ({time.perf_counter() - start:.0f} s)", flush=True)
    best = max(rows, key=lambda row: row[1])
    labels = splits["PublicTest"][1]
    print(f"best: PublicTest {best[1]:.1f} %, PrivateTest {best[2]:.1f} %; "
          f"the commonest class alone: PublicTest {100.0 * np.bincount(labels).max() / len(labels):.1f} %")  # fmt: skip


if __name__ == "__main__":
    main()
