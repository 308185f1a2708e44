"""A disk that fills up, becomes read-only or vanishes: the run says so, trains on, and spoils nothing it has saved."""

import csv
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.run_helpers import (
    DEADLINE,
    ENVIRONMENT,
    LAST,
    Accident,
    Ended,
    NewRun,
    Run,
    differences,
    kill,
    many_faces,
    new_run,
    server,
    straight,
)
from utils.utils_checkpoint import CheckpointFolder
from utils.utils_file import TEMPORARY_NAME

__all__ = ["many_faces", "new_run", "server", "straight"]  # fixtures


def fill(iteration: int, **more: Any) -> Accident:
    return {"place": "step", "iter": iteration, "do": "fill", **more}


def make_room(iteration: int) -> Accident:
    return {"place": "step", "iter": iteration, "do": "make_room"}


def assert_whole(run: Run, iterations: list[int]) -> None:
    """These sets are committed, all verify, and nobody left a temporary file."""
    assert run.committed() == iterations
    for iteration in iterations:
        CheckpointFolder(run.models).verify(run.models / f"{iteration}_manifest.json")
    assert not [path.name for path in run.folder.rglob("*") if TEMPORARY_NAME.fullmatch(path.name)]


def assert_said(ended: Ended, *texts: str) -> None:
    """The output holds these texts, and no traceback."""
    assert "Traceback" not in ended.output
    assert "Logging error" not in ended.output
    for text in texts:
        assert text in ended.output, ended.output


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_is_full_at_one_save_costs_that_save_alone(
    straight: Callable[[int], Run], new_run: NewRun, tensorboard: bool
) -> None:
    run = new_run(log__tensorboard=tensorboard)
    ended = run.launch(accidents=[fill(8), make_room(9)])
    assert_said(ended, "The checkpoint set could not be saved: OSError", "8_optimizerG.pth", "File too large")
    assert ended.status == 0
    assert_whole(run, [4, 12])
    assert run.status()["state"] == "DONE"
    assert differences(straight(1), run) == []


def test_a_disk_that_is_full_at_the_last_save_is_1_and_the_next_launch_makes_up_for_it(
    straight: Callable[[int], Run], new_run: NewRun
) -> None:
    run = new_run()
    ended = run.launch(accidents=[fill(12)])
    assert_said(ended, "12_optimizerG.pth", "final_model.pth", "File too large")
    assert ended.status == 1
    assert_whole(run, [4, 8])
    assert run.status()["state"] != "DONE"
    assert run.status()["last_committed_iter"] == 8
    assert run.launch().status == 0
    assert_whole(run, [4, 8, 12])
    assert differences(straight(1), run) == []


def test_a_best_model_that_finds_no_room_is_written_with_the_next_save(
    straight: Callable[[int], Run], new_run: NewRun
) -> None:
    run, best = new_run(), straight(1).manifest(LAST)["progress"]["best_iter"]
    assert best < LAST
    ended = run.launch(accidents=[fill(best), make_room(best + 1)])
    assert_said(ended, "The best_model.pth could not be saved: OSError", "File too large")
    assert ended.status == 0
    said = f"Saved best model (accuracy={run.manifest(LAST)['progress']['best_value']:.4f})"
    assert said not in ended.output.partition("could not be saved")[0]
    assert said in ended.output
    assert differences(straight(1), run) == []


@pytest.mark.parametrize("tensorboard", [False, True])
def test_logs_that_find_no_room_end_no_run(new_run: NewRun, tensorboard: bool) -> None:
    run = new_run(log__tensorboard=tensorboard)
    ended = run.launch(accidents=[fill(5), make_room(7)])
    assert_said(ended, "metrics.csv could not be written", "train.log could not be written")
    assert ("TensorBoard" in ended.output) == tensorboard
    assert ended.status == 0
    assert_whole(run, [4, 8, 12])
    assert "iter:       6" in run.log()  # kept until there was room
    assert 6 in run.rows("train")


def test_a_line_of_metrics_that_is_torn_spoils_no_other_line(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    ended = run.launch(accidents=[fill(5, beyond=str(run.folder / "metrics.csv"), room=10), make_room(7)])
    assert_said(ended, "metrics.csv could not be written")
    assert ended.status == 0
    with open(run.folder / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert {len(row) for row in rows} == {len(header)}
    assert run.rows("train") == straight(1).rows("train")
    assert run.rows("test") == straight(1).rows("test")


def test_a_console_that_cannot_be_written_ends_no_run(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    ended = run.launch(accidents=[fill(5, console=True), make_room(9)])
    assert ended.status == 0
    assert_whole(run, [4, 12])
    assert run.hashes(LAST) == straight(1).hashes(LAST)


def test_a_stop_on_a_full_disk_is_1_and_the_older_sets_go_on(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    ended = run.launch(accidents=[fill(7), kill("step", 7, signal.SIGTERM)])
    assert_said(
        ended, "Stopped by SIGTERM, and iteration 7 could not be saved; the newest good set is that of iteration 4."
    )
    assert "saved at iteration" not in ended.output
    assert ended.status == 1
    assert_whole(run, [4])
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


def test_a_launch_on_a_full_disk_is_2_and_spoils_nothing(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run, full = new_run(), {"place": "start", "do": "fill"}
    ended = run.launch(accidents=[full])
    assert_said(ended, str(run.folder), "File too large")
    assert ended.status == 2
    assert run.launch(accidents=[kill("step", 7)]).status == -signal.SIGKILL
    files = run.files()
    again = run.launch(accidents=[full])
    assert_said(again, str(run.folder), "File too large")
    assert again.status == 2
    assert run.files() == files
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


def test_models_that_become_read_only_cost_no_older_set(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    forbidden = {"place": "step", "iter": 5, "do": "forbid", "path": str(run.models)}
    try:
        ended = run.launch(accidents=[forbidden])
    finally:
        run.models.chmod(0o755)
    assert_said(
        ended, "The checkpoint set could not be saved: PermissionError", "8_optimizerG.pth", "12_optimizerG.pth"
    )
    assert ended.status == 1
    assert run.status()["state"] == "FAILED"
    assert_whole(run, [4])
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


@pytest.mark.parametrize("name", [".", "models", "options"])
def test_a_launch_into_a_read_only_folder_is_2_and_named(new_run: NewRun, name: str) -> None:
    run = new_run()
    assert run.launch(accidents=[kill("step", 5, signal.SIGTERM)]).status == 128 + signal.SIGTERM
    folder, files = run.folder / name, run.files()
    try:
        ended = run.launch(accidents=[{"place": "start", "do": "forbid", "path": str(folder)}])
    finally:
        folder.chmod(0o755)
    assert_said(ended, f"path.root: {run.folder} cannot be written", "Permission denied", str(folder))
    assert ended.status == 2
    assert run.files() == files
    assert run.launch().status == 0


def test_a_first_launch_into_a_read_only_root_is_2_and_named(new_run: NewRun) -> None:
    run = new_run()
    run.folder.parent.mkdir()
    try:
        ended = run.launch(accidents=[{"place": "start", "do": "forbid", "path": str(run.folder.parent)}])
    finally:
        run.folder.parent.chmod(0o755)
    assert_said(ended, f"path.root: {run.folder} cannot be written", "Permission denied")
    assert ended.status == 2
    assert not run.folder.exists()


def test_models_that_are_renamed_are_found_again(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    aside = run.folder / "aside"
    ended = run.launch(
        accidents=[{"place": "step", "iter": 5, "do": "move", "path": str(run.models), "target": str(aside)}]
    )
    assert_said(ended, "The checkpoint set could not be saved: FileNotFoundError", str(run.models))
    assert ended.status == 1
    assert run.status()["state"] == "FAILED"
    assert not run.models.exists()
    aside.rename(run.models)
    assert_whole(run, [4])
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


def test_a_launch_that_misses_its_models_says_so(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    assert run.launch(accidents=[kill("step", 5, signal.SIGTERM)]).status == 128 + signal.SIGTERM
    run.models.rename(run.folder / "aside")
    ended = run.launch()
    assert ended.status == 0
    assert_said(ended, "status.json says that iteration 5 was saved", "the run starts from iteration 0")
    assert run.hashes(LAST) == straight(1).hashes(LAST)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_folder_that_is_deleted_ends_as_a_failure(
    straight: Callable[[int], Run], new_run: NewRun, tensorboard: bool
) -> None:
    run = new_run(log__tensorboard=tensorboard)
    ended = run.launch(accidents=[{"place": "step", "iter": 5, "do": "delete", "path": str(run.folder)}])
    assert_said(ended, "The checkpoint set could not be saved: FileNotFoundError", str(run.models))
    assert ended.status == 1
    assert not run.folder.exists()
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


def can_mount() -> bool:
    """Whether this user may mount a tmpfs in a namespace of their own."""
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("room", "said"),
    [(0, "free, and a checkpoint set needs"), (1 << 16, "/models/8_")],  # the first to fail of two
    ids=["noticed before the write", "noticed in the write"],
)
def test_a_file_system_that_is_full_costs_one_save(
    straight: Callable[[int], Run], new_run: NewRun, room: int, said: str
) -> None:
    if not can_mount():
        pytest.skip("unshare -rm may not mount a tmpfs here")
    run = new_run(log__tensorboard=True)
    root, kept, ballast = run.folder.parent, run.folder.parent.with_name("kept"), str(run.folder / "ballast")
    root.mkdir()
    command = run.command(
        accidents=[
            {"place": "step", "iter": 7, "do": "add_ballast", "path": ballast, "room": room},
            {"place": "step", "iter": 10, "do": "drop_ballast", "path": ballast},
        ]
    )
    script = (
        f"mount -t tmpfs -o size=4m none {root} && {shlex.join(command)}; status=$?; cp -a {root} {kept}; exit $status"
    )
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE,
        check=False,
    )  # fmt: skip
    root.rmdir()
    kept.rename(root)
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, output
    for text in ("The checkpoint set could not be saved: OSError", said):
        assert text in output, output
    assert "Traceback" not in output
    assert_whole(run, [4, 12])
    assert differences(straight(1), run) == []
