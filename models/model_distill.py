"""ModelDistill: a classifier that also learns from a larger, trained one."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from torch.nn.functional import kl_div, log_softmax, softmax

from models.model_base import load_network
from models.model_plain import ModelPlain
from models.select_network import define_G
from utils.utils_error import UserError
from utils.utils_file import project_path
from utils.utils_option import NetOptions
from utils.utils_state_file import load_state


class ModelDistill(ModelPlain):
    """Knowledge distillation (Hinton et al., 2015) from the self-contained model in path.pretrained_netT.

    The loss is (1 - w) * G_lossfn + w * T^2 * KL(teacher || netG) of softmax(logits / T), with
    w = train.distill_weight and T = train.distill_temperature. The teacher sees the very inputs that netG sees, mixed
    and erased ones too (Beyer et al., CVPR 2022). Only training needs its file.
    """

    def train_loss(self, output: torch.Tensor) -> torch.Tensor:
        train = self.opt.train
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=train.amp == "bf16"):
            taught = self.netG_forward(self.netT).float()
        if taught.shape != output.shape:
            raise UserError(
                f"path.pretrained_netT: {self.opt.path.pretrained_netT} answers {tuple(taught.shape)} where netG "
                f"answers {tuple(output.shape)}; a teacher must know the same classes"
            )
        weight, temperature = train.distill_weight, train.distill_temperature
        divergence = kl_div(
            log_softmax(output / temperature, dim=1), softmax(taught / temperature, dim=1), reduction="batchmean"
        )
        return (1 - weight) * super().train_loss(output) + weight * temperature**2 * divergence

    def record(self) -> dict[str, Any]:
        _ = self.netT  # its errors say what is wrong with the file
        with open(project_path(self._teacher_file), "rb") as file:
            return {"teacher": hashlib.file_digest(file, "sha256").hexdigest()[:16]}

    @functools.cached_property
    def netT(self) -> nn.Module:
        """The teacher, in evaluation mode on this rank's device; UserError if it cannot teach this run."""
        path = project_path(self._teacher_file)
        if not path.is_file():
            raise UserError(
                f"path.pretrained_netT: {path} is missing; train the teacher first, or name another best_model.pth"
            )
        content = load_state(path)
        if not isinstance(content, Mapping) or not content.keys() >= {"model_state_dict", "netG", "input"}:
            raise UserError(f"path.pretrained_netT: {path} is no self-contained model; give a best_model.pth")
        self._check_inputs(content["input"].get("transforms"))
        net = self.to_device(define_G(NetOptions(**content["netG"])))
        load_network(net, path, strict=True)
        net.eval().requires_grad_(False)
        return torch.compile(net) if self.opt.train.compile else net  # type: ignore[return-value]

    @property
    def _teacher_file(self) -> str:
        path = self.opt.path.pretrained_netT
        if not path:
            raise UserError("path.pretrained_netT: missing; model distill learns from the best_model.pth named there")
        return path

    def _check_inputs(self, wanted: list[dict[str, Any]] | None) -> None:
        if "test" not in self.opt.datasets:
            return
        given = [each.model_dump() for each in self.opt.datasets["test"].transforms]
        if wanted != given:
            raise UserError(
                f"path.pretrained_netT: {self.opt.path.pretrained_netT} was trained on inputs after {wanted}, and "
                f"datasets.test has {given}; a teacher must see what netG sees"
            )
