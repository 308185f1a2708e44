"""Pose metrics against SciPy and hand-computed cases; the Evaluator, and the same numbers from a test on any ranks."""

import json
import math
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.evaluate import evaluate
from tests.helpers import ONE_RANK, free_port
from utils import Evaluator
from utils.utils_dist import Dist, process_group
from utils.utils_error import UserError
from utils.utils_logger import RunLog
from utils.utils_metrics import METRICS
from utils.utils_pose import (
    PCK_THRESHOLDS_MM,
    POSE_METRICS,
    avg_metric_mm,
    joint_errors_mm,
    mpjpe_mm,
    pa_mpjpe_mm,
    pa_pck_auc,
    pck_auc,
    pck_curve,
    procrustes_align,
    root_relative,
)

NAMES = list(POSE_METRICS)
Array = NDArray[np.float64]


def hands(count: int, seed: int = 0) -> Array:
    """Random joints (count, 21, 3) of about a hand's size in mm, half a metre away."""
    return np.random.default_rng(seed).normal(0, 40, (count, 21, 3)) + [20, -30, 500]


def noisy(truth: Array, noise_mm: float, seed: int = 1) -> Array:
    return truth + np.random.default_rng(seed).normal(0, noise_mm, truth.shape)


def moved(joints: Array, seed: int = 2) -> Array:
    """Each sample under a rotation, scale and translation of its own."""
    rng = np.random.default_rng(seed)
    rotations = Rotation.random(len(joints), rng=rng).as_matrix()
    return rng.uniform(0.5, 2, (len(joints), 1, 1)) * joints @ rotations + rng.normal(0, 300, (len(joints), 1, 3))


def tensor(array: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(array))


def centred(joints: Array) -> Array:
    return joints - joints.mean(axis=0)


def aligned_by_scipy(output: Array, target: Array) -> Array:
    """One sample: the best proper rotation is SciPy's, and the best scale then follows from a derivative of zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that of collinear or planar joints is not unique
        rotation, _ = Rotation.align_vectors(centred(target), centred(output))
    turned = rotation.apply(centred(output))
    scale = (turned * centred(target)).sum() / (turned**2).sum()
    return scale * turned + target.mean(axis=0)


def distances(first: Array, second: Array) -> Array:
    return np.sqrt(((first - second) ** 2).sum(axis=-1))


# Errors as the poses lie.


def test_errors_by_hand() -> None:
    target = torch.zeros(2, 3, 3)
    output = torch.tensor(
        [[[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [2.0, 3.0, 6.0]], [[0.0, 0.0, 1.0], [8.0, 9.0, 12.0], [0.0, 0.0, 0.0]]]
    )
    assert joint_errors_mm(output, target).tolist() == [[5, 0, 7], [1, 17, 0]]
    assert mpjpe_mm(output, target).tolist() == [4, 6]


def test_root_relative() -> None:
    joints = tensor(hands(3))
    relative = root_relative(joints, 9)
    assert torch.equal(relative[:, 9], torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(relative[:, 4], joints[:, 4] - joints[:, 9])


def test_avg_metric_is_the_mean_of_both() -> None:
    target, output = tensor(hands(4)), tensor(noisy(hands(4), 10))
    both = torch.stack([mpjpe_mm(output, target), pa_mpjpe_mm(output, target)])
    assert torch.allclose(avg_metric_mm(output, target), both.mean(dim=0), rtol=1e-12)
    assert bool((both[0] > both[1] + 0.1).all()), "the two could not be told apart"


# PCK.


def test_thresholds_are_those_of_freihand() -> None:
    assert PCK_THRESHOLDS_MM.tolist() == pytest.approx([1000 * 0.05 * i / 99 for i in range(100)], abs=1e-9)


def test_pck_by_hand() -> None:
    """Errors of 0, 10, 25 and 100 mm."""
    output, target = torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)
    output[0, :, 1] = torch.tensor([0.0, 10.0, 25.0, 100.0])
    curve = pck_curve(output, target)[0]
    for threshold, fraction in zip(PCK_THRESHOLDS_MM.tolist(), curve.tolist(), strict=True):
        assert fraction == (1 + (threshold >= 10) + (threshold >= 25)) / 4
    # each joint's curve is a step, of which the trapezoid before the first threshold that it passes counts half
    steps = [0, math.ceil(10 * 99 / 50), math.ceil(25 * 99 / 50)]
    area = 1 + sum((99 - step + 0.5) / 99 for step in steps[1:])
    assert pck_auc(output, target).item() == pytest.approx(area / 4, rel=1e-12)


def test_an_error_at_a_threshold_is_correct() -> None:
    output, target = torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
    output[0, 0, 2] = 50
    assert pck_curve(output, target)[0].tolist() == [0] * 99 + [1]


def test_auc_is_that_of_freihand() -> None:
    """Its eval.py: a curve a joint over the samples, each integrated on its own, and the mean of the areas."""
    target, output = hands(30), noisy(hands(30), 12)
    errors_m = distances(output, target) / 1000
    thresholds = np.linspace(0, 0.05, 100)
    areas = []
    for joint in range(21):
        curve = [np.mean(errors_m[:, joint] <= threshold) for threshold in thresholds]
        areas.append(np.trapezoid(curve, thresholds) / np.trapezoid(np.ones(100), thresholds))
    auc = pck_auc(tensor(output), tensor(target)).mean().item()
    assert auc == pytest.approx(np.mean(areas), rel=1e-12)
    assert 0.3 < auc < 0.8
    assert auc != pytest.approx(np.mean([np.mean(errors_m <= each) for each in thresholds]), rel=1e-5), "no trapezoid"


def test_auc_after_the_alignment_is_that_of_scipys_alignment() -> None:
    target, output = hands(20), moved(noisy(hands(20), 12))
    aligned = np.stack([aligned_by_scipy(*pair) for pair in zip(output, target, strict=True)])
    auc = pa_pck_auc(tensor(output), tensor(target))
    assert auc.tolist() == pytest.approx(pck_auc(tensor(aligned), tensor(target)).tolist(), rel=1e-9)
    assert float(auc.min()) > float(pck_auc(tensor(output), tensor(target)).max())


# Procrustes.


@pytest.mark.parametrize("noise_mm", [0.0, 5.0, 60.0, 400.0])
def test_alignment_is_that_of_scipy(noise_mm: float) -> None:
    target = hands(20)
    output = moved(noisy(target, noise_mm))
    aligned = procrustes_align(tensor(output), tensor(target))
    wanted = np.stack([aligned_by_scipy(*pair) for pair in zip(output, target, strict=True)])
    assert aligned.numpy() == pytest.approx(wanted, abs=1e-6)
    error = pa_mpjpe_mm(tensor(output), tensor(target))
    assert error.numpy() == pytest.approx(distances(wanted, target).mean(axis=1), abs=1e-6)
    assert noise_mm == 0 or bool((error > noise_mm / 20).all()), "nothing was measured"


def test_residual_is_that_of_two_other_fits() -> None:
    """Without reflections at stake: scipy's procrustes, whose disparity is for a truth of size 1, and a rotation."""
    target = hands(10)
    output = moved(noisy(target, 5))
    squares = (procrustes_align(tensor(output), tensor(target)).numpy() - target) ** 2
    for place in range(10):
        disparity = scipy.spatial.procrustes(target[place], output[place])[2]
        size = (centred(target[place]) ** 2).sum()
        assert squares[place].sum() == pytest.approx(size * disparity, rel=1e-9)
        _, singular_sum = scipy.linalg.orthogonal_procrustes(centred(output[place]), centred(target[place]))
        assert squares[place].sum() == pytest.approx(
            size - singular_sum**2 / (centred(output[place]) ** 2).sum(), rel=1e-9
        )


def test_a_similar_hand_is_forgiven_and_a_mirrored_one_is_not() -> None:
    target = hands(20)
    assert float(pa_mpjpe_mm(tensor(moved(target)), tensor(target)).max()) < 1e-9
    mirrored = target * [-1, 1, 1]
    error = pa_mpjpe_mm(tensor(mirrored), tensor(target))
    assert float(error.min()) > 10
    wanted = [distances(aligned_by_scipy(*pair), pair[1]).mean() for pair in zip(mirrored, target, strict=True)]
    assert error.numpy() == pytest.approx(np.array(wanted), rel=1e-6)
    reflection, _ = scipy.linalg.orthogonal_procrustes(centred(mirrored[0]), centred(target[0]))
    assert distances(centred(mirrored[0]) @ reflection, centred(target[0])).max() < 1e-9, "it forgives"


def test_no_other_transform_is_better() -> None:
    """The transform that was found beats small changes of it in every direction."""
    target, output = hands(1), moved(noisy(hands(1), 60))
    aligned = procrustes_align(tensor(output), tensor(target)).numpy()[0]
    best = ((aligned - target[0]) ** 2).sum()
    centre = aligned.mean(axis=0)
    for axis in np.vstack([np.eye(3), -np.eye(3)]):
        turned = Rotation.from_rotvec(0.01 * axis).apply(aligned - centre) + centre
        assert ((turned - target[0]) ** 2).sum() > best
        assert ((aligned + 0.1 * axis - target[0]) ** 2).sum() > best
    for scale in (0.99, 1.01):
        assert ((scale * (aligned - centre) + centre - target[0]) ** 2).sum() > best


@pytest.mark.parametrize("place", ["at the origin", "elsewhere", "elsewhere, after rounding", "next to nothing"])
def test_a_prediction_without_extent_has_the_error_of_the_centroid(place: str) -> None:
    target = hands(3)
    output = {
        "at the origin": np.zeros_like(target),
        "elsewhere": np.full_like(target, 123.4),
        "elsewhere, after rounding": np.full_like(target, 0.1) + np.random.default_rng(0).normal(0, 1e-16, (3, 21, 3)),
        "next to nothing": np.random.default_rng(0).normal(0, 1e-200, (3, 21, 3)),
    }[place]
    wanted = distances(target, target.mean(axis=1, keepdims=True)).mean(axis=1)
    error = pa_mpjpe_mm(tensor(output), tensor(target))
    assert error.numpy() == pytest.approx(wanted, rel=1e-9)
    assert float(error.min()) > 10


def test_a_small_prediction_has_extent() -> None:
    target = hands(3)
    assert float(pa_mpjpe_mm(tensor(moved(target) * 1e-5), tensor(target)).max()) < 1e-6


def test_a_truth_without_extent_is_a_point() -> None:
    target = np.full((2, 21, 3), 7.0)
    assert pa_mpjpe_mm(tensor(hands(2)), tensor(target)).tolist() == pytest.approx([0, 0], abs=1e-9)
    assert pa_mpjpe_mm(tensor(target), tensor(target)).tolist() == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("num_flat", [1, 2], ids=["planar", "collinear"])
@pytest.mark.parametrize("which", ["prediction", "truth", "both"])
def test_flat_hands(num_flat: int, which: str) -> None:
    """The residual is SciPy's, although a flat pose may leave the transform open; nothing is NaN; it is repeatable."""
    full, flat = hands(8), hands(8, seed=5)
    flat[:, :, 3 - num_flat :] = 3
    target = moved(flat, 7) if which != "prediction" else full
    output = noisy(target, 20) if which == "truth" else moved(flat, 8)
    if which == "both":
        output = output * [1.3, 1, 1]
    aligned = procrustes_align(tensor(output), tensor(target))
    assert torch.equal(aligned, procrustes_align(tensor(output), tensor(target)))
    squares = ((aligned.numpy() - target) ** 2).sum(axis=(1, 2))
    wanted = [((aligned_by_scipy(*pair) - pair[1]) ** 2).sum() for pair in zip(output, target, strict=True)]
    assert squares == pytest.approx(np.array(wanted), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("num_flat", [1, 2], ids=["planar", "collinear"])
def test_a_flat_hand_and_its_mirror_image_are_the_same(num_flat: int) -> None:
    """A rotation in space turns one into the other."""
    target = hands(4)
    target[:, :, 3 - num_flat :] = 0
    assert float(pa_mpjpe_mm(tensor(moved(target * [-1, 1, 1])), tensor(target)).max()) < 1e-9


def test_a_sample_does_not_depend_on_its_batch() -> None:
    target, output = tensor(hands(6)), tensor(moved(noisy(hands(6), 10)))
    output[2] = 0
    together = pa_mpjpe_mm(output, target)
    alone = torch.cat([pa_mpjpe_mm(output[i : i + 1], target[i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_nan_for_its_own_sample_alone(bad: float) -> None:
    target, output = tensor(hands(3)), tensor(noisy(hands(3), 5))
    clean = pa_mpjpe_mm(output, target)
    output[1, 4, 2] = bad
    error = pa_mpjpe_mm(output, target)
    assert error.isnan().tolist() == [False, True, False]
    assert torch.equal(error[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_arithmetic_is_in_float64(name: str, dtype: torch.dtype) -> None:
    output, target = (root_relative(tensor(each)).to(dtype) for each in (noisy(hands(4), 10), hands(4)))
    assert POSE_METRICS[name](output, target).dtype == torch.float64
    assert torch.equal(POSE_METRICS[name](output, target), POSE_METRICS[name](output.double(), target.double()))


@pytest.mark.parametrize(
    ("output", "target"),
    [((8, 7), (8,)), ((2, 21, 3), (2, 20, 3)), ((2, 21, 3), (1, 21, 3)), ((2, 21, 2), (2, 21, 2)), ((2, 0, 3),) * 2],
)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit_are_named(name: str, output: tuple[int, ...], target: tuple[int, ...]) -> None:
    for use in (POSE_METRICS[name], METRICS.build(name, {}).update, Evaluator(9, metrics=[name])):
        with pytest.raises(UserError, match=r"\(B, J, 3\) in mm") as caught:
            use(torch.zeros(output), torch.zeros(target))
        assert f"prediction is {output} and the ground truth {target}" in str(caught.value)


# The Evaluator.


def test_the_evaluator_by_hand() -> None:
    """Root-relative: a hand that is only elsewhere is right; joint 1 is 6 mm off in one sample of two."""
    target = torch.zeros(2, 3, 3)
    output = torch.full((2, 3, 3), 5.0)
    output[1, 1, 0] += 6
    evaluator = Evaluator(2, metrics=("mpjpe", "joint_error"))
    evaluator(output, target)
    assert evaluator.get_metrics_dict() == {"mpjpe": 1.0, "joint_error": [0, 3, 0]}


def test_the_evaluator_takes_joints_as_an_array() -> None:
    evaluator = Evaluator(2, keypoint_list=np.array([0, 2]))  # type: ignore[arg-type]
    output = torch.zeros(2, 3, 3)
    output[:, 1:, 0] = torch.tensor([100.0, 8.0])
    evaluator(output, torch.zeros(2, 3, 3))
    assert evaluator.get_metrics_dict()["mpjpe"] == 4


def test_the_evaluator_against_scipy_in_uneven_batches() -> None:
    target, output = hands(11), moved(noisy(hands(11), 10))
    relative = [each - each[:, :1] for each in (output, target)]
    mpjpe = distances(*relative).mean()
    pa_mpjpe = np.mean([distances(aligned_by_scipy(*pair), pair[1]) for pair in zip(*relative, strict=True)])
    evaluator = Evaluator(11, metrics=("mpjpe", "pa_mpjpe", "avg_metric"))
    for part in np.array_split(np.arange(11), 3):
        evaluator(output[part], tensor(target[part]))
    assert evaluator.counter == 11
    wanted = {"mpjpe": mpjpe, "pa_mpjpe": pa_mpjpe, "avg_metric": (mpjpe + pa_mpjpe) / 2}
    assert evaluator.get_metrics_dict() == pytest.approx(wanted, rel=1e-7)


def test_the_default_metrics() -> None:
    evaluator = Evaluator(3)
    evaluator(hands(3), hands(3))
    assert list(evaluator.get_metrics_dict()) == ["mpjpe", "pa_mpjpe"]


def test_the_keypoint_list_restricts_the_joints_after_the_root_was_subtracted() -> None:
    chosen = [4, 8, 12, 16, 20]
    target, output = hands(5), noisy(hands(5), 10)
    relative = [(each - each[:, 9:10])[:, chosen] for each in (output, target)]
    evaluator = Evaluator(5, keypoint_list=chosen, root_joint_idx=9, metrics=("mpjpe", "pa_mpjpe", "joint_error"))
    evaluator(output, target)
    found = evaluator.get_metrics_dict()
    assert found["mpjpe"] == pytest.approx(distances(*relative).mean())
    assert found["joint_error"] == pytest.approx(distances(*relative).mean(axis=0))
    errors = [distances(aligned_by_scipy(*pair), pair[1]) for pair in zip(*relative, strict=True)]
    assert found["pa_mpjpe"] == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("how", ["reset()", "counter = 0"])
def test_reset(how: str) -> None:
    evaluator, fresh = Evaluator(4, save_predictions=True), Evaluator(4)
    evaluator(hands(4), noisy(hands(4), 30))
    if how == "reset()":
        evaluator.reset()
    else:
        evaluator.counter = 0
    assert evaluator.counter == 0
    for each in (evaluator, fresh):
        each(hands(2), noisy(hands(2), 5))
    assert evaluator.get_metrics_dict() == fresh.get_metrics_dict()
    assert len(evaluator.predictions) == 2


def test_predictions_are_kept_as_they_were_given() -> None:
    evaluator = Evaluator(5, keypoint_list=[1], save_predictions=True)
    output = tensor(hands(5)).float().requires_grad_()
    for part in (output[:3], output[3:]):
        evaluator(part, torch.zeros(part.shape))
    assert evaluator.predictions.dtype == torch.float32
    assert not evaluator.predictions.requires_grad
    assert torch.equal(evaluator.predictions, output)
    with torch.no_grad():
        output += 1
    assert not torch.equal(evaluator.predictions, output), "a loop that reuses its buffer would overwrite them"


def test_an_untrained_head_does_not_poison_the_mean() -> None:
    evaluator = Evaluator(2)
    evaluator(torch.zeros(2, 21, 3), hands(2))
    assert all(math.isfinite(value) for value in evaluator.get_metrics_dict().values())


def full(**arguments: Any) -> Evaluator:
    evaluator = Evaluator(3, **arguments)
    evaluator(hands(2), noisy(hands(2), 5))
    return evaluator


def with_nan(place: int) -> Array:
    joints = hands(1)
    joints[place, 3, 1] = math.nan
    return joints


@pytest.mark.parametrize(
    ("arguments", "output", "target", "message"),
    [
        ({}, hands(2), hands(2), "2 samples after 2 .* dataset_length, 3; call reset"),
        ({}, hands(1)[:, :20], hands(1)[:, :20], "20 joints, .* before had 21"),
        ({}, with_nan(0), hands(1), "the prediction of sample 2 is not finite"),
        ({}, hands(1), with_nan(0), "the ground truth of sample 2 is not finite"),
    ],
)
def test_a_call_that_is_refused_changes_nothing(arguments: Any, output: Array, target: Array, message: str) -> None:
    evaluator = full(**arguments)
    before = evaluator.get_metrics_dict()
    with pytest.raises(UserError, match=message):
        evaluator(output, target)
    assert evaluator.counter == 2
    assert evaluator.get_metrics_dict() == before
    evaluator(hands(1), hands(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_length": 0}, "dataset_length is 0; it must be at least 1"),
        ({"keypoint_list": []}, r"keypoint_list \[\] must name one or more joints, each once"),
        ({"keypoint_list": [1, 2, 1]}, r"keypoint_list \[1, 2, 1\]"),
        ({"metrics": ["mpjpe", "pa_mpjp"]}, "'pa_mpjp' is not a pose metric.*pa_mpjpe"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Evaluator(**{"dataset_length": 3, **arguments})


@pytest.mark.parametrize("arguments", [{"root_joint_idx": 21}, {"root_joint_idx": -1}, {"keypoint_list": [0, 21]}])
def test_joints_that_are_not_there_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"there is no joint (21|-1); the samples have joints 0 to 20"):
        Evaluator(3, **arguments)(hands(1), hands(1))


def test_what_an_evaluator_cannot_tell() -> None:
    with pytest.raises(UserError, match="no samples yet"):
        Evaluator(3).get_metrics_dict()
    with pytest.raises(UserError, match="save_predictions=True"):
        full().predictions  # noqa: B018
    with pytest.raises(UserError, match="2 cannot be assigned, only 0"):
        full().counter = 2


# The metrics of a test.


class GivenPoses:
    """What evaluate asks of a model; its predictions come with the batch."""

    device = torch.device("cpu")
    tested_net = torch.nn.Identity()
    lossfn = torch.nn.L1Loss()
    target: torch.Tensor

    def __init__(self, dist: Dist) -> None:
        self.dist = dist

    def sync_buffers(self) -> None:
        """Nothing to do."""

    def test(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.target = batch["target"]
        return batch["input"]

    def test_loss(self, output: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.lossfn(output, self.target))


OUTPUT, TARGET = moved(noisy(hands(13), 10)), hands(13)
OUTPUT[5] = 0


def evaluated(dist: Dist) -> Any:
    """The 13 poses in rounds of 2 a rank; all but rank 0 of three get none in the end, and rank 2 none at all."""
    ranks = max(dist.world_size - 1, 1)
    parts = np.array_split(np.arange(13), 3 * ranks)[dist.rank :: ranks] if dist.rank < ranks else [None] * 3
    batches = [
        None if part is None else {"input": tensor(OUTPUT[part]).float(), "target": tensor(TARGET[part]).float()}
        for part in parts
    ]
    return evaluate(GivenPoses(dist), batches, NAMES)  # type: ignore[arg-type]


def run_rank(rank: int, world_size: int, port: int, folder: Path) -> None:
    """What a process that torchrun starts does."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({key: str(value) for key, value in given.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with process_group(num_threads=1) as dist:
        (folder / f"{rank}.json").write_text(json.dumps(evaluated(dist)))


def test_a_test_gives_the_numbers_of_the_evaluator() -> None:
    evaluator = Evaluator(13, metrics=NAMES)
    evaluator(tensor(OUTPUT).float(), tensor(TARGET).float())
    wanted = evaluator.get_metrics_dict()
    result = evaluated(ONE_RANK)
    assert list(result) == ["loss", *NAMES]
    for name, value in wanted.items():
        assert result[name] == pytest.approx(value, rel=1e-12), name
        assert np.shape(result[name]) == {"pck_curve": (100,), "joint_error": (21,)}.get(name, ()), name


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_give_the_numbers_of_one(tmp_path: Path, world_size: int) -> None:
    """The last rank has no sample at all."""
    port = free_port()
    context = multiprocessing.get_context("fork")  # torch is imported already, and importing it takes seconds
    ranks = [context.Process(target=run_rank, args=(rank, world_size, port, tmp_path)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * world_size
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world_size)]
    assert all(result == results[0] for result in results), "the ranks disagree"
    wanted = evaluated(ONE_RANK)
    for name in NAMES:
        assert results[0][name] == pytest.approx(wanted[name], rel=1e-12), name


def test_the_number_of_joints_of_joint_error_is_checked() -> None:
    with pytest.raises(UserError, match="joint_error is one of 21 joints, not of 17"):
        METRICS.build("joint_error", {}).update(torch.zeros(2, 17, 3), torch.zeros(2, 17, 3))
    metric = METRICS.build("joint_error", {"num_joints": 17})
    metric.update(torch.zeros(2, 17, 3), torch.zeros(2, 17, 3))
    assert metric.compute().tolist() == [0] * 17


def test_the_values_of_joints_become_columns(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=False, progress_bar=False)
    log.start(0, 10)
    log.test("test", 5, 1, 0.1, {"loss": 1.0, "mpjpe": 2.0, "joint_error": [3.0, 4.0]}, (), 1.0)
    log.close()
    head, row = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    columns = dict(zip(head, row, strict=True))
    assert (columns["mpjpe"], columns["joint_error_0"], columns["joint_error_1"]) == ("2.0", "3.0", "4.0")
