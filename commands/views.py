"""VIEWS: what the subcommands show of a task beside its metrics. A task is one class and one line in the table."""

# ruff: noqa: ARG002  # a view need not use all that it is given

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils.utils_metrics import MetricValue

Result = Mapping[str, MetricValue]


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


_CORNERS = ((2, 2), (0, 2), (4, 2), (2, 0), (2, 4))  # of the image in its padded self

VIEWS: dict[str, View] = {"classification": ClassificationView(), "plain": View()}


def view_of(class_names: Sequence[str]) -> View:
    """The view of the task that a data set stands for."""
    return VIEWS["classification" if class_names else "plain"]
