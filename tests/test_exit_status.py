"""What a launch answers: exit status, one clear message, and what it leaves in the folder."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.dataset_freihand import FreiHand
from data.train_stream import TrainStream
from tests.freihand_files import write_freihand
from tests.helpers import changed, free_port, same_tensors, tiny_csv, write_options
from tests.run_helpers import (
    ENVIRONMENT,
    PROJECT,
    Accident,
    Run,
    RunServer,
    everything,
    is_stopped,
    kill,
    run_options,
    server,
    wait_until,
)

__all__ = ["server"]  # a fixture

FULL = "No space left on device"

NewRun = Callable[..., Run]


@pytest.fixture
def new_run(server: RunServer, tmp_path: Path) -> NewRun:
    options = run_options(tmp_path, val__metrics=[], val__best_metric="loss", val__best_mode="min")
    return lambda name="run", **changes: Run(server, tmp_path / name, changed(options, **changes))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.G_optimizer_lr=fast", "train.G_optimizer_lr"),
        ("train.G_optimiser_lr=0.1", "G_optimizer_lr"),
        ("netG.net_type=fer_restnet", "fer_resnet"),
        ("netG.width=[8]", "widths"),
        ("train.G_accumulation_steps=3", "G_accumulation_steps: 3 does not divide"),
        ("datasets.train.dataloader_batch_size=21", "21 is more than the 20 training samples"),
        ("datasets.train.dataroot=/nowhere/fer2013.csv", "/nowhere/fer2013.csv"),
        ("val.best_metric=accuracy", "accuracy"),
        ("netG.num_classes=5", "netG.num_classes: 5, but fer2013 Training needs 7"),
        ("netG.in_channels=3", "netG (fer_resnet) and cross_entropy do not fit the data, whose inputs are (1, 48, 48)"),
        ("netG.in_channels=-1", "netG (fer_resnet): "),
        ("path.pretrained_netG=/nowhere/5_G.pth", "/nowhere/5_G.pth: no such file"),
    ],
)
def test_a_wrong_option_is_2_and_one_message(new_run: NewRun, override: str, named: str) -> None:
    ended = new_run().launch("--set", override)
    assert ended.status == 2
    assert named in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (['val.metrics=["mpjpe"]'], "datasets.test: pose metrics compare joints"),
        (
            ["train.G_lossfn_type=l2", "train.G_lossfn_args={}"],
            "datasets.test: its samples do not fit netG (fer_resnet), l2",
        ),
        (
            ['datasets.test.transforms=[{"type":"normalize","mean":0.5,"std":[1,2,3]}]'],
            "datasets.test: normalize.std: 3",
        ),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry_run"]])
def test_a_test_that_cannot_be_made_is_refused_before_the_first_iteration(
    new_run: NewRun, overrides: list[str], named: str, more: list[str]
) -> None:
    """Mixed targets fit what class ids do not: in training all is well."""
    run = new_run()
    ended = run.launch(*(argument for each in overrides for argument in ("--set", each)), *more)
    assert ended.status == 2
    assert named in ended.output
    assert "Traceback" not in ended.output
    assert "iter:" not in ended.output


def test_what_selects_the_best_model_may_change(new_run: NewRun, tmp_path: Path) -> None:
    """The weights are those of an undisturbed run; the best model so far is set aside, not compared with."""
    csv = Path(tiny_csv(tmp_path / "own"))
    options = {
        "datasets__train__dataroot": str(csv),
        "train__checkpoint_test": 2,
        "train__G_scheduler_type": "Constant",
    }
    run, straight = new_run(**options), new_run("straight", **options)
    stop = ("--set", "train.total_iter=4")
    assert straight.launch("--set", "train.total_iter=8").status == 0
    assert run.launch(*stop).status == 0
    first = run.model("best_model.pth")["iter"]
    lines = csv.read_text().splitlines()
    of_test = [i for i, line in enumerate(lines) if line.endswith("PublicTest")]
    lines[of_test[0]] = f"{(int(lines[of_test[0]][0]) + 1) % 7}{lines[of_test[0]][1:]}"
    csv.write_text("\n".join([*lines, ""]))
    ended = run.launch("--set", "train.total_iter=6")
    assert ended.status == 0
    assert "EXACT" in ended.output
    assert "The best model is chosen anew from here" in ended.output
    quarantined = run.model("quarantine/best_model.pth")
    assert quarantined["iter"] == first
    assert ended.output.count("iter:       4> test:") == 1, "the model that the launch began with may be the best"
    assert run.model("best_model.pth")["iter"] == run.manifest(6)["progress"]["best_iter"] >= 4
    ended = run.launch("--set", "train.total_iter=8")
    assert "chosen anew" not in ended.output
    assert run.manifest(8)["progress"]["best_iter"] in (4, 6, 8)
    assert run.hashes(8) == straight.hashes(8)


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ("train.G_lossfn_weight=100", True),
        ("train.G_lossfn_args={label_smoothing: 0.9}", True),
        ("train.G_lossfn_args={label_smoothing: 0.05}", False),
        ("train.G_optimizer_lr=0.02", False),
    ],
)
def test_values_of_another_loss_are_not_compared(new_run: NewRun, change: str, is_other: bool) -> None:
    """The tests after the change are worse by its scale alone."""
    run = new_run(train__total_iter=4, train__checkpoint_test=2, val__best_metric="loss", val__best_mode="min")
    assert run.launch().status == 0
    before = run.manifest(4)["progress"]
    ended = run.launch("--set", "train.total_iter=6", "--set", change)
    assert ended.status == 0
    assert ("best_model.pth was the best by another metric or loss" in ended.output) == is_other
    after = run.manifest(6)["progress"]
    assert (after["best_iter"] == 6) or not is_other
    assert (after["judged_by"] != before["judged_by"]) == is_other
    assert run.model("best_model.pth")["iter"] == after["best_iter"]


def test_several_mistakes_are_said_at_once(new_run: NewRun) -> None:
    ended = new_run().launch("--set", "train.amp=fp8", "--set", "netG.net_type=x", "--set", "train.max_to_keep=1")
    assert ended.status == 2
    assert all(path in ended.output for path in ("train.amp", "netG.net_type", "train.max_to_keep"))


def test_without_an_option_file_the_usage_is_shown(server: RunServer) -> None:
    launched = server.start(["--"])
    assert launched.wait() == 2
    assert "-opt FILE is missing" in launched.output


def test_a_missing_option_file_is_named(server: RunServer, tmp_path: Path) -> None:
    launched = server.start(["--", "-opt", str(tmp_path / "no.json")])
    assert launched.wait() == 2
    assert "no.json" in launched.output
    assert "Traceback" not in launched.output


def test_the_schema_is_printed_and_is_the_one_in_options(server: RunServer) -> None:
    launched = server.start(["--", "--schema"])
    assert launched.wait() == 0, launched.output
    printed = json.loads(launched.output)
    assert {"task", "datasets", "netG", "train"} <= printed["properties"].keys()
    assert printed == json.loads((PROJECT / "options" / "schema.json").read_text())


def test_a_dry_run_says_the_plan_and_writes_nothing(new_run: NewRun) -> None:
    run = new_run()
    ended = run.launch("--dry_run")
    assert ended.status == 0
    assert "iteration 1 of 12" in ended.output
    assert not run.folder.exists()
    assert run.launch("--set", "train.total_iter=4").status == 0
    before = everything(run.folder)
    ended = run.launch("--dry_run")
    assert ended.status == 0
    assert "4_G.pth" in ended.output
    assert everything(run.folder) == before


def test_a_dry_run_refuses_wrong_options(new_run: NewRun) -> None:
    assert new_run().launch("--dry_run", "--set", "train.amp=fp8").status == 2


def test_a_loss_that_is_not_finite_is_1_and_leaves_the_older_sets(new_run: NewRun) -> None:
    run = new_run(train__G_scheduler_type="Constant")
    assert run.launch(accidents=[kill("step", 5, signal.SIGTERM)]).status == 143
    before = {name: content for name, content in run.files().items() if name[0] in "45"}
    ended = run.launch("--set", "train.G_optimizer_lr=1e30", "--set", "train.G_optimizer_type=sgd")
    assert ended.status == 1
    assert "the loss of iteration 7 is nan" in ended.output
    assert "Traceback" not in ended.output
    assert {name: content for name, content in run.files().items() if name[0] in "45"} == before
    assert run.committed() == [4, 5]
    assert run.status()["state"] == "FAILED"
    assert run.status()["last_committed_iter"] == 5
    assert run.launch().status == 0


def test_all_ranks_stop_at_a_loss_that_is_not_finite(new_run: NewRun) -> None:
    run = new_run(train__G_scheduler_type="Constant", train__G_optimizer_clipgrad=None)
    ended = run.launch("--set", "train.G_optimizer_lr=1e30", "--set", "train.G_optimizer_type=sgd", num_ranks=2)
    assert ended.statuses == [1, 1]
    assert "the loss of iteration 2 is nan" in ended.output
    assert run.committed() == []


@pytest.mark.long
def test_failing_ranks_always_end(new_run: NewRun) -> None:
    """Gloo's threads may still be dropping the last collective when a rank drops the group; no run may hang there."""
    changes = {
        "G_scheduler_type": "Constant",
        "G_optimizer_type": "sgd",
        "G_optimizer_lr": 1e30,
        "G_optimizer_clipgrad": 0,
    }
    for number in range(60):
        run = new_run(f"run {number}", **{f"train__{key}": value for key, value in changes.items()})
        assert run.launch(num_ranks=2).statuses == [1, 1]


def test_a_second_launch_in_the_folder_is_2_names_the_holder_and_writes_nothing(new_run: NewRun) -> None:
    run = new_run()
    (first,) = run.start(accidents=[kill("step", 6, signal.SIGSTOP)])
    try:
        wait_until(lambda: is_stopped(first.pid), 60, lambda: first.output)
        before = everything(run.folder)
        second = run.launch()
        assert everything(run.folder) == before
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.status == 2
    assert f'"pid": {first.pid}' in second.output
    assert "another trainer is running in this folder" in second.output
    assert "Traceback" not in second.output
    assert first.wait() == 0
    assert run.committed() == [4, 8, 12]


def test_a_second_launch_is_refused_on_every_rank(new_run: NewRun) -> None:
    run = new_run()
    (first,) = run.start(accidents=[kill("step", 6, signal.SIGSTOP)])
    try:
        wait_until(lambda: is_stopped(first.pid), 60, lambda: first.output)
        assert run.launch(num_ranks=2).statuses == [2, 2]
    finally:
        first.kill()
    assert first.wait() == -signal.SIGKILL
    assert run.launch().status == 0


def full(*iterations: int) -> list[Accident]:
    """A disk that has no room for these sets, however often they are tried."""
    return [{"place": "commit", "iter": iteration, "fail": FULL} for iteration in iterations for _ in range(4)]


def test_the_last_save_is_tried_twice(new_run: NewRun) -> None:
    run = new_run()
    ended = run.launch(accidents=[{"place": "commit", "iter": 12, "fail": FULL}])
    assert ended.status == 0
    assert FULL in ended.output
    assert run.committed() == [4, 8, 12]


def test_a_last_save_that_fails_is_1_and_the_next_launch_makes_up_for_it(new_run: NewRun) -> None:
    run, whole = new_run(), new_run("whole")
    assert run.launch(accidents=full(12)).status == 1
    assert run.committed() == [4, 8]
    assert run.status()["last_committed_iter"] == 8
    assert run.launch().status == 0
    assert whole.launch().status == 0
    assert run.hashes(12) == whole.hashes(12)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_may_stop_at_a_save_that_fails(new_run: NewRun, num_ranks: int) -> None:
    run, whole = new_run(train__save_failure="stop"), new_run("whole")
    # every save from iteration 8 on: the writer is in the background, and the ranks stop a little later
    ended = run.launch(accidents=full(*range(8, 13)), num_ranks=num_ranks)
    assert ended.statuses == [1] * num_ranks, ended.outputs
    assert FULL in ended.output
    assert 'train.save_failure is "stop"' in ended.output
    assert "the newest good set is that of iteration 4" in ended.output
    assert "Traceback" not in ended.output
    assert run.status()["state"] == "FAILED"
    assert run.committed() == [4]
    assert run.launch(num_ranks=num_ranks).status == 0
    assert whole.launch(num_ranks=num_ranks).status == 0
    assert run.hashes(12) == whole.hashes(12)


def test_a_run_that_stops_at_a_save_that_fails_tries_once_more(new_run: NewRun) -> None:
    run = new_run(train__save_failure="stop", train__checkpoint_save=5)
    slow = {"place": "step", "iter": 6, "await": str(run.folder / "train.log"), "text": FULL}
    ended = run.launch(accidents=[{"place": "commit", "iter": 5, "fail": FULL}, slow])
    assert ended.status == 1
    assert "at a second attempt" in ended.output
    assert run.status()["state"] == "FAILED"
    assert run.committed() in ([5], [6])  # the writer is in the background


def test_damaged_sets_are_passed_over_and_the_run_ends_alike(new_run: NewRun) -> None:
    run, whole = new_run(), new_run("whole")
    assert run.launch(accidents=[kill("step", 9, signal.SIGKILL)]).status == -9
    assert run.committed() == [4, 8]
    data = bytearray((run.models / "8_G.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (run.models / "8_G.pth").write_bytes(data)
    again = run.launch()
    assert again.status == 0
    assert "8_G.pth" in again.output
    assert "resumed from iteration 4" in again.output
    assert (run.models / "quarantine" / "8_G.pth").read_bytes() == data
    assert whole.launch().status == 0
    assert run.hashes(12) == whole.hashes(12)


def test_nothing_but_damaged_sets_is_2(new_run: NewRun) -> None:
    run = new_run()
    assert run.launch("--set", "train.total_iter=4").status == 0
    (run.models / "4_E.pth").write_bytes(b"damaged")
    ended = run.launch()
    assert ended.status == 2
    assert "none of the 1 checkpoint sets verifies" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_quarantine_that_takes_nothing_is_2(new_run: NewRun, num_ranks: int) -> None:
    run = new_run()
    assert run.launch("--set", "train.total_iter=4", num_ranks=num_ranks).status == 0
    (run.models / "4_E.pth").write_bytes(b"damaged")
    (run.models / "quarantine").write_text("no folder")
    ended = run.launch(num_ranks=num_ranks)
    assert ended.statuses == [2] * num_ranks
    assert f"{run.models}: cannot be resumed from" in ended.output
    assert "Traceback" not in "".join(ended.outputs)


def test_a_quarantine_that_takes_no_model_is_2(new_run: NewRun) -> None:
    run = new_run()
    assert run.launch("--set", "train.total_iter=4", num_ranks=2).status == 0
    (run.models / "quarantine").write_text("no folder")
    ended = run.launch("--set", "train.G_lossfn_weight=2", num_ranks=2)  # the best is another one then
    assert ended.statuses == [2, 2]
    assert f"{run.models}: cannot be resumed from" in ended.output
    assert "Traceback" not in "".join(ended.outputs)


def test_a_refused_launch_does_not_forget_what_is_committed(new_run: NewRun) -> None:
    run = new_run()
    assert run.launch("--set", "train.total_iter=4").status == 0
    many_valued = ("--set", 'val.metrics=["confusion_matrix"]', "--set", "val.best_metric=confusion_matrix")
    refused = run.launch(*many_valued, "--set", "val.best_mode=max")
    assert refused.status == 2
    assert "confusion_matrix has many values, and the best model needs a single number" in refused.output
    assert run.status()["last_committed_iter"] == 4


def test_two_ranks_refuse_wrong_options_together(new_run: NewRun) -> None:
    ended = new_run().launch("--set", "datasets.train.dataloader_batch_size=7", num_ranks=2)
    assert ended.statuses == [2, 2]
    assert "7 is not divisible by 2 ranks" in ended.output
    assert ended.outputs[1] == ""


def test_the_first_rank_of_each_machine_says_why_it_stops(new_run: NewRun) -> None:
    """Machines see files of their own: what is missing on the second one is said there."""
    second_machine = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    ended = new_run().launch("--set", "train.G_optimizer_lr=fast", num_ranks=2, environment=second_machine)
    assert ended.statuses == [2, 2]
    assert ["train.G_optimizer_lr" in output for output in ended.outputs] == [True, True]


@pytest.mark.parametrize("missing", [False, True])
def test_machines_with_other_files_are_refused(new_run: NewRun, tmp_path: Path, missing: bool) -> None:
    """The second has faces or pretrained weights of its own, or none, where faces could be generated instead."""
    first, second = (tmp_path / name for name in ("first", "second"))
    run = new_run()
    assert run.launch("--set", "train.total_iter=4").status == 0
    for seed, home in enumerate((first, second)):
        home.mkdir()
        shutil.copy(tiny_csv(home, seed=seed), home / "faces.csv")
        torch.save({**run.model("4_G.pth"), "seed": torch.tensor(seed)}, home / "G.pth")
    if missing:
        (second / "faces.csv").unlink()
        (second / "G.pth").unlink()
    fallback = '{"dataset_type": "synthetic_faces", "num_training": 20, "num_public_test": 20, "num_private_test": 20}'
    faces = ("--set", "datasets.train.dataroot=~/faces.csv", "--set", f"datasets.train.fallback={fallback}")
    weights = ("--set", "path.pretrained_netG=~/G.pth", "--set", "train.G_param_strict=false")
    for changes, named in ((faces, "datasets.train, datasets.test"), (weights, "G (G.pth)")):
        ended = new_run(named[0]).launch(*changes, num_ranks=2, homes=(first, second))
        assert ended.statuses == [2, 2]
        for output in ended.outputs:
            assert f"{named}: rank 1, on another machine, finds something else there than rank 0" in output
        assert new_run(named[0]).launch(*changes, num_ranks=2, homes=(first, first)).statuses == [0, 0]


def test_machines_with_other_code_are_refused(new_run: NewRun, tmp_path: Path) -> None:
    """Ranks of one machine have one code; of two, one may have been edited or not pulled."""
    edited: Accident = {"code": "edited", "rank": 1}
    short = ("--set", "train.total_iter=1")
    assert new_run().launch(*short, accidents=[edited], num_ranks=2).statuses == [0, 0]
    ended = new_run("two").launch(*short, accidents=[edited], num_ranks=2, homes=(tmp_path, tmp_path))
    assert ended.statuses == [2, 2]
    for output in ended.outputs:
        assert "code: rank 1, on another machine, finds something else there than rank 0" in output


@pytest.mark.parametrize(
    ("environment", "status", "said"),
    [
        (
            {"WORLD_SIZE": "2"},
            2,
            "WORLD_SIZE is 2 in the environment, which lacks RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, "
            "MASTER_PORT:",
        ),
        ({"WORLD_SIZE": "1"}, 0, "ranks 1"),
        ({"RANK": "1"}, 0, "ranks 1"),
    ],
)
def test_half_a_launcher(new_run: NewRun, environment: dict[str, str], status: int, said: str) -> None:
    ended = new_run().launch("--set", "train.total_iter=4", environment=environment)
    assert (ended.status, said in ended.output) == (status, True), ended.output


def test_a_sample_that_only_another_rank_draws_is_named_by_it(server: RunServer, tmp_path: Path) -> None:
    data = write_freihand(tmp_path / "freihand")
    options = _hand_options(tmp_path, data)
    hands = FreiHand(str(data), "train", 32)
    stream = TrainStream(len(hands), 4, seed=0, rank=1, world_size=2)
    path = data / hands.name(int(stream.samples(stream.positions(1))[0]))
    path.write_text("no image")
    ended = Run(server, tmp_path / "run", options).launch(num_ranks=2)
    assert ended.statuses[1] == 2
    assert f"{path}: not an image, or damaged" in ended.outputs[1]
    assert "another rank has ended" in ended.outputs[0]
    assert "Traceback" not in ended.output + ended.outputs[1]


@pytest.mark.parametrize(
    ("change", "code"), [((), None), (("--set", "train.G_optimizer_lr=0.3"), None), ((), "edited")]
)
def test_a_best_model_that_comes_again_with_other_weights_is_set_aside(
    new_run: NewRun, change: Sequence[str], code: str | None
) -> None:
    """The best came between the last set and a kill, and was written over the one that the set calls the best."""
    options = {"train__checkpoint_test": 2, "train__G_scheduler_type": "Constant", "train__total_iter": 8}
    run = new_run(**options, val__best_metric="loss", val__best_mode="min", train__E_decay=0.0)
    assert run.launch().status == 0
    for path in [*run.models.glob("8_*"), run.models / "final_model.pth"]:
        path.unlink()
    lost = run.model("best_model.pth")
    assert lost["iter"] > 4
    ended = run.launch(*change, accidents=[{"code": code}] if code else [])
    assert ended.status == 0
    assert "EXACT" in ended.output
    assert ("changed     code: edited since then" in re.sub(" {2,}", "     ", ended.output)) == bool(code)
    aside = "best_model.pth is of an iteration that comes again with other weights" in ended.output
    assert aside == bool(change or code) == (run.models / "quarantine" / "best_model.pth").exists()
    best = run.model("best_model.pth")
    assert best["iter"] == run.manifest(8)["progress"]["best_iter"]
    assert same_tensors(best["model_state_dict"], lost["model_state_dict"]) != bool(change)


def test_a_best_model_of_a_lost_launch_on_other_ranks_is_set_aside(new_run: NewRun) -> None:
    """The set is of one rank, and so is this launch: EXACT. The best came in between, on two."""
    options = {"train__checkpoint_test": 2, "train__G_scheduler_type": "Constant", "train__total_iter": 8,
               "train__G_optimizer_lr": 0.003, "train__manual_seed": 9}  # fmt: skip
    run = new_run(**options, val__best_metric="loss", val__best_mode="min", train__E_decay=0.0)
    run.launch(accidents=[kill("step", 5)])
    run.launch(num_ranks=2, accidents=[kill("step", 8)])
    lost = run.model("best_model.pth")
    assert lost["iter"] == 6
    ended = run.launch()
    assert ended.status == 0
    assert "EXACT" in ended.output
    assert "best_model.pth is of an iteration that comes again with other weights" in ended.output
    best = run.model("best_model.pth")
    assert best["iter"] == run.manifest(8)["progress"]["best_iter"]
    assert not same_tensors(best["model_state_dict"], lost["model_state_dict"])


@pytest.mark.parametrize(("warmup", "is_said"), [(3, False), (4, True)])
def test_a_warm_up_as_long_as_the_run_is_said(new_run: NewRun, warmup: int, is_said: bool) -> None:
    """A rate of (i / (warmup + 1)) of G_optimizer_lr reaches it in the iteration after the warm-up."""
    changes = ("--set", "train.total_iter=4", "--set", f"train.G_scheduler_warmup_iter={warmup}")
    ended = new_run().launch("--dry_run", *changes)
    assert ended.status == 0
    said = "the learning rate climbs for 4 iterations, and the run ends after 4: it never reaches"
    assert (said in ended.output) == is_said


def test_other_batches_say_what_the_epochs_mean_now(new_run: NewRun) -> None:
    run = new_run()
    changes = ("--set", "train.total_iter=null", "--set", "train.total_epochs=2")
    assert run.launch(*changes).status == 0
    larger = ("--set", "datasets.train.dataloader_batch_size=20", "--set", "resume.accept_changes=true")
    ended = run.launch(*changes, *larger)
    assert ended.status == 0
    assert "The 5 iterations behind drew 8 of 20 samples each, and 20 of 20 from here on" in ended.output
    assert "The run has 5 iterations behind it, more than the 2 that the options ask for" in ended.output
    assert "next  " not in ended.output
    assert "iterations behind" not in run.launch(*changes, "--dry_run").output


def test_the_command_that_the_end_names_can_be_pasted(new_run: NewRun) -> None:
    ended = new_run("my run", task="my run").launch("--set", "train.total_iter=4")
    (command,) = re.findall(r"verify with +python (main_test\.py verify .*)", ended.output)
    assert len(shlex.split(command)) == 3


def test_hands_relative_to_another_joint_than_the_networks_are_refused(server: RunServer, tmp_path: Path) -> None:
    run = Run(server, tmp_path / "run", _hand_options(tmp_path, write_freihand(tmp_path / "freihand")))
    named = "netG.root_joint_idx: 0, but freihand train needs 9"
    relative_to_9 = ("--set", "datasets.train.root_joint_idx=9")
    ended = run.launch(*relative_to_9)
    assert (ended.status, named in ended.output) == (2, True), ended.output
    ended = run.launch(*relative_to_9, "--set", "netG.root_joint_idx=9", "--dry_run")
    assert ended.status == 0, ended.output


def _hand_options(folder: Path, data: Path) -> dict[str, Any]:
    train = {"dataset_type": "freihand", "dataroot": str(data), "split": "train", "size": 32}
    return run_options(
        folder, datasets={"train": {**train, "dataloader_batch_size": 4}}, val={}, train__G_accumulation_steps=1,
        train__G_lossfn_type="l1", train__G_lossfn_args={},
        netG={"net_type": "hand_pose_net", "size": 32, "widths": [4, 8, 8], "depths": [1, 1], "heat_width": 8},
    )  # fmt: skip


def test_synthetic_data_is_said_loudly(new_run: NewRun, tmp_path: Path) -> None:
    fallback: dict[str, Any] = {"dataset_type": "synthetic_faces", "num_training": 24, "num_public_test": 8}
    run = new_run(datasets__train__dataroot=str(tmp_path / "no.csv"), datasets__train__fallback=fallback)
    ended = run.launch("--set", "train.total_iter=4")
    assert ended.status == 0, ended.output
    for text in (ended.output, run.log()):
        assert "SYNTHETIC DATA" in text
    assert run.model("final_model.pth")["synthetic"]


def test_nothing_is_written_outside_the_experiment_and_the_cache(new_run: NewRun, session_cache: Path) -> None:
    run = new_run(
        log__tensorboard=True, datasets__train__resident=False, datasets__train__dataloader_num_workers=2
    )  # fmt: skip
    record = run.folder.parent.parent / "audit"
    ended = run.launch(accidents=[{"audit": str(record)}], num_ranks=2)
    assert ended.statuses == [0, 0], ended.outputs
    changed = {Path(line) for line in record.read_text().splitlines()}
    assert run.models / "12_G.pth" in changed
    faces = Path(run.options["datasets"]["train"]["dataroot"])
    cache = (str(session_cache), f"{faces}.", str(faces.with_name(f".{faces.name}.")))
    sockets = f"{tempfile.gettempdir()}/pymp-"  # Python's, between the trainer and its workers
    outside = {path for path in changed if not str(path).startswith((str(run.folder), *cache, sockets, "/dev/"))}
    assert outside == {run.folder.parent, faces.parent}  # made if they are missing


def test_a_rank_whose_launcher_died_while_it_started_is_1(server: RunServer, new_run: NewRun) -> None:
    """Without its own look at the launcher's store, torch would wait for it for half an hour."""
    environment = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    run = new_run()
    launched = server.start(["--", "-opt", str(run.option_file)], environment)
    assert launched.wait(60) == 1
    assert "Connection refused" in launched.output
    assert "Traceback" not in launched.output
    assert not run.folder.exists()


@pytest.mark.parametrize(("closed", "progress_bar"), [("2>&-", "auto"), ("<&- >&- 2>&-", True)])
def test_without_a_console_a_run_trains_to_its_end(new_run: NewRun, closed: str, progress_bar: Any) -> None:
    run = new_run(log__progress_bar=progress_bar)
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *run.command()]
    ended = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, timeout=60, check=False)
    assert ended.returncode == 0
    assert run.status()["state"] == "DONE"


def test_the_summary_names_the_files_that_are_there(new_run: NewRun) -> None:
    tested, untested = new_run(), new_run("untested", val__best_metric=None)
    del untested.options["datasets"]["test"]
    write_options(untested.options, untested.option_file)
    ended = tested.launch("--set", "train.total_iter=4")
    assert f"verify with       python main_test.py verify {tested.models / 'best_model.pth'}" in ended.output
    assert "best_model.pth, final_model.pth" in ended.output
    ended = untested.launch("--set", "train.total_iter=4")
    assert ended.status == 0, ended.output
    assert f"{untested.models}: final_model.pth" in ended.output
    assert "verify with" not in ended.output


@pytest.mark.parametrize("ranks", [{}, {"WORLD_SIZE": "2", "RANK": "1"}])
def test_a_process_ends_with_its_status_after_all_that_was_to_be_done(ranks: dict[str, str]) -> None:
    code = (
        "import atexit, sys; from utils.utils_dist import end_process; atexit.register(print, 'at the end');"
        " print('before'); sys.stderr.write('error'); end_process(7)"
    )
    project, environment = Path(__file__).parent.parent, {**os.environ, **ranks}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "before\nat the end\n", "error")
