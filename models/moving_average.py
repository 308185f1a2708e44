"""The exponential moving average of a network's weights."""

import torch
import torch.nn as nn

from models.model_base import has_own_buffers


class MovingAverage:
    """Moves the tensors of one network towards those of another, in two calls however many there are.

    Batch norm statistics are averaged like the weights: those of the source's latest batches belong to other weights.
    What is no float, such as batch norm's counters, is copied.
    """

    def __init__(self, average: nn.Module, source: nn.Module) -> None:
        self._nets = average, source
        self._must_list_again = has_own_buffers(source)
        self._list()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average = decay * average + (1 - decay) * source."""
        if self._must_list_again:
            self._list()
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)

    def _list(self) -> None:
        pairs = list(zip(*map(_tensors, self._nets), strict=True))
        floats = [pair for pair in pairs if pair[1].is_floating_point()]
        others = [pair for pair in pairs if not pair[1].is_floating_point()]
        self._averages, self._sources = [pair[0] for pair in floats], [pair[1] for pair in floats]
        self._copies, self._originals = [pair[0] for pair in others], [pair[1] for pair in others]


def _tensors(net: nn.Module) -> list[torch.Tensor]:
    return [each.detach() for each in (*net.parameters(), *net.buffers())]
