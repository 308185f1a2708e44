"""A small ResNet for 48x48 grey faces."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn as nn

from models.network_blocks import MeanPool, ResidualBlock, WeightedPool, conv_norm_relu


class FerResNet(nn.Module):
    """Logits (B, num_classes) from faces (B, in_channels, 48, 48); any size from 16 pixels on works.

    stem_stride: 2 halves the image at once, which makes a step much cheaper. widths: channels of each stage;
    each stage after the first halves the image. depths: blocks in each stage. dropout: probability before the
    classifier. squeeze: reduction of the squeeze-and-excitation in each block; 0: none. pool: "mean" over the pixels of
    the last stage, or "weighted", a learned sum, for images of size x size pixels alone. The default has 326k
    parameters (1.3 MB).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 7,
        stem_stride: int = 2,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (2, 1, 1),
        dropout: float = 0.0,
        squeeze: int = 0,
        pool: Literal["mean", "weighted"] = "mean",
        size: int = 48,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"netG.widths: {list(widths)} must be one or more positive numbers")
        if len(widths) != len(depths) or min(depths) < 1:
            raise ValueError(f"netG.depths: {list(depths)} must be positive, one for each of the widths {list(widths)}")
        if stem_stride < 1:
            raise ValueError(f"netG.stem_stride: {stem_stride} must be positive")
        if squeeze < 0:
            raise ValueError(f"netG.squeeze: {squeeze} must be 0 (none) or a positive reduction, such as 4")
        if size < 1:
            raise ValueError(f"netG.size: {size} pixels must be positive")
        self.stem = conv_norm_relu(in_channels, widths[0], stem_stride)
        blocks, channels = [], widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                blocks.append(ResidualBlock(channels, width, 2 if stage and number == 0 else 1, squeeze))
                channels = width
        self.body = nn.Sequential(*blocks)
        left = math.ceil(size / (stem_stride * 2 ** (len(widths) - 1)))
        self.pool = WeightedPool(channels, left, left) if pool == "weighted" else MeanPool()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.pool(self.body(self.stem(x)))))
