"""A small network that finds the joints of a hand in 3D."""

from collections.abc import Sequence

import torch
import torch.nn as nn

from models.network_blocks import ResidualBlock, conv_norm_relu, projection

MM_PER_UNIT = 50.0  # about the spread of a hand's joints, so that the last layer deals in numbers near 1
NUM_APPEARANCE = 32  # features that say what the image looks like at a joint


class HandPoseNet(nn.Module):
    """Joints (B, num_joints, 3) in mm relative to one of them, which is exactly 0, from images (B, 3, size, size).

    Each joint's heatmap is a softmax over the pixels of a feature map; its expectations are where the joint is in the
    image (integral regression, Sun et al., ECCV 2018) and what the image looks like there. How many millimetres that
    means depends on the camera and the crop, so a linear layer says it from all joints and the whole image.

    size: height and width of the input in pixels. widths: channels after the stem and after each stage; each of them
    halves the image. depths: residual blocks in each stage. heat_width: channels of the map under the heatmaps, which
    is twice as fine as the last stage. dropout: probability before the linear layer. root_joint_idx: the joint that the
    others are relative to.
    The output is float32, also under autocast: bf16 would round 100 mm by half a millimetre.
    """

    def __init__(
        self,
        size: int = 128,
        num_joints: int = 21,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (1, 2, 1),
        heat_width: int = 128,
        dropout: float = 0.0,
        root_joint_idx: int = 0,
    ) -> None:
        super().__init__()
        _check(size, num_joints, widths, depths, heat_width, root_joint_idx)
        self.size, self.num_joints, self.root_joint_idx = size, num_joints, root_joint_idx
        self.stem = conv_norm_relu(3, widths[0], 2)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width if n else before, width, stride=1 if n else 2) for n in range(depth)))
            for before, width, depth in zip(widths[:-1], widths[1:], depths, strict=True)
        )
        self.fine = projection(widths[-2], heat_width)
        self.coarse = projection(widths[-1], heat_width)
        self.heatmaps = nn.Conv2d(heat_width, num_joints, 1)
        self.appearance = nn.Conv2d(heat_width, NUM_APPEARANCE, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_joints * (2 + NUM_APPEARANCE) + widths[-1], num_joints * 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"netG.size: {self.size} stands for images (3, {self.size}, {self.size}), not {tuple(x.shape[1:])}"
            )
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        coarse = nn.functional.interpolate(self.coarse(maps[-1]), scale_factor=2.0, mode="bilinear")
        features = torch.relu(self.fine(maps[-2]) + coarse)
        heat, appearance = self.heatmaps(features), self.appearance(features)
        with torch.autocast(x.device.type, enabled=False):
            of_joints = soft_argmax(heat.float(), appearance.float()).flatten(1)
            whole = maps[-1].float().mean(dim=(2, 3))
            joints = self.head(self.dropout(torch.cat([of_joints, whole], dim=1))).unflatten(1, (self.num_joints, 3))
            return MM_PER_UNIT * (joints - joints[:, self.root_joint_idx, None])


def soft_argmax(heat: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Where each joint is expected, and the features there: (B, J, H, W) and (B, C, H, W) -> (B, J, 2 + C).

    The first two are x and y, from -1 at the left and upper edges of the map to 1; a pixel counts at its centre.
    """
    y, x = ((torch.arange(n, device=heat.device, dtype=heat.dtype) * 2 + 1) / n - 1 for n in heat.shape[2:])
    places = torch.stack(torch.meshgrid(x, y, indexing="xy")).expand(heat.shape[0], -1, -1, -1)  # (B, 2, H, W)
    at_pixels = torch.cat([places, features], dim=1).flatten(2)
    return heat.flatten(2).softmax(dim=2) @ at_pixels.mT


def _check(
    size: int, num_joints: int, widths: Sequence[int], depths: Sequence[int], heat_width: int, root_joint_idx: int
) -> None:
    """ValueError for arguments that do not fit each other."""
    if num_joints < 2:
        raise ValueError(f"netG.num_joints: {num_joints} must be at least 2: all are relative to one of them")
    if not 0 <= root_joint_idx < num_joints:
        raise ValueError(f"netG.root_joint_idx: {root_joint_idx} is not one of the joints 0 to {num_joints - 1}")
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"netG.widths: {list(widths)} must be two or more positive numbers")
    if len(depths) != len(widths) - 1 or min(depths) < 1:
        raise ValueError(
            f"netG.depths: {list(depths)} must be positive, one for each of the widths {list(widths)} after the first"
        )
    if heat_width < 1:
        raise ValueError(f"netG.heat_width: {heat_width} must be positive")
    step = 2 ** len(widths)
    if size < 2 * step or size % step:
        raise ValueError(
            f"netG.size: {size} pixels cannot be halved {len(widths)} times, leaving two or more; use a multiple of "
            f"{step} from {2 * step} on"
        )
