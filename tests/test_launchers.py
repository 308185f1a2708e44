"""Real launchers and what they do to a run: restarts, orphans, forwarded signals, ranks that come and go."""

import collections
import json
import signal
from pathlib import Path

from tests.helpers import tiny_csv
from tests.run_helpers import Accident, NewRun, Run, kill, many_faces, new_run, server, straight

__all__ = ["many_faces", "new_run", "server", "straight"]  # fixtures

SIGTERM = 128 + signal.SIGTERM
# Two epochs of 180 samples are 15 batches of 24: the eighth ends the one and begins the other.
ELASTIC = {
    "datasets__train__dataloader_batch_size": 24,
    "train__G_accumulation_steps": 1,
    "train__total_iter": 15,
    "train__checkpoint_print": 1,
    "train__checkpoint_test": 15,
}
# ranks, the update at which SIGTERM comes; several ranks agree on it one update later
LAUNCHES = [(4, 1), (2, 3), (3, 5), (1, 7), (3, 9), (4, None)]


def fed(folder: Path) -> dict[int, list[str]]:
    """Iteration -> the samples that its updates were fed, over all launches and ranks."""
    samples: dict[int, list[str]] = collections.defaultdict(list)
    for line in "".join(path.read_text() for path in sorted(folder.iterdir())).splitlines():
        update = json.loads(line)
        samples[update["iter"]] += update["names"]
    return samples


def is_once_an_epoch(samples: dict[int, list[str]], num_samples: int) -> bool:
    """Whether, after every iteration, no sample has come more than once more often than another."""
    seen: collections.Counter[str] = collections.Counter()
    for iteration in sorted(samples):
        seen.update(samples[iteration])
        fewest = min(seen.values()) if len(seen) == num_samples else 0
        if max(seen.values()) - fewest > 1:
            return False
    return len(seen) == num_samples and len(set(seen.values())) == 1


def launch_with_changing_ranks(run: Run, folder: Path, *accidents: Accident) -> None:
    """Launch on 4, 2, 3, 1, 3 and 4 ranks, and record what they are fed; the last launch has the accidents."""
    folder.mkdir()
    for number, (num_ranks, stop) in enumerate(LAUNCHES):
        stops = [kill("step", stop, signal.SIGTERM)] if stop else accidents
        ended = run.launch(accidents=[{"record": str(folder)}, *stops], num_ranks=num_ranks)
        assert ended.statuses == [SIGTERM if stop else 0] * num_ranks, ended.outputs
        assert ("SAME-DATA" in ended.output) == (number > 0)


def test_ranks_that_come_and_go_feed_every_sample_once_an_epoch(new_run: NewRun, tmp_path: Path) -> None:
    data = {"datasets__train__dataroot": tiny_csv(tmp_path, num_train=180)}
    whole, run = new_run(**data, **ELASTIC), new_run(**data, **ELASTIC)
    assert whole.launch().status == 0
    launch_with_changing_ranks(run, tmp_path / "fed")
    samples = fed(tmp_path / "fed")
    assert sorted(samples) == list(range(1, 16))
    assert {len(names) for names in samples.values()} == {24}
    assert is_once_an_epoch(samples, 180)
    assert [(row["epoch"], row["lr"]) for row in run.rows("train").values()] == [
        (row["epoch"], row["lr"]) for row in whole.rows("train").values()
    ]


def test_ranks_that_forget_their_position_would_be_noticed(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(datasets__train__dataroot=tiny_csv(tmp_path, num_train=180), **ELASTIC)
    launch_with_changing_ranks(run, tmp_path / "fed", {"forget": "position"})
    samples = fed(tmp_path / "fed")
    assert {len(names) for names in samples.values()} == {24}
    assert not is_once_an_epoch(samples, 180)
