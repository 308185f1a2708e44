"""A run that is stopped anywhere and launched again ends with the same bytes as one that is never stopped.

Each run trains with everything on: BatchNorm, dropout, all augmentations, mixup, accumulation, clipping, EMA, bf16; its
iterations end in mid-epoch. The negative controls at the end lose one piece each, and must end otherwise.
"""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.dataset_fer2013 import Fer2013
from tests.helpers import NORMALIZE, same_tensors, tiny_csv
from tests.run_helpers import (
    DEADLINE,
    ENVIRONMENT,
    LAST,
    TORCHRUN,
    Accident,
    Ended,
    NewRun,
    Run,
    differences,
    kill,
    many_faces,
    new_run,
    portable,
    server,
    session_members,
    straight,
)
from utils.utils_checkpoint import Manifest, ResumePoint
from utils.utils_progress import Progress
from utils.utils_resume import resume_guarantee

__all__ = ["many_faces", "new_run", "server", "straight"]  # fixtures

SIGTERM = 128 + signal.SIGTERM

# Either mode is allowed with this metric, and its values go up and down.
CONFIDENCE = {"train__G_scheduler_type": "Constant", "train__G_optimizer_lr": 0.1, "train__E_decay": 0.0,
              "val__metrics": ["confidence"], "val__best_metric": "confidence"}  # fmt: skip


def confidences(run: Run) -> dict[int, float]:
    return {iteration: float(row["confidence"]) for iteration, row in run.rows("test").items()}


def resumed_from(ended: Ended) -> int:
    return int(ended.output.partition("resumed from iteration ")[2].partition(":")[0].replace(",", ""))


def test_one_run_is_like_another(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    assert run.launch().status == 0
    assert differences(straight(1), run) == []
    assert run.status()["state"] == "DONE"
    assert run.status()["last_committed_iter"] == LAST


ACCIDENTS: dict[str, tuple[list[Accident], int, int]] = {
    # accidents of the first launch, its exit status, the iteration that the second resumes from
    "SIGKILL after an update": ([kill("step", 7)], -9, 4),
    "SIGKILL right after a commit": ([kill("commit", 8)], -9, 8),
    "SIGKILL between the renames": ([kill("rename", 8, count=3)], -9, 4),
    "SIGKILL before the manifest": ([kill("rename", 8, count=4)], -9, 4),
    "SIGKILL in a test": ([kill("test", 6)], -9, 4),
    "SIGKILL before best_model.pth": ([kill("model", 3, name="best_model.pth")], -9, 0),
    "SIGKILL before final_model.pth": ([kill("model", LAST, name="final_model.pth")], -9, LAST),
    "SIGTERM after an update": ([kill("step", 7, signal.SIGTERM)], SIGTERM, 7),
    "SIGTERM in the iteration of a save": ([kill("step", 8, signal.SIGTERM)], SIGTERM, 8),
    "SIGTERM in a test": ([kill("test", 9, signal.SIGTERM)], SIGTERM, 9),
    "SIGTERM in the first test": ([kill("test", 3, signal.SIGTERM)], SIGTERM, 3),
    "SIGTERM in the first update": ([kill("step", 1, signal.SIGTERM)], SIGTERM, 1),
    "SIGINT after an update": ([kill("step", 5, signal.SIGINT)], 128 + signal.SIGINT, 5),
    "SIGHUP after an update": ([kill("step", 5, signal.SIGHUP)], 128 + signal.SIGHUP, 5),
    "SIGUSR1 after an update": ([kill("step", 5, signal.SIGUSR1)], 128 + signal.SIGUSR1, 5),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_stopped_run_ends_like_an_uninterrupted_one(
    straight: Callable[[int], Run], new_run: NewRun, accident: str
) -> None:
    accidents, status, iteration = ACCIDENTS[accident]
    run = new_run()
    assert run.launch(accidents=accidents).status == status
    if status > 0:
        assert run.status()["state"] == "PREEMPTED"
        assert run.status()["last_committed_iter"] == iteration
        assert run.manifest(iteration)["reason"] in ("interrupt", "periodic", "final")
    again = run.launch()
    assert again.status == 0, again.output
    assert ("EXACT" in again.output) == (iteration > 0)
    assert (resumed_from(again) if iteration else 0) == iteration
    assert differences(straight(1), run) == []
    if iteration % 2 == 0:  # the mean of two losses is logged; elsewhere the first mean after a resume has one
        assert run.rows("train") == straight(1).rows("train")


def test_the_logged_loss_is_the_mean_over_the_ranks(straight: Callable[[int], Run]) -> None:
    """Their sum would be twice as much; batch norm of half a batch and dropout change it a little."""
    one, two = (straight(num_ranks).rows("train") for num_ranks in (1, 2))
    for iteration, row in one.items():
        assert float(two[iteration]["G_loss"]) == pytest.approx(float(row["G_loss"]), rel=0.4)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_last_test_is_caught_up_on(straight: Callable[[int], Run], new_run: NewRun, num_ranks: int) -> None:
    run = new_run()
    stop_and_relaunch(run, kill("test", LAST, signal.SIGTERM), num_ranks)
    # the last set was committed without its test, and a committed set is never rewritten
    assert differences(straight(num_ranks), run) == ["progress"]


def test_a_test_that_is_cut_off_in_its_second_data_set_is_caught_up_on(new_run: NewRun, tmp_path: Path) -> None:
    others = {"dataroot": tiny_csv(tmp_path, seed=1), "split": "PublicTest", "transforms": [dict(NORMALIZE)]}
    straight, run = (new_run(datasets__test_b={**others, "dataloader_batch_size": 4}) for _ in range(2))
    assert straight.launch().status == 0
    ended = run.launch(accidents=[kill("test", 6, signal.SIGTERM, skip=4)])  # "test" has three batches
    assert ended.status == SIGTERM
    assert "The test was cut off; the next launch begins with it." in ended.output
    assert run.launch().status == 0
    assert differences(straight, run) == []
    assert run.rows("test_b") == straight.rows("test_b")


def test_a_best_model_that_no_set_knows_is_not_replaced_by_a_worse_one(new_run: NewRun) -> None:
    """The test that a stop cut off at the end was made up for after the set was saved; then the run is prolonged."""
    whole = new_run(**CONFIDENCE, train__checkpoint_test=1)
    assert whole.launch().status == 0
    found = confidences(whole)
    assert len(set(found.values())) > 1
    best, mode = next((each, name) for name in ("max", "min") if found[each := _extreme(found, name)] != found[LAST])
    run = new_run(**CONFIDENCE, train__total_iter=best, train__checkpoint_test=100, val__best_mode=mode)
    stop_and_relaunch(run, kill("test", best, signal.SIGTERM), 1)
    assert run.manifest(best)["progress"]["best_iter"] == 0
    assert run.launch("--set", f"train.total_iter={LAST}").status == 0
    assert run.model("best_model.pth")["iter"] == best
    assert run.manifest(LAST)["progress"]["best_iter"] == best


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_best_model_that_is_not_there_is_chosen_anew(new_run: NewRun, is_finished: bool) -> None:
    """It could not be saved, or somebody took it away."""
    run = new_run()
    accidents = [] if is_finished else [kill("step", 11, signal.SIGTERM)]
    assert run.launch(accidents=accidents).status == (0 if is_finished else SIGTERM)
    best = run.model("best_model.pth")["iter"]
    (run.models / "best_model.pth").unlink()
    again = run.launch()
    assert again.status == 0
    assert f"best_model.pth of iteration {best} is not there: the best model is chosen anew from here." in again.output
    tested = {iteration: float(row["accuracy"]) for iteration, row in run.rows("test").items() if iteration > 11}
    assert run.model("best_model.pth")["metrics"]["accuracy"] == max(tested.values())
    assert "Nothing is left to do" in run.launch().output


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_best_model_that_was_chosen_anew_is_not_compared_with_the_lost_one(new_run: NewRun, mode: str) -> None:
    """The launch that chose anew is killed before it has saved a set: the newest one still knows the lost model."""
    run = new_run(**CONFIDENCE, train__checkpoint_test=1, val__best_mode=mode)
    assert run.launch(accidents=[kill("step", 6)]).status == -9
    (run.models / "best_model.pth").unlink()
    assert run.launch(accidents=[kill("step", 7)]).status == -9
    assert run.launch().status == 0
    since = {iteration: value for iteration, value in confidences(run).items() if iteration >= 4}
    best = run.model("best_model.pth")["iter"]
    assert best == run.manifest(LAST)["progress"]["best_iter"] == _extreme(since, mode)


def _extreme(found: dict[int, float], mode: str) -> int:
    return (max if mode == "max" else min)(found, key=lambda iteration: found[iteration])


def test_a_run_without_a_test_that_chooses_is_tested_once_at_the_end(new_run: NewRun, tmp_path: Path) -> None:
    others = {"dataroot": tiny_csv(tmp_path, seed=1), "split": "PublicTest", "transforms": [dict(NORMALIZE)]}
    alone = {**new_run().options["datasets"], "test_b": {**others, "dataloader_batch_size": 4}}
    del alone["test"]
    run = new_run(datasets=alone, val={"metrics": ["accuracy"], "save_img": False})
    ended = run.launch()
    assert ended.status == 0, ended.output
    assert ended.output.count(f"iter:      {LAST}> test_b:") == 1
    assert "test_b:" not in run.launch().output


def test_a_run_that_is_stopped_again_and_again(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    for accident, status in [
        (kill("step", 2), -9),
        (kill("test", 3, signal.SIGTERM), SIGTERM),
        (kill("step", 5, signal.SIGTERM), SIGTERM),
        (kill("step", 7), -9),
        (kill("rename", 8, count=2), -9),
        (kill("step", 11), -9),
    ]:
        assert run.launch(accidents=[accident]).status == status
    assert run.launch().status == 0
    assert differences(straight(1), run) == []


def test_a_first_set_without_its_manifest_is_not_taken_for_kairs(
    straight: Callable[[int], Run], new_run: NewRun
) -> None:
    run = new_run()
    assert run.launch(accidents=[kill("rename", 4, count=4)]).status == -9
    again = run.launch()
    assert again.status == 0
    assert differences(straight(1), run) == []
    assert "KAIR" not in again.output


RANK_ACCIDENTS = {
    "SIGKILL of rank 0": kill("step", 7, rank=0),
    "SIGKILL of another rank": kill("step", 7, rank=1),
    "SIGKILL right after a commit": kill("commit", 8),
    "SIGTERM of rank 0": kill("step", 7, signal.SIGTERM, rank=0),
    "SIGTERM of another rank": kill("step", 6, signal.SIGTERM, rank=1),
    "SIGTERM in a test": kill("test", 9, signal.SIGTERM, rank=1),
}


def stop_and_relaunch(run: Run, accident: Accident, num_ranks: int) -> Ended:
    ended = run.launch(accidents=[accident], num_ranks=num_ranks)
    if accident["signal"] == signal.SIGKILL:  # the others end with 1, unless they are killed before they notice
        assert ended.statuses[accident.get("rank", 0)] == -signal.SIGKILL, ended.outputs
        assert set(ended.statuses) <= {-signal.SIGKILL, 1}, ended.outputs
    else:
        assert ended.statuses == [128 + accident["signal"]] * num_ranks, ended.outputs
    again = run.launch(num_ranks=num_ranks)
    assert again.statuses == [0] * num_ranks, again.outputs
    assert "EXACT" in again.output
    return again


@pytest.mark.parametrize("accident", RANK_ACCIDENTS)
def test_two_ranks_end_like_two_uninterrupted_ones(
    straight: Callable[[int], Run], new_run: NewRun, accident: str
) -> None:
    run = new_run()
    stop_and_relaunch(run, RANK_ACCIDENTS[accident], num_ranks=2)
    assert differences(straight(2), run) == []


@pytest.mark.parametrize("accident", ["SIGKILL of another rank", "SIGTERM of another rank"])
@pytest.mark.parametrize("num_ranks", [3, pytest.param(4, marks=pytest.mark.long)])
def test_more_ranks_end_like_as_many_uninterrupted_ones(
    straight: Callable[[int], Run], new_run: NewRun, many_faces: dict[str, Any], num_ranks: int, accident: str
) -> None:
    run = new_run(**many_faces)
    stop_and_relaunch(run, RANK_ACCIDENTS[accident], num_ranks)
    assert differences(straight(num_ranks), run) == []


@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_ranks_end_with_a_message_when_one_is_killed(new_run: NewRun, victim: int) -> None:
    run = new_run()
    ranks = run.start(accidents=[kill("step", 7, rank=victim)], num_ranks=2)
    assert ranks[victim].wait() == -signal.SIGKILL
    survivor = ranks[1 - victim]
    assert survivor.wait() == 1
    assert f"Rank {1 - victim} stopped: another rank has ended" in survivor.output
    assert "Traceback" not in survivor.output
    if victim == 1:
        assert "The newest good set is that of iteration 4." in survivor.output
        assert run.status()["state"] == "FAILED"


def test_only_rank_0_talks_and_the_ranks_agree_on_the_iteration(new_run: NewRun) -> None:
    run = new_run()
    ended = run.launch(accidents=[kill("step", 4, signal.SIGTERM, rank=1)], num_ranks=2)
    assert ended.statuses == [SIGTERM, SIGTERM]
    assert "Stopped by SIGTERM and saved at iteration 5" in ended.output
    assert run.committed() == [4, 5]
    assert ended.outputs[1] == ""


def test_a_stop_is_told_and_final_before_its_pictures_are_drawn(new_run: NewRun) -> None:
    run = new_run()
    accidents = [kill("step", 4, signal.SIGTERM), kill("pictures", 0, signal.SIGKILL)]
    ended = run.launch(accidents=accidents)
    assert ended.statuses == [-signal.SIGKILL]
    assert "Stopped by SIGTERM and saved at iteration 4" in ended.output
    assert "Stopped by SIGTERM and saved at iteration 4" in run.log()
    assert "The test was cut off" not in run.log(), "none was due"
    assert run.status()["state"] == "PREEMPTED"


@pytest.mark.long
def test_stopped_ranks_always_end(new_run: NewRun) -> None:
    """Gloo's threads may still be dropping the last collective when a rank drops the group; no run may hang there."""
    for _ in range(40):
        ended = new_run().launch(accidents=[kill("step", 4, signal.SIGTERM, rank=1)], num_ranks=2)
        assert ended.statuses == [SIGTERM, SIGTERM]


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_keeps_the_data(new_run: NewRun, before: int, now: int) -> None:
    run = new_run()
    run.launch(accidents=[kill("step", 5, signal.SIGTERM)], num_ranks=before)
    again = run.launch(num_ranks=now)
    assert again.statuses == [0] * now
    assert "SAME-DATA" in again.output
    assert f"ranks: {before} -> {now}" in again.output
    assert "EXACT" not in again.output


def test_the_real_command_ends_like_a_forked_one(
    straight: Callable[[int], Run], new_run: NewRun, tmp_path: Path
) -> None:
    run = new_run()
    ended = subprocess.run(
        run.command(), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert differences(straight(1), run) == []


def test_torchrun_stopped_by_sigterm_ends_like_uninterrupted_ranks(
    straight: Callable[[int], Run], new_run: NewRun, tmp_path: Path
) -> None:
    run = new_run()
    stopping = run.command(accidents=[kill("step", 6, signal.SIGTERM, to="launcher")], launcher=TORCHRUN)
    for arguments, status, state in ((stopping, 1, "PREEMPTED"), (run.command(launcher=TORCHRUN), 0, "DONE")):
        ended = subprocess.run(
            arguments, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        assert (ended.returncode, run.status()["state"]) == (status, state), ended.stdout + ended.stderr
        assert "Traceback" not in ended.stdout
    assert differences(straight(2), run) == []


def test_a_finished_run_has_nothing_left_to_do(new_run: NewRun) -> None:
    run = new_run()
    assert run.launch().status == 0
    before = run.files()
    again = run.launch()
    assert again.status == 0
    assert "Nothing is left to do" in again.output
    assert run.files() == before
    assert run.status()["state"] == "DONE"
    assert run.status()["last_committed_iter"] == LAST


def test_a_raised_total_iter_goes_on_and_ends_like_one_long_run(new_run: NewRun) -> None:
    constant = {"train__G_scheduler_type": "Constant"}
    long, run = new_run(**constant, train__total_iter=16), new_run(**constant)
    assert (long.launch().status, run.launch().status) == (0, 0)
    again = run.launch("--set", "train.total_iter=16")
    assert again.status == 0
    assert resumed_from(again) == LAST
    assert "train.total_iter: 12 -> 16" in again.output
    assert run.hashes(16) == long.hashes(16)
    assert portable(run, "final_model.pth")["weights"] == portable(long, "final_model.pth")["weights"]
    assert run.model("final_model.pth")["iter"] == 16


def test_the_final_model_is_that_of_the_last_iteration_whatever_an_earlier_end_left(new_run: NewRun) -> None:
    run, longer = new_run(), ("--set", "train.total_iter=16")
    assert run.launch().status == 0
    assert run.launch(*longer, accidents=[kill("model", 16, name="final_model.pth")]).status == -9
    assert run.committed()[-1] == 16
    assert run.launch(*longer).status == 0
    assert run.model("final_model.pth")["iter"] == 16


def test_a_final_model_of_an_iteration_that_is_trained_again_is_not_taken_for_the_new_one(new_run: NewRun) -> None:
    run, other = new_run(), ("--set", "train.G_optimizer_lr=0.3")
    assert run.launch().status == 0
    for path in run.models.glob(f"{LAST}_*"):
        path.unlink()
    lost = run.model("final_model.pth")
    ended = run.launch(*other, accidents=[kill("model", LAST, name="final_model.pth")])
    assert ended.status == -9
    assert "final_model.pth is of a later iteration than this launch begins at; moved to quarantine/." in ended.output
    assert run.committed()[-1] == LAST
    assert run.launch(*other).status == 0
    final = run.model("final_model.pth")
    average = torch.load(run.models / f"{LAST}_E.pth", weights_only=True)
    assert same_tensors(final["model_state_dict"], average)
    assert not same_tensors(lost["model_state_dict"], average)
    assert same_tensors(run.model("quarantine/final_model.pth")["model_state_dict"], lost["model_state_dict"])


def test_a_shorter_run_replaces_no_model_of_a_later_iteration(new_run: NewRun) -> None:
    """The newest sets are gone, and the options end the run at the one before: nothing is left to train."""
    run = new_run(train__checkpoint_test=1, val__best_metric="loss", val__best_mode="min")
    shorter = "train.total_iter=4"
    assert run.launch().status == 0
    for path in [*run.models.glob("8_*"), *run.models.glob(f"{LAST}_*")]:
        path.unlink()
    best, final = (run.model(f"{name}_model.pth") for name in ("best", "final"))
    assert best["iter"] > 4
    ended = run.launch("--set", shorter)
    assert (ended.status, resumed_from(ended)) == (0, 4)
    for name, model in (("best", best), ("final", final)):
        assert run.model(f"quarantine/{name}_model.pth")["iter"] == model["iter"]
        assert run.model(f"{name}_model.pth")["iter"] == 4
    assert "Nothing is left to do" in run.launch("--set", shorter).output


def test_a_changed_learning_rate_is_listed_and_takes_effect(straight: Callable[[int], Run], new_run: NewRun) -> None:
    run = new_run()
    run.launch(accidents=[kill("step", 7, signal.SIGTERM)])
    again = run.launch("--set", "train.G_optimizer_lr=0.02", "--set", "train.G_optimizer_betas=[0.8, 0.99]")
    assert again.status == 0
    assert "train.G_optimizer_lr: 0.01 -> 0.02" in again.output
    assert "betas" in again.output
    before, after = straight(1).rows("test"), run.rows("test")
    assert before[6]["lr"] == after[6]["lr"]
    assert 1.5 < float(after[9]["lr"]) / float(before[9]["lr"]) < 2.0
    assert "G" in differences(straight(1), run)


def test_a_changed_batch_size_is_refused_until_it_is_accepted(new_run: NewRun) -> None:
    run = new_run()
    run.launch(accidents=[kill("step", 6, signal.SIGTERM)])
    before, other = run.files(), ("--set", "datasets.train.dataloader_batch_size=4")
    refused = run.launch(*other)
    assert refused.status == 2
    assert "Traceback" not in refused.output
    for text in ("batch_size: 8 -> 4", "--set resume.accept_changes=true"):
        assert text in refused.output
    assert run.files() == before
    assert run.status()["last_committed_iter"] == 6
    accepted = run.launch(*other, "--set", "resume.accept_changes=true")
    assert accepted.status == 0
    assert resumed_from(accepted) == 6
    assert "NEW STREAM" in accepted.output
    assert "datasets.train.dataloader_batch_size: 8 -> 4" in accepted.output
    assert run.manifest(LAST)["stream"]["batch_size"] == 4


@pytest.mark.parametrize(("change", "named"), [("train.manual_seed=1", "seed: 0 -> 1"), ("", "dataset: ")])
def test_another_seed_or_other_data_are_refused(new_run: NewRun, tmp_path: Path, change: str, named: str) -> None:
    run = new_run()
    run.launch(accidents=[kill("step", 6, signal.SIGTERM)])
    refused = run.launch("--set", change or f"datasets.train.dataroot={tiny_csv(tmp_path, seed=1)}")
    assert refused.status == 2
    assert named in refused.output
    assert "resume.accept_changes=true" in refused.output


def test_a_real_run_does_not_go_on_with_generated_samples(new_run: NewRun, tmp_path: Path) -> None:
    csv = Path(tiny_csv(tmp_path))
    run = new_run(
        datasets__train__dataroot=str(csv),
        datasets__train__fallback={"dataset_type": "synthetic_faces", "num_training": 20, "num_public_test": 8,
                                   "num_private_test": 8},
    )  # fmt: skip
    run.launch(accidents=[kill("step", 5, signal.SIGTERM)])
    away = csv.rename(tmp_path / "away.csv")
    ended = run.launch()
    assert ended.status == 2
    assert "The run learned from real samples until iteration 5, and would go on with synthetic_faces" in ended.output
    assert f"there is no fer2013 data at {csv}" in ended.output
    assert "accept_changes" not in ended.output
    away.rename(csv)
    assert "EXACT" in run.launch().output


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_seed_that_was_drawn_is_everybody_s_and_kept_over_a_resume(new_run: NewRun, num_ranks: int) -> None:
    run = new_run(train__manual_seed=None)
    first = run.launch(accidents=[kill("step", 6, signal.SIGTERM)], num_ranks=num_ranks)
    seed = run.manifest(6)["stream"]["seed"]
    assert re.search(rf"  seed +{seed}$", first.output, re.MULTILINE)
    assert run.launch(num_ranks=num_ranks).status == 0
    whole = new_run(train__manual_seed=seed)
    assert whole.launch(num_ranks=num_ranks).status == 0
    assert differences(whole, run) == []


def test_pretrained_weights_begin_at_iteration_0_and_the_start_says_whose_they_are(
    straight: Callable[[int], Run], new_run: NewRun
) -> None:
    given = str(straight(1).models / f"{LAST}_G.pth")
    run = new_run(path__pretrained_netG=given, train__E_decay=0.0)
    ended = run.launch("--set", "train.total_iter=4")
    assert ended.status == 0
    assert f"fresh, iteration 0, initialised from {given}" in ended.output
    assert f"iteration 1 of {4}, epoch 0, position 0" in ended.output
    assert "parameters; netG is tested" in ended.output
    assert run.committed() == [4]


PATIENT = {"train__total_iter": 40, "train__checkpoint_test": 2, "train__early_stop_patience": 3}


@pytest.fixture(scope="module")
def early(new_run: NewRun) -> tuple[Run, int]:
    """A run that ends by lost patience, and its last iteration."""
    run = new_run(**PATIENT)
    ended = run.launch()
    assert ended.status == 0
    assert "early: 3 tests without improvement" in ended.output
    last = run.committed()[-1]
    assert 8 <= last < 40
    return run, last


@pytest.mark.parametrize(
    "accident", [kill("step", 7, signal.SIGTERM), kill("step", 7), kill("test", 6, signal.SIGTERM)]
)
def test_patience_survives_a_resume(new_run: NewRun, early: tuple[Run, int], accident: Accident) -> None:
    run, last = new_run(**PATIENT), early[1]
    run.launch(accidents=[accident])
    assert run.launch().status == 0
    assert run.committed()[-1] == last
    assert differences(early[0], run, last) == []


def test_patience_that_is_forgotten_would_be_noticed(new_run: NewRun, early: tuple[Run, int]) -> None:
    run, last = new_run(**PATIENT), early[1]
    run.launch(accidents=[kill("step", last - 1, signal.SIGTERM)])
    assert run.launch(accidents=[{"forget": "progress"}]).status == 0
    assert run.committed()[-1] > last


def test_the_best_model_is_that_of_the_best_test(early: tuple[Run, int]) -> None:
    run, last = early
    rows = run.rows("test")
    best = max(rows, key=lambda iteration: (float(rows[iteration]["accuracy"]), -iteration))
    assert run.model("best_model.pth")["iter"] == best
    assert run.model("best_model.pth")["metrics"]["accuracy"] == float(rows[best]["accuracy"])
    tested = Fer2013(run.options["datasets"]["train"]["dataroot"], "PublicTest")
    assert run.manifest(last)["progress"] == {
        "best_value": float(rows[best]["accuracy"]),
        "best_iter": best,
        "num_tests_without_improvement": 3,
        "last_test_iter": last,
        "num_skipped_in_a_row": 0,
        "loss_sum": 0.0,
        "num_losses": 0,
        "judged_by": f"max accuracy of {tested.fingerprint}",
    }


def test_lost_patience_is_an_end(early: tuple[Run, int]) -> None:
    run, last = early
    assert run.manifest(last)["reason"] == "final"
    before = run.files()
    again = run.launch()
    assert again.status == 0
    assert "Nothing is left to do" in again.output
    assert run.files() == before


def test_more_patience_goes_on_and_ends_again(new_run: NewRun) -> None:
    run = new_run(**PATIENT)
    assert run.launch().status == 0
    first = run.committed()[-1]
    assert run.launch("--set", "train.early_stop_patience=4", "--set", "train.total_iter=200").status == 0
    last = run.committed()[-1]
    assert last > first
    assert run.manifest(last)["progress"]["num_tests_without_improvement"] == 4
    assert run.model("final_model.pth")["iter"] == last


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_any_number_of_loader_workers_gives_the_same_bytes(
    straight: Callable[[int], Run], new_run: NewRun, num_workers: int
) -> None:
    run = new_run(datasets__train__resident=False, datasets__train__dataloader_num_workers=num_workers)
    (first,) = run.start(accidents=[kill("step", 5, signal.SIGTERM, to="group")])
    assert first.wait() == SIGTERM, first.output
    assert not session_members(first.pid)
    (second,) = run.start()
    assert second.wait() == 0, second.output
    assert not session_members(second.pid)
    assert differences(straight(1), run) == []


@pytest.mark.parametrize("name", ["best_model.pth", "final_model.pth"])
def test_a_model_file_is_self_contained(straight: Callable[[int], Run], name: str) -> None:
    run = straight(1)
    content = run.model(name)
    assert {"iter", "epoch", "model_state_dict", "metrics", "class_names", "netG", "input"} <= content.keys()
    best = run.manifest(LAST)["progress"]["best_iter"]
    assert content["iter"] == (LAST if name == "final_model.pth" else best)
    assert content["class_names"] == ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    assert content["netG"]["net_type"] == "fer_resnet"
    assert content["input"]["transforms"] == [{"type": "normalize", "mean": 0.5, "std": 0.25}]
    assert content["metrics"]["accuracy"] == float(run.rows("test")[content["iter"]]["accuracy"])
    assert content["is_ema"]


def test_the_final_model_holds_the_average(straight: Callable[[int], Run]) -> None:
    run = straight(1)
    averaged, weights = run.model(f"{LAST}_E.pth"), run.model("final_model.pth")["model_state_dict"]
    assert list(averaged) == list(weights)
    assert all(averaged[name].equal(weights[name]) for name in averaged)
    assert not all(value.equal(averaged[name]) for name, value in run.model(f"{LAST}_G.pth").items())


def resumed_badly(new_run: NewRun, *arguments: str, accidents: tuple[Accident, ...] = ()) -> Run:
    run = new_run()
    assert run.launch(accidents=[kill("step", 7, signal.SIGTERM)]).status == SIGTERM
    assert run.launch(*arguments, accidents=accidents).status == 0
    return run


@pytest.mark.parametrize(
    ("piece", "noticed"),
    [
        ("optimizerG", {"G", "E", "optimizerG"}),
        ("E", {"E", "final_model"}),
        ("buffers", {"G", "E"}),
        ("position", {"G", "E", "optimizerG"}),
        ("progress", {"progress"}),
    ],
)
def test_a_piece_that_is_not_restored_would_be_noticed(
    straight: Callable[[int], Run], new_run: NewRun, piece: str, noticed: set[str]
) -> None:
    run = resumed_badly(new_run, accidents=({"forget": piece},))
    assert noticed <= set(differences(straight(1), run))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "train.G_optimizer_reuse=false"),
        ("--set", "train.manual_seed=1", "--set", "resume.accept_changes=true"),
    ],
)
def test_an_option_that_changes_the_run_would_be_noticed(
    straight: Callable[[int], Run], new_run: NewRun, arguments: tuple[str, ...]
) -> None:
    run = resumed_badly(new_run, *arguments)
    assert {"G", "E", "optimizerG"} <= set(differences(straight(1), run))
    assert "EXACT" not in run.log()


def test_a_resume_without_a_part_is_not_exact() -> None:
    manifest = Manifest(iteration=4, epoch=0, reason="periodic", progress=Progress(), stream={}, machine={})
    resume = ResumePoint(4, {}, manifest)
    assert resume_guarantee(resume, {}, {}, []).startswith("EXACT")
    guarantee = resume_guarantee(resume, {}, {}, ["E starts afresh", "optimizerG starts afresh"])
    assert guarantee.startswith("SAME-DATA")
    assert "(E starts afresh; optimizerG starts afresh)" in guarantee


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["train.G_optimizer_type=sgd"], "(not all of optimizerG is restored)"),
        (
            ["netG.widths=[8,16]", "train.G_param_strict=false", "train.E_decay=0"],
            "(not all of G is restored; not all of optimizerG is restored)",
        ),
    ],
)
def test_a_resume_with_part_of_a_part_is_not_exact(new_run: NewRun, changes: list[str], said: str) -> None:
    run = new_run()
    run.launch(accidents=[kill("step", 6, signal.SIGTERM)])
    again = run.launch(*(word for change in changes for word in ("--set", change)))
    assert again.status == 0
    assert "EXACT" not in again.output
    assert "SAME-DATA" in again.output
    assert said in again.output


def test_three_ranks_without_the_pass_that_orders_the_buckets_would_be_noticed(
    straight: Callable[[int], Run], new_run: NewRun, many_faces: dict[str, Any]
) -> None:
    run = new_run(**many_faces)
    run.launch(accidents=[kill("step", 6, signal.SIGTERM)], num_ranks=3)
    assert run.launch(accidents=[{"forget": "buckets"}], num_ranks=3).statuses == [0, 0, 0]
    assert {"G", "E", "optimizerG"} <= set(differences(straight(3), run))
