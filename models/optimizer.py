"""OPTIMIZERS, built from the option file with no weight decay on norms and biases, and their state from a file."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn

from models.optimizer_muon import Muon
from models.optimizer_torch import SGD, Adam, AdamW, Groups
from utils.utils_error import UserError
from utils.utils_option import TrainOptions
from utils.utils_table import Table

logger = logging.getLogger("longhaul")


def adam(groups: Groups, train: TrainOptions) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, ICLR 2015); weight decay is L2."""
    return Adam(groups, lr=train.G_optimizer_lr, betas=train.G_optimizer_betas, fused=True)


def adamw(groups: Groups, train: TrainOptions) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""
    return AdamW(groups, lr=train.G_optimizer_lr, betas=train.G_optimizer_betas, fused=True)


def sgd(groups: Groups, train: TrainOptions) -> torch.optim.Optimizer:
    """SGD with (Nesterov) momentum."""
    momentum = train.G_optimizer_momentum
    nesterov = train.G_optimizer_nesterov and momentum > 0
    return SGD(groups, lr=train.G_optimizer_lr, momentum=momentum, nesterov=nesterov, fused=True)


def muon(groups: Groups, train: TrainOptions) -> torch.optim.Optimizer:
    """Muon (Jordan et al., 2024) for kernels and matrices but the first and the last, AdamW for everything else."""
    optimizer = Muon(
        groups, train.G_optimizer_lr, train.G_optimizer_betas, train.G_optimizer_momentum, train.G_optimizer_nesterov
    )
    if not any(group["is_orthogonal"] for group in optimizer.param_groups):
        logger.warning(
            "train.G_optimizer_type: muon finds no matrix and no kernel of a 2-D or 3-D convolution between the first "
            "and the last of netG: AdamW moves everything, as with adamw."
        )
    return optimizer


OPTIMIZERS = Table("optimizer", {"adam": adam, "adamw": adamw, "muon": muon, "sgd": sgd})

# What tells the state of one kind of optimizer from that of another, if the option file has changed it.
_MOMENT = {Adam: "exp_avg", AdamW: "exp_avg", Muon: "exp_avg", SGD: "momentum_buffer"}

_HYPER_PARAMETERS = ("betas", "momentum", "nesterov", "weight_decay")


def define_optimizer(net: nn.Module, train: TrainOptions) -> torch.optim.Optimizer:
    """The optimizer of every trainable parameter of `net`.

    Without weight decay there is one group in the order of the network, as KAIR has it; with it, scalars and vectors
    (norms and biases) form a second group that does not decay. Each group carries its `param_names`.
    """
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    if not named:
        raise UserError("netG: no parameter is trained; it has none, or all are frozen")
    if unknown := [name for name, parameter in named if not parameter.is_floating_point()]:
        raise UserError(f"netG: {unknown[0]!r} is {net.get_parameter(unknown[0]).dtype}; only real numbers are trained")
    if sparse := [name for name, module in net.named_modules() if getattr(module, "sparse", False)]:
        raise UserError(f"netG: {sparse[0]!r} has sparse gradients, which no optimizer here takes; use sparse=False")
    decay = train.G_optimizer_wd
    if not decay:
        groups: Groups = [{"params": named, "weight_decay": 0.0}]
    else:
        groups = [
            {"params": [(name, p) for name, p in named if p.ndim > 1], "weight_decay": decay},
            {"params": [(name, p) for name, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return OPTIMIZERS[train.G_optimizer_type]([group for group in groups if group["params"]], train)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], net: nn.Module) -> bool:
    """Restore the saved moments by parameter name; the option file keeps its hyper-parameters, differences are logged.

    Returns whether nothing starts afresh. What another type of optimizer has saved is taken where it means the same.

    Files without names (KAIR's) list the parameters in the order of the network, or of this optimizer if it has no
    names either. A moment is laid out like its parameter, whatever the strides in the file: fused kernels walk both in
    memory order. The state of an optimizer that is none of ours is restored as it was saved.
    """
    is_ours, restored = type(optimizer) in _MOMENT, 0
    own = type(optimizer).__name__
    before = saved.get("type", own)  # KAIR's files do not say
    if before != own and not (is_ours and before in {each.__name__ for each in _MOMENT}):
        logger.warning("optimizerG: what %s has saved means nothing to %s, which starts afresh.", before, own)
        return False
    trained = _trained(optimizer, net)
    for name, index in _saved_names(saved, list(trained)).items():
        moments = saved["state"].get(index)
        if name not in trained or moments is None:
            continue
        parameter, group = trained[name]
        if is_ours:
            moment = _moment(optimizer, group)
            # SGD's momentum is a sum, Muon's a mean.
            if moment not in moments or (moment == "momentum_buffer" and before != own):
                continue
            state = {key: _like(key, value, parameter) for key, value in moments.items()}
            if any(torch.is_tensor(each) and each.ndim and each.shape != parameter.shape for each in state.values()):
                logger.warning("optimizerG: the state of %s has another shape and starts afresh.", name)
                continue
        else:
            state = {key: _as_saved(key, value, parameter, group) for key, value in moments.items()}
        optimizer.state[parameter] = state
        restored += 1
    if not is_ours:
        _restore_groups(optimizer, saved)
    num_known = sum(len(group["params"]) for group in saved["param_groups"])
    # A parameter that has had no gradient yet has no state either.
    is_whole = restored == len(saved["state"]) and num_known >= len(trained)
    if saved["state"] and not is_whole:
        logger.warning("optimizerG: the state of %d of %d parameters was restored.", restored, len(trained))
    _log_differences(optimizer, saved)
    return is_whole and (restored > 0 or before == own)


def _trained(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[str, tuple[nn.Parameter, dict[str, Any]]]:
    """Parameter and group of what the optimizer moves, by name, in the order of a file without names."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    # A network may have frozen some of them for now, and what was built frozen is not the optimizer's.
    trained = {name: (each, groups[each]) for name, each in net.named_parameters() if each in groups}
    if any("param_names" in group for group in optimizer.param_groups):
        return trained
    places = {parameter: place for place, parameter in enumerate(groups)}  # a user's, in an order of its own
    return dict(sorted(trained.items(), key=lambda item: places[item[1][0]]))


def _moment(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> str:
    return "momentum_buffer" if group.get("is_orthogonal") else _MOMENT[type(optimizer)]


def _saved_names(saved: Mapping[str, Any], in_order: list[str]) -> dict[str, int]:
    names: dict[str, int] = {}
    for group in saved["param_groups"]:
        given = group.get("param_names") or in_order[len(names) : len(names) + len(group["params"])]
        names.update(zip(given, group["params"], strict=False))
    return names


def _restore_groups(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Restore what an optimizer of another kind may keep in its groups, such as its number of steps.

    Some put it there in their first step, so that a new optimizer has less than the file.
    """
    decided = {"params", "param_names", "lr", *_HYPER_PARAMETERS}
    for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        if group.keys() <= old.keys():
            kept = {key: value for key, value in old.items() if key not in decided}
            group.update({key: _as_saved(key, value, group["params"][0], group) for key, value in kept.items()})


def _like(key: str, value: Any, parameter: torch.Tensor) -> Any:
    if key == "step":  # fused kernels want it as a tensor beside the parameter; old files have a plain number
        return torch.as_tensor(value, dtype=torch.float32).to(parameter.device)
    if not torch.is_tensor(value) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()


def _as_saved(key: str, value: Any, parameter: torch.Tensor, group: Mapping[str, Any]) -> Any:
    """On the parameter's device, but for a number of steps that torch's optimizers keep on the CPU."""
    if isinstance(value, list):
        return [_as_saved(key, each, parameter, group) for each in value]
    stays = key == "step" and not (group.get("fused") or group.get("capturable"))
    return value.to(parameter.device) if torch.is_tensor(value) and not stays else value


def _log_differences(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    old = max(saved["param_groups"], key=lambda group: group.get("weight_decay", 0))
    new = max(optimizer.param_groups, key=lambda group: group.get("weight_decay", 0))
    for key in _HYPER_PARAMETERS:
        if key in old and key in new and _plain(old[key]) != _plain(new[key]):
            logger.info("optimizerG: %s %s -> %s (the option file decides)", key, old[key], new[key])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
