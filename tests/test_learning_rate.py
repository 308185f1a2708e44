"""The learning rate is a pure function of the iteration, and agrees with torch's own schedulers."""

import inspect
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from models.learning_rate import SCHEDULES, learning_rate
from models.model_plain import ModelPlain
from tests.helpers import ONE_RANK, class_batch, net_options
from utils.utils_option import TrainOptions

LR = 0.1


def options(schedule: str, total_iter: int = 40, **train: Any) -> TrainOptions:
    return net_options({"G_optimizer_lr": LR, "G_scheduler_type": schedule, "total_iter": total_iter, **train}).train


def rates(train: TrainOptions) -> list[float]:
    return [learning_rate(current_iter, train) for current_iter in range(1, (train.total_iter or 0) + 1)]


def torch_rates(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], total_iter: int) -> list[float]:
    """The rate that each update uses when torch's scheduler is stepped after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    used = []
    for _ in range(total_iter):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize("milestones", [[], [1], [10, 20, 30], [39], [40], [5, 100]])
@pytest.mark.parametrize("gamma", [0.5, 0.1, 1.0])
def test_multi_step_is_that_of_torch(milestones: list[int], gamma: float) -> None:
    train = options("MultiStepLR", G_scheduler_milestones=milestones, G_scheduler_gamma=gamma)
    expected = torch_rates(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, milestones, gamma), 40)
    assert rates(train) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("total_iter", [2, 3, 40, 101])
@pytest.mark.parametrize("eta_min", [0.0, 1e-4])
def test_cosine_is_that_of_torch_over_all_but_one(total_iter: int, eta_min: float) -> None:
    train = options("CosineAnnealing", total_iter, G_scheduler_eta_min=eta_min)
    expected = torch_rates(
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, total_iter - 1, eta_min), total_iter
    )
    assert rates(train) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("schedule", ["CosineAnnealing", "CosineAnnealingWarmRestarts"])
@pytest.mark.parametrize("warmup_iter", [0, 7])
def test_period_equal_to_the_run_ends_at_eta_min(schedule: str, warmup_iter: int) -> None:
    """torch's own warm restarts with T_0 = total_iter end above eta_min and then jump to the maximum."""
    train = options(
        schedule,
        40,
        G_scheduler_eta_min=1e-3,
        G_scheduler_periods=40 - warmup_iter,
        G_scheduler_warmup_iter=warmup_iter,
    )
    used = rates(train)
    assert used[-1] == pytest.approx(1e-3, rel=1e-12)
    assert used[warmup_iter] == pytest.approx(LR, rel=1e-12)
    assert used[warmup_iter:] == sorted(used[warmup_iter:], reverse=True)
    wrapped = torch_rates(lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 40, eta_min=1e-3), 40)
    assert wrapped[-1] > 1.1e-3, "the comparison would not notice"


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_restarts_by_hand(factor: int) -> None:
    train = options(
        "CosineAnnealingWarmRestarts",
        100,
        G_scheduler_periods=5,
        G_scheduler_restart_weights=factor,
        G_scheduler_eta_min=0.01,
    )
    by_hand: list[float] = []
    length = 5
    while len(by_hand) < 100:
        by_hand += [0.01 + (LR - 0.01) * (1 + math.cos(math.pi * step / (length - 1))) / 2 for step in range(length)]
        length *= factor
    assert rates(train) == pytest.approx(by_hand[:100], rel=1e-12)


def test_restarts_begin_after_the_warm_up() -> None:
    plain = options("CosineAnnealingWarmRestarts", 60, G_scheduler_periods=10)
    warmed = options("CosineAnnealingWarmRestarts", 60, G_scheduler_periods=10, G_scheduler_warmup_iter=7)
    assert rates(warmed)[7:] == rates(plain)[:-7]


@pytest.mark.parametrize("schedule", ["Constant", "MultiStepLR", "CosineAnnealing"])
@pytest.mark.parametrize("warmup_iter", [1, 4, 9])
def test_warm_up_by_hand(schedule: str, warmup_iter: int) -> None:
    train = options(schedule, 30, G_scheduler_warmup_iter=warmup_iter, G_scheduler_milestones=[20])
    used = rates(train)
    assert used[:warmup_iter] == pytest.approx([LR * (i + 1) / (warmup_iter + 1) for i in range(warmup_iter)])
    assert used[warmup_iter] == pytest.approx(LR, rel=1e-12)
    steps = {round(after - before, 12) for before, after in itertools.pairwise(used[: warmup_iter + 1])}
    assert len(steps) == 1, "the climb is not linear"


def test_constant() -> None:
    assert set(rates(options("Constant"))) == {LR}


@pytest.mark.parametrize("total_iter", [2, 9, 1000])
@pytest.mark.parametrize("eta_min", [0.0, 1e-5, LR])
def test_cosine_ends_at_eta_min(total_iter: int, eta_min: float) -> None:
    train = options("CosineAnnealing", total_iter, G_scheduler_eta_min=eta_min)
    assert learning_rate(total_iter, train) == pytest.approx(eta_min, rel=1e-12, abs=1e-18)


def test_cosine_of_a_run_that_is_all_warm_up() -> None:
    used = rates(options("CosineAnnealing", 5, G_scheduler_warmup_iter=10))
    assert used == pytest.approx([LR * (i + 1) / 11 for i in range(5)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_any_order_of_calls_gives_the_same_rates(schedule: str) -> None:
    train = options(schedule, 50, G_scheduler_warmup_iter=3, G_scheduler_periods=8, G_scheduler_milestones=[9, 30])
    forward = dict(enumerate(rates(train), 1))
    order = list(forward) * 2
    random.Random(0).shuffle(order)
    assert [learning_rate(current_iter, train) for current_iter in order] == [forward[i] for i in order]
    assert min(forward.values()) >= 0
    assert max(forward.values()) <= LR * (1 + 1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_a_function_of_iteration_and_options(schedule: str) -> None:
    assert len(inspect.signature(SCHEDULES[schedule]).parameters) == 2


def test_update_n_uses_the_rate_of_n_and_the_log_reads_it_from_the_optimizer() -> None:
    opt = net_options(
        {
            "G_optimizer_lr": LR,
            "G_optimizer_momentum": 0.0,
            "G_scheduler_type": "MultiStepLR",
            "G_scheduler_milestones": [2],
            "G_scheduler_gamma": 0.1,
        }
    )
    model = ModelPlain(opt, ONE_RANK, 0)
    used = []
    for current_iter in range(1, 5):
        before = model.netG.head.bias.detach().clone()
        model.update_learning_rate(current_iter)
        model.optimize_parameters([class_batch(current_iter)], current_iter)
        step = before - model.netG.head.bias.detach()
        used.append(float((step / model.netG.head.bias.grad).mean()))
        assert model.current_learning_rate() == model.optimizer.param_groups[0]["lr"]
    assert used == pytest.approx([0.1, 0.1, 0.01, 0.01], rel=1e-3)
