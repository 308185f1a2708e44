"""A whole run, from the CSV to the files, against a loop written by hand: the same weights and average, bit for bit."""

import copy
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

import main_train
from data.train_stream import TrainStream
from models.select_network import define_G
from tests.helpers import NORMALIZE, changed, same_tensors, tiny_csv, tiny_option_mapping, validated, write_options
from utils.utils_dist import process_group
from utils.utils_option import NetOptions
from utils.utils_signal import StopRequest

NUM_ITERS, BATCH_SIZE, SEED, RATE, DECAY = 7, 8, 5, 0.02, 0.7
MILESTONES = {3: 0.5, 5: 0.25}
NETWORK = {"net_type": "fer_resnet", "widths": [4, 8], "depths": [1, 1]}

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, State, State, Path]:
    """The first weights, what the run saved as G and as E, and its data."""
    folder = tmp_path_factory.mktemp("run")
    data = tiny_csv(folder, num_train=20)
    torch.manual_seed(1)
    first = define_G(NetOptions(**NETWORK)).state_dict()
    torch.save(first, folder / "first.pth")
    train: dict[str, Any] = {
        "G_lossfn_type": "cross_entropy", "G_optimizer_type": "adamw", "G_optimizer_lr": RATE, "G_optimizer_wd": 0.1,
        "G_scheduler_type": "MultiStepLR", "G_scheduler_milestones": list(MILESTONES), "G_scheduler_gamma": 0.5,
        "E_decay": DECAY, "total_iter": NUM_ITERS, "checkpoint_save": 4, "checkpoint_test": 3, "manual_seed": SEED,
        "num_threads": 1,
    }  # fmt: skip
    mapping = changed(
        tiny_option_mapping(folder, data), train=train, netG=NETWORK, datasets__train__transforms=[NORMALIZE],
        path__pretrained_netG=str(folder / "first.pth"),
    )  # fmt: skip
    opt, option_file = validated(mapping), write_options(mapping, folder / "options.json")
    with process_group(opt.train.num_threads) as dist, StopRequest(dist) as stop:
        assert main_train.train(opt, dist, stop, option_file, dry_run=False) == 0
    parts = (torch.load(folder / "tiny" / "models" / f"{NUM_ITERS}_{part}.pth", weights_only=True) for part in "GE")
    return first, *parts, Path(data)


def batches(data: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    with open(data, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Usage"] == "Training"]
    pixels = np.array([row["pixels"].split() for row in rows], np.float32).reshape(-1, 1, 48, 48)
    images = (torch.from_numpy(pixels) / 255 - NORMALIZE["mean"]) / NORMALIZE["std"]  # type: ignore[operator]
    targets = torch.tensor([int(row["emotion"]) for row in rows])
    stream = TrainStream(len(rows), BATCH_SIZE, SEED)
    for current_iter in range(1, NUM_ITERS + 1):
        drawn = torch.from_numpy(stream.samples(stream.positions(current_iter)))
        yield images[drawn], targets[drawn]


def trained_by_hand(first: State, data: Path, mistake: str | None) -> tuple[State, State, list[float]]:
    """The network, its average, and the loss of each iteration."""
    net = define_G(NetOptions(**NETWORK))
    net.load_state_dict(first)
    average = copy.deepcopy(net)
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)

    def set_rate(current_iter: int) -> None:
        rate = RATE * min([1.0, *(factor for start, factor in MILESTONES.items() if current_iter > start)])
        for group in optimizer.param_groups[: 1 if mistake == "the rate of one group" else 2]:
            group["lr"] = rate

    @torch.no_grad()
    def move_average(current_iter: int) -> None:
        decay = min(DECAY, (1 + current_iter) / (10 + current_iter))
        for averaged, value in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if value.is_floating_point():
                averaged.lerp_(value, 1 - decay)
            else:
                averaged.copy_(value)

    losses = []
    for current_iter, (images, targets) in enumerate(batches(data), start=1):
        if mistake != "the rate after the update":
            set_rate(current_iter)
        if mistake == "the average before the update":
            move_average(current_iter)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), targets)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        if mistake == "the rate after the update":
            set_rate(current_iter)
        if mistake != "the average before the update":
            move_average(current_iter)
    return net.state_dict(), average.state_dict(), losses


@pytest.mark.parametrize(
    "mistake", [None, "the rate of one group", "the rate after the update", "the average before the update"]
)
def test_a_run_saves_what_a_loop_written_by_hand_has(
    saved: tuple[State, State, State, Path], mistake: str | None
) -> None:
    first, netG, netE, data = saved
    by_hand = trained_by_hand(first, data, mistake)
    assert (same_tensors(netG, by_hand[0]) and same_tensors(netE, by_hand[1])) == (mistake is None)
    assert not same_tensors(netG, netE)


def test_a_set_knows_the_losses_since_the_last_test(saved: tuple[State, State, State, Path]) -> None:
    """Nothing is printed, and a resume must give the next test the same mean: it was after iteration 3."""
    first, _, _, data = saved
    losses = trained_by_hand(first, data, None)[2]
    manifest = json.loads((data.parent / "tiny" / "models" / "4_manifest.json").read_text())
    assert manifest["progress"]["num_losses"] == 1
    assert manifest["progress"]["loss_sum"] == pytest.approx(losses[3], rel=1e-6)


def test_the_end_is_printed_tested_and_saved_whatever_the_intervals(saved: tuple[State, State, State, Path]) -> None:
    first, _, _, data = saved
    folder = data.parent / "tiny"
    with open(folder / "metrics.csv", newline="") as file:
        rows = {(row["split"], int(row["iter"])): row for row in csv.DictReader(file)}
    assert rows.keys() == {("train", NUM_ITERS), *(("test", iteration) for iteration in (3, 6, NUM_ITERS))}
    losses = trained_by_hand(first, data, None)[2]
    assert float(rows["train", NUM_ITERS]["G_loss"]) == pytest.approx(np.mean(losses), rel=1e-6)
    assert {path.name for path in (folder / "models").glob("*_manifest.json")} == {"4_manifest.json", "7_manifest.json"}


def test_an_epoch_as_an_interval_ends_with_its_last_sample(
    tiny_options: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Batches of 8 draw the last of 20 samples in iteration 3, and again, as their own last, in iteration 5."""
    mapping = tiny_options(train__checkpoint_save="epoch", train__checkpoint_test="epoch", train__max_to_keep=0)
    opt, option_file = validated(mapping), write_options(mapping, tmp_path / "options.json")
    with process_group(opt.train.num_threads) as dist, StopRequest(dist) as stop:
        assert main_train.train(opt, dist, stop, option_file, dry_run=False) == 0
    folder = tmp_path / "experiments" / "tiny"
    with open(folder / "metrics.csv", newline="") as file:
        assert [int(row["iter"]) for row in csv.DictReader(file) if row["split"] == "test"] == [3, 5, 6]
    assert sorted(path.name for path in (folder / "models").glob("*_G.pth")) == ["3_G.pth", "5_G.pth", "6_G.pth"]
