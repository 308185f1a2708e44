"""Images with one class each: confusion matrix, precision and recall, calibration, and faces beside their bars."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from views.view_base import PLACE_COLUMNS, Box, Card, Result, Sample, View

if TYPE_CHECKING:
    from utils.utils_visualise import Figure

_CORNERS = ((2, 2), (0, 2), (4, 2), (2, 0), (2, 4))  # of the image in its padded self


class ClassificationView(View):
    """Logits (B, K) of images."""

    metrics = ("accuracy", "balanced_accuracy", "macro_f1", "confusion_matrix", "calibration_error", "confidence")
    has_samples = True

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
        if not (counts := _counts(result)):
            return []
        matrix = torch.tensor(counts, dtype=torch.float64)
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
        counts = torch.tensor(result["confusion_matrix"])
        predicted, true = counts.sum(dim=0), counts.sum(dim=1)
        found, uniform = result["confidence"], 1 / len(self.class_names)
        assert isinstance(found, float)
        doubts = super().doubts(result)
        if int((predicted > 0).sum()) == 1 < int((true > 0).sum()):
            only = self.class_names[int(predicted.argmax())]
            doubts.append(f"every sample is taken for {only}: was it trained, and are its inputs normalised as then?")
        if found < min(uniform + 0.05, 2 * uniform):  # of a thousand classes one in twenty is an opinion
            doubts.append(
                f"the predictions are near uniform (mean confidence {found:.3f}, {uniform:.3f} is no opinion at all): "
                "was it trained?"
            )
        return doubts

    def figures(self, result: Result, title: str) -> dict[str, "Figure"]:
        """The confusion matrix, if it was measured."""
        from utils.utils_visualise import confusion_figure

        counts = _counts(result)
        return {"confusion": confusion_figure(counts, self.class_names, title)} if counts else {}

    def tables(self, result: Result) -> dict[str, list[list[str]]]:
        """The confusion matrix, if it was measured; its rows are the true classes."""
        counts = _counts(result)
        rows = [
            [label, *(f"{count:.0f}" for count in row)] for label, row in zip(self.class_names, counts, strict=False)
        ]
        return {"confusion": [["true \\ predicted", *self.class_names], *rows]} if counts else {}

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

    def samples_figure(self, chosen: Mapping[str, Sequence[Sample]], title: str) -> "Figure":
        """Each image beside the probabilities of the likeliest classes."""
        from utils.utils_visualise import Classified, classified_figure

        rows = [
            [Classified(each.image, int(each.target), each.output.softmax(dim=0).tolist()) for each in row]
            for row in chosen.values()
        ]
        return classified_figure(rows, list(chosen), self.class_names, f"{title}\n* marks the true class")

    def card(self, sample: Sample) -> Card:
        """The image beside the probabilities of the likeliest classes; the true one is marked."""
        from utils.utils_visualise import likeliest_classes

        found, true_id = sample.output.softmax(dim=0).tolist(), int(sample.target)
        probabilities = {self.class_names[k]: found[k] for k in likeliest_classes(found, true_id)}
        true = self.class_names[true_id]
        return Card(sample.image, self.headline(sample.output), f"true: {true}; {sample.name}", probabilities, true)

    def agreement(self, outputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The log-odds of the class that `output` predicts, which do not saturate as its probability does."""
        predicted = int(output.argmax())
        others = [class_id for class_id in range(outputs.shape[1]) if class_id != predicted]
        return outputs[:, predicted] - outputs[:, others].logsumexp(dim=1)

    @property
    def columns(self) -> tuple[str, ...]:
        first = ("class", "probability")
        taken = (*PLACE_COLUMNS, "box", *first)  # of JSON too
        return (*first, *(f"probability_of_{name}" if name in taken else name for name in self.class_names))

    def says(self, output: torch.Tensor, box: Box) -> dict[str, float | str]:  # noqa: ARG002
        """The likeliest class, its probability, and that of every class."""
        probabilities = output.softmax(dim=0).tolist()
        likeliest = max(range(len(probabilities)), key=probabilities.__getitem__)
        said = (self.class_names[likeliest], probabilities[likeliest], *probabilities)
        return dict(zip(self.columns, said, strict=True))

    def headline(self, output: torch.Tensor) -> str:
        """As in "happy 0.823"."""
        probability, class_id = output.softmax(dim=0).max(dim=0)
        return f"{self.class_names[int(class_id)]} {probability:.3f}"


def _counts(result: Result) -> list[list[float]]:
    matrix = result.get("confusion_matrix", [])
    assert isinstance(matrix, list)
    return [row for row in matrix if isinstance(row, list)]
