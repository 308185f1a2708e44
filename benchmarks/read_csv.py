"""fer2013.csv, 265 MB, as arrays of its training split: CPU seconds and peak memory, each reading a process of its own.

    LONGHAUL_FER2013_CSV=path/to/fer2013.csv python -m benchmarks.read_csv

Without that file, a CSV of the same number of rows, of random pixels, is written into a temporary folder. The CPU time
is that of the reading and of what it imports besides torch and NumPy, which every training pays for; the peak is that
of the whole process, torch included.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import Limit, Row, Samples, main
from utils.utils_file import PROJECT_FOLDER

COUNTS = {"Training": 28_709, "PublicTest": 3_589, "PrivateTest": 3_589}  # of the official file
FIRST, SECOND = "Longhaul, first launch", "Longhaul, second launch"
BYTES, USUAL = "bytes only", "pandas and split"


def read_bytes(csv: Path) -> None:
    """What the disk cache and the kernel cost."""
    with open(csv, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def read_as_usual(csv: Path) -> None:
    """The way of most FER code: pandas, then each text split and converted."""
    import pandas

    table = pandas.read_csv(csv)
    rows = table[table["Usage"] == "Training"]["pixels"]
    images = np.array([np.array(text.split(), dtype=np.uint8).reshape(1, 48, 48) for text in rows])
    assert images.shape[1:] == (1, 48, 48)


def read_ours(csv: Path) -> None:
    """The data set as a launch builds it: from the text once, then from a cache; the content is hashed both times."""
    from data.dataset_fer2013 import Fer2013

    assert len(Fer2013(str(csv), "Training")) > 0


READERS: dict[str, Callable[[Path], None]] = {
    BYTES: read_bytes, FIRST: read_ours, SECOND: read_ours, USUAL: read_as_usual,
}  # fmt: skip


def read(who: str, csv: Path) -> None:
    """Print the CPU seconds of one reading and the peak memory of this process in MB, as JSON."""
    import torch  # noqa: F401 - every training imports it, so no reader is charged for it

    before = resource.getrusage(resource.RUSAGE_SELF)
    READERS[who](csv)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([seconds, after.ru_maxrss / 1024]))


def read_elsewhere(who: str, csv: Path) -> list[float]:
    """The same in a process of its own; Longhaul's first launch finds no cache, its second one does."""
    if who == FIRST:
        for cache in csv.parent.glob("*.cache.npy"):
            cache.unlink()
    command = [sys.executable, "-m", "benchmarks.read_csv", who, str(csv)]
    run = subprocess.run(command, cwd=PROJECT_FOLDER, stdout=subprocess.PIPE, text=True, check=True)
    # Where none is made, or is looked for elsewhere, a "first" launch may be a second one.
    assert who not in (FIRST, SECOND) or any(csv.parent.glob("*.cache.npy")), f"{csv.parent} holds no cache"
    seconds, megabytes = json.loads(run.stdout)
    return [seconds, megabytes]


def measure(rounds: int) -> list[Row]:
    """CPU time and memory of both launches, a row each with its limit."""
    with tempfile.TemporaryDirectory() as name:
        csv, note = find_csv(Path(name))
        seconds: Samples = {who: [] for who in READERS}
        megabytes: Samples = {who: [] for who in READERS}
        for _ in range(rounds):
            for who in READERS:  # the second launch follows the first
                used = read_elsewhere(who, csv)
                seconds[who].append(used[0])
                megabytes[who].append(used[1])
    return [
        Row("fer2013.csv as arrays, first launch", "CPU s", FIRST, seconds, (Limit(2.2),), note),
        Row("fer2013.csv as arrays, second launch", "CPU s", SECOND, seconds, (Limit(0.3),), note),
        Row("fer2013.csv as arrays, first launch", "MB at the peak", FIRST, megabytes, (Limit(450),), note),
    ]


def find_csv(folder: Path) -> tuple[Path, str]:
    """The file that is given, by a link in `folder`, where its cache goes, or one like it; and a note of which."""
    csv = folder / "fer2013.csv"
    if given := os.environ.get("LONGHAUL_FER2013_CSV"):
        csv.symlink_to(Path(given).resolve())
        return csv, f"the file that LONGHAUL_FER2013_CSV names, {csv.stat().st_size / 1e6:.0f} MB"
    rng = np.random.default_rng(0)
    words = np.array([str(value) for value in range(256)], dtype=object)
    with open(csv, "w") as file:
        file.write("emotion,pixels,Usage\n")
        for usage, count in COUNTS.items():
            for _ in range(count):
                # The official pixels have 2.2 digits on average; those below 100 are drawn more often than evenly.
                pixels = np.minimum(rng.integers(0, 256, 48 * 48), rng.integers(0, 400, 48 * 48))
                file.write(f"{rng.integers(0, 7)},{' '.join(words[pixels])},{usage}\n")
    return csv, f"random pixels, {csv.stat().st_size / 1e6:.0f} MB: LONGHAUL_FER2013_CSV names no file"


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in READERS:
        read(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(main(measure, __doc__))
