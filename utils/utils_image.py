"""Small helpers for tensors that are pictures."""

import torch


def is_picture(image: torch.Tensor) -> bool:
    """Whether a tensor is (C, H, W), grey or RGB."""
    return image.ndim == 3 and len(image) in (1, 3)


def as_uint8(image: torch.Tensor) -> torch.Tensor:
    """A raw input as uint8 to look at. Other types are black at 0 and white at 1, or at what lies beyond."""
    if image.dtype == torch.uint8:
        return image
    image = image.float()
    low, high = image.min().clamp(max=0), image.max().clamp(min=1)
    return ((image - low) / (high - low) * 255).round().to(torch.uint8)


def image_grid(images: torch.Tensor) -> torch.Tensor:
    """One picture (C, H', W') in [0, 1] of a batch (B, C, H, W) of any range, stretched to its own extremes."""
    gap, num_columns = 2, min(8, len(images))
    images = images.detach().float().cpu()
    low, high = images.min(), images.max()
    images = (images - low) / (high - low).clamp_min(1e-8)
    num_rows = -(-len(images) // num_columns)
    channels, height, width = images.shape[1:]
    grid = torch.ones(channels, num_rows * (height + gap) - gap, num_columns * (width + gap) - gap)
    for number, image in enumerate(images):
        top, left = number // num_columns * (height + gap), number % num_columns * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid
