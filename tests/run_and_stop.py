"""main_train.py with accidents at definite places: `run_and_stop.py [ACCIDENT ...] -- <arguments of main_train.py>`.

An accident is JSON: {"place", "iter", "signal" or "fail", "rank", "to"}; it happens once, on that rank (0 by default);
with a file "once" it happens in one launch only. It may "sleep" some seconds, after the signal if there is one.
A signal goes to the process itself, or "to" its "launcher", its "group" (the trainer and its loader workers), the
"ranks" on this machine, the "step" (they and their launcher, as SLURM does) or one loader "worker".
Instead it may "do" something to the disk, see disk_faults.py; saves that are under way then end first.
It waits until the file "committed" exists, or the file "await" holds "text", because sets are written in the
background.
Places: "start" (nothing is done yet), "step" (the update of that iteration is done), "test" (its test is at a batch),
"commit" (its set is committed), "rename" (before rename number "count", from 1, of its set), "model" (before the file
"name" is written), "feed" (the batches of the iterations in "iters" are NaN, on that rank, each time),
"failpoint" ("name" is reached for "file"), "pictures" (before the last ones are drawn). At a "test" and a "failpoint"
it lets as many go by as "skip" says.
"audit" names a file that gets a line for every path that any process of the run opens for writing, makes or removes.
"record" names a folder where each rank writes down the samples that its updates are fed.
"trace" names a file that gets a line for every failpoint reached on rank 0: its name, a tab, and the file.
"code" is what that rank takes for the hash of the code.
"forget" names what a resume leaves out: "optimizerG", "E", "buffers", "position", "progress" or "buckets".
"""

import functools
import json
import math
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main_train
import trainer
import utils.utils_experiment
import utils.utils_file
from models.model_plain import ModelPlain
from tester import Tester
from tests.disk_faults import DEEDS, drop_privileges, keep_console_writable
from trainer import Trainer
from utils import utils_failpoint
from utils.utils_checkpoint import CheckpointFolder, ResumePoint
from utils.utils_dist import end_process
from utils.utils_failpoint import Failpoint
from utils.utils_file import TEMPORARY_NAME
from utils.utils_progress import Progress
from utils.utils_snapshot import BackgroundWriter

Accident = dict[str, Any]

writers: list[BackgroundWriter] = []


def before(owner: Any, name: str, happen: Callable[..., None]) -> None:
    """Call `happen` with the arguments of every call of `owner.name` before it."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        happen(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, happen: Callable[..., None]) -> None:
    """Call `happen` with the arguments of every call of `owner.name` after it."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        happen(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)


def own_rank() -> int:
    return int(os.environ.get("RANK", "0"))


def strike(accident: Accident) -> None:
    """Let the accident happen, once."""
    if accident.get("has_happened") or own_rank() != accident.get("rank", 0):
        return
    accident["has_happened"] = True
    if "once" in accident and not is_first(Path(accident["once"])):
        return
    while "committed" in accident and not Path(accident["committed"]).exists():
        time.sleep(0.001)
    while "await" in accident and accident["text"] not in Path(accident["await"]).read_text():
        time.sleep(0.001)
    if "do" in accident:
        for writer in writers:
            writer.wait()
        DEEDS[accident["do"]](accident)
    if "fail" in accident:
        raise OSError(28, accident["fail"])
    if "signal" in accident:
        for pid in targets(accident.get("to", "self")):
            os.kill(pid, accident["signal"])
    time.sleep(accident.get("sleep", 0))


def is_first(marker: Path) -> bool:
    """Whether this launch is the first to get here."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def targets(to: str) -> list[int]:
    """The processes that a signal goes to; a negative number stands for a process group, as in os.kill."""
    launcher = os.getppid()
    if to == "self":
        return [os.getpid()]
    if to == "launcher":
        return [launcher]
    if to == "group":
        return [-os.getpgrp()]
    if to == "worker":
        return [process.pid for process in multiprocessing.active_children()[:1] if process.pid]
    stats = (stat.read_text() for stat in Path("/proc").glob("[0-9]*/stat"))
    ranks = [int(text.split()[0]) for text in stats if int(text.rpartition(")")[2].split()[1]) == launcher]
    return {"ranks": ranks, "step": [*ranks, launcher]}[to]


def prepare_disk(accident: Accident) -> None:
    """What must be done at the start for something that happens to the disk later."""
    if accident["do"] == "forbid":
        drop_privileges()
    if accident["do"] == "fill" and not accident.get("console"):
        keep_console_writable()
    if not writers:
        after(BackgroundWriter, "__init__", lambda writer, *_: writers.append(writer))


def watch(happen: Callable[[Failpoint, Path], None]) -> None:
    """Call `happen` at every failpoint, and whoever watches already."""
    others = utils_failpoint.armed

    def all_watch(name: Failpoint, path: Path) -> None:
        if others is not None:
            others(name, path)
        happen(name, path)

    utils_failpoint.armed = all_watch


def stem(path: Path) -> str:
    """A file's name, the same in every launch: without the time in it, and without what marks a temporary file."""
    name = TEMPORARY_NAME.sub(r"\g<name>", path.name)
    return re.sub(r"_\d{6}_\d{6}(_\d+)?\.json$", ".json", name)


def trace(file: Path) -> None:
    if own_rank() == 0:

        def note(name: str, path: Path) -> None:
            with open(file, "a") as lines:
                lines.write(f"{name}\t{stem(path)}\n")

        watch(note)


_CHANGING_EVENTS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.rename": 2, "os.link": 2}


def audit(file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        num_paths = _CHANGING_EVENTS.get(event, 0)
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            num_paths = 1
        for path in arguments[:num_paths]:
            if isinstance(path, str | bytes | os.PathLike):  # not the number of a file that is open already
                os.write(descriptor, os.fsencode(Path(os.fsdecode(path)).absolute()) + b"\n")

    sys.addaudithook(note)


def arm(accident: Accident) -> None:
    """Patch the place where the accident is to happen."""
    place, iteration = accident.get("place"), accident.get("iter")
    current = {"test": 0, "commit": 0, "renames": 0, "reached": 0, "update": 0}

    def strike_unless_skipped() -> None:
        current["reached"] += 1
        if current["reached"] > accident.get("skip", 0):
            strike(accident)

    def at_step(_model: ModelPlain, current_iter: int) -> None:
        if current_iter == iteration:
            strike(accident)

    def testing_begins(_tester: Tester, current_iter: int) -> None:
        current["test"] = current_iter

    def at_test_batch(*_args: Any) -> None:
        if current["test"] == iteration:
            strike_unless_skipped()

    def commit_begins(_folder: CheckpointFolder, _states: Any, manifest: Any, _keep: int) -> None:
        current.update(commit=manifest.iteration, renames=0)
        if place == "commit" and "fail" in accident and manifest.iteration == iteration:
            strike(accident)

    def commit_ends(_folder: CheckpointFolder, _states: Any, manifest: Any, _keep: int) -> None:
        if manifest.iteration == iteration:
            strike(accident)
        current["commit"] = 0

    def at_rename(*_args: Any) -> None:
        current["renames"] += 1
        if current["commit"] == iteration and current["renames"] == accident["count"]:
            strike(accident)

    def at_model(path: Path, _content: Any) -> None:
        if path.name == accident["name"]:
            strike(accident)

    def at_failpoint(name: str, path: Path) -> None:
        if (name, stem(path)) == (accident["name"], accident["file"]):
            strike_unless_skipped()

    def at_update(_model: ModelPlain, _batches: Any, current_iter: int) -> None:
        current["update"] = current_iter

    def spoil(model: ModelPlain, _batch: Any) -> None:
        if current["update"] in accident["iters"] and own_rank() == accident.get("rank", 0):
            model.input = model.input * math.nan

    if "do" in accident:
        prepare_disk(accident)
    if "forget" in accident:
        forget(accident["forget"])
    elif "code" in accident:
        if own_rank() == accident.get("rank", 0):
            for module in (trainer, utils.utils_experiment):
                module.code_record = lambda: {"code": accident["code"], "commit": None}  # type: ignore[attr-defined]
    elif "audit" in accident:
        audit(Path(accident["audit"]))
    elif "record" in accident:
        record(Path(accident["record"]) / f"rank_{own_rank()}")
    elif "trace" in accident:
        trace(Path(accident["trace"]))
    elif place == "feed":
        before(ModelPlain, "optimize_parameters", at_update)
        after(ModelPlain, "update_E", lambda *_: current.update(update=0))
        after(ModelPlain, "feed_data", spoil)
    elif place == "failpoint":
        watch(at_failpoint)
    elif place == "step":
        after(ModelPlain, "update_E", at_step)
    elif place == "test":
        before(Tester, "run", testing_begins)
        before(ModelPlain, "test", at_test_batch)
    elif place == "commit":
        before(CheckpointFolder, "commit", commit_begins)
        if "fail" not in accident:
            after(CheckpointFolder, "commit", commit_ends)
    elif place == "rename":
        before(CheckpointFolder, "commit", commit_begins)
        before(utils.utils_file.os, "replace", at_rename)
    elif place == "model":
        before(utils.utils_experiment, "write_model", at_model)
    elif place == "pictures":
        before(Tester, "draw_pictures", lambda *_: strike(accident))
    elif place == "start":
        strike(accident)
    else:
        raise ValueError(f"no such place: {place}")


def record(path: Path) -> None:
    """Append a line for every update: its iteration and the names of the samples that this rank is fed."""

    def write_down(_model: ModelPlain, micro_batches: Sequence[Any], current_iter: int) -> None:
        names = [name for batch in micro_batches for name in batch["name"]]
        with open(path, "a") as file:
            print(json.dumps({"iter": current_iter, "names": names}), file=file)

    before(ModelPlain, "optimize_parameters", write_down)


def forget(piece: str) -> None:
    """Sabotage the resume: one piece of the state stays as a fresh run has it."""

    def lose_state(model: ModelPlain, _resume: ResumePoint | None) -> None:
        if piece == "optimizerG":
            model.optimizer.state.clear()
        elif piece == "E" and model.netE is not None:
            model.netE.load_state_dict(model.netG.state_dict())
        elif piece == "buffers":
            for net in (model.netG, model.netE):
                for buffer in net.buffers() if net is not None else ():
                    buffer.zero_()

    def lose_progress(launch: Trainer) -> None:
        launch.tests.progress = Progress()

    def from_the_start(source: Any, stream: Any, dist: Any, seed: int, start_iter: int, num: int) -> Any:
        again = original(source, stream, dist, seed, 0, num)
        return ((number, batches) for number, (_, batches) in enumerate(again, start_iter + 1))

    if piece == "buckets":
        ModelPlain.rebuild_buckets = lambda *_: None  # type: ignore[method-assign]
    elif piece == "progress":
        after(Trainer, "resume", lose_progress)
    elif piece == "position":
        original = trainer.define_train_loader
        trainer.define_train_loader = from_the_start
    else:
        after(ModelPlain, "load", lose_state)


def run(arguments: Sequence[str]) -> int:
    """Arm the accidents before "--" and run main_train.py with what follows; returns its exit status."""
    split = list(arguments).index("--")
    for text in arguments[:split]:
        arm(json.loads(text))
    sys.argv = ["main_train.py", *arguments[split + 1 :]]
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
    return main_train.main()


if __name__ == "__main__":
    end_process(run(sys.argv[1:]))
