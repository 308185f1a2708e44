"""Muon moves hidden matrices as torch's own does, and everything else as AdamW does."""

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn as nn

from models.optimizer import define_optimizer, load_optimizer
from models.optimizer_muon import orthogonalized
from tests.helpers import messages, net_options
from tests.run_helpers import LAST, NewRun, differences, kill, new_run, server
from tests.test_optimizer import small_net, steps, through_file, weights
from utils.utils_option import TrainOptions

__all__ = ["new_run", "server"]  # fixtures

RATE, DECAY = 0.02, 0.1


def options(kind: str = "muon", **train: Any) -> TrainOptions:
    given = {"G_optimizer_type": kind, "G_optimizer_lr": RATE, "G_optimizer_wd": DECAY, "G_optimizer_momentum": 0.8}
    return net_options({**given, **train}).train


def hidden_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    moved = {id(p) for group in optimizer.param_groups if group["is_orthogonal"] for p in group["params"]}
    return {name for name, parameter in net.named_parameters() if id(parameter) in moved}


class Parts(nn.Module):
    """One of each kind of parameter; the order is that of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.kernel = nn.Conv2d(8, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.volume = nn.Conv3d(2, 6, 3)
        self.norm = nn.BatchNorm2d(4)
        self.place = nn.Parameter(torch.randn(1, 5, 4))
        self.wide = nn.Linear(9, 4)
        self.tall = nn.Linear(4, 9)
        self.last = nn.Linear(9, 7)


def with_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_matrices_and_kernels_but_the_first_and_the_last_are_hidden(decay: float) -> None:
    net = Parts()
    optimizer = define_optimizer(net, options(G_optimizer_wd=decay))
    assert hidden_of(net, optimizer) == {"kernel.weight", "volume.weight", "wide.weight", "tall.weight"}
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, everything)) == sorted(map(id, net.parameters()))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (decay if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_hidden_matrices_move_as_torch_moves_them(nesterov: bool) -> None:
    torch.manual_seed(0)
    for name in ("kernel.weight", "volume.weight", "wide.weight", "tall.weight"):
        net = Parts()
        optimizer = define_optimizer(net, options(G_optimizer_nesterov=nesterov))
        parameter = net.get_parameter(name)
        flat = nn.Parameter(parameter.detach().flatten(1).clone())
        theirs = torch.optim.Muon(
            [flat], lr=RATE, weight_decay=DECAY, momentum=0.8, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
        )
        for seed in range(3):
            before, flat_before = parameter.detach().clone(), flat.detach().clone()
            with_gradients(net, seed)
            assert parameter.grad is not None
            flat.grad = parameter.grad.flatten(1).clone()
            optimizer.step()
            theirs.step()
            step, flat_step = (parameter.detach() - before).flatten(1), flat.detach() - flat_before
            assert (step - flat_step).norm() < 0.1 * flat_step.norm(), name  # theirs computes in bf16
            descent = -flat.grad * flat_step.norm() / flat.grad.norm()
            assert (step - descent).norm() > 0.2 * flat_step.norm(), "the comparison would not notice"


def test_everything_else_moves_as_adamw_moves_it() -> None:
    torch.manual_seed(0)
    net = Parts()
    other = copy.deepcopy(net)
    optimizer = define_optimizer(net, options())
    theirs = define_optimizer(other, options("adamw"))
    for seed in range(3):
        for each, each_optimizer in ((net, optimizer), (other, theirs)):
            with_gradients(each, seed)
            each_optimizer.step()
    hidden = hidden_of(net, optimizer)
    for (name, ours), (_, adamw) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(ours, adamw) != (name in hidden), name


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_an_orthogonalized_matrix_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, before, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonalized(matrix) @ right.T
    singular = inside.diagonal()
    assert torch.allclose(inside, singular.diag(), atol=1e-4)
    assert 0.65 < singular.min() < singular.max() < 1.25
    assert before.max() / before.min() > 2, "it was orthogonal before"


def test_a_network_without_hidden_matrices_is_named(logged: pytest.LogCaptureFixture) -> None:
    define_optimizer(Parts(), options())
    assert messages(logged.records) == ""
    series = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 3), nn.Linear(4, 2))
    optimizer = define_optimizer(series, options())
    assert not hidden_of(series, optimizer)
    assert "muon finds no matrix and no kernel" in messages(logged.records, logging.WARNING)
    with_gradients(series, 0)
    before = weights(series)
    optimizer.step()
    assert not torch.equal(weights(series), before)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert torch.equal(orthogonalized(torch.zeros(4, 9)), torch.zeros(4, 9))


def test_a_hidden_matrix_without_a_gradient_stays() -> None:
    net = Parts()
    optimizer = define_optimizer(net, options())
    with_gradients(net, 0)
    net.kernel.weight.grad = None
    before = net.kernel.weight.detach().clone()
    optimizer.step()
    assert torch.equal(net.kernel.weight, before)
    assert net.kernel.weight not in optimizer.state


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_continues_bit_equal_from_its_file(layout: torch.memory_format, logged: pytest.LogCaptureFixture) -> None:
    straight = small_net().to(memory_format=layout)
    optimizer = define_optimizer(straight, options())
    assert hidden_of(straight, optimizer)
    steps(straight, optimizer, 1, 3)
    resumed, afresh = copy.deepcopy(straight), copy.deepcopy(straight)
    again, new = (define_optimizer(net, options()) for net in (resumed, afresh))
    load_optimizer(again, through_file(optimizer.state_dict()), resumed)
    for net, each in ((straight, optimizer), (resumed, again), (afresh, new)):
        steps(net, each, 4, 6)
    assert torch.equal(weights(resumed), weights(straight))
    assert not torch.equal(weights(afresh), weights(straight)), "the comparison would not notice"
    assert messages(logged.records) == ""


def test_from_adamw_all_but_the_hidden_go_on(logged: pytest.LogCaptureFixture) -> None:
    net = small_net()
    old = define_optimizer(net, options("adamw"))
    steps(net, old, 1, 2)
    new = define_optimizer(net, options())
    load_optimizer(new, through_file(old.state_dict()), net)
    hidden = hidden_of(net, new)
    for name, parameter in net.named_parameters():
        assert (parameter in new.state) != (name in hidden), name
    num = len(list(net.parameters()))
    assert f"the state of {num - len(hidden)} of {num} parameters" in messages(logged.records, logging.WARNING)
    steps(net, new, 3, 4)
    assert bool(torch.isfinite(weights(net)).all())


@pytest.mark.parametrize(("saved", "chosen"), [("sgd", "muon"), ("muon", "sgd")])
def test_a_sum_of_gradients_is_not_taken_for_their_mean(saved: str, chosen: str) -> None:
    net = small_net()
    old, new = define_optimizer(net, options(saved)), define_optimizer(net, options(chosen))
    steps(net, old, 1, 2)
    assert not load_optimizer(new, through_file({**old.state_dict(), "type": type(old).__name__}), net)
    assert not new.state


def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one(new_run: NewRun) -> None:
    straight, killed = (new_run(train__G_optimizer_type="muon") for _ in range(2))
    assert straight.launch().status == 0
    killed.launch(accidents=[kill("step", 6)])
    resumed = killed.launch()
    assert "EXACT" in resumed.output
    assert differences(straight, killed) == []
    optimizer = torch.load(straight.models / f"{LAST}_optimizerG.pth", weights_only=True)
    assert any(group["is_orthogonal"] for group in optimizer["param_groups"])
