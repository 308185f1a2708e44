"""A look at network, loss and metrics before hours of training lead to the place where they do not fit."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn

from models.buffers import KeptBuffers, fill_placeholders
from models.evaluate import build_metrics
from models.model_base import fitting_tensors
from models.model_plain import Batch, ModelPlain, copied
from utils.utils_error import UserError, listing


def probe_training(model: ModelPlain, batch: Batch) -> None:
    """Send a batch through network and loss; UserError if they do not fit it. Leaves no trace."""
    net, loss, shape = model.opt.netG.net_type, model.opt.train.G_lossfn_type, tuple(batch["input"].shape[1:])
    misfit = f"netG ({net}) and {loss} do not fit the data, whose inputs are {shape}"
    with _explained(misfit, "; check the arguments of netG and the loss"), KeptBuffers(model.netG) as buffers:
        parameters = dict(model.netG.named_parameters())
        model.feed_data(copied(batch))
        with model.autocast():
            output: object = model.netG_forward(model.netG)
        _check_same_parameters(model.netG, parameters, f"netG ({net})")
        if not isinstance(output, torch.Tensor):
            raise UserError(
                f"netG ({net}) answers with a {type(output).__name__}, and model: {model.opt.model} takes one tensor; "
                "return that, or override netG_forward in a model of your own"
            )
        _check_loss(loss, model.lossfn(output.float(), model.target))
        state = model.netG.state_dict()
        buffers.restore()
        _check_form(model.netG, state, f"netG ({net})")


def probe_test(model: ModelPlain, batch: Batch, metrics: Sequence[str], num_classes: int | None = None) -> None:
    """Send a few samples of a test through network, loss and metrics; UserError if they do not fit. Leaves no trace."""
    net, loss = model.opt.netG.net_type, model.opt.train.G_lossfn_type
    with _explained(f"its samples do not fit netG ({net}), {loss} or val.metrics"):
        with KeptBuffers(model.tested_net):
            output = model.test(batch)
        model.test_loss(output)
        for name, metric in build_metrics(metrics, num_classes, model.device).items():
            metric.update(output, model.target)
            value: object = metric.compute()
            if not isinstance(value, torch.Tensor):
                raise UserError(f"val.metrics: {name} computes a {type(value).__name__}, and must compute a tensor")
            if value.ndim > 2 or not value.numel():
                raise UserError(
                    f"val.metrics: {name} computes values of the shape {tuple(value.shape)}, and can be a number, a "
                    "list or a matrix"
                )
            if value.ndim and name == model.opt.val.best_metric:
                raise UserError(f"val.best_metric: {name} has many values, and the best model needs a single number")


def _check_same_parameters(net: nn.Module, before: Mapping[str, nn.Parameter], name: str) -> None:
    if replaced := [each for each, parameter in net.named_parameters() if before.get(each, parameter) is not parameter]:
        raise UserError(
            f"{name}: its forward pass puts another parameter in the place of {listing(replaced)}, which nobody trains "
            "or averages; write to the one that is there, under torch.no_grad()"
        )


def _check_loss(name: str, loss: object) -> None:
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        found = (
            f"of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"that is a {type(loss).__name__}"
        )
        raise UserError(
            f"train.G_lossfn_type: {name} gives a loss {found}; it must give a tensor without dimensions, the mean "
            "over the batch"
        )
    if not loss.requires_grad:
        raise UserError(
            f"train.G_lossfn_type: {name} gives a loss that depends on no parameter of netG that is trained; is there "
            "a detach(), item() or no_grad() on the way?"
        )


def _check_form(net: nn.Module, state: Mapping[str, Any], name: str) -> None:
    """UserError if a network as it was built cannot take the state that it has after a forward pass."""
    fill_placeholders(net, state)
    fitting = fitting_tensors(state, net.state_dict())
    if strangers := [each for each in state if each not in fitting]:
        raise UserError(
            f"{name}: its forward pass makes {listing(strangers)}, or gives it another shape, and a resume could not "
            "load it; register such a buffer in __init__ as None or empty, or with persistent=False if no file needs it"
        )


@contextlib.contextmanager
def _explained(misfit: str, remedy: str = "") -> Iterator[None]:
    """A UserError for what torch raises where shapes do not fit."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(f"{misfit}: {str(error).splitlines()[0]}{remedy}") from error
