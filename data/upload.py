"""From the host to the device without waiting for it."""

from typing import Any

import numpy.typing as npt
import torch


def upload(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array as a tensor on `device`; on the CPU it shares the array's memory.

    A copy to a GPU from ordinary memory may wait for all that is queued there. Pinned buffers come from torch's cache,
    which hands one out again only when its copy has ended.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
