"""ModelDistill: a classifier that also learns from larger, trained ones."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.nn.functional import kl_div, log_softmax, softmax

from models.buffers import KeptBuffers
from models.model_base import compiled, has_own_buffers, load_network
from models.model_plain import ModelPlain
from models.select_network import define_G
from utils.utils_error import UserError
from utils.utils_file import project_path, sha256_of
from utils.utils_option import NetOptions
from utils.utils_state_file import load_state

logger = logging.getLogger("longhaul")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network in evaluation mode on this rank's device; class_names: None if its file does not say."""

    path: Path
    net: nn.Module
    class_names: tuple[str, ...] | None


class ModelDistill(ModelPlain):
    """Knowledge distillation (Hinton et al., 2015) from the self-contained model, or models, in path.pretrained_netT.

    The loss is (1 - w) * G_lossfn + w * T^2 * KL(teacher || netG) of softmax(logits / T), with
    w = train.distill_weight and T = train.distill_temperature; the teacher's softmax is the mean of several teachers'.
    They see the very inputs that netG sees, mixed and erased ones too (Beyer et al., CVPR 2022). Only training needs
    their files.
    """

    def train_loss(self, output: torch.Tensor) -> torch.Tensor:
        weight, temperature = self.opt.train.distill_weight, self.opt.train.distill_temperature
        taught = self._teacher_probabilities(output.shape)
        divergence = kl_div(log_softmax(output / temperature, dim=1), taught, reduction="batchmean")
        return (1 - weight) * super().train_loss(output) + weight * temperature**2 * divergence

    @torch.no_grad()
    def _teacher_probabilities(self, shape: torch.Size) -> torch.Tensor:
        """The mean of what the teachers think of the batch at the temperature, float32, of this shape."""
        probabilities = []
        for teacher in self.teachers:
            # What a teacher would learn here is in no file. Batch norm, which most have, does not.
            kept = KeptBuffers(teacher.net) if has_own_buffers(teacher.net) else contextlib.nullcontext()
            with self.autocast(), kept:
                logits = self.netG_forward(teacher.net).float()
            if logits.shape != shape:
                raise UserError(
                    f"path.pretrained_netT: {teacher.path} answers {tuple(logits.shape)} where netG answers "
                    f"{tuple(shape)}; a teacher must know the same classes"
                )
            probabilities.append(softmax(logits / self.opt.train.distill_temperature, dim=1))
        return torch.stack(probabilities).mean(dim=0)

    def check_classes(self, class_names: Sequence[str]) -> None:
        if not class_names:
            raise UserError("model: distill teaches classes, and the data set names none; use plain")
        for teacher in self.teachers:
            if teacher.class_names not in (None, tuple(class_names)):
                raise UserError(
                    f"path.pretrained_netT: {teacher.path} knows the classes {list(teacher.class_names)}, and the data "
                    f"has {list(class_names)}; a teacher must know the same ones in the same order"
                )

    def record(self) -> dict[str, Any]:
        return {"teacher": " ".join(sha256_of(teacher.path)[:16] for teacher in self.teachers)}

    @functools.cached_property  # only training needs them
    def teachers(self) -> list[Teacher]:
        """From the files in path.pretrained_netT; UserError if one cannot teach this run."""
        named = self.opt.path.pretrained_netT
        if not named:
            raise UserError("path.pretrained_netT: missing; model distill learns from the best_model.pth named there")
        return [self._teacher(project_path(each)) for each in ([named] if isinstance(named, str) else named)]

    def _teacher(self, path: Path) -> Teacher:
        if not path.is_file():
            raise UserError(
                f"path.pretrained_netT: {path} is missing; train the teacher first, or name another best_model.pth"
            )
        content = load_state(path)
        if not isinstance(content, Mapping) or not content.keys() >= {"model_state_dict", "netG", "input"}:
            raise UserError(f"path.pretrained_netT: {path} is no self-contained model; give a best_model.pth")
        self._check_inputs(path, content["input"].get("transforms"))
        if synthetic := content.get("synthetic"):
            logger.warning("path.pretrained_netT: %s learned from generated samples (%s).", path, synthetic)
        net = self.to_device(define_G(NetOptions(**content["netG"])))
        load_network(net, path, strict=True, content=content)
        net.eval().requires_grad_(False)
        known = content.get("class_names")
        return Teacher(path, compiled(net) if self.opt.train.compile else net, None if known is None else tuple(known))

    def _check_inputs(self, path: Path, wanted: list[dict[str, Any]] | None) -> None:
        if "test" not in self.opt.datasets:
            return
        given = [each.model_dump() for each in self.opt.datasets["test"].transforms]
        if wanted != given:
            raise UserError(
                f"path.pretrained_netT: {path} was trained on inputs after {wanted}, and datasets.test has {given}; "
                "a teacher must see what netG sees"
            )
