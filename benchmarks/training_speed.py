"""Training images a second of fer_resnet (options/fer.json), end to end with augmentation: CPU time, one thread.

    python -m benchmarks.training_speed [--rounds 5]

The bare loops and MindSpore train on batches that were augmented beforehand. The other peers augment sample by sample
in a DataLoader. 2.6x of float32 is a mark for CPUs that multiply matrices in bf16 (AMX), such as the one on which it
was set; on any other, the faster precision must be no slower than float32.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.contender import contenders
from benchmarks.loops import command
from benchmarks.measure import Mark, Row, interleave, is_installed, main
from utils.utils_device import chosen_amp, device_name
from utils.utils_file import PROJECT_FOLDER

OPTION_FILE = PROJECT_FOLDER / "options" / "fer.json"
BATCH_SIZE = 64
NUM_ITERS = 8  # the first of a stretch finds the caches as another contender left them

FP32 = ("train.amp=null", "train.channels_last=false")
FP32_LAST = ("train.amp=null", "train.channels_last=true")
BF16_LAST = ("train.amp=bf16", "train.channels_last=true")

CPU = torch.device("cpu")
CHOSEN = BF16_LAST if chosen_amp("auto", CPU) == "bf16" else FP32_LAST
SAME_PRECISION = f"bare {'bf16' if CHOSEN is BF16_LAST else 'fp32'} channels_last"


def commands(folder: Path) -> dict[str, list[str]]:
    """Name -> command line of each contender that can run here."""

    def loop(name: str, *changes: str, malloc: str = "kept") -> list[str]:
        data = ("datasets.train.dataroot=null", "train.checkpoint_save=1000000", "train.checkpoint_test=1000000")
        own = (f"path.root={folder}", "train.total_iter=1000000000", "train.num_threads=1", "log.tensorboard=false")
        return command(name, OPTION_FILE, NUM_ITERS, *data, *own, *changes, malloc=malloc)

    found = {
        "bare fp32": loop("bare", *FP32),
        "bare fp32, malloc as it is": loop("bare", *FP32, malloc="default"),
        "bare fp32 channels_last": loop("bare", *FP32_LAST),
        "bare bf16 channels_last": loop("bare", *BF16_LAST),
        "Longhaul": loop("longhaul"),
        "KAIR style": loop("kair", *FP32, malloc="default"),
    }
    if shutil.which("g++"):
        found[f"{SAME_PRECISION} compiled"] = loop("bare", *CHOSEN, "train.compile=true")
    for peer in ("Accelerate", "Lightning"):
        if is_installed(peer.lower()):
            found[peer] = loop(peer.lower(), *FP32, malloc="default")
    if is_installed("mindspore"):
        found["MindSpore"] = loop("mindspore", malloc="default")
    return found


def measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contenders(commands(folder), folder) as started:
            seconds = interleave(dict(started), rounds)
    samples = {name: [BATCH_SIZE / value for value in values] for name, values in seconds.items()}
    marks = (
        Mark(2.6 if "amx_bf16" in device_name(CPU) else 1.0, "bare fp32", at_least=True),
        Mark(0.95, SAME_PRECISION, at_least=True),
        *(Mark(1.0, peer, at_least=True) for peer in ("KAIR style", "Accelerate", "Lightning")),
        Mark(4.0, "MindSpore", at_least=True),
    )
    note = (
        "Longhaul trains in channels_last and the precision that `amp: auto` takes here, as its option file says; "
        "the peers as they come, in fp32. 2.6x of bare fp32 is the mark of CPUs with AMX, 1x that of others. "
        "MindSpore has staged batches and oneDNN's kernels for AVX2, its fastest here."
    )
    return [Row("training of fer_resnet, batch 64", "images/s", "Longhaul", samples, marks, note)]


if __name__ == "__main__":
    sys.exit(main(measure, __doc__, rounds=5))
