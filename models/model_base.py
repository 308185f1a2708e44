"""What any model does: device and precision, wrapping networks for several ranks, loading files into networks."""

import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from models.buffers import fill_placeholders
from utils.utils_device import chosen_amp
from utils.utils_dist import Dist
from utils.utils_error import UserError, listing
from utils.utils_option import Options
from utils.utils_signal import hold_stop_signals_while_compiling
from utils.utils_state_file import load_state

logger = logging.getLogger("longhaul")

StateDict = Mapping[str, torch.Tensor]

_MAX_SHAPES = 64
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ModelBase:
    """Holds the options, this rank's place and the device; knows how networks are moved there and wrapped."""

    def __init__(self, opt: Options, dist: Dist, seed: int) -> None:
        self.opt = opt
        self.dist = dist
        self.seed = seed
        self.device = dist.device
        self._is_bf16 = chosen_amp(opt.train.amp, self.device) == "bf16"

    def to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to this rank's device, in the memory format of the options."""
        net = net.to(self.device)
        if self.opt.train.channels_last:
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.ndim == 4:  # net.to(memory_format=...) refuses what has five
                    tensor.data = tensor.data.to(memory_format=torch.channels_last)
        return net

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of a training step."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._is_bf16 else contextlib.nullcontext()

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network as training calls it: in DDP where there are several ranks, compiled if asked.

        The bare network stays what is saved, averaged and tested.
        """
        if self.dist.world_size > 1:
            if self.device.type == "cpu" and any(isinstance(module, nn.SyncBatchNorm) for module in net.modules()):
                raise UserError(
                    f"netG ({self.opt.netG.net_type}): torch's SyncBatchNorm works on GPUs alone; use BatchNorm, or "
                    "one rank"
                )
            ids = [self.device.index] if self.device.type == "cuda" else None
            net = DistributedDataParallel(
                net, device_ids=ids, gradient_as_bucket_view=True, forward_sync_buffers=has_own_buffers(net)
            )
        if self.opt.train.compile:
            if self.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
                raise UserError(
                    "train.compile: true needs a C++ compiler, and none is installed; install g++ or use false"
                )
            net = compiled(net)
        return net

    def without_sync(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Where backward passes leave their gradients on this rank, for a later pass to sum over the ranks."""
        ddp = getattr(wrapped, "_orig_mod", wrapped)  # torch.compile's wrapper hides it
        return ddp.no_sync() if isinstance(ddp, DistributedDataParallel) else contextlib.nullcontext()


def compiled(net: nn.Module) -> nn.Module:
    """The network compiled by torch, for each shape of its inputs on its own.

    By default torch compiles the first shape of a launch for itself and all others together, with other bits: a resume
    whose first shape is another would not be exact. Beyond the limit torch warns and does not compile.
    """
    hold_stop_signals_while_compiling()
    return torch.compile(net, dynamic=False, recompile_limit=_MAX_SHAPES)  # type: ignore[call-overload]


def has_own_buffers(net: nn.Module) -> bool:
    """Whether a network has buffers besides those of torch's batch norm, and nobody knows what they are for.

    An output in training may depend on them, so that all ranks must have the same ones, and a forward pass may put new
    tensors in their place. Batch norm only writes its statistics in training, into tensors that stay: those of rank 0,
    which are saved and tested, have the same bits whether or not the other ranks get them in each forward pass, at a
    fifth of a small network's iteration.
    """
    return any(
        True for module in net.modules() if type(module) not in _BATCH_NORMS for _ in module.buffers(recurse=False)
    )


def load_network(
    net: nn.Module, path: str | Path, strict: bool, prefer_ema: bool = False, advice: str = "", content: Any = None
) -> bool:  # fmt: skip
    """Load a network's file by name and shape; UserError when strict loading leaves anything over, or nothing fits.

    Returns whether the file and the network have the very same tensors.

    advice: what else the error of strict loading says. content: of the file, where it has been read already.

    Accepts flat state dicts, KAIR's `params` / `params_ema` wrappers, our self-contained models, and names that start
    with `module.`; of several state dicts in one file, the one that fits best (with prefer_ema, `params_ema` first).
    """
    candidates = _state_dicts(load_state(path) if content is None else content, prefer_ema)
    if not candidates:
        raise UserError(f"{path}: holds no state dict (a mapping of names to tensors)")
    own = net.state_dict()
    state = max(candidates, key=lambda each: len(fitting_tensors(each, own)))  # the first of equals
    fill_placeholders(net, state)
    wanted = net.state_dict()
    fitting = fitting_tensors(state, wanted)
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    mismatched = [name for name in wanted if name in state and name not in fitting]
    report = _report(Path(path).name, missing, unexpected, mismatched, state, wanted)
    if not fitting or (strict and report):
        remedy = "was it saved by another net_type, or with other netG options?"
        raise UserError(f"{report or Path(path).name + ' is empty'}: {remedy}{advice if strict else ''}")
    if report:
        logger.warning("%s; %d of %d tensors were loaded.", report, len(fitting), len(wanted))
    net.load_state_dict(fitting, strict=False)
    return not report


def _state_dicts(content: Any, prefer_ema: bool) -> list[StateDict]:
    if not isinstance(content, Mapping):
        return []
    order = ("params_ema", "params") if prefer_ema else ("params", "params_ema")
    inner = [content[key] for key in (*order, "model_state_dict") if isinstance(content.get(key), Mapping)]
    flat = [each for each in (*inner, content) if any(torch.is_tensor(value) for value in each.values())]
    bare = [{str(name).removeprefix("module."): value for name, value in each.items()} for each in flat]
    return [*flat, *bare]  # a network may have a layer of its own that is called module


def fitting_tensors(state: StateDict, wanted: StateDict) -> dict[str, torch.Tensor]:
    """What of `state` a network can load whose state dict is `wanted`."""
    return {name: value for name, value in state.items() if name in wanted and _fits(name, value, wanted[name])}


def _fits(name: str, value: Any, wanted: Any) -> bool:
    if name.rpartition(".")[2] == "_extra_state":  # whatever the module's get_extra_state gives
        return True
    return torch.is_tensor(value) and value.shape == wanted.shape


def _report(
    name: str, missing: list[str], unexpected: list[str], mismatched: list[str], state: StateDict, wanted: StateDict
) -> str:
    said = []
    if missing:
        said.append(f"has no {listing(missing)}")
    if unexpected:
        said.append(f"netG has no use for {listing(unexpected)}")
    if mismatched:
        first = mismatched[0]
        given = list(state[first].shape) if torch.is_tensor(state[first]) else "no tensor"
        shapes = f"{given} in the file, {list(wanted[first].shape)} in netG"
        said.append(f"{listing(mismatched)} has another shape ({shapes})")
    return f"{name} {', and '.join(said)}" if said else ""
