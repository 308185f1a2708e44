"""What a test has said of each sample, and from it the samples that are worth a picture."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from utils.utils_image import is_picture
from views.view_base import Sample, View


class RawSamples(Protocol):
    """A data set: index -> {"input": (C, H, W), ...}, with "name": str if it names its samples."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def why_no_samples(view: View, dataset: RawSamples) -> str | None:
    """Why no samples of this data can be drawn, and what to do instead; None if they can."""
    raw = torch.as_tensor(dataset[0]["input"])
    if not is_picture(raw):
        return (
            f"the inputs have the shape {tuple(raw.shape)}, and only pictures can be drawn, (C, H, W) with 1 or 3 "
            "channels; main_test.py verify and main_test.py report show this task by its numbers"
        )
    if not view.has_samples:
        return "this task has no view of its samples; add one to VIEWS (views/select_view.py)"
    return None


class TestOutputs:
    """Outputs and targets of the samples that this rank has tested: `evaluate(..., observe=outputs.add)`."""

    __test__ = False  # not a pytest class

    def __init__(self) -> None:
        self._index: list[int] = []
        self._outputs: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

    def add(self, batch: Mapping[str, Any], output: torch.Tensor, target: torch.Tensor) -> None:
        """Keep a batch; the device is not waited for."""
        self._index += batch["index"].tolist()
        self._outputs.append(output)
        self._targets.append(target)

    def choose(self, view: View, dataset: RawSamples, num_samples: int, wrong: bool) -> dict[str, list[Sample]]:
        """The most telling samples, row by row of a picture."""
        if not self._index:
            return {}
        outputs, targets = torch.cat(self._outputs).cpu(), torch.cat(self._targets).cpu()
        chosen = view.choose(outputs, targets, num_samples, wrong)
        return {row: [self._sample(i, dataset, outputs, targets) for i in numbers] for row, numbers in chosen.items()}

    def _sample(self, number: int, dataset: RawSamples, outputs: torch.Tensor, targets: torch.Tensor) -> Sample:
        index = self._index[number]
        raw = dataset[index]
        camera = getattr(dataset, "camera", lambda _: None)(index)
        name = str(raw.get("name", index))  # training does without
        return Sample(name, torch.as_tensor(raw["input"]), targets[number], outputs[number], camera)
