"""METRICS: what a test computes."""

from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from utils.utils_error import UserError
from utils.utils_metric_sums import IGNORED, Metric, of_confusion, sample_mean
from utils.utils_pose import PCK_THRESHOLDS_MM, POSE_METRICS, check_joints, root_relative
from utils.utils_table import Table

MetricValue = float | list[float] | list[list[float]]
T = TypeVar("T", bound=Callable[..., Metric])


def _best_is(mode: Literal["max", "min"]) -> Callable[[T], T]:
    """Give a metric the `best_mode` that val.best_mode must have where it selects the best model."""

    def mark(metric: T) -> T:
        vars(metric)["best_mode"] = mode
        return metric

    return mark


@_best_is("max")
def accuracy(num_classes: int | None) -> Metric:
    """Fraction of samples whose largest logit is the right class."""
    return of_confusion(_classes(num_classes), lambda counts: counts.diagonal().sum() / counts.sum())


@_best_is("max")
def balanced_accuracy(num_classes: int | None) -> Metric:
    """Mean recall of the classes that occur."""

    def value(counts: torch.Tensor) -> torch.Tensor:
        return _recall(counts)[counts.sum(dim=1) > 0].mean()

    return of_confusion(_classes(num_classes), value)


@_best_is("max")
def macro_f1(num_classes: int | None) -> Metric:
    """Mean over the classes of their F1 score."""

    def value(counts: torch.Tensor) -> torch.Tensor:
        of_class = counts.sum(dim=0) + counts.sum(dim=1)
        scores = (2 * counts.diagonal() / of_class)[of_class > 0]
        return (scores / len(scores)).sum()

    return of_confusion(_classes(num_classes), value)


def recall_per_class(num_classes: int | None) -> Metric:
    """The recall of each class: (num_classes,)."""
    return of_confusion(_classes(num_classes), _recall)


def confusion_matrix(num_classes: int | None) -> Metric:
    """Counts, true class by predicted class: (num_classes, num_classes)."""
    return of_confusion(_classes(num_classes), lambda counts: counts)


@_best_is("min")
def calibration_error(num_classes: int | None) -> Metric:
    """Expected calibration error, 15 bins (Guo et al., ICML 2017): by how much confidence and accuracy differ."""
    _classes(num_classes)
    num_bins = 15

    def of_batch(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, predicted = _probabilities("calibration_error", output).max(dim=1)
        is_counted = target != IGNORED
        bins = (found * num_bins).ceil().long().clamp(1, num_bins) - 1
        gaps = torch.zeros(num_bins, dtype=torch.float64, device=output.device)
        of_samples = (found.double() - (predicted == target).double()) * is_counted
        return gaps.index_add(0, bins, of_samples), is_counted.sum()

    return Metric([(num_bins,), ()], of_batch, lambda gaps, count: gaps.abs().sum() / count)


def confidence(num_classes: int | None) -> Metric:
    """Mean of the largest class probability: 1 / num_classes for a network that has no opinion."""
    _classes(num_classes)
    return sample_mean(lambda output, _target: _probabilities("confidence", output).amax(dim=1))


@_best_is("min")
def mae() -> Metric:
    """Mean absolute error over all elements."""
    return _element_mean(lambda output, target: (output - target).abs())


@_best_is("min")
def mse() -> Metric:
    """Mean squared error over all elements."""
    return _element_mean(lambda output, target: (output - target).square())


@_best_is("min")
def mpjpe() -> Metric:
    """Mean distance of joints (B, J, 3) from their truth in mm, both relative to joint 0, which is included."""
    return _of_poses("mpjpe")


@_best_is("min")
def pa_mpjpe() -> Metric:
    """mpjpe in mm after a similarity transform of each prediction onto its truth, reflections excluded."""
    return _of_poses("pa_mpjpe")


@_best_is("min")
def avg_metric() -> Metric:
    """(mpjpe + pa_mpjpe) / 2, in mm."""
    return _of_poses("avg_metric")


@_best_is("max")
def pck_auc() -> Metric:
    """Area under the PCK curve of joints relative to joint 0, 0 to 50 mm, in [0, 1], as in FreiHAND's evaluation."""
    return _of_poses("pck_auc")


@_best_is("max")
def pa_pck_auc() -> Metric:
    """pck_auc after the alignment of pa_mpjpe."""
    return _of_poses("pa_pck_auc")


def pck_curve() -> Metric:
    """Fraction of correct joints for 100 thresholds from 0 to 50 mm: (100,)."""
    return _of_poses("pck_curve", PCK_THRESHOLDS_MM.shape)


def joint_error(num_joints: int = 21) -> Metric:
    """Mean distance of each joint from its truth in mm, both relative to joint 0: (num_joints,)."""
    return _of_poses("joint_error", (num_joints,))


METRICS = Table(
    "metric",
    {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": macro_f1,
        "recall_per_class": recall_per_class,
        "confusion_matrix": confusion_matrix,
        "calibration_error": calibration_error,
        "confidence": confidence,
        "mae": mae,
        "mse": mse,
        "mpjpe": mpjpe,
        "pa_mpjpe": pa_mpjpe,
        "avg_metric": avg_metric,
        "pck_auc": pck_auc,
        "pa_pck_auc": pa_pck_auc,
        "pck_curve": pck_curve,
        "joint_error": joint_error,
    },
    supplied={"num_classes"},
)

UNITS = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "recall_per_class", "confidence"), "0 to 1"),
    "calibration_error": "0 to 1, lower is better",
    **dict.fromkeys(("mpjpe", "pa_mpjpe", "avg_metric", "joint_error"), "mm, lower is better"),
    **dict.fromkeys(("pck_auc", "pa_pck_auc", "pck_curve"), "0 to 1"),
    "lr": "factor of the update",
    "grad_norm": "L2 norm before clipping",
    "images_per_s": "images / s",
}
"""What the numbers of metrics.csv are measured in, where their names do not say it."""

_SPOKEN = {
    "mpjpe": "MPJPE",
    "pa_mpjpe": "PA-MPJPE",
    "pck_auc": "PCK AUC",
    "pa_pck_auc": "PA-PCK AUC",
    "macro_f1": "Macro F1",
    "mae": "MAE",
    "mse": "MSE",
    "lr": "Learning Rate",
    "grad_norm": "Gradient Norm",
    "images_per_s": "Speed",
}


def spoken(name: str) -> str:
    """A column of metrics.csv as people read it."""
    return _SPOKEN.get(name) or " ".join(word[:1].upper() + word[1:] for word in name.split("_"))


def with_unit(name: str, value: float) -> str:
    """A value of a metric as people read it: millimetres to the micrometre, others to four decimals."""
    return f"{value:.3f} mm" if UNITS.get(name, "").startswith("mm") else f"{value:.4f}"


def _classes(num_classes: int | None) -> int:
    if num_classes is None:
        raise UserError("val.metrics: a classification metric needs a data set that names its classes")
    return num_classes


def _probabilities(name: str, output: torch.Tensor) -> torch.Tensor:
    """Of the classes, (B, K), from their logits; UserError where netG answers with several classes a sample."""
    if output.ndim != 2:
        raise UserError(f"val.metrics: {name} is of logits (B, K), not of {list(output.shape)}; leave it out")
    return output.softmax(dim=1)


def _recall(counts: torch.Tensor) -> torch.Tensor:
    return counts.diagonal() / counts.sum(dim=1).clamp_min(1)


def _element_mean(error: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Metric:
    def of_batch(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, int]:
        if output.shape != target.shape:
            raise UserError(f"val.metrics: the output is {list(output.shape)}, the target {list(target.shape)}")
        return error(output, target).sum(dtype=torch.float64), output.numel()

    return Metric([(), ()], of_batch, torch.div)


def _of_poses(name: str, shape: tuple[int, ...] = ()) -> Metric:
    """The mean over the samples of one of POSE_METRICS, root-relative to joint 0."""

    def of_samples(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        check_joints(output, target)
        if name == "joint_error" and output.shape[1:2] != shape:
            raise UserError(f"val.metrics: {name} is one of {shape[0]} joints, not of {output.shape[1]}")
        return POSE_METRICS[name](root_relative(output), root_relative(target))

    return sample_mean(of_samples, shape)
