"""Evaluator: pose metrics over one pass through a data set, for anybody's loop."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from utils.utils_error import UserError
from utils.utils_option_mistakes import nearest
from utils.utils_pose import POSE_METRICS, check_joints, root_relative

Joints = torch.Tensor | NDArray[np.floating]


class Evaluator:
    """Means over up to `dataset_length` samples of pose metrics, which are those of the trainer's own tests.

    keypoint_list: the joints that count, all by default; the root is subtracted before the others are left out.
    metrics: any of POSE_METRICS. save_predictions: keep what was predicted, see `predictions`. One process; every
    mistake is a UserError, which is a ValueError, and changes nothing.
    """

    def __init__(
        self,
        dataset_length: int,
        keypoint_list: Sequence[int] | None = None,
        root_joint_idx: int = 0,
        metrics: Sequence[str] = ("mpjpe", "pa_mpjpe"),
        save_predictions: bool = False,
    ) -> None:
        if dataset_length < 1:
            raise UserError(f"Evaluator: dataset_length is {dataset_length}; it must be at least 1")
        joints = None if keypoint_list is None else [int(each) for each in keypoint_list]
        if joints is not None and (not joints or len(set(joints)) < len(joints)):
            raise UserError(f"Evaluator: keypoint_list {joints} must name one or more joints, each once")
        for name in metrics:
            if name not in POSE_METRICS:
                near = nearest(name, POSE_METRICS) or ";"
                raise UserError(f"Evaluator: {name!r} is not a pose metric{near} known: {', '.join(POSE_METRICS)}")
        self.dataset_length = dataset_length
        self.keypoint_list = joints
        self.root_joint_idx = root_joint_idx
        self.metrics = tuple(metrics)
        self.save_predictions = save_predictions
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._counter = 0
        self._num_joints: int | None = None
        self._values: dict[str, list[torch.Tensor]] = {name: [] for name in self.metrics}
        self._predictions: list[torch.Tensor] = []

    @property
    def counter(self) -> int:
        """Number of samples so far. Assigning 0 resets; nothing else can be assigned."""
        return self._counter

    @counter.setter
    def counter(self, value: int) -> None:
        if value != 0:
            raise UserError(f"Evaluator: counter counts by itself; {value} cannot be assigned, only 0, which resets")
        self.reset()

    @property
    def predictions(self) -> torch.Tensor:
        """All predictions as they were given, every joint of them: (counter, J, 3) on the CPU."""
        if not self.save_predictions:
            raise UserError("Evaluator: no predictions are kept; construct it with save_predictions=True")
        self._check_begun()
        return torch.cat(self._predictions)

    @torch.no_grad()
    def __call__(self, output: Joints, target: Joints) -> None:
        """Add predictions and ground truth (B, J, 3) in mm, tensors or arrays."""
        output = torch.as_tensor(output)
        target = torch.as_tensor(target).to(output.device)
        self._check(output, target)
        relative = [root_relative(each, self.root_joint_idx) for each in (output, target)]
        if self.keypoint_list is not None:
            relative = [each[:, self.keypoint_list] for each in relative]
        for name, values in self._values.items():
            values.append(POSE_METRICS[name](*relative).cpu())
        if self.save_predictions:
            self._predictions.append(output.detach().cpu().clone())
        self._num_joints = output.shape[1]
        self._counter += len(output)

    def get_metrics_dict(self) -> dict[str, float | list[float]]:
        """Every metric, in the order of `metrics`; pck_curve and joint_error are lists."""
        self._check_begun()
        return {name: torch.cat(values).mean(dim=0).tolist() for name, values in self._values.items()}

    def _check(self, output: torch.Tensor, target: torch.Tensor) -> None:
        check_joints(output, target)
        num_samples, num_joints, _ = output.shape
        if self._counter + num_samples > self.dataset_length:
            raise UserError(
                f"Evaluator: {num_samples} samples after {self._counter} are more than dataset_length, "
                f"{self.dataset_length}; call reset() before another pass"
            )
        if self._num_joints not in (None, num_joints):
            raise UserError(f"Evaluator: {num_joints} joints, but the samples before had {self._num_joints}")
        for each in (self.root_joint_idx, *(self.keypoint_list or ())):
            if not 0 <= each < num_joints:
                raise UserError(f"Evaluator: there is no joint {each}; the samples have joints 0 to {num_joints - 1}")
        for what, joints in (("prediction", output), ("ground truth", target)):
            bad = (~joints.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
            if bad:
                raise UserError(f"Evaluator: the {what} of sample {self._counter + bad[0]} is not finite")

    def _check_begun(self) -> None:
        if not self._counter:
            raise UserError("Evaluator: there are no samples yet; call it with predictions and ground truth first")
