"""MovingAverage on networks whose tensors lie unusually in memory, by NumPy's arithmetic."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.moving_average import MovingAverage

DECAY = 0.75


def channels_last() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def several_types() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2).double(), nn.BatchNorm1d(2), nn.PReLU())


def tied() -> nn.Module:
    """Two names for one parameter."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net


def one_buffer() -> nn.Module:
    """Two parameters that are halves of one tensor, which somebody else looks at."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net.whole = torch.arange(32.0)  # type: ignore[assignment]
    for layer, half in zip(net, net.whole.chunk(2), strict=True):  # type: ignore[arg-type, operator]
        layer.weight = nn.Parameter(half.view(4, 4))
    return net


def with_gaps() -> nn.Module:
    """A parameter that is every second column of a matrix."""
    net = nn.Linear(40, 3)
    net.weight = nn.Parameter(torch.randn(3, 80)[:, ::2])
    return net


def empty() -> nn.Module:
    net = nn.Linear(0, 3)
    net.none = nn.Parameter(torch.zeros(0, 2))
    return net


NETWORKS = (channels_last, several_types, tied, one_buffer, with_gaps, empty)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_average_by_its_formula(network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    source = network()
    average = copy.deepcopy(source)
    before = values(source)
    moving = MovingAverage(average, source)
    moving.update(DECAY)
    assert_equal(values(source), before)
    assert_equal(values(average), before)
    expected = before
    for _ in range(3):
        change(source)
        moving.update(DECAY)
        expected = {name: averaged(expected[name], value) for name, value in values(source).items()}
        assert_equal(values(average), expected)


def test_a_mask_of_infinities_is_copied() -> None:
    """Beside a buffer that is averaged, and with somebody's own buffers listed anew in each update."""
    source = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    source.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    source.register_buffer("scale", torch.tensor([1.0, 2.0]))
    average = copy.deepcopy(source)
    moving = MovingAverage(average, source)
    moving.update(DECAY)
    before = values(average)
    source.get_buffer("scale").mul_(3)
    source.get_buffer("mask").fill_(torch.inf)
    moving.update(DECAY)
    expected = {name: averaged(before[name], value) for name, value in values(source).items() if name != "mask"}
    found = values(average)
    assert_equal({name: value for name, value in found.items() if name != "mask"}, expected)
    assert found["mask"].tolist() == [torch.inf] * 2


def test_a_float8_is_copied() -> None:
    average, source = nn.Linear(2, 2), nn.Linear(2, 2)
    for net in (average, source):
        net.register_buffer("scales", torch.zeros(2).to(torch.float8_e4m3fn))
    moving = MovingAverage(average, source)
    for number in (1.0, 2.0):
        source.scales = torch.full((2,), number).to(torch.float8_e4m3fn)
        moving.update(DECAY)
        assert average.get_buffer("scales").float().tolist() == [number] * 2


@pytest.mark.parametrize("network", [channels_last, several_types, with_gaps])
def test_whoever_holds_a_tensor_still_holds_it(network: Callable[[], nn.Module]) -> None:
    source = network()
    held = {name: (value, value.dtype, value.stride()) for name, value in source.named_parameters()}
    moving = MovingAverage(copy.deepcopy(source), source)
    change(source)
    moving.update(DECAY)
    for name, value in source.named_parameters():
        tensor, dtype, strides = held[name]
        assert value is tensor
        assert (value.dtype, value.stride()) == (dtype, strides)


def test_parameters_in_a_buffer_of_somebody_else_stay_there() -> None:
    source = one_buffer()
    MovingAverage(copy.deepcopy(source), source).update(DECAY)
    with torch.no_grad():
        source[1].weight.fill_(-1.0)  # type: ignore[index, operator, union-attr]
    assert source.whole.tolist() == [*map(float, range(16)), *[-1.0] * 16]  # type: ignore[operator]


def test_parameters_of_the_same_memory_stay_so() -> None:
    source = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    source[1].weight = nn.Parameter(source[0].weight.data)
    MovingAverage(copy.deepcopy(source), source).update(DECAY)
    with torch.no_grad():
        source[1].weight.fill_(-1.0)
    assert source[0].weight.tolist() == [[-1.0] * 4] * 4


def test_a_parameter_that_is_given_other_memory_is_followed() -> None:
    """As a layer with a largest norm does it in its forward pass; and when it gets its first memory again."""
    source = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    average = copy.deepcopy(source)
    moving = MovingAverage(average, source)
    moving.update(DECAY)
    expected, first = values(source), source[0].weight.data
    for given in (None, torch.randn(3, 3), torch.randn(3, 3), first, None):
        change(source)
        if given is not None:
            source[0].weight.data = given
        moving.update(DECAY)
        expected = {name: averaged(expected[name], value) for name, value in values(source).items()}
        assert_equal(values(average), expected)


class Counting(TorchDispatchMode):
    """Counts what torch is asked to compute, however many tensors one call is for."""

    num_calls = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += not func.is_view  # detach() computes nothing
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("may_move", [True, False])
def test_many_tensors_take_as_many_calls_as_a_few(may_move: bool) -> None:
    """Also where they stay in memory of their own, because somebody else holds it."""

    def calls(num_layers: int) -> int:
        source = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(num_layers)))
        held = [] if may_move else [parameter.detach() for parameter in source.parameters()]
        moving = MovingAverage(copy.deepcopy(source), source)
        moving.update(DECAY)
        assert all(map(shares_memory, held, source.parameters()))
        with Counting() as counting:
            moving.update(DECAY)
        return counting.num_calls

    assert 0 < calls(1) == calls(30) <= 4


def shares_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.data_ptr() == second.data_ptr()


def values(net: nn.Module) -> dict[str, np.ndarray]:
    """Float64, so that NumPy's own rounding does not matter; copies."""
    return {name: value.detach().double().numpy().copy() for name, value in net.state_dict().items()}


@torch.no_grad()
def change(net: nn.Module) -> None:
    """New values in the same tensors, as an optimizer and batch norm write them."""
    for tensor in {id(each): each for each in (*net.parameters(), *net.buffers())}.values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor))
        else:
            tensor += 1


def averaged(mean: np.ndarray, value: np.ndarray) -> np.ndarray:
    return DECAY * mean + (1 - DECAY) * value if value.ndim else value  # the only scalar is batch norm's counter


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)
