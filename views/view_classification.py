"""Images with one class each: confusion matrix, precision and recall, calibration, and faces beside their bars."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from views.view_base import Result, Sample, View

_CORNERS = ((2, 2), (0, 2), (4, 2), (2, 0), (2, 4))  # of the image in its padded self


class ClassificationView(View):
    """Logits (B, K) of images."""

    metrics = ("accuracy", "balanced_accuracy", "macro_f1", "confusion_matrix", "calibration_error", "confidence")

    def inputs(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Both mirror images, each in place and shifted by two pixels to each side."""
        height, width = images.shape[-2:]
        mirrored = (torch.nn.functional.pad(each, (2, 2, 2, 2), "replicate") for each in (images, images.flip(-1)))
        return [each[..., y : y + height, x : x + width] for each in mirrored for y, x in _CORNERS]

    def average(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of the mean probability."""
        return torch.stack([each.softmax(dim=1) for each in outputs]).mean(dim=0).clamp_min(1e-12).log()

    def rows(self, result: Result) -> list[dict[str, Any]]:
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
            for i, label in enumerate(self.class_names)
        ]

    def doubts(self, result: Result) -> list[str]:
        predicted = torch.tensor(result["confusion_matrix"]).sum(dim=0)
        found, uniform = result["confidence"], 1 / len(self.class_names)
        assert isinstance(found, float)
        doubts = []
        if int((predicted > 0).sum()) == 1 and predicted.sum() > 1:
            only = self.class_names[int(predicted.argmax())]
            doubts.append(f"every sample is taken for {only}: was it trained, and are its inputs normalised as then?")
        if found < uniform + 0.05:
            doubts.append(
                f"the predictions are near uniform (mean confidence {found:.3f}, {uniform:.3f} is no opinion at all): "
                "was it trained?"
            )
        return doubts

    def write_pictures(self, result: Result, title: str, stem: Path) -> list[Path]:
        """The confusion matrix, as a picture and as a CSV whose rows are the true classes."""
        from utils.utils_visualise import confusion_figure

        matrix = result["confusion_matrix"]
        assert isinstance(matrix, list)
        counts = [row for row in matrix if isinstance(row, list)]
        picture, table = (stem.with_name(f"{stem.name}_confusion.{suffix}") for suffix in ("png", "csv"))
        confusion_figure(counts, self.class_names, title).savefig(picture)
        lines = [["true \\ predicted", *self.class_names]]
        lines += [
            [label, *(f"{count:.0f}" for count in row)] for label, row in zip(self.class_names, counts, strict=True)
        ]
        table.write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")
        return [picture, table]

    def choose(
        self, outputs: torch.Tensor, targets: torch.Tensor, num_samples: int, wrong: bool
    ) -> dict[str, list[int]]:
        """For each true class, the most certain right ones, or the most certain wrong ones."""
        confidence, predicted = outputs.softmax(dim=1).max(dim=1)
        order = confidence.argsort(descending=True, stable=True)
        fits = (predicted != targets) == wrong
        return {
            label: [int(i) for i in order[(fits & (targets == class_id))[order]][:num_samples]]
            for class_id, label in enumerate(self.class_names)
        }

    def write_samples(self, chosen: Mapping[str, Sequence[Sample]], wrong: bool, folder: Path) -> list[Path]:
        """One picture of each sample in `<folder>/<class>/`, and one of all of them."""
        from utils.utils_visualise import Classified, classified_figure

        kind, written = "wrong" if wrong else "right", []
        rows = [
            [Classified(each.name, each.image, int(each.target), each.output.softmax(dim=0).tolist()) for each in row]
            for row in chosen.values()
        ]
        for label, row in zip(chosen, rows, strict=True):
            (folder / label).mkdir(parents=True, exist_ok=True)
            for number, cell in enumerate(row, 1):
                written.append(folder / label / f"{kind}_{number}_{_file_name(cell.name)}.png")
                classified_figure([[cell]], [label], self.class_names, f"true: {label}").savefig(written[-1])
        title = f"The most certain {kind} predictions of each class; * marks the true one"
        written.append(folder / f"{kind}.png")
        classified_figure(rows, list(chosen), self.class_names, title).savefig(written[-1])
        return written

    def says(self, output: torch.Tensor) -> dict[str, float | str]:
        """The likeliest class, its probability, and that of every class."""
        probabilities = dict(zip(self.class_names, output.softmax(dim=0).tolist(), strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return {"class": label, "probability": probabilities[label], **probabilities}

    def headline(self, output: torch.Tensor) -> str:
        """As in "happy 0.823"."""
        said = self.says(output)
        return f"{said['class']} {said['probability']:.3f}"


def _file_name(name: str) -> str:
    """What tells a sample from the others of its file or folder, without what a file's name may not hold."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", Path(name.rpartition(":")[2]).stem)
