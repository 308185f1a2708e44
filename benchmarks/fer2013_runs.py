"""`python -m benchmarks.fer2013_runs FOLDER...`: a line of docs/fer2013.md for each experiment folder."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.select_network import define_G
from utils.utils_error import UserError
from utils.utils_history import read_history, saved_options
from utils.utils_option import NetOptions

HEADING = ("network", "parameters", "G file", "training", "batches", "seed", "epochs", "best", "last")


def read_options(folder: Path) -> dict[str, Any]:
    """The options of the newest launch; UserError without any."""
    saved = saved_options(folder)
    if not saved:
        raise UserError(f"{folder}: not the folder of an experiment: it has no options/")
    options: dict[str, Any] = json.loads(saved[-1].read_text(encoding="utf-8"))
    return options


def line(folder: Path) -> list[str]:
    """The cells of one experiment: what was trained, how, and the accuracy of its tested network on datasets.test."""
    options, history = read_options(folder), read_history(folder)
    netG, train = options["netG"], options["train"]
    accuracy = dict(history.series.get("test", {}).get("accuracy", []))
    if not accuracy or not history.manifests:
        raise UserError(f"{folder}: holds no test, or no checkpoint set; has it trained at all?")
    stream = history.manifests[max(history.manifests)].stream
    per_epoch = stream["num_samples"] / stream["batch_size"]
    best = max(accuracy, key=lambda iteration: accuracy[iteration])
    last = max(accuracy)
    num_parameters = sum(each.numel() for each in define_G(NetOptions(**netG)).parameters())
    files = sorted((folder / "models").glob("*_G.pth"), key=lambda path: path.stat().st_mtime_ns)
    return [
        network(netG),
        f"{num_parameters:,}",
        f"{files[-1].stat().st_size / 1e6:.2f} MB" if files else "-",
        recipe(options),
        str(stream["batch_size"]),
        str(stream["seed"]),
        f"{last / per_epoch:.0f} of {train['total_epochs']}",
        f"{100 * accuracy[best]:.2f} % (epoch {best / per_epoch:.0f})",
        f"{100 * accuracy[last]:.2f} %",
    ]


def network(netG: Mapping[str, Any]) -> str:
    """`fer_resnet 32-64-128, depths 2-1-1, stem_stride 2`: a list is joined by dashes."""
    said = [f"{netG['net_type']} {_dashes(netG.get('widths', 'as default'))}"]
    said += [f"{key} {_dashes(value)}" for key, value in netG.items() if key not in ("net_type", "widths") and value]
    return ", ".join(said)


def recipe(options: Mapping[str, Any]) -> str:
    """Optimizer, regularisation that is not part of the network, and the teacher."""
    train = options["train"]
    said = [f"{train['G_optimizer_type']} {train['G_optimizer_lr']:g}, decay {train['G_optimizer_wd']:g}"]
    said += [f"{key} {value:g}" for key, value in train["G_lossfn_args"].items() if value]
    shown = {"random_erasing": "probability", "mixup": "alpha", "random_affine": "rotation"}
    steps = options["datasets"]["train"]["transforms"]
    said += [f"{each['type']} {each[shown[each['type']]]:g}" for each in steps if each["type"] in shown]
    if options["model"] == "distill":
        named = options["path"]["pretrained_netT"]
        teachers = " and ".join(
            Path(each).parent.parent.name for each in ([named] if isinstance(named, str) else named)
        )
        said.append(f"taught by {teachers}, weight {train['distill_weight']:g}, T {train['distill_temperature']:g}")
    return ", ".join(said)


def _dashes(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    folders = parser.parse_args().folders
    for cells in (HEADING, ["---"] * len(HEADING), *map(line, folders)):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
