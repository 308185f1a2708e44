"""Prove on your own options and data that a run survives: kill it at random, relaunch it, compare the last files.

    python -m tests.drill -opt options/fer.json --kills 20 --nproc 2

One run goes through undisturbed. Another gets SIGKILL and SIGTERM at random moments, to its ranks, its launcher and
its loader workers, and is launched again each time. It survives if it always resumes EXACTly, loses no more than it
may, and ends in the same bytes. Your experiments are not touched. Exit status: 0 survived, 1 not, 2 wrong options.
"""

import argparse
import contextlib
import platform
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.drill_report import print_header, print_summary, survived
from tests.drill_run import Drill, DrillError, Settings
from utils.utils_error import UserError


def run_drill(settings: Settings, folder: Path) -> bool:
    """Print the whole drill; returns whether the run survived. Everything that it writes is in `folder`."""
    with Drill(settings, folder) as drill:
        print("An undisturbed run first ...")
        seconds = drill.run_undisturbed()
        print(f"It took {seconds:.0f} s. What can be killed: {', '.join(drill.victims)}.\n")
        print_header()
        kills = drill.plan()
        equal, num_runs = True, 0
        while kills:
            num_runs += 1
            kills = drill.run_and_kill(f"killed_{num_runs}", kills)
            files = drill.compare(f"killed_{num_runs}")
            equal = equal and all(file.is_equal for file in files)
            if kills:
                print(f"     The run is at its end, {'EQUAL' if equal else 'DIFFERENT'}; the next kills need another.")
        print_summary(drill.rows, files, num_runs, settings.save_every)
        return survived(drill.rows, equal, settings.save_every)


def parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", "--opt", type=Path, required=True, metavar="FILE", help="JSON or YAML option file")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (20)")
    parser.add_argument("--nproc", type=int, default=1, help="ranks; two or more are launched by torchrun (1)")
    parser.add_argument("--iters", type=int, help="iterations of each run (3 a kill, at least 40)")
    parser.add_argument("--save_every", type=int, default=5, metavar="ITERS", help="train.checkpoint_save (5)")
    parser.add_argument("--test_every", type=int, default=10, metavar="ITERS", help="train.checkpoint_test (10)")
    parser.add_argument("--seed", type=int, default=0, help="decides victims, signals and moments (0)")
    parser.add_argument("--folder", type=Path, help="a new folder, in which everything is kept")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one option")
    args = parser.parse_args()
    if min(args.kills, args.nproc, args.save_every, args.test_every, args.iters or 1) < 1:
        parser.error("numbers must be 1 or more")
    return args


def print_facts(args: argparse.Namespace, settings: Settings) -> None:
    again = ["python", "-m", "tests.drill", "-opt", str(args.opt)]
    for name in ("kills", "nproc", "save_every", "test_every", "seed"):
        again += [f"--{name}", str(getattr(args, name))]
    again += ["--iters", str(settings.total_iter), *(word for each in args.set for word in ("--set", each))]
    print(
        f"{args.kills} kills, {args.nproc} rank{'s' if args.nproc > 1 else ''}, {settings.total_iter} iterations, "
        f"a set every {args.save_every}, a test every {args.test_every}, seed {args.seed}"
    )
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"Again: {shlex.join(again)}\n")


@contextlib.contextmanager
def drill_folder(folder: Path | None) -> Iterator[Path]:
    """The folder to work in: a new one that is kept, or a temporary one, which only a failure leaves."""
    if folder is not None:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--folder {folder}: is not empty; give a new one")
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.absolute()
        return
    temporary = Path(tempfile.mkdtemp(prefix="longhaul_drill_"))
    try:
        yield temporary
    except DrillError:
        raise
    except BaseException:
        shutil.rmtree(temporary)
        raise
    shutil.rmtree(temporary)


def main() -> int:
    args = parse_arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = Settings(
        args.opt.absolute(), args.set, args.kills, args.nproc, args.iters, args.save_every, args.test_every, args.seed
    )
    try:
        print_facts(args, settings)
        with drill_folder(args.folder) as folder:
            if not run_drill(settings, folder):
                raise DrillError(f"Look into {folder}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except DrillError as error:
        print(f"\nFAILED: {error}")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
