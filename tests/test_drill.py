"""The drill: what it plans, sees and concludes, and whole drills over a good and a sabotaged trainer."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import drill_run
from tests.drill import run_drill
from tests.drill_launch import Launch, marked_processes, send
from tests.drill_report import Kill, Row, compare, print_header, print_row, survived
from tests.drill_run import MOMENTS, Settings, own_overrides, plan_kills, with_targets
from tests.helpers import write_options
from utils.utils_error import UserError

MakeOptions = Callable[..., dict[str, Any]]
VICTIMS = ["rank 0", "another rank", "launcher", "worker"]
WITHOUT_METRICS = {"val__metrics": [], "val__best_metric": "loss", "val__best_mode": "min"}

linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the drill finds its victims in /proc")


@dataclasses.dataclass
class FakeLaunch:
    """A launch that began from one iteration and reached another."""

    began_from: int = 5
    reached: int | None = 9

    def read(self) -> None:
        pass


def row(victim: str = "rank 0", number: signal.Signals = signal.SIGKILL, **changes: Any) -> Row:
    known = {"resumed_from": 5, "how": "EXACT", "launch": FakeLaunch(), **changes}
    launch = known.pop("launch")
    kill = Kill(victim, number, "training", 0.5)
    return dataclasses.replace(Row(1, kill, "training", launch, 1.0), **known)


def ended(command: list[str], folder: Path) -> Launch:
    """What a launch knows of a command that has ended."""
    launch = Launch(command, folder / "models", folder / "log", f"test_{os.getpid()}", has_launcher=False)
    launch.wait()
    launch.read()
    return launch


def test_the_seed_decides_the_plan() -> None:
    plans = [plan_kills(30, VICTIMS, MOMENTS, 4, seed) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize("seed", range(5))
def test_every_victim_gets_both_signals_and_every_moment_comes(seed: int) -> None:
    plan = plan_kills(8, VICTIMS, MOMENTS, 2, seed)
    signals = (signal.SIGKILL, signal.SIGTERM)
    victims = ("rank 0", "rank 1", "launcher", "worker")
    assert {(kill.victim, kill.signal) for kill in plan} == {(victim, each) for victim in victims for each in signals}
    assert {kill.moment for kill in plan} == set(MOMENTS)


def test_another_rank_is_any_but_the_first() -> None:
    plan = plan_kills(100, ["another rank"], MOMENTS, 4, 0)
    assert {kill.victim for kill in plan} == {"rank 1", "rank 2", "rank 3"}


@pytest.mark.parametrize("num_kills", [0, 1, 7, 60])
def test_targets_ascend_and_stay_within_the_run(num_kills: int) -> None:
    targets = [kill.target for kill in with_targets(plan_kills(num_kills, VICTIMS, MOMENTS, 2, 0), 60)]
    assert targets == sorted(targets)
    assert all(1 <= target <= 55 for target in targets)
    assert len(targets) == num_kills


@linux
def test_the_drill_shortens_the_run_and_fixes_what_is_left_to_chance(tmp_path: Path, tiny_options: MakeOptions) -> None:
    free = tiny_options(train__manual_seed=None, train__num_threads=None)
    overrides = own_overrides(Settings(write_options(free, tmp_path / "free.json"), num_kills=20))
    assert {"train.total_iter=60", "train.total_epochs=null", "train.manual_seed=0"} <= set(overrides)
    assert any(each.startswith("train.num_threads=") for each in overrides)
    overrides = own_overrides(Settings(write_options(tiny_options(), tmp_path / "fixed.json"), num_iters=12))
    assert "train.total_iter=12" in overrides
    assert not any(each.startswith(("train.manual_seed", "train.num_threads")) for each in overrides)


@linux
def test_wrong_options_are_said_before_anything_is_launched(tmp_path: Path, tiny_options: MakeOptions) -> None:
    with pytest.raises(UserError, match="amp"):
        run_drill(Settings(write_options(tiny_options(train__amp="fp8"), tmp_path / "a.json")), tmp_path / "drill")
    assert not (tmp_path / "drill").exists()


SAID = """\
26-11-21 22:12:54    start             resumed from iteration 1,230: 1230_G.pth, 1230_E.pth, 1230_optimizerG.pth
26-11-21 22:12:54    resume            EXACT: same ranks, threads, device and software as when it was saved
26-11-21 22:12:54  <epoch:  5, iter:   1,231, lr:5.4e-03> G_loss: 2.0e+00 | 1205 images/s, 0:00:14 left
26-11-21 22:12:54  <epoch:  5, iter:   1,232, lr:5.5e-03> G_loss: 2.0e+00 | 1205 images/s, 0:00:14 left
26-11-21 22:12:55  Saved iteration 1,232 (periodic), 0.19 s in the background.
"""
TESTED = "26-11-21 22:12:56  <epoch:  5, iter:   1,232> test: loss 1.9801, accuracy 0.1500 (0.0 s)\n"


@linux
def test_a_launch_is_understood_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "said").write_text(SAID + "26-11-21 22:12:57  <epoch:  5, iter:   1,233, lr:5.5")  # cut off
    launch = ended(["cat", str(tmp_path / "said")], tmp_path)
    assert (launch.resumed_from, launch.guarantee, launch.reached) == (1230, "EXACT", 1232)
    assert (launch.save_seconds, launch.was_training_last, launch.num_tests) == ([0.19], True, 0)
    (tmp_path / "said").write_text(SAID + TESTED)
    launch = ended(["cat", str(tmp_path / "said")], tmp_path)
    assert (launch.reached, launch.was_training_last, launch.num_tests) == (1232, False, 1)


@linux
def test_what_is_being_written_is_seen(tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert ended(["true"], tmp_path).unfinished_files() == []
    models.mkdir()
    for name in ("5_G.pth", "5_manifest.json", "best_model.pth", "10_G.pth", ".10_E.pth.77.tmp"):
        (models / name).touch()
    launch = ended(["true"], tmp_path)
    assert sorted(launch.unfinished_files()) == [".10_E.pth.77.tmp", "10_G.pth"]
    assert launch.began_from == 5


FAMILY = """
import os, subprocess, sys, time
if len(sys.argv) > 1:
    os.fork()
else:
    for rank in "01":
        subprocess.Popen([sys.executable, __file__, rank], start_new_session=True, env={**os.environ, "RANK": rank})
time.sleep(60)
"""


@linux
def test_launcher_ranks_and_workers_are_found_and_orphans_too(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    command = [sys.executable, str(tmp_path / "family.py")]
    launch = Launch(command, tmp_path / "models", tmp_path / "log", f"family_{os.getpid()}", has_launcher=True)
    try:
        end = time.monotonic() + 20
        while len(launch.find("worker")) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        found = [launch.find(victim) for victim in ("launcher", "rank 0", "rank 1", "worker")]
        assert [len(each) for each in found] == [1, 1, 1, 2]
        assert {each.pid for each in launch.trainers()} == {pid for each in found[:3] for pid in each}
        assert not send(signal.SIGKILL, found[0][0], "another mark")
        assert send(signal.SIGKILL, found[0][0], launch.mark)
        assert launch.wait() == -signal.SIGKILL
        assert {each.rank for each in launch.trainers()} == {0, 1}
    finally:
        for process in marked_processes([launch.mark]):
            send(signal.SIGKILL, process.pid, launch.mark)
        launch.wait()


def test_what_is_lost_is_counted_from_where_the_launch_stood() -> None:
    assert row().lost == 4
    assert row(launch=FakeLaunch(5, None), resumed_from=5).lost == 0, "killed while starting"
    assert row(launch=FakeLaunch(10, None), resumed_from=5).lost == 5, "and its set was lost"
    assert row(resumed_from=None, how="went on").lost is None


@pytest.mark.parametrize(
    ("kill", "is_good"),
    [
        (row(), True),
        (row(resumed_from=0, how="fresh"), True),
        (row(resumed_from=0, how="EXACT"), False),
        (row(how="SAME-DATA"), False),
        (row(how="fresh"), False),
        (row(launch=FakeLaunch(0, 16)), False),  # more than two intervals
        (row(number=signal.SIGTERM), False),
        (row(number=signal.SIGTERM, resumed_from=9), True),
        (row("launcher", signal.SIGKILL), False),
        (row("launcher", signal.SIGKILL, resumed_from=9), True),
        (row("worker", signal.SIGKILL), True),
        (row("worker", signal.SIGTERM, resumed_from=None, how="went on"), True),
        (row(resumed_from=None, how=""), False),
    ],
)
def test_a_kill_is_judged(kill: Row, is_good: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert kill.is_good(save_every=5) == is_good
    assert survived([kill], True, 5) == is_good
    assert not survived([kill], False, 5)
    assert "DIFFERENT" in capsys.readouterr().out


def test_the_table_fits_a_terminal_and_its_columns_meet(capsys: pytest.CaptureFixture[str]) -> None:
    print_header()
    long = row("launcher", number=signal.SIGTERM, seconds_to_end=31.4, seconds_to_resume=130.2, num_refused=2)
    print_row(dataclasses.replace(long, number=200, launch=FakeLaunch(5, 600)))
    header, line = capsys.readouterr().out.splitlines()
    assert line.split() == [
        *("200", "launcher", "SIGTERM", "training,", "iteration", "600", "600", "5", "595"),
        *("31.4", "s", "130.2", "s", "EXACT,", "2", "refused"),
    ]
    assert len(line) <= 120
    assert header.index("how") == line.index("EXACT")


def test_metrics_are_equal_if_what_was_measured_last_is(tmp_path: Path) -> None:
    head = "iter,epoch,split,lr,G_loss,images_per_s\n"
    texts = {
        "straight": "1,0,train,0.1,2.5,100.0\n2,0,train,0.1,2.4,100.0\n",
        "again": "1,0,train,0.1,2.5,90.0\n2,0,train,0.1,9.9,90.0\n2,0,train,0.1,2.4,80.0\n",
        "other": "1,0,train,0.1,2.5,90.0\n2,0,train,0.1,2.3,90.0\n",
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(head + text)
    assert [each.is_equal for each in compare(tmp_path / "straight", tmp_path / "again", 2)] == [True]
    assert [each.is_equal for each in compare(tmp_path / "straight", tmp_path / "other", 2)] == [False]
    (tmp_path / "other" / "models").mkdir()
    (tmp_path / "other" / "models" / "2_G.pth").touch()
    assert compare(tmp_path / "straight", tmp_path / "other", 2)[0].expected == "missing"


@linux
@pytest.mark.parametrize(
    ("code", "patience", "reason"),
    [("import time; time.sleep(60)", 0.2, "Nothing has happened"), ("exit(3)", 60.0, "exit status 3.*hello")],
)
def test_a_trainer_that_hangs_or_fails_by_itself_ends_the_drill(
    tmp_path: Path, tiny_options: MakeOptions, monkeypatch: pytest.MonkeyPatch, code: str, patience: float, reason: str
) -> None:
    """The fixture that looks for what a test leaves behind fails this one if the trainer lives on.

    A busy machine may not even have started the one that hangs when the drill has lost its patience.
    """
    monkeypatch.setattr(drill_run, "SILENCE_SECONDS", patience)
    (tmp_path / "trainer.py").write_text(f"print('hello', flush=True)\n{code}\n")
    settings = Settings(write_options(tiny_options(), tmp_path / "a.json"), script=[str(tmp_path / "trainer.py")])
    with pytest.raises(drill_run.DrillError, match=f"(?s){reason}"):
        run_drill(settings, tmp_path / "drill")


@linux
@pytest.mark.long
def test_a_run_survives_whatever_the_options(
    tmp_path: Path, tiny_options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    """A YAML file that leaves the seed to chance, stops early, and has its own intervals."""
    options = tiny_options(train__manual_seed=None, train__early_stop_patience=1, **WITHOUT_METRICS)
    file = write_options(options, tmp_path / "tiny.yaml")
    assert run_drill(Settings(file, num_kills=2, num_iters=200, seed=39), tmp_path / "drill")
    said = capsys.readouterr().out
    assert "SURVIVED 2 kills" in said
    assert said.count(" EQUAL  ") == 6
    assert not Path(options["path"]["root"]).exists()


@linux
def test_a_trainer_that_forgets_is_found_out(
    tmp_path: Path, tiny_options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_options(tiny_options(**WITHOUT_METRICS), tmp_path / "tiny.json")
    script = ("tests/run_and_stop.py", '{"forget": "optimizerG"}', "--")
    assert not run_drill(Settings(file, num_kills=1, num_iters=200, seed=24, script=script), tmp_path / "drill")
    said = capsys.readouterr().out
    assert "DIFFERENT: a killed run did not end in the same bytes" in said
    assert "BAD" not in said, "by its files alone"


@linux
@pytest.mark.long
def test_two_ranks_with_loader_workers_survive(
    tmp_path: Path, tiny_options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny_options(datasets__train__resident=False, datasets__train__dataloader_num_workers=2)
    file = write_options(options, tmp_path / "tiny.json")
    assert run_drill(Settings(file, num_kills=16, num_ranks=2), tmp_path / "drill")
    assert "rank 0, another rank, launcher, worker" in capsys.readouterr().out
