"""What a pose network must beat: the mean pose of the training hands, said of every test hand.

    python -m benchmarks.mean_pose -opt options/hand_pose.yaml

Prints MPJPE and PA-MPJPE in mm on datasets.test, with the number of hands; synthetic data are named.
"""

import argparse
from pathlib import Path

import torch

from data.select_dataset import define_dataset
from tables import TABLES
from utils import Evaluator
from utils.utils_option import parse


def main() -> None:
    """Print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", "--opt", type=Path, default=Path("options/hand_pose.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    args = parser.parse_args()
    opt = parse(args.opt, args.set, TABLES)
    train, test = (define_dataset(name, opt.datasets[name]) for name in ("train", "test"))
    joints = [torch.stack([each.dataset[i]["target"] for i in range(len(each.dataset))]) for each in (train, test)]
    mean = joints[0].double().mean(dim=0)
    evaluator = Evaluator(len(joints[1]))
    evaluator(mean.expand(joints[1].shape), joints[1])
    found = ", ".join(f"{name} {value:.1f} mm" for name, value in evaluator.get_metrics_dict().items())
    print(f"mean pose of {len(joints[0]):,} training images on {len(joints[1]):,} test images: {found}")
    if test.synthetic:
        print(f"SYNTHETIC DATA: {test.synthetic}")


if __name__ == "__main__":
    main()
