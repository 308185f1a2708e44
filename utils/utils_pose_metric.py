"""SampleMean: a pose metric as torchmetrics wants it. Imported only when a test runs."""

import torch
from torchmetrics import Metric

from utils.utils_error import UserError
from utils.utils_pose import POSE_METRICS, check_joints, root_relative


class SampleMean(Metric):
    """Mean over the samples of one of POSE_METRICS, root-relative to joint 0; the ranks' sums are added.

    shape: that of a sample's value, which a rank without samples could not know.
    """

    full_state_update = False
    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, name: str, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._name, self._of_each_sample = name, POSE_METRICS[name]
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add joints (B, J, 3) in mm."""
        check_joints(output, target)
        values = self._of_each_sample(root_relative(output), root_relative(target))
        if values.shape[1:] != self.total.shape:
            raise UserError(f"val.metrics: {self._name} is one of {len(self.total)} joints, not of {output.shape[1]}")
        self.total += values.sum(dim=0)
        self.count += len(output)

    def compute(self) -> torch.Tensor:
        """The mean; NaN without any sample."""
        return self.total / self.count
