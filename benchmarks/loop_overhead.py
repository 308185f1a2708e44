"""What a training loop costs beside forward pass, loss, backward pass and update: CPU time an iteration.

    python -m benchmarks.loop_overhead [--rounds 9]

A network of 1.7k parameters and batches of 8 faces of 48x48, so that nearly all else is overhead; one thread, no
transforms. Longhaul has everything on: resident data, moving average, schedule, seeding, loss accumulation, finite
check, agreement on signals, a line of log every 100 iterations.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contender import contenders
from benchmarks.loops import command
from benchmarks.measure import Mark, Row, interleave, is_installed, main, median
from data.synthetic_faces import write_synthetic_faces

NUM_ITERS = 500


def options(folder: Path) -> dict[str, Any]:
    """The option file of all loops; nothing is due but the log."""
    return {
        "task": "overhead",
        "path": {"root": str(folder)},
        "datasets": {
            "train": {
                "dataset_type": "fer2013",
                "dataroot": str(write_synthetic_faces(folder, 1000, 1, 1)),
                "split": "Training",
                "dataloader_batch_size": 8,
            }
        },
        "netG": {"net_type": "fer_resnet", "stem_stride": 4, "widths": [9], "depths": [1]},
        "train": {
            "G_lossfn_type": "cross_entropy",
            "G_optimizer_type": "sgd",
            "G_optimizer_lr": 0.01,
            "G_scheduler_type": "CosineAnnealing",
            "E_decay": 0.999,
            "total_iter": 10**9,
            "checkpoint_print": 100,
            "checkpoint_save": 10**9,
            "manual_seed": 0,
            "num_threads": 1,
        },
        "log": {"tensorboard": False, "progress_bar": False},
    }


def measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        option_file = folder / "overhead.json"
        option_file.write_text(json.dumps(options(folder)))
        loops = {
            "bare loop": "bare",
            "bare + gather": "bare_gather",
            "bare + DataLoader": "bare_dataloader",
            "Longhaul": "longhaul",
            "KAIR style": "kair",
            **{peer: peer.lower() for peer in ("Accelerate", "Lightning") if is_installed(peer.lower())},
        }
        commands = {name: command(loop, option_file, NUM_ITERS) for name, loop in loops.items()}
        with contenders(commands, folder) as started:
            seconds = interleave(dict(started), rounds)
    samples = {name: [value * 1e6 for value in values] for name, values in seconds.items()}
    bare = samples["bare loop"]
    over = ", ".join(
        f"{name} {median([value - limit for value, limit in zip(values, bare, strict=True)]):+,.0f}"
        for name, values in samples.items()
        if name != "bare loop"
    )
    marks = (Mark(1.13, "bare loop"), *(Mark(1.0, peer) for peer in ("KAIR style", "Accelerate", "Lightning")))
    note = f"Over the bare loop, round by round: {over} us. Longhaul and KAIR's style keep the average of the weights."
    return [Row("an iteration of a tiny network", "us", "Longhaul", samples, marks, note)]


if __name__ == "__main__":
    sys.exit(main(measure, __doc__))
