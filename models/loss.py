"""LOSSES: (output, target) -> scalar, the mean over the batch."""

import torch
import torch.nn as nn

from utils.utils_error import UserError
from utils.utils_table import Table


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Softmax cross entropy of logits (B, K) against class ids (B,) or soft targets (B, K)."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(
                f"train.G_lossfn_args.label_smoothing: {label_smoothing} is not allowed; it must be in [0, 1)"
            )
        super().__init__(label_smoothing=label_smoothing)


class CharbonnierLoss(nn.Module):
    """mean sqrt((output - target)^2 + eps^2), a smooth L1 (Charbonnier et al., ICIP 1994)."""

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((output - target).square() + self.eps**2).mean()


class L1Loss(nn.L1Loss):
    """mean |output - target|."""

    def __init__(self) -> None:
        super().__init__()


class L2Loss(nn.MSELoss):
    """mean (output - target)^2."""

    def __init__(self) -> None:
        super().__init__()


class SmoothL1Loss(nn.SmoothL1Loss):
    """Quadratic below beta, linear above (Girshick, ICCV 2015)."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__(beta=beta)


LOSSES = Table(
    "loss",
    {
        "cross_entropy": CrossEntropyLoss,
        "l1": L1Loss,
        "l2": L2Loss,
        "smooth_l1": SmoothL1Loss,
        "charbonnier": CharbonnierLoss,
    },
)
