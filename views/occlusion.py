"""Where attention lies: how much less a network says what it says when a part of the image is hidden."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

_STEPS, _SPAN = 12, 3  # of a side; the hidden square spans so many steps


def occlusion_map(
    predict: Callable[[torch.Tensor], torch.Tensor],
    agreement: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image: torch.Tensor,
) -> tuple[NDArray[np.float32], torch.Tensor]:
    """A map (H, W) of the agreement that is lost where a grey square hides the image, and the output that loses most.

    image: raw (C, H, W), of any type. predict: such images (B, C, H, W) -> outputs. agreement: (outputs, output of the
    whole image) -> (B,), larger is more alike. Zeiler and Fergus, ECCV 2014.
    """
    height, width = image.shape[1:]
    edges_y, edges_x = (np.linspace(0, side, _STEPS + 1).round().astype(int) for side in (height, width))
    squares = [
        (slice(edges_y[y], edges_y[y + _SPAN]), slice(edges_x[x], edges_x[x + _SPAN]))
        for y in range(_STEPS - _SPAN + 1)
        for x in range(_STEPS - _SPAN + 1)
    ]
    hidden = image.repeat(len(squares), 1, 1, 1)
    mean = image.float().mean(dim=(1, 2), keepdim=True)
    grey = (mean if image.is_floating_point() else mean.round()).to(image.dtype)
    for each, (rows, columns) in zip(hidden, squares, strict=True):
        each[:, rows, columns] = grey
    output = predict(image[None])
    outputs = predict(hidden)
    losses = (agreement(output, output) - agreement(outputs, output)).cpu().numpy()
    total, count = np.zeros((2, height, width), dtype=np.float32)
    for loss, square in zip(losses, squares, strict=True):
        total[square] += loss
        count[square] += 1
    return (total / np.maximum(count, 1)).astype(np.float32), outputs[int(losses.argmax())]
