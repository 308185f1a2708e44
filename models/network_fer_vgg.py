"""A VGG-style network for 48x48 grey faces, larger and more accurate than fer_resnet."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn as nn

from models.network_blocks import MeanPool, WeightedPool, conv_norm_relu


class FerVGG(nn.Module):
    """Logits (B, num_classes) from faces (B, in_channels, 48, 48).

    Stages of two 3x3 convolutions with batch norm, each followed by 2x2 max pooling, then two hidden layers, after
    Khaireddin and Chen, "Facial Emotion Recognition: State of the Art Performance on FER2013" (2021).
    widths: channels of the stages. hidden: units of the hidden layers; 0: none, which learns much faster, and the
    classifier sees what `pool` makes of the pixels, their "mean" or, "weighted", a learned sum. dropout: probability
    after each hidden layer, or before the classifier. size: height and width of the input in pixels; the mean takes any
    from 2 ** len(widths) on.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 7,
        widths: Sequence[int] = (64, 128, 256, 512),
        hidden: int = 1024,
        dropout: float = 0.5,
        size: int = 48,
        pool: Literal["mean", "weighted"] = "mean",
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"netG.widths: {list(widths)} must be one or more positive numbers")
        if hidden < 0:
            raise ValueError(f"netG.hidden: {hidden} must be positive, or 0 for no hidden layers")
        if hidden and pool != "mean":
            raise ValueError(f"netG.pool: {pool!r} needs netG.hidden 0; hidden layers see every pixel themselves")
        left = size // 2 ** len(widths)
        if left < 1:
            raise ValueError(f"netG.size: {size} pixels cannot be halved {len(widths)} times; use fewer widths")
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            for _ in range(2):
                layers += conv_norm_relu(channels, width)
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.pool: nn.Module = nn.Flatten()
        if not hidden:
            self.pool = WeightedPool(channels, left, left) if pool == "weighted" else MeanPool()
            self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
            return
        self.head = nn.Sequential(
            nn.Linear(channels * left * left, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.body(x)))
