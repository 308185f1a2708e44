"""VIEWS: what the subcommands show of a task beside its metrics. A task is one class and one line in the table."""

# ruff: noqa: ARG002  # a view need not use all that it is given

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utils.utils_error import UserError
from utils.utils_metrics import MetricValue

Result = Mapping[str, MetricValue]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample of a test: its name, its raw image, uint8 (C, H, W), its target, and what the network says."""

    name: str
    image: NDArray[np.uint8]
    target: torch.Tensor
    output: torch.Tensor


class View:
    """Any task: its metrics, and nothing else is known of it."""

    metrics: tuple[str, ...] = ()
    """What `verify` measures besides the metrics of the options."""

    def inputs(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The images (B, C, H, W), and what else of them a test-time average sees."""
        return [images]

    def average(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """One output from those of all `inputs`."""
        return outputs[0]

    def rows(self, result: Result, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """A table: a row for each class, or joint."""
        return []

    def doubts(self, result: Result, class_names: Sequence[str]) -> list[str]:
        """What cannot be right in a trained model, in words."""
        return []

    def write_pictures(
        self,
        result: Result,
        class_names: Sequence[str],
        title: str,
        stem: Path,
    ) -> list[Path]:
        """Write files whose names begin with `stem`; returns them."""
        return []

    def write_samples(
        self, samples: Iterable[Sample], class_names: Sequence[str], num_samples: int, wrong: bool, folder: Path
    ) -> list[Path]:
        """Write the most telling samples, each alone and all in one picture; returns the files, the picture last."""
        raise UserError("samples: this task has no view of its samples yet; give its data set class names")


class ClassificationView(View):
    """Logits (B, K) of images: confusion matrix, precision and recall of each class, calibration."""

    metrics = ("accuracy", "balanced_accuracy", "macro_f1", "confusion_matrix", "calibration_error", "confidence")

    def inputs(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Both mirror images, each in place and shifted by two pixels to each side."""
        height, width = images.shape[-2:]
        mirrored = (torch.nn.functional.pad(each, (2, 2, 2, 2), "replicate") for each in (images, images.flip(-1)))
        return [each[..., y : y + height, x : x + width] for each in mirrored for y, x in _CORNERS]

    def average(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of the mean probability."""
        return torch.stack([each.softmax(dim=1) for each in outputs]).mean(dim=0).clamp_min(1e-12).log()

    def rows(self, result: Result, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Precision, recall, F1 and counts; None where a class has no sample, or is never predicted."""
        matrix = torch.tensor(result["confusion_matrix"], dtype=torch.float64)
        right, true, predicted = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
        columns = {"precision": right / predicted, "recall": right / true, "f1": 2 * right / (predicted + true)}
        return [
            {
                "class": label,
                **{name: None if values[i].isnan() else values[i].item() for name, values in columns.items()},
                "samples": int(true[i]),
                "predicted": int(predicted[i]),
            }
            for i, label in enumerate(class_names)
        ]

    def doubts(self, result: Result, class_names: Sequence[str]) -> list[str]:
        predicted = torch.tensor(result["confusion_matrix"]).sum(dim=0)
        found, uniform = result["confidence"], 1 / len(class_names)
        assert isinstance(found, float)
        doubts = []
        if int((predicted > 0).sum()) == 1 and predicted.sum() > 1:
            only = class_names[int(predicted.argmax())]
            doubts.append(f"every sample is taken for {only}: was it trained, and are its inputs normalised as then?")
        if found < uniform + 0.05:
            doubts.append(
                f"the predictions are near uniform (mean confidence {found:.3f}, {uniform:.3f} is no opinion at all): "
                "was it trained?"
            )
        return doubts

    def write_pictures(self, result: Result, class_names: Sequence[str], title: str, stem: Path) -> list[Path]:
        """The confusion matrix, as a picture and as a CSV whose rows are the true classes."""
        from utils.utils_visualise import confusion_figure

        matrix = result["confusion_matrix"]
        assert isinstance(matrix, list)
        counts = [row for row in matrix if isinstance(row, list)]
        picture, table = (stem.with_name(f"{stem.name}_confusion.{suffix}") for suffix in ("png", "csv"))
        confusion_figure(counts, class_names, title).savefig(picture)
        lines = [["true \\ predicted", *class_names]]
        lines += [[label, *(f"{count:.0f}" for count in row)] for label, row in zip(class_names, counts, strict=True)]
        table.write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")
        return [picture, table]

    def write_samples(
        self, samples: Iterable[Sample], class_names: Sequence[str], num_samples: int, wrong: bool, folder: Path
    ) -> list[Path]:
        """For each true class, the most certain right ones, or the most certain wrong ones."""
        from utils.utils_visualise import Classified, classified_figure

        chosen: list[list[Classified]] = [[] for _ in class_names]
        for sample in samples:
            probabilities = sample.output.softmax(dim=0).tolist()
            target = int(sample.target)
            if wrong == (target != int(sample.output.argmax())):
                row = [*chosen[target], Classified(sample.name, sample.image, target, probabilities)]
                chosen[target] = sorted(row, key=lambda each: -max(each.probabilities))[:num_samples]
        kind, written = "wrong" if wrong else "right", []
        for label, row in zip(class_names, chosen, strict=True):
            (folder / label).mkdir(parents=True, exist_ok=True)
            for number, cell in enumerate(row, 1):
                written.append(folder / label / f"{kind}_{number}_{_file_name(cell.name)}.png")
                classified_figure([[cell]], [label], class_names, f"true: {label}").savefig(written[-1])
        title = f"The most certain {kind} predictions of each class; * marks the true one"
        written.append(folder / f"{kind}.png")
        classified_figure(chosen, class_names, class_names, title).savefig(written[-1])
        return written


def _file_name(name: str) -> str:
    """What tells a sample from the others of its file or folder, without what a file's name may not hold."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", Path(name.rpartition(":")[2]).stem)


_CORNERS = ((2, 2), (0, 2), (4, 2), (2, 0), (2, 4))  # of the image in its padded self

VIEWS: dict[str, View] = {"classification": ClassificationView(), "plain": View()}


def view_of(class_names: Sequence[str]) -> View:
    """The view of the task that a data set stands for."""
    return VIEWS["classification" if class_names else "plain"]
