"""Power loss at every place of real runs: what is left on the disk must resume, from the newest set committed.

    python -m tests.power_loss

TMPDIR on a file system in memory makes it several times faster.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.disk_after_power_loss import Disk, Tree, read_tree, write_tree
from tests.disk_record import Killed, Operation, Recorder, Returned
from tests.power_loss_runs import SCENARIOS, Ages, Run
from utils import utils_experiment
from utils.checkpoint_manager import CheckpointManager
from utils.utils_checkpoint import CheckpointFolder, Manifest

logger = logging.getLogger("longhaul")


def age_of_commit(_folder: CheckpointFolder, _states: Any, manifest: Manifest, *_others: Any) -> int:
    return manifest.iteration


def age_of_state(_place: Any, saved: Mapping[str, Any], *_others: Any) -> int:
    return int(saved["age"])


# Where a save returns: the function, what it saves, and how to tell from its arguments how new that is.
_SAVES: list[tuple[Any, str, str, Callable[..., int]]] = [
    (CheckpointFolder, "commit", "set", age_of_commit),
    (utils_experiment, "write_model", "best", age_of_state),
    (CheckpointManager, "save_best_model", "best", age_of_state),
    (CheckpointManager, "save_epoch_checkpoint", "latest", age_of_state),
    (CheckpointManager, "save_interrupt_checkpoint", "latest", age_of_state),
]


def record(scenario: Run, kill_at: int | None = None) -> Recorder:
    """Prepare and run a scenario in its folder, which is empty, and record it.

    kill_at: a first process is killed before this operation, and the record goes on with a second one.
    """
    with _logging(logging.INFO), pytest.MonkeyPatch.context() as patch:
        scenario.prepare()
        recorder = Recorder(scenario.folder)
        for owner, name, kind, age in _SAVES:
            patch.setattr(owner, name, _marking(recorder, getattr(owner, name), kind, age))
        with recorder.patched():
            if kill_at is not None:
                recorder.kill_at = kill_at
                with contextlib.suppress(Killed):
                    scenario.run()
                recorder.kill_at = sys.maxsize
            scenario.run()
    assert not missed(recorder), f"the record is not complete: {missed(recorder)}"
    return recorder


def missed(recorder: Recorder) -> list[str]:
    """What got past the recorder: changes that Python announced, and paths that are not what the record makes them."""
    disk = Disk(recorder)
    for operation in recorder.operations:
        disk.apply(operation)
    seen, real = disk.everything(), read_tree(recorder.folder)
    differing = [path for path in sorted(seen | real) if path not in seen or seen[path] != real.get(path, b"absent")]
    return recorder.escaped + differing


def _marking(recorder: Recorder, save: Callable[..., Any], kind: str, age: Callable[..., int]) -> Callable[..., Any]:
    def saving(*arguments: Any) -> Any:
        result = save(*arguments)
        recorder.add(Returned(kind, age(*arguments)))
        return result

    return saving


@contextlib.contextmanager
def _logging(level: int) -> Iterator[None]:
    """Only to files, from this level on."""
    before = logger.level, logger.propagate, logger.handlers
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.propagate, logger.handlers = before[1:]
        logger.setLevel(before[0])


@dataclasses.dataclass
class Result:
    """What the replays of one record came to; of the states of all prefixes together, many are alike."""

    num_operations: int
    num_prefixes: int = 0
    num_states: int = 0
    num_different: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.num_operations} operations, {self.num_prefixes} prefixes, {self.num_states} states "
            f"({self.num_different} different ones replayed), {len(self.problems)} without a valid set"
        )


def replay(
    scenario: Run, recorder: Recorder, operations: Sequence[Operation], sample: int | None = None, enough: int = 100
) -> Result:
    """Let the power go after each prefix of `operations`, and resume from all that may be left.

    sample: try so many states a prefix instead, with one relaunch each instead of two. enough: stop after so many
    problems.
    """
    disk, floors, outcomes = Disk(recorder), dict(scenario.found_before), dict[Any, Ages | str]()
    result = Result(sum(not isinstance(each, Returned) for each in operations))
    with _logging(logging.CRITICAL), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # the power does not go twice
        for place, operation in enumerate([None, *operations]):
            if isinstance(operation, Returned):  # from now on more is demanded, of the same states
                floors[operation.kind] = max(operation.age, floors.get(operation.kind, 0))
            else:
                if operation is not None:
                    disk.apply(operation)
                trees = _states(disk, random.Random(result.num_prefixes), sample)
                result.num_prefixes += 1
                result.num_states += len(trees)
            for tree in trees:
                key = frozenset(tree.items())
                if key not in outcomes:
                    outcomes[key] = _outcome(scenario, tree, 2 if sample is None else 1)
                    result.num_different += 1
                if problem := _problem(outcomes[key], floors):
                    result.problems.append(f"after operation {place} ({operation}): {problem}")
                if len(result.problems) >= enough:
                    return result
    return result


def _states(disk: Disk, choose: random.Random, sample: int | None) -> Sequence[Tree]:
    """All states, or so many: the one where nothing more than the durable is left, and some of the others."""
    first, *others = disk.after_power_loss(choose)
    return [first, *(others if sample is None else choose.sample(others, min(sample - 1, len(others))))]


def _outcome(scenario: Run, tree: Tree, num_relaunches: int) -> Ages | str:
    """What relaunches find on this disk, one after the other; a text if one fails or finds something else."""
    write_tree(tree, scenario.folder)
    try:
        found = [scenario.resume() for _ in range(num_relaunches)]
    except Exception as error:  # any at all ends a relaunch
        return f"{type(error).__name__}: {error}"
    return found[0] if found[0] == found[-1] else f"the relaunch found {found[0]}, the next one {found[1]}"


def _problem(outcome: Ages | str, floors: Ages) -> str:
    if isinstance(outcome, str):
        return outcome
    lost = [f"{kind} {age} was saved, {outcome[kind]} is found" for kind, age in floors.items() if outcome[kind] < age]
    return ", ".join(lost)


def main() -> int:
    num_problems = 0
    for name, kind in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            scenario = kind(Path(folder))
            recorder = record(scenario)
            result = replay(scenario, recorder, recorder.operations)
        print(f"{name}: {result}", *result.problems[:5], sep="\n    ", flush=True)
        num_problems += len(result.problems)
    return min(num_problems, 1)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # so that --help does not begin with many minutes
    torch.set_num_threads(1)
    sys.exit(main())
