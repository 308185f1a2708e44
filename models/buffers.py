"""A network's buffers before a pass that leaves no trace, and what of a network no file or no optimizer holds."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from torch.nn.modules.batchnorm import _NormBase

from utils.utils_error import listing

logger = logging.getLogger("longhaul")


class KeptBuffers:
    """A network's buffers, and its state beside tensors (get_extra_state), before forward passes.

    They may write to buffers, replace them or add some. As a context manager it puts all back at its end.
    """

    def __init__(self, net: nn.Module) -> None:
        self._kept = [(module, dict(module._buffers.items())) for module in net.modules()]
        self._values = [(buffer, buffer.clone()) for buffer in net.buffers() if not is_expanded(buffer)]
        having = (each for each in net.modules() if type(each).get_extra_state is not nn.Module.get_extra_state)
        self._extra = [(module, copy.deepcopy(module.get_extra_state())) for module in having]

    def __enter__(self) -> "KeptBuffers":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the same tensors back, with the same values."""
        for module, buffers in self._kept:
            for name in set(module._buffers.keys()) - buffers.keys():
                del module._buffers[name]
            for name, buffer in buffers.items():
                if module._buffers[name] is not buffer:
                    module._buffers[name] = buffer
        for buffer, value in self._values:
            if buffer.shape != value.shape:  # resized in place, as quantisation's observers do at their first batch
                buffer.resize_(value.shape)
            buffer.copy_(value)
        for module, state in self._extra:
            module.set_extra_state(copy.deepcopy(state))


def fill_placeholders(net: nn.Module, state: Mapping[str, Any]) -> None:
    """Put what `state` holds into persistent buffers that are None or empty until a forward pass makes them.

    Norms without running statistics have None for good.
    """
    device = next((parameter.device for parameter in net.parameters()), None)
    for prefix, module in net.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            value = state.get(f"{prefix}.{name}".removeprefix("."))
            if isinstance(module, _NormBase) or name in module._non_persistent_buffers_set:
                continue
            if isinstance(value, torch.Tensor) and (buffer is None or not buffer.numel()):
                module._buffers[name] = value.to(device, copy=True)


class SavedNames:
    """What a resume can load into a network as it was built, by name; its buffers may be None until a forward pass."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._first = self._names()
        self._placeholders = {
            f"{prefix}.{name}".removeprefix(".")
            for prefix, module in net.named_modules(remove_duplicate=False)
            for name, buffer in module._buffers.items()
            if buffer is None
        }

    def warn_if_changed(self) -> None:
        """Say once which have come or gone in training."""
        if changed := sorted((self._names() ^ self._first) - self._placeholders):
            logger.warning(
                "netG: %s came or went in training. The sets that are saved now hold another network than the one that "
                "is built, and no resume could load them; what comes later must be there from the beginning.",
                listing(changed),
            )  # fmt: skip
            self._first = self._names()

    def _names(self) -> set[str]:
        return set(self._net.state_dict())


class UnsavedBuffers:
    """The loss's buffers, and those of a network that are not persistent, as they are before training."""

    def __init__(self, net: nn.Module, lossfn: nn.Module) -> None:
        self._nets = net, lossfn
        self._first = {name: buffer.clone() for name, buffer in self._buffers().items()}

    def warn_if_changed(self) -> None:
        """Say once which of them training has changed: a cache may, a running mean makes a resume inexact."""
        now = self._buffers() if self._first else {}
        changed = [name for name, buffer in now.items() if not torch.equal(buffer, self._first.get(name, buffer))]
        if changed:
            logger.warning(
                "%s: changed in training and in no file, so a resume starts afresh there and may not be exact; "
                "what training changes belongs into a persistent buffer of netG.", listing(changed),
            )  # fmt: skip
            self._first.clear()

    def _buffers(self) -> dict[str, torch.Tensor]:
        net, lossfn = self._nets
        saved = net.state_dict().keys()
        unsaved = {f"netG.{name}": buffer for name, buffer in net.named_buffers() if name not in saved}
        return {**unsaved, **{f"lossfn.{name}": buffer for name, buffer in lossfn.named_buffers()}}


class FrozenParameters:
    """The parameters that are frozen when the optimizer is built, which does not know them; nor does DDP."""

    def __init__(self, net: nn.Module) -> None:
        self._frozen = {name: each for name, each in net.named_parameters() if not each.requires_grad}

    def warn_if_thawed(self) -> None:
        """Say once which of them have got gradients since, in vain."""
        if thawed := [name for name, each in self._frozen.items() if each.requires_grad]:
            logger.warning(
                "netG: frozen when the optimizer was built, and not trained, whatever their gradients are now: %s; "
                "build them trainable, and let forward freeze them.", listing(thawed),
            )  # fmt: skip
            self._frozen.clear()


def is_expanded(tensor: torch.Tensor) -> bool:
    """Whether elements share memory, as those of expand() do: nothing can be written to them."""
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
