"""Every loss against its formula in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.loss import LOSSES
from utils.utils_error import UserError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(9, 5))
IDS = RNG.integers(0, 5, 9)
SOFT = RNG.dirichlet(np.ones(5), 9)
OUTPUT, TARGET = RNG.normal(size=(4, 3, 6, 5)), RNG.normal(size=(4, 3, 6, 5))
DIFFERENCE = OUTPUT - TARGET


def loss(name: str, output: NDArray[Any], target: NDArray[Any], **arguments: float) -> float:
    return float(LOSSES.build(name, arguments)(torch.from_numpy(output), torch.from_numpy(target)))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def smoothed(target: NDArray[np.float64], amount: float) -> NDArray[np.float64]:
    return target * (1 - amount) + amount / target.shape[1]


@pytest.mark.parametrize("amount", [0.0, 0.05, 0.5])
def test_cross_entropy_of_class_ids(amount: float) -> None:
    expected = -(smoothed(np.eye(5)[IDS], amount) * log_softmax(LOGITS)).sum(axis=1).mean()
    assert loss("cross_entropy", LOGITS, IDS, label_smoothing=amount) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("amount", [0.0, 0.1])
def test_cross_entropy_of_soft_targets(amount: float) -> None:
    expected = -(smoothed(SOFT, amount) * log_softmax(LOGITS)).sum(axis=1).mean()
    assert loss("cross_entropy", LOGITS, SOFT, label_smoothing=amount) == pytest.approx(expected, rel=1e-10)


def test_one_hot_soft_targets_are_class_ids() -> None:
    assert loss("cross_entropy", LOGITS, np.eye(5)[IDS]) == pytest.approx(loss("cross_entropy", LOGITS, IDS), rel=1e-12)
    assert loss("cross_entropy", LOGITS, SOFT) != pytest.approx(loss("cross_entropy", LOGITS, IDS), rel=1e-3)


@pytest.mark.parametrize("amount", [-0.1, 1.0, 2.0])
def test_label_smoothing_out_of_range_is_refused(amount: float) -> None:
    with pytest.raises(UserError, match=r"train\.G_lossfn_args\.label_smoothing: .* \[0, 1\)"):
        LOSSES.build("cross_entropy", {"label_smoothing": amount})


HUBER = np.abs(DIFFERENCE)
FORMULAS = {
    "l1": ({}, np.abs(DIFFERENCE).mean()),
    "l2": ({}, (DIFFERENCE**2).mean()),
    "charbonnier": ({}, np.sqrt(DIFFERENCE**2 + 1e-6).mean()),
    "charbonnier, eps": ({"eps": 0.5}, np.sqrt(DIFFERENCE**2 + 0.25).mean()),
    "smooth_l1": ({}, np.where(HUBER < 1, 0.5 * HUBER**2, HUBER - 0.5).mean()),
    "smooth_l1, beta": ({"beta": 0.3}, np.where(HUBER < 0.3, 0.5 * HUBER**2 / 0.3, HUBER - 0.15).mean()),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_regression_losses(case: str) -> None:
    arguments, expected = FORMULAS[case]
    assert loss(case.split(",")[0], OUTPUT, TARGET, **arguments) == pytest.approx(float(expected), rel=1e-10)


def test_no_two_regression_losses_agree() -> None:
    values = [round(float(expected), 6) for _, expected in FORMULAS.values()]
    assert len(set(values)) == len(values), "a test above could not tell them apart"


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_mean_with_a_gradient_at_zero(name: str) -> None:
    """Doubling the batch does not change it, and a perfect output has a finite gradient."""
    if name == "cross_entropy":
        output, target = torch.from_numpy(LOGITS), torch.from_numpy(IDS)
    else:
        output, target = torch.from_numpy(OUTPUT), torch.from_numpy(OUTPUT.copy())
    lossfn = LOSSES.build(name, {})
    output = output.clone().requires_grad_()
    once = lossfn(output, target)
    assert once.ndim == 0
    twice = lossfn(torch.cat([output, output]), torch.cat([target, target]))
    assert twice.item() == pytest.approx(once.item())
    once.backward()
    assert output.grad is not None
    assert bool(torch.isfinite(output.grad).all())


def test_unknown_argument_is_named() -> None:
    with pytest.raises(UserError, match="label_smoothin"):
        LOSSES.build("cross_entropy", {"label_smoothin": 0.1})
