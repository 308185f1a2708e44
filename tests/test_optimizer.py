"""Optimizers: groups, and state that goes back and forth between our files and those of plain torch (KAIR's)."""

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn

from models.network_fer_resnet import FerResNet
from models.optimizer import OPTIMIZERS, define_optimizer, load_optimizer
from tests.helpers import class_batch, messages, net_options
from utils.utils_option import TrainOptions

TYPES = ["adam", "adamw", "sgd"]


def options(optimizer: str = "adam", **train: Any) -> TrainOptions:
    return net_options({"G_optimizer_type": optimizer, "G_optimizer_lr": 0.01, **train}).train


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return FerResNet(widths=[4, 8], depths=[1, 1])


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last + 1):
        batch = class_batch(number)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch["input"]), batch["target"]).backward()
        optimizer.step()


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


PLAIN: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True),
}


@pytest.mark.parametrize("kind", TYPES)
def test_scalars_and_vectors_do_not_decay(kind: str) -> None:
    net = small_net()
    net.scale = nn.Parameter(torch.ones(()))
    optimizer = define_optimizer(net, options(kind, G_optimizer_wd=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(net.named_parameters())
    assert len(decay) == len(named)
    for name, parameter in named.items():
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name
    assert {decay[id(parameter)] for parameter in named.values()} == {0.0, 0.1}
    for group in optimizer.param_groups:
        assert [named[name] is p for name, p in zip(group["param_names"], group["params"], strict=True)]


@pytest.mark.parametrize("kind", TYPES)
def test_without_decay_there_is_one_group_in_the_order_of_the_network(kind: str) -> None:
    net = small_net()
    (group,) = define_optimizer(net, options(kind)).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    assert group["weight_decay"] == 0


def test_frozen_parameters_are_left_out() -> None:
    net = small_net()
    net.stem.requires_grad_(False)
    optimizer = define_optimizer(net, options(G_optimizer_wd=0.1))
    frozen = {id(p) for p in net.stem.parameters()}
    assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_a_network_without_vectors_has_one_group() -> None:
    net = nn.Linear(3, 2, bias=False)
    assert len(define_optimizer(net, options(G_optimizer_wd=0.1)).param_groups) == 1


def test_options_reach_the_optimizers() -> None:
    net = small_net()
    adam = define_optimizer(net, options("adam", G_optimizer_betas=[0.8, 0.95], G_optimizer_lr=0.3))
    assert (type(adam).__base__, adam.defaults["lr"], adam.defaults["betas"]) == (torch.optim.Adam, 0.3, (0.8, 0.95))
    adamw = define_optimizer(net, options("adamw", G_optimizer_betas=[0.5, 0.6]))
    assert (type(adamw).__base__, adamw.defaults["betas"]) == (torch.optim.AdamW, (0.5, 0.6))
    sgd = define_optimizer(net, options("sgd", G_optimizer_momentum=0.7, G_optimizer_nesterov=False))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.7, False)
    without = define_optimizer(net, options("sgd", G_optimizer_momentum=0.0))  # torch refuses nesterov without momentum
    assert (without.defaults["momentum"], without.defaults["nesterov"]) == (0, False)


def test_every_optimizer_is_tested() -> None:
    assert set(OPTIMIZERS) == {*TYPES, "muon"}  # test_optimizer_muon.py


@pytest.mark.parametrize("kind", TYPES)
def test_a_file_of_plain_torch_continues_bit_equal(kind: str) -> None:
    """KAIR's file: one group, no names, its own hyper-parameters."""
    net = small_net()
    plain = PLAIN[kind](net.parameters())
    steps(net, plain, 1, 4)
    ours_net = copy.deepcopy(net)
    ours = define_optimizer(ours_net, options(kind))
    load_optimizer(ours, through_file(plain.state_dict()), ours_net)
    afresh_net = copy.deepcopy(net)
    afresh = define_optimizer(afresh_net, options(kind))
    for each_net, each in ((net, plain), (ours_net, ours), (afresh_net, afresh)):
        steps(each_net, each, 5, 8)
    assert torch.equal(weights(ours_net), weights(net))
    assert not torch.equal(weights(afresh_net), weights(net)), "the comparison would not notice"


@pytest.mark.parametrize("kind", TYPES)
def test_plain_torch_continues_from_our_file(kind: str) -> None:
    net = small_net()
    ours = define_optimizer(net, options(kind))
    steps(net, ours, 1, 4)
    plain_net = copy.deepcopy(net)
    plain = PLAIN[kind](plain_net.parameters())
    plain.load_state_dict(through_file(ours.state_dict()))
    for each_net, each in ((net, ours), (plain_net, plain)):
        steps(each_net, each, 5, 8)
    assert torch.equal(weights(plain_net), weights(net))


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_file_of_an_old_torch_counts_steps_in_plain_numbers(kind: str) -> None:
    """Before torch 1.12, in KAIR's days, `step` was an int and not a tensor."""
    net = small_net()
    plain = PLAIN[kind](net.parameters())
    steps(net, plain, 1, 3)
    old = through_file(plain.state_dict())
    for moments in old["state"].values():
        moments["step"] = int(moments["step"])
    ours_net = copy.deepcopy(net)
    ours = define_optimizer(ours_net, options(kind))
    load_optimizer(ours, old, ours_net)
    for each_net, each in ((net, plain), (ours_net, ours)):
        steps(each_net, each, 4, 6)
    assert torch.equal(weights(ours_net), weights(net))


@pytest.mark.parametrize("kind", TYPES)
def test_state_follows_its_parameters_to_their_device(kind: str) -> None:
    """Files are loaded onto the CPU; a fused kernel needs `step` too where its parameter is."""
    net = small_net()
    plain = PLAIN[kind](net.parameters())
    steps(net, plain, 1, 3)
    elsewhere = small_net().to("meta")  # stands for a device that this machine has not got, and has no fused kernels
    ours = type(define_optimizer(net, options(kind)))(elsewhere.named_parameters(), lr=0.01)
    load_optimizer(ours, through_file(plain.state_dict()), elsewhere)
    moments = [value for state in ours.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert len(moments) >= len(list(net.parameters()))
    assert {value.device.type for value in moments} == {"meta"}


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.1), (0.1, 0.0)])
def test_moments_find_their_parameters_in_other_groups(before: float, after: float) -> None:
    """Decay switched on or off: two groups in another order, the same moments."""
    net = small_net()
    old = define_optimizer(net, options("adamw", G_optimizer_wd=before))
    steps(net, old, 1, 3)
    new = define_optimizer(net, options("adamw", G_optimizer_wd=after))
    load_optimizer(new, through_file(old.state_dict()), net)
    assert len(new.param_groups) != len(old.param_groups)
    for name, parameter in net.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(new.state[parameter][key], old.state[parameter][key]), (name, key)


def test_a_file_of_two_groups_without_names_is_read_in_the_order_of_the_groups() -> None:
    net = small_net()
    stem, rest = list(net.stem.parameters()), [*net.body.parameters(), *net.head.parameters()]
    plain = torch.optim.Adam([{"params": stem}, {"params": rest}], lr=0.01, fused=True)
    steps(net, plain, 1, 2)
    ours = define_optimizer(net, options())
    load_optimizer(ours, through_file(plain.state_dict()), net)
    for parameter in net.parameters():
        assert torch.equal(ours.state[parameter]["exp_avg"], plain.state[parameter]["exp_avg"])


def test_the_option_file_owns_the_hyper_parameters_and_says_so(logged: pytest.LogCaptureFixture) -> None:
    net = small_net()
    old = define_optimizer(net, options(G_optimizer_betas=[0.9, 0.999], G_optimizer_wd=0.1, G_optimizer_lr=1.0))
    steps(net, old, 1, 2)
    new = define_optimizer(net, options(G_optimizer_betas=[0.5, 0.99], G_optimizer_wd=0.2, G_optimizer_lr=0.3))
    load_optimizer(new, through_file(old.state_dict()), net)
    for group in new.param_groups:
        assert (group["betas"], group["lr"]) == ((0.5, 0.99), 0.3)
    assert [group["weight_decay"] for group in new.param_groups] == [0.2, 0.0]
    said = messages(logged.records)
    assert "betas" in said
    assert "0.5" in said
    assert "weight_decay 0.1 -> 0.2" in said


def test_equal_hyper_parameters_are_not_mentioned(logged: pytest.LogCaptureFixture) -> None:
    net = small_net()
    old = define_optimizer(net, options(G_optimizer_wd=0.1))
    steps(net, old, 1, 2)
    load_optimizer(define_optimizer(net, options(G_optimizer_wd=0.1)), through_file(old.state_dict()), net)
    assert messages(logged.records) == ""


@pytest.mark.parametrize("saved_as", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("restored_to", [torch.contiguous_format, torch.channels_last])
def test_moments_are_laid_out_like_their_parameters(
    saved_as: torch.memory_format, restored_to: torch.memory_format
) -> None:
    """A fused kernel walks both in memory order, so other strides would pair wrong elements."""
    net = small_net().to(memory_format=saved_as)
    old = define_optimizer(net, options())
    steps(net, old, 1, 3)
    other = copy.deepcopy(net).to(memory_format=restored_to)
    new = define_optimizer(other, options())
    load_optimizer(new, through_file(old.state_dict()), other)
    for (name, ours), (_, theirs) in zip(other.named_parameters(), net.named_parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert new.state[ours][key].stride() == ours.stride(), name
            assert torch.equal(new.state[ours][key], old.state[theirs][key]), name
    steps(other, new, 4, 4)
    steps(net, old, 4, 4)
    assert torch.allclose(weights(other), weights(net), atol=1e-5)


def test_another_shape_is_reported_and_the_rest_restored(logged: pytest.LogCaptureFixture) -> None:
    net = small_net()
    old = define_optimizer(net, options())
    steps(net, old, 1, 2)
    torch.manual_seed(0)
    other = FerResNet(widths=[4, 8], depths=[1, 1], num_classes=5)
    new = define_optimizer(other, options())
    load_optimizer(new, through_file(old.state_dict()), other)
    said = messages(logged.records, logging.WARNING)
    assert "head.weight has another shape" in said
    assert "head.bias has another shape" in said
    assert f"{len(list(net.parameters())) - 2} of {len(list(net.parameters()))}" in said
    stem = net.stem[0].weight
    assert torch.equal(new.state[other.stem[0].weight]["exp_avg"], old.state[stem]["exp_avg"])


def test_another_number_of_parameters_is_reported(logged: pytest.LogCaptureFixture) -> None:
    net = small_net()
    old = define_optimizer(net, options())
    steps(net, old, 1, 2)
    larger = FerResNet(widths=[4, 8], depths=[1, 2])
    load_optimizer(define_optimizer(larger, options()), through_file(old.state_dict()), larger)
    num = len(list(larger.parameters()))
    assert f"{len(list(net.parameters()))} of {num} parameters" in messages(logged.records, logging.WARNING)


@pytest.mark.parametrize(("saved", "chosen"), [("sgd", "adam"), ("adam", "sgd"), ("sgd", "adamw")])
def test_state_of_another_kind_of_optimizer_is_reported_and_training_goes_on(
    logged: pytest.LogCaptureFixture, saved: str, chosen: str
) -> None:
    net = small_net()
    old = define_optimizer(net, options(saved))
    steps(net, old, 1, 2)
    new = define_optimizer(net, options(chosen))
    load_optimizer(new, through_file(old.state_dict()), net)
    steps(net, new, 3, 4)
    assert "optimizerG" in messages(logged.records, logging.WARNING)
    assert bool(torch.isfinite(weights(net)).all())


def own_rmsprop(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(net.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("saved", "chosen"),
    [
        (lambda net: define_optimizer(net, options("adamw")), own_rmsprop),
        (own_rmsprop, lambda net: define_optimizer(net, options("adamw"))),
        (own_rmsprop, lambda net: torch.optim.Adagrad(net.parameters())),
    ],
)
def test_state_that_means_nothing_to_another_optimizer_is_left_out(
    logged: pytest.LogCaptureFixture, saved: Callable[..., Any], chosen: Callable[..., Any]
) -> None:
    net = small_net()
    old, new = saved(net), chosen(net)
    steps(net, old, 1, 2)
    state = {**old.state_dict(), "type": type(old).__name__}
    assert not load_optimizer(new, through_file(state), net)
    steps(net, new, 3, 4)
    assert f"what {type(old).__name__} has saved means nothing to" in messages(logged.records, logging.WARNING)
    assert bool(torch.isfinite(weights(net)).all())


def test_an_optimizer_of_the_users_own_is_restored(logged: pytest.LogCaptureFixture) -> None:
    straight, resumed = small_net(), small_net()
    optimizer = torch.optim.RMSprop(straight.parameters(), lr=0.01)
    steps(straight, optimizer, 1, 3)
    resumed.load_state_dict(straight.state_dict())
    again = torch.optim.RMSprop(resumed.parameters(), lr=0.01)
    load_optimizer(again, through_file(optimizer.state_dict()), resumed)
    steps(straight, optimizer, 4, 6)
    steps(resumed, again, 4, 6)
    assert torch.equal(weights(resumed), weights(straight))
    assert messages(logged.records) == ""


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.AdamW])
def test_groups_of_the_users_own_without_names_keep_their_order(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """The head first: two tensors of one shape would get each other's state, those of two shapes none that fits."""

    def grouped(net: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(net, FerResNet)
        rest = [*net.body.parameters(), *net.stem.parameters()]
        return kind([{"params": net.head.parameters(), "lr": 0.1}, {"params": rest, "lr": 0.01}])

    straight, resumed = small_net(), small_net()
    optimizer = grouped(straight)
    steps(straight, optimizer, 1, 3)
    resumed.load_state_dict(straight.state_dict())
    again = grouped(resumed)
    load_optimizer(again, through_file(optimizer.state_dict()), resumed)
    steps(straight, optimizer, 4, 6)
    steps(resumed, again, 4, 6)
    assert torch.equal(weights(resumed), weights(straight))


class Decaying(torch.optim.Optimizer):
    """Counts its steps in its group from the first one on, as apex's do, and keeps there a mean of each gradient."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            means = group.setdefault("means", [torch.zeros_like(each) for each in group["params"]])
            for each, mean in zip(group["params"], means, strict=True):
                each.sub_(mean.lerp_(each.grad, 0.5) * group["lr"] / group["step"])


def test_what_a_first_step_puts_into_a_group_is_restored() -> None:
    straight, resumed = small_net(), small_net()
    optimizer, again = Decaying(straight.parameters()), Decaying(resumed.parameters())
    steps(straight, optimizer, 1, 3)
    resumed.load_state_dict(straight.state_dict())
    load_optimizer(again, through_file(optimizer.state_dict()), resumed)
    steps(straight, optimizer, 4, 6)
    steps(resumed, again, 4, 6)
    assert torch.equal(weights(resumed), weights(straight))


def test_what_is_in_a_group_follows_its_parameters_to_their_device() -> None:
    net = small_net()
    optimizer = Decaying(net.parameters())
    steps(net, optimizer, 1, 1)
    elsewhere = small_net().to("meta")
    again = Decaying(elsewhere.parameters())
    load_optimizer(again, through_file(optimizer.state_dict()), elsewhere)
    assert {mean.device.type for mean in again.param_groups[0]["means"]} == {"meta"}


def test_a_fresh_optimizers_file_restores_nothing_quietly(logged: pytest.LogCaptureFixture) -> None:
    net = small_net()
    new = define_optimizer(net, options())
    load_optimizer(new, through_file(define_optimizer(net, options()).state_dict()), net)
    assert messages(logged.records, logging.WARNING) == ""
    steps(net, new, 1, 1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_takes_a_parameter_whose_first_gradient_comes_later(momentum: float) -> None:
    """The oracle is torch's loop over the parameters, which keeps no list of momenta."""
    nets = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours = define_optimizer(nets[0], options("sgd", G_optimizer_lr=0.1, G_optimizer_momentum=momentum))
    loop = torch.optim.SGD(nets[1].parameters(), lr=0.1, momentum=momentum, nesterov=momentum > 0, foreach=False)
    for step in range(4):
        for net, optimizer in zip(nets, (ours, loop), strict=True):
            optimizer.zero_grad(set_to_none=True)
            x = torch.arange(6.0).view(2, 3) + step
            (net(x) if step > 1 else net[1](x)).square().mean().backward()
            optimizer.step()
    for mine, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
