"""One file that holds a model and everything that inference needs: best_model.pth and final_model.pth."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.model_plain import ModelPlain
from utils.utils_device import device_name
from utils.utils_metrics import MetricValue
from utils.utils_option import to_dict


def pack_model(
    model: ModelPlain, *, current_iter: int, epoch: int, metrics: Mapping[str, MetricValue], class_names: Sequence[str],
    raw_input: torch.Tensor, transforms: Sequence[Mapping[str, Any]], synthetic: str | None, fingerprint: str | None,
    machine: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The content of a self-contained file: tensors and plain containers only.

    metrics: those of the test that these weights passed. raw_input: any (C, H, W). transforms: what an input needs
    after uint8 to [0, 1]. synthetic: what stood in for missing data, in words. fingerprint: of the data of the test.
    machine: what decides the order of float operations, and the code.
    """
    options = to_dict(model.opt)
    return {
        "task": model.opt.task,
        "iter": current_iter,
        "epoch": epoch,
        "model_state_dict": model.tested_net.state_dict(),
        "is_ema": model.netE is not None,
        "metrics": dict(metrics),
        "best_metric": model.opt.val.best_metric,
        "class_names": list(class_names),
        "netG": options["netG"],
        "input": {
            "shape": list(raw_input.shape),
            "dtype": str(raw_input.dtype).removeprefix("torch."),
            "transforms": [dict(transform) for transform in transforms],
        },
        "options": options,
        "synthetic": synthetic,
        "fingerprint": fingerprint,
        "device": device_name(model.dist.device),
        "machine": dict(machine),
    }


def train_record(model: ModelPlain, result: Mapping[str, MetricValue], train_loss: float | None) -> dict[str, Any]:
    """What tools expect in a best model beside the weights: both losses, every single metric, and the optimizer.

    The optimizer's state belongs to netG and is there if `train.best_model_optimizer` asks for it.
    """
    record: dict[str, Any] = {name: value for name, value in result.items() if isinstance(value, float)}
    record |= {"train_loss": train_loss, "test_loss": record.pop("loss")}
    if model.opt.train.best_model_optimizer:
        record["optimizer_state_dict"] = model.optimizer_state()
        record["scheduler_state_dict"] = {"none": "the learning rate is a function of the iteration"}
    return record
