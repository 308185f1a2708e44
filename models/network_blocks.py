"""Blocks that several networks are made of."""

import torch
import torch.nn as nn


def conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, batch norm and ReLU; (B, C, H, W) -> (B, C', H/s, W/s)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def projection(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 1x1 convolution and batch norm; (B, C, H, W) -> (B, C', H/s, W/s)."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class SqueezeExcitation(nn.Module):
    """Scale each channel by what the whole image says of it (Hu et al., CVPR 2018); (B, C, H, W) -> the same."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.scale = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale(x.mean(dim=(2, 3)))[:, :, None, None]


class MeanPool(nn.Module):
    """Mean over the pixels; (B, C, H, W) -> (B, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


class WeightedPool(nn.Module):
    """Sum over the pixels with learned weights for each channel, at first the mean; (B, C, H, W) -> (B, C).

    What stands where matters in aligned faces (Chen et al., "MobileFaceNets", CCBR 2018). ValueError for another size.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, height, width), 1 / (height * width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != self.weight.shape:  # it would broadcast
            raise ValueError(
                f"netG.size: with the weighted pool all images have that size; this one left {tuple(x.shape[1:])} "
                f"instead of {tuple(self.weight.shape)} to the pool"
            )
        return (x * self.weight).sum(dim=(2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., CVPR 2016); (B, C, H, W) -> (B, C', H/s, W/s).

    squeeze: reduction of a squeeze-and-excitation at the end of the branch; 0: none.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, squeeze: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm_relu(in_channels, out_channels, stride),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        if squeeze:
            self.body.append(SqueezeExcitation(out_channels, squeeze))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))
