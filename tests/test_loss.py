"""Every loss against its formula in NumPy."""

import re
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


def loss(name: str, output: NDArray[Any], target: NDArray[Any], **arguments: Any) -> float:
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


CLASS_WEIGHTS = [0.5, 3.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize("amount", [0.0, 0.1])
@pytest.mark.parametrize("target", [IDS, SOFT, np.eye(5)[IDS]], ids=["ids", "soft", "one-hot"])
def test_class_weights(target: NDArray[Any], amount: float) -> None:
    """The mean over the samples of what each class adds, times its weight; ids and one-hot targets agree."""
    probabilities = smoothed(target if target.ndim == 2 else np.eye(5)[target], amount)
    expected = -(CLASS_WEIGHTS * probabilities * log_softmax(LOGITS)).sum() / 9
    arguments: dict[str, Any] = {"label_smoothing": amount}
    weighted = loss("cross_entropy", LOGITS, target, class_weights=CLASS_WEIGHTS, **arguments)
    assert weighted == pytest.approx(expected, rel=1e-10)
    plain = loss("cross_entropy", LOGITS, target, **arguments)
    assert loss("cross_entropy", LOGITS, target, class_weights=[2] * 5, **arguments) == pytest.approx(2 * plain)


def test_class_weights_of_pixels() -> None:
    """Also where some are of no class, -100, and count neither above nor below."""
    logits, ids = RNG.normal(size=(2, 5, 3, 4)), RNG.integers(0, 5, (2, 3, 4))
    chosen = np.eye(5)[ids]
    of_pixels = -(CLASS_WEIGHTS * chosen * log_softmax(logits).transpose(0, 2, 3, 1)).sum(axis=3)
    for target in (ids, chosen.transpose(0, 3, 1, 2)):
        found = loss("cross_entropy", logits, target, class_weights=CLASS_WEIGHTS)
        assert found == pytest.approx(of_pixels.mean(), rel=1e-10)
    ids[0, 1] = -100
    found = loss("cross_entropy", logits, ids, class_weights=CLASS_WEIGHTS)
    assert found == pytest.approx(of_pixels[ids != -100].mean(), rel=1e-10)


def test_weighted_losses_of_micro_batches_add_up() -> None:
    """torch's own mean over the weights would give a micro-batch of rare classes the share of any other."""
    whole = loss("cross_entropy", LOGITS, IDS, class_weights=CLASS_WEIGHTS)
    parts = [
        loss("cross_entropy", LOGITS[part], IDS[part], class_weights=CLASS_WEIGHTS)
        for part in (slice(0, 3), slice(3, 6), slice(6, 9))
    ]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-10)


def test_without_class_weights_nothing_changes_in_the_last_bit() -> None:
    logits, ids = torch.from_numpy(LOGITS).float(), torch.from_numpy(IDS)
    expected = torch.nn.functional.cross_entropy(logits, ids, label_smoothing=0.1)
    assert torch.equal(LOSSES.build("cross_entropy", {"label_smoothing": 0.1})(logits, ids), expected)


@pytest.mark.parametrize("shape", [(9, 4), (9, 6), (5,), (9, 1, 5)])
def test_weights_for_other_classes_are_refused(shape: tuple[int, ...]) -> None:
    lossfn = LOSSES.build("cross_entropy", {"class_weights": CLASS_WEIGHTS})
    with pytest.raises(
        UserError, match=rf"class_weights: 5 weights .*{re.escape(str(shape))}; give one for each class"
    ):
        lossfn(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long))


HUBER = np.abs(DIFFERENCE)
FORMULAS = {
    "l1": ({}, np.abs(DIFFERENCE).mean()),
    "l2": ({}, (DIFFERENCE**2).mean()),
    "charbonnier": ({}, np.sqrt(DIFFERENCE**2 + 1e-6).mean()),
    "charbonnier, eps": ({"eps": 0.5}, np.sqrt(DIFFERENCE**2 + 0.25).mean()),
    "smooth_l1": ({}, np.where(HUBER < 1, 0.5 * HUBER**2, HUBER - 0.5).mean()),
    "smooth_l1, beta": ({"beta": 0.3}, np.where(HUBER < 0.3, 0.5 * HUBER**2 / 0.3, HUBER - 0.15).mean()),
    "mpjpe": ({}, np.sqrt((DIFFERENCE**2).sum(axis=-1)).mean()),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_regression_losses(case: str) -> None:
    arguments, expected = FORMULAS[case]
    assert loss(case.split(",")[0], OUTPUT, TARGET, **arguments) == pytest.approx(float(expected), rel=1e-10)


WEIGHTS = [0.5, 2.0, 0.0, 1.0]
JOINTS, TRUE_JOINTS = RNG.normal(size=(5, 4, 3)), RNG.normal(size=(5, 4, 3))
OF_JOINTS = {
    "l1": np.abs(JOINTS - TRUE_JOINTS).mean(axis=(0, 2)),
    "smooth_l1": np.where(
        np.abs(JOINTS - TRUE_JOINTS) < 1, 0.5 * (JOINTS - TRUE_JOINTS) ** 2, np.abs(JOINTS - TRUE_JOINTS) - 0.5
    ).mean(axis=(0, 2)),
    "mpjpe": np.linalg.norm(JOINTS - TRUE_JOINTS, axis=2).mean(axis=0),
}


@pytest.mark.parametrize("name", OF_JOINTS)
def test_joint_weights(name: str) -> None:
    """By hand: each joint's own mean, times its share of the weights."""
    expected = (0.5 * OF_JOINTS[name][0] + 2 * OF_JOINTS[name][1] + OF_JOINTS[name][3]) / 3.5
    weighted = loss(name, JOINTS, TRUE_JOINTS, joint_weights=WEIGHTS)
    assert weighted == pytest.approx(expected, rel=1e-10)
    assert weighted == pytest.approx(loss(name, JOINTS, TRUE_JOINTS, joint_weights=[1, 4, 0, 2]), rel=1e-10)
    plain = loss(name, JOINTS, TRUE_JOINTS)
    assert loss(name, JOINTS, TRUE_JOINTS, joint_weights=[3, 3, 3, 3]) == pytest.approx(plain, rel=1e-10)
    assert weighted != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("name", OF_JOINTS)
def test_a_joint_without_weight_gets_no_gradient(name: str) -> None:
    output = torch.from_numpy(JOINTS).requires_grad_()
    LOSSES.build(name, {"joint_weights": WEIGHTS})(output, torch.from_numpy(TRUE_JOINTS)).backward()
    assert output.grad is not None
    assert output.grad.any(dim=2).any(dim=0).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("name", "function"), [("l1", torch.nn.functional.l1_loss), ("smooth_l1", torch.nn.functional.smooth_l1_loss)]
)
def test_without_weights_nothing_changes_in_the_last_bit(name: str, function: Any) -> None:
    results = []
    for lossfn in (LOSSES.build(name, {}), function):
        output = torch.from_numpy(OUTPUT).float().requires_grad_()
        value = lossfn(output, torch.from_numpy(TARGET).float())
        value.backward()
        results.append((value.detach(), output.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("name", "what"), [("cross_entropy", "class"), ("l1", "joint"), ("smooth_l1", "joint"), ("mpjpe", "joint")]
)
@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.5], [1.0, float("nan")], [1.0, float("inf")], [1, 1e39]])
def test_weights_that_are_none_are_refused(name: str, what: str, weights: list[float]) -> None:
    with pytest.raises(UserError, match=rf"train\.G_lossfn_args\.{what}_weights: .* >= 0 for each {what}"):
        LOSSES[name](**{f"{what}_weights": weights})


@pytest.mark.parametrize("name", OF_JOINTS)
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4), (5, 1, 3)])
def test_weights_for_other_joints_are_refused(name: str, shape: tuple[int, ...]) -> None:
    lossfn = LOSSES.build(name, {"joint_weights": [1.0, 1.0, 1.0]})
    with pytest.raises(UserError, match=r"joint_weights: 3 weights .*\(5.*give one for each joint"):
        lossfn(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cross_entropy"}))
def test_no_loss_broadcasts(name: str) -> None:
    for of_output, of_target in (((2, 21, 3), (2, 1, 3)), ((4, 1), (4,)), ((7, 7), (7,))):
        with pytest.raises(ValueError, match=re.escape(f"{name} compares {of_output} with {of_target}")):
            LOSSES.build(name, {})(torch.zeros(of_output), torch.zeros(of_target))


@pytest.mark.parametrize("eps", [0, -1e-3])
def test_charbonnier_without_eps_is_refused(eps: float) -> None:
    """Where the output is perfect, its gradient would be 0 / 0."""
    with pytest.raises(UserError, match=r"train\.G_lossfn_args\.eps: .* greater than 0"):
        LOSSES.build("charbonnier", {"eps": eps})


@pytest.mark.parametrize(("name", "argument"), [("mpjpe", "joint_weights"), ("cross_entropy", "class_weights")])
def test_weights_are_no_part_of_a_checkpoint(name: str, argument: str) -> None:
    lossfn = LOSSES.build(name, {argument: WEIGHTS})
    assert lossfn.state_dict() == {}
    assert [buffer.tolist() for buffer in lossfn.buffers()] == [WEIGHTS], "`to(device)` would not move them"


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
