"""Errors of 3D poses in millimetres: pure functions of a batch, in float64, the same on every device."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from utils.utils_error import UserError

PCK_THRESHOLDS_MM = torch.from_numpy(np.linspace(0, 50, 100))
"""Those of FreiHAND's eval.py, which asks for 0 to 0.05 m in 100 steps, both ends included."""

_NO_EXTENT = 1e-9  # of 1 mm plus the distance from the origin; float64 rounds at 1e-16


def root_relative(joints_mm: torch.Tensor, root_joint_idx: int = 0) -> torch.Tensor:
    """Joints (B, J, 3) as seen from the root joint, in float64."""
    joints_mm = _float64(joints_mm)
    return joints_mm - joints_mm[:, root_joint_idx : root_joint_idx + 1]


def joint_errors_mm(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Distance of every joint from its truth: (B, J, 3) and (B, J, 3) -> (B, J)."""
    check_joints(output, target)
    return torch.linalg.vector_norm(_float64(output) - _float64(target), dim=2)


def mpjpe_mm(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean per joint position error of every sample, as the poses lie: (B,)."""
    return joint_errors_mm(output, target).mean(dim=1)


def pa_mpjpe_mm(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean per joint position error of every sample after `procrustes_align`: (B,)."""
    return mpjpe_mm(procrustes_align(output, target), target)


def avg_metric_mm(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(MPJPE + PA-MPJPE) / 2 of every sample: (B,)."""
    return (mpjpe_mm(output, target) + pa_mpjpe_mm(output, target)) / 2


def pck_curve(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Fraction of each sample's joints whose error is at most each of PCK_THRESHOLDS_MM: (B, 100)."""
    errors = joint_errors_mm(output, target)
    return (errors[:, :, None] <= PCK_THRESHOLDS_MM.to(errors.device)).double().mean(dim=1)


def pck_auc(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Area under each sample's PCK curve from 0 to 50 mm, by the trapezoidal rule, over its range: (B,) in [0, 1].

    The mean over the samples is the AUC of FreiHAND's eval.py (Zimmermann et al., ICCV 2019). That averages one area
    a joint, each over the samples; where every sample has every joint, these means may change places.
    """
    curve = pck_curve(output, target)
    thresholds = PCK_THRESHOLDS_MM.to(curve.device)
    return torch.trapezoid(curve, thresholds) / (thresholds[-1] - thresholds[0])


def pa_pck_auc(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`pck_auc` after `procrustes_align`: (B,) in [0, 1]."""
    return pck_auc(procrustes_align(output, target), target)


def procrustes_align(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Predictions (B, J, 3) under the similarity transform that brings them nearest to the truth, in float64.

    Rotation, scale and translation minimise the sum of squares (Umeyama, PAMI 1991). The rotation is proper: a
    mirrored hand stays mirrored, which FreiHAND's eval.py would forgive. Where many transforms are equally good, as
    for collinear joints, it is one of them. A prediction without extent becomes the centroid of the truth. A
    prediction that is not finite gives NaN, in its own sample alone.
    """
    check_joints(output, target)
    output, target = _float64(output), _float64(target)
    centroid = target.mean(dim=1, keepdim=True)
    shape = output - output.mean(dim=1, keepdim=True)
    extent = torch.linalg.vector_norm(shape, dim=(1, 2), keepdim=True)
    # what rounding leaves of equal joints would be blown up to the size of a hand
    has_extent = extent > _NO_EXTENT * (1 + torch.linalg.vector_norm(output, dim=(1, 2), keepdim=True))
    shape = shape / torch.where(has_extent, extent, 1.0)
    covariance = shape.mT @ (target - centroid)
    is_finite = covariance.isfinite().all(dim=2, keepdim=True).all(dim=1, keepdim=True)
    left, singular, right = torch.linalg.svd(torch.where(is_finite, covariance, 0.0))
    signs = torch.ones_like(singular)
    signs[:, 2] = torch.linalg.det(left @ right).sign()  # the axis that matters least pays for a proper rotation
    rotation = (left * signs[:, None, :]) @ right
    scale = (singular * signs).sum(dim=1)[:, None, None] * has_extent
    return scale * (shape @ rotation) + centroid


PoseMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

POSE_METRICS: Mapping[str, PoseMetric] = {
    "mpjpe": mpjpe_mm,
    "pa_mpjpe": pa_mpjpe_mm,
    "avg_metric": avg_metric_mm,
    "pck_auc": pck_auc,
    "pa_pck_auc": pa_pck_auc,
    "pck_curve": pck_curve,
    "joint_error": joint_errors_mm,
}
"""(output, target), both root-relative -> a value or a row for each sample; a metric is their mean over the samples."""


def check_joints(output: torch.Tensor, target: torch.Tensor) -> None:
    """UserError unless both are joints (B, J, 3) of the same shape, with a joint at least."""
    shapes = tuple(output.shape), tuple(target.shape)
    if shapes[0] != shapes[1] or output.ndim != 3 or shapes[0][1] < 1 or shapes[0][2] != 3:
        raise UserError(
            f"pose metrics compare joints (B, J, 3) in mm with joints of the same shape, but the prediction is "
            f"{shapes[0]} and the ground truth {shapes[1]}"
        )


def _float64(joints: torch.Tensor) -> torch.Tensor:
    return joints.cpu().double() if joints.device.type == "mps" else joints.double()  # Apple's GPUs have no float64
