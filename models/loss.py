"""LOSSES: (output, target) -> scalar, the mean over the batch.

`joint_weights` is for joints (B, J, D): each joint's mean loss times its weight, over the sum of the weights, so that
only their ratios matter. Without it, all elements count the same, in any shape.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch.nn.functional import cross_entropy

from utils.utils_error import UserError
from utils.utils_table import Table


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Softmax cross entropy of logits (B, K, ...) against class ids (B, ...) or soft targets (B, K, ...).

    class_weights: the factor of each class's losses, in the order of the classes. The mean is over the samples; torch's
    is over their weights, and so depends on how the samples lie in micro-batches and on ranks.
    """

    class_weights: torch.Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"train.G_lossfn_args.label_smoothing: {label_smoothing} is not allowed; it must be in [0, 1)"
            )
        super().__init__(label_smoothing=label_smoothing)
        self.register_buffer("class_weights", _weights("class", class_weights), persistent=False)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.class_weights is None:
            return super().forward(output, target)
        if output.ndim < 2 or output.shape[1] != len(self.class_weights):
            raise UserError(
                f"train.G_lossfn_args.class_weights: {len(self.class_weights)} weights do not fit logits of the shape "
                f"{tuple(output.shape)}; give one for each class"
            )
        weights = self.class_weights.to(output.dtype)
        loss = cross_entropy(
            output, target, weights, None, self.ignore_index, reduction="sum", label_smoothing=self.label_smoothing
        )
        is_soft = target.is_floating_point()
        return loss / (output[:, 0].numel() if is_soft else (target != self.ignore_index).sum())


class CharbonnierLoss(nn.Module):
    """mean sqrt((output - target)^2 + eps^2), a smooth L1 (Charbonnier et al., ICIP 1994)."""

    def __init__(self, eps: float = 1e-3) -> None:
        if not eps > 0:
            raise UserError(f"train.G_lossfn_args.eps: {eps} is not allowed; it must be greater than 0")
        super().__init__()
        self.eps = eps

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _check_shapes("charbonnier", output, target)
        return torch.sqrt((output - target).square() + self.eps**2).mean()


class L1Loss(nn.L1Loss):
    """mean |output - target|."""

    def __init__(self, joint_weights: Sequence[float] | None = None) -> None:
        super().__init__(reduction="mean" if joint_weights is None else "none")
        self.mean = JointMean(joint_weights)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _check_shapes("l1", output, target)
        return self.mean(super().forward(output, target))


class L2Loss(nn.MSELoss):
    """mean (output - target)^2."""

    def __init__(self) -> None:  # torch's own arguments are not for option files
        super().__init__()

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _check_shapes("l2", output, target)
        return super().forward(output, target)


class SmoothL1Loss(nn.SmoothL1Loss):
    """Quadratic below beta, linear above (Girshick, ICCV 2015)."""

    def __init__(self, beta: float = 1.0, joint_weights: Sequence[float] | None = None) -> None:
        super().__init__(beta=beta, reduction="mean" if joint_weights is None else "none")
        self.mean = JointMean(joint_weights)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _check_shapes("smooth_l1", output, target)
        return self.mean(super().forward(output, target))


class MPJPELoss(nn.Module):
    """Mean Euclidean distance of joints (B, J, D) from their truth, in the unit of both."""

    def __init__(self, joint_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.mean = JointMean(joint_weights)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _check_shapes("mpjpe", output, target)
        return self.mean(torch.linalg.vector_norm(output - target, dim=-1))


class JointMean(nn.Module):
    """Mean of losses (B, J, ...) in which each joint has its weight; without weights, the mean of whatever comes."""

    weights: torch.Tensor | None

    def __init__(self, joint_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.register_buffer("weights", _weights("joint", joint_weights), persistent=False)

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        if self.weights is None:
            return losses.mean()
        if losses.ndim < 2 or losses.shape[1] != len(self.weights):
            raise UserError(
                f"train.G_lossfn_args.joint_weights: {len(self.weights)} weights do not fit an output of the shape "
                f"(batch, joints, ...) whose losses are {tuple(losses.shape)}; give one for each joint"
            )
        of_joints = losses.transpose(0, 1).flatten(1).mean(dim=1)
        return (of_joints * self.weights).sum() / self.weights.sum()


def _check_shapes(loss: str, output: torch.Tensor, target: torch.Tensor) -> None:
    if output.shape != target.shape:  # subtraction would broadcast
        raise ValueError(f"{loss} compares {tuple(output.shape)} with {tuple(target.shape)}; both must be the same")


def _weights(what: str, values: Sequence[float] | None) -> torch.Tensor | None:
    """As float32 (N,); UserError if one is no weight, or all are zero."""
    if values is None:
        return None
    weights = torch.tensor(values, dtype=torch.float32)
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.any()):
        raise UserError(
            f"train.G_lossfn_args.{what}_weights: {list(values)} is not allowed; it must hold a finite number >= 0 for "
            f"each {what}, and not only zeros"
        )
    return weights


LOSSES = Table(
    "loss",
    {
        "cross_entropy": CrossEntropyLoss,
        "l1": L1Loss,
        "l2": L2Loss,
        "smooth_l1": SmoothL1Loss,
        "mpjpe": MPJPELoss,
        "charbonnier": CharbonnierLoss,
    },
)
