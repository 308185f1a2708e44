"""The exponential moving average of a network's weights."""

import itertools
import operator
from collections.abc import Mapping, Sequence

import torch
import torch.nn as nn

from models.buffers import fill_placeholders, is_expanded
from models.model_base import has_own_buffers

Pair = tuple[torch.Tensor, torch.Tensor]

_ALIGNMENT = 64
"""Elements: every tensor begins a cache line, whatever its type."""


class MovingAverage:
    """Moves the tensors of one network towards those of another, in two calls however many there are.

    Batch norm statistics are averaged like the weights: those of the source's latest batches belong to other weights.
    What is no float, such as batch norm's counters, is copied, and so is a float8, or a buffer that holds infinity at
    the first update, such as an attention mask: its average would be NaN. The first update moves both networks' tensors
    into one buffer a type, because most of those of a small network are so small that a call costs more than they do.
    """

    def __init__(self, average: nn.Module, source: nn.Module) -> None:
        self._nets = average, source
        self._must_list_again = False
        self._parameters: list[nn.Parameter] = []
        self._places: list[int] = []
        self._infinite: set[str] = set()

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average = decay * average + (1 - decay) * source."""
        if not self._places:
            self._begin()
        # A forward pass may give a parameter other memory (weight.data = ...), which would be averaged no more.
        elif self._must_list_again or self._find_places() != self._places:
            self._must_list_again = True
            self._list(self._pairs())
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)

    def _begin(self) -> None:
        self._must_list_again = has_own_buffers(self._nets[1])
        pairs = self._pairs()
        self._parameters = list(self._nets[1].parameters())
        buffers = {name for name, _ in self._nets[1].named_buffers()}
        own = {name: pairs[name][1] for name in pairs.keys() & buffers if not _is_float8(pairs[name][1])}
        self._infinite = {name for name, value in own.items() if not value.isfinite().all()}
        may_move = not self._must_list_again and not self._infinite
        if may_move and all(map(_fill_storages_of_their_own, zip(*pairs.values(), strict=True))):
            pairs = {str(number): pair for number, pair in enumerate(_move_together([*pairs.values()]))}
        self._list(pairs)
        self._places = self._find_places()

    def _find_places(self) -> list[int]:
        return list(map(torch.Tensor.data_ptr, self._parameters))

    def _pairs(self) -> dict[str, Pair]:
        """By name; without caches of forward passes, which one network may have and the other not, or not yet."""
        average, source = map(_tensors, self._nets)
        if any(name not in average or average[name].shape != value.shape for name, value in source.items()):
            fill_placeholders(self._nets[0], self._nets[1].state_dict())
            average = _tensors(self._nets[0])
        return {
            name: (average[name], value)
            for name, value in source.items()
            if name in average and average[name].shape == value.shape and not is_expanded(average[name])
        }

    def _list(self, pairs: Mapping[str, Pair]) -> None:
        exact = {name for name, (_, value) in pairs.items() if not value.is_floating_point() or _is_float8(value)}
        copied = self._infinite | exact
        floats = [(mean.detach(), value.detach()) for name, (mean, value) in pairs.items() if name not in copied]
        others = [(mean.detach(), value.detach()) for name, (mean, value) in pairs.items() if name in copied]
        self._averages, self._sources = [mean for mean, _ in floats], [value for _, value in floats]
        self._copies, self._originals = [mean for mean, _ in others], [value for _, value in others]


def _tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _is_float8(tensor: torch.Tensor) -> bool:
    """Whether torch stores it, and computes nothing with it."""
    return tensor.is_floating_point() and tensor.itemsize == 1


def _fill_storages_of_their_own(tensors: Sequence[torch.Tensor]) -> bool:
    storages = [tensor.untyped_storage() for tensor in tensors]
    are_full = all(map(operator.eq, (each.nbytes() for each in storages), (each.nbytes for each in tensors)))
    # Of `storage` and one tensor. A view that a network keeps in an attribute would stay behind with the old memory.
    are_seen_once = all(torch._C._storage_Use_Count(storage._cdata) == 2 for storage in storages)
    return are_full and are_seen_once and len({storage.data_ptr() for storage in storages}) == len(tensors)


def _move_together(pairs: Sequence[Pair]) -> list[Pair]:
    """Move the memory of all pairs of one type into two buffers of one layout, and return the buffers.

    Every tensor stays the object that it is, with its shape; the first of a pair gets the strides of the second. What
    they compute has the same bits: every tensor begins at a multiple of 64 bytes before and after.
    """
    buffers = []
    for kind in dict.fromkeys((value.dtype, value.device) for _, value in pairs):
        chosen = [pair for pair in pairs if (pair[1].dtype, pair[1].device) == kind]
        sizes = [-(-value.numel() // _ALIGNMENT) * _ALIGNMENT for _, value in chosen]
        *starts, size = itertools.accumulate(sizes, initial=0)
        together = chosen[0][0].new_zeros(size), chosen[0][1].new_zeros(size)
        for pair, start in zip(chosen, starts, strict=True):
            for tensor, buffer in zip(pair, together, strict=True):
                tensor.data = buffer.as_strided(tensor.shape, pair[1].stride(), start).copy_(tensor.detach())
        buffers.append(together)
    return buffers
