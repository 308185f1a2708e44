"""Real launchers and what they do to a run: restarts, orphans, forwarded signals, ranks that come and go."""

import collections
import json
import os
import pty
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from tests.helpers import tiny_csv
from tests.run_helpers import (
    DEADLINE,
    ENVIRONMENT,
    LAST,
    TORCHRUN,
    Accident,
    Launched,
    NewRun,
    RealLaunch,
    Run,
    differences,
    everything,
    is_stopped,
    kill,
    many_faces,
    new_run,
    server,
    session_members,
    straight,
    wait_until,
)
from utils.utils_checkpoint import CheckpointFolder

__all__ = ["many_faces", "new_run", "server", "straight"]  # fixtures

SIGTERM = 128 + signal.SIGTERM
# Where these launches end and resume does not depend on a metric.
LEAN: dict[str, Any] = {"val__metrics": [], "val__best_metric": "loss", "val__best_mode": "min"}
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


@pytest.fixture(scope="module")
def lean_straight(new_run: NewRun) -> Run:
    """The uninterrupted run of two ranks without metrics."""
    run = new_run(**LEAN)
    assert run.launch(num_ranks=2).statuses == [0, 0]
    return run


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


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_torchrun_restarts_killed_ranks_and_the_run_goes_on_by_itself(
    lean_straight: Run, new_run: NewRun, tmp_path: Path, rank: int
) -> None:
    run = new_run(**LEAN)
    killed = kill("step", 7, rank=rank, once=str(tmp_path / "killed"))
    launched = run.real_launch(accidents=[killed], launcher=[*TORCHRUN, "--max-restarts=3"])
    assert launched.wait() == 0, launched.output
    assert (tmp_path / "killed").exists()
    assert launched.output.count("resumed from iteration 4") == 1
    assert launched.output.count("EXACT") == 1
    assert "failed to connect" not in launched.output
    assert run.status()["state"] == "DONE"
    assert differences(lean_straight, run) == []


def holder(run: Run) -> int:
    """The process that holds the run's folder."""
    return int(json.loads((run.folder / ".lock").read_text())["pid"])


def test_orphans_save_and_stop_and_keep_a_relaunch_out_until_then(lean_straight: Run, new_run: NewRun) -> None:
    run = new_run(**LEAN)
    killed_agent = [kill("step", 6, to="launcher"), kill("step", 6, signal.SIGSTOP)]
    launched = run.real_launch(accidents=killed_agent, launcher=TORCHRUN)
    try:
        assert launched.process.wait(DEADLINE) == -signal.SIGKILL, launched.output
        orphan = holder(run)
        wait_until(lambda: is_stopped(orphan), DEADLINE, lambda: launched.output)
        before = everything(run.folder)
        refused = run.launch(num_ranks=2)
        assert everything(run.folder) == before
        os.kill(orphan, signal.SIGCONT)
        launched.wait()
    finally:
        launched.kill()
    assert refused.statuses == [2, 2]
    assert refused.output.count("another trainer is running in this folder") == 1
    assert f'"pid": {orphan}' in refused.output
    assert "Traceback" not in refused.output
    assert_saved_and_stopped(run, launched, "SIGTERM")
    assert "The launcher is gone: saving and stopping." in launched.output
    assert run.status()["last_committed_iter"] == 6
    assert run.launch(num_ranks=2).statuses == [0, 0]
    assert differences(lean_straight, run) == []


def assert_saved_and_stopped(run: Run, launched: Launched | RealLaunch, name: str) -> None:
    """The run said so, in the output and in status.json, and failed nowhere."""
    assert f"Stopped by {name} and saved at iteration" in launched.output
    assert "s after the signal" in launched.output
    assert 'main_train.py", line' not in launched.output  # torchrun itself prints a traceback of the signal
    assert run.status()["state"] == "PREEMPTED"
    assert run.status()["last_committed_iter"] == run.committed()[-1]


SLOW_SAVE = {"place": "rename", "iter": 8, "count": 2, "sleep": 1.0}
# when the signal comes -> where, at which iteration, and what else happens
MOMENTS: dict[str, tuple[str, int, list[Accident]]] = {
    "training": ("step", 7, []),
    "evaluation": ("test", 6, []),
    "saving": ("step", 9, [SLOW_SAVE]),
}


def matrix(*quick: tuple[signal.Signals, int, str]) -> list[ParameterSet]:
    """Every (signal, loader workers, moment); all but the `quick` ones are long."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    cases = [(number, num_workers, moment) for number in numbers for num_workers in (0, 2) for moment in MOMENTS]
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.long, id=f"{case[0].name}-{case[1]}-{case[2]}")
        for case in cases
    ]


def streamed(num_workers: int) -> dict[str, Any]:
    """Changes for data that streams through so many loader workers, in training and in tests."""
    options = {"resident": False, "dataloader_num_workers": num_workers}
    return {f"datasets__{name}__{key}": value for name in ("train", "test") for key, value in options.items()}


@pytest.mark.parametrize(
    ("number", "num_workers", "moment"),
    matrix(
        (signal.SIGINT, 2, "saving"),
        (signal.SIGTERM, 2, "evaluation"),
        (signal.SIGHUP, 0, "saving"),
        (signal.SIGUSR1, 2, "training"),
    ),
)
def test_a_signal_to_the_whole_group_saves_and_stops(
    straight: Callable[[int], Run], new_run: NewRun, number: signal.Signals, num_workers: int, moment: str
) -> None:
    run, (place, iteration, more) = new_run(**streamed(num_workers)), MOMENTS[moment]
    (launched,) = run.start(accidents=[*more, kill(place, iteration, number, to="group")])
    assert launched.wait() == 128 + number, launched.output
    assert not session_members(launched.pid)
    assert_saved_and_stopped(run, launched, number.name)
    assert run.committed()[-1] == iteration
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


@pytest.mark.parametrize(("number", "num_workers", "moment"), matrix())
def test_a_signal_to_torchrun_saves_and_stops(
    lean_straight: Run, new_run: NewRun, number: signal.Signals, num_workers: int, moment: str
) -> None:
    """SIGUSR1 goes to the ranks: torchrun forwards the others, and ends without a word on this one."""
    run, (place, iteration, more) = new_run(**LEAN, **streamed(num_workers)), MOMENTS[moment]
    to = "ranks" if number == signal.SIGUSR1 else "launcher"
    launched = run.real_launch(accidents=[*more, kill(place, iteration, number, to=to)], launcher=TORCHRUN)
    assert launched.wait() == 1, launched.output
    assert_saved_and_stopped(run, launched, number.name)
    assert run.launch(num_ranks=2).statuses == [0, 0]
    assert differences(lean_straight, run) == []


@pytest.mark.long
def test_the_warning_of_slurm_to_ranks_and_launcher_saves_and_stops(lean_straight: Run, new_run: NewRun) -> None:
    run = new_run(**LEAN, **streamed(2))
    launched = run.real_launch(accidents=[kill("step", 7, signal.SIGUSR1, to="step")], launcher=TORCHRUN)
    assert launched.wait() == -signal.SIGUSR1, launched.output
    assert_saved_and_stopped(run, launched, "SIGUSR1")
    assert run.launch(num_ranks=2).statuses == [0, 0]
    assert differences(lean_straight, run) == []


@pytest.mark.long
def test_a_terminal_that_is_closed_saves_and_stops(straight: Callable[[int], Run], new_run: NewRun) -> None:
    """From the hang-up on, whatever the run prints fails with EIO."""
    run = new_run(log__progress_bar=True)
    command = run.command(accidents=[kill("step", 6, signal.SIGSTOP)])
    child, terminal = pty.fork()
    if child == 0:
        os.execve(command[0], command, ENVIRONMENT)
    try:
        wait_until(lambda: is_stopped(child), DEADLINE, lambda: "the run did not get to its sixth update")
        os.close(terminal)
        os.kill(child, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGHUP
    finally:
        if child in run.processes():
            os.kill(child, signal.SIGKILL)
    assert "Stopped by SIGHUP and saved at iteration 6" in run.log()
    assert "Traceback" not in run.log()
    assert run.status()["state"] == "PREEMPTED"
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


@pytest.mark.parametrize("moment", ["training", "evaluation"])
def test_a_killed_loader_worker_is_1_and_named_and_the_relaunch_goes_on(
    straight: Callable[[int], Run], new_run: NewRun, moment: str
) -> None:
    run, (place, iteration, _) = new_run(**streamed(2)), MOMENTS[moment]
    (launched,) = run.start(accidents=[kill(place, iteration, to="worker")])
    assert launched.wait() == 1, launched.output
    assert not session_members(launched.pid)
    assert re.search(r"\nRuntimeError: .*DataLoader worker .*exited unexpectedly.*\n$", launched.output)
    newest = run.committed()[-1]  # batches that were drawn before may have made the next set
    assert f"The newest good set is that of iteration {newest}." in launched.output
    assert run.status()["state"] == "FAILED"
    assert run.status()["last_committed_iter"] == newest
    again = run.launch()
    assert again.status == 0
    assert f"resumed from iteration {newest}" in again.output
    assert differences(straight(1), run) == []


@pytest.mark.long
def test_a_killed_loader_worker_of_another_rank_ends_all_ranks_and_torchrun_restarts_them(
    lean_straight: Run, new_run: NewRun, tmp_path: Path
) -> None:
    run = new_run(**LEAN, **streamed(2))
    killed = kill("step", 7, rank=1, to="worker", once=str(tmp_path / "killed"))
    launched = run.real_launch(accidents=[killed], launcher=[*TORCHRUN, "--max-restarts=3"])
    assert launched.wait() == 0, launched.output
    assert "DataLoader worker" in launched.output
    assert launched.output.count("resumed from iteration") == 1
    assert differences(lean_straight, run) == []


def test_a_writer_slower_than_the_interval_is_waited_for(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run(train__checkpoint_save=1, train__max_to_keep=0)
    # The next iteration is printed before its set is due, however slow the machine is.
    printed = {"await": str(run.folder / "train.log"), "text": "iter:       2,"}
    ended = run.launch(accidents=[{**SLOW_SAVE, "iter": 1, **printed}])
    assert ended.status == 0
    assert "The next checkpoint set was due before the last one was written: training waited" in ended.output
    assert run.committed() == list(range(1, LAST + 1))
    for iteration in run.committed():
        CheckpointFolder(run.models).verify(run.models / f"{iteration}_manifest.json")
    assert differences(straight(1), run) == []
