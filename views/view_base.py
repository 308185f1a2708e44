"""View: what main_test.py and the trainer show of a task; the base class knows nothing but the numbers."""

# ruff: noqa: ARG002  # a view need not use all that it is given

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from utils.utils_error import UserError
from utils.utils_image import as_uint8
from utils.utils_metrics import MetricValue

if TYPE_CHECKING:
    from utils.utils_visualise import Figure

Result = Mapping[str, MetricValue]
Image = NDArray[np.uint8]
"""As OpenCV has it: (H, W, 3), BGR."""

PLACE_COLUMNS = ("file", "frame", "seconds", "number", "box_left", "box_top", "box_width", "box_height")
"""The columns of a table that say where something was found; `View.columns` stand beside them."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample of a test: its name, its raw input (C, H, W), its target, and what the network says.

    camera: intrinsics (3, 3) and the root joint (3,) in mm, which turn joints into pixels of the image, if known.
    """

    name: str
    input: torch.Tensor
    target: torch.Tensor
    output: torch.Tensor
    camera: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def image(self) -> NDArray[np.uint8]:
        """The input as it is drawn."""
        return as_uint8(self.input).numpy()


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle of an image in pixels; it may reach beyond the border."""

    left: int
    top: int
    width: int
    height: int


class Finding(NamedTuple):
    """A box of an image, and the network's output for what is in it, on the CPU."""

    box: Box
    output: torch.Tensor


def whole(image: Image) -> Box:
    """The box that is the image."""
    return Box(0, 0, image.shape[1], image.shape[0])


@dataclasses.dataclass(frozen=True)
class Card:
    """A sample on a page: a picture, uint8 (C, H, W), a heading and a caption, and bars from 0 to 1, one marked."""

    picture: NDArray[np.uint8]
    heading: str
    caption: str
    bars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    marked: str | None = None


class View:
    """Any task: its metrics, and nothing else is known of it."""

    metrics: tuple[str, ...] = ()
    """What `verify` measures besides the metrics of the options."""
    has_samples = False
    """Whether it can choose and draw samples, where the inputs are pictures."""
    sample_titles: ClassVar[Mapping[str, str]] = {
        "right": "The most certain right predictions",
        "wrong": "The most certain wrong predictions",
    }

    def __init__(self, class_names: Sequence[str] = (), joint_names: Sequence[str] = ()) -> None:
        self.class_names, self.joint_names = tuple(class_names), tuple(joint_names)

    output_meaning = ""
    """What the network's outputs are, in words, for an exported model."""

    # verify

    def inputs(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The images (B, C, H, W), and what else of them a test-time average sees."""
        return [images]

    def average(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """One output from those of all `inputs`."""
        return outputs[0]

    def rows(self, result: Result) -> list[dict[str, Any]]:
        """A table: a row for each class, or joint, with the metrics that have a value for each."""
        kind, names = ("class", self.class_names) if self.class_names else ("joint", self.joint_names)
        columns = {
            key: values for key, values in result.items()
            if isinstance(values, list) and len(values) == len(names) > 0 and isinstance(values[0], float)
        }  # fmt: skip
        if not columns:
            return []
        return [{kind: name, **{key: columns[key][i] for key in columns}} for i, name in enumerate(names)]

    def doubts(self, result: Result) -> list[str]:
        """What cannot be right in a trained model, in words."""
        loss = result.get("loss", 0.0)
        assert isinstance(loss, float)
        return [] if math.isfinite(loss) else [f"the loss is {loss}: take another file of the run"]

    def figures(self, result: Result, title: str) -> dict[str, "Figure"]:
        """Pictures of the result of a test, by a short name."""
        return {}

    def tables(self, result: Result) -> dict[str, list[list[str]]]:
        """The same as rows of cells, the first one the heading."""
        return {}

    # samples

    def choose(
        self, outputs: torch.Tensor, targets: torch.Tensor, num_samples: int, wrong: bool
    ) -> dict[str, list[int]]:
        """The indices of the most telling of N tested samples, row by row of a picture; `wrong` ones, or right ones."""
        raise NotImplementedError

    def samples_figure(self, chosen: Mapping[str, Sequence[Sample]], title: str) -> "Figure":
        """The chosen samples, a row each, with what the network says of them."""
        raise NotImplementedError

    # report

    def card(self, sample: Sample) -> Card:
        """A sample with what the network says of it."""
        raise NotImplementedError

    def agreement(self, outputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """(B,): by how much outputs (B, ...) still say what `output` (1, ...) says; larger is more alike."""
        return -(outputs - output).abs().flatten(1).mean(dim=1)

    # infer

    subject = ""
    """What `find` looks for, as in "face"; empty: nothing, and every image is shown whole."""

    def find(self, image: Image) -> list[Box]:
        """Where an image has something to show to the network."""
        return [whole(image)]

    def crop(self, image: Image, box: Box, input_shape: tuple[int, int, int] | None) -> NDArray[np.uint8]:
        """The network's raw input, uint8 (C, H, W), grey or RGB: what is in the box, at the size of the training data.

        input_shape: (C, H, W) of the raw training images, if it is known.
        """
        if input_shape is None:
            raise UserError(
                "infer: neither the file nor its data set says the size of the network's inputs; give best_model.pth "
                "or final_model.pth, which hold it"
            )
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise UserError(
                f"infer: the network's inputs have the shape {tuple(input_shape)}, and an image can only become one of "
                "(C, H, W) with 1 or 3 channels"
            )
        from views.drawing import fitted

        return fitted(image, box, input_shape)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of `says`, as far as they are known before a network has said anything."""
        return ()

    def says(self, output: torch.Tensor, box: Box) -> dict[str, float | str]:
        """What the network says of the input from this box, as columns of a table."""
        return {f"output_{number}": value for number, value in enumerate(output.flatten().tolist())}

    def headline(self, output: torch.Tensor) -> str:
        """The same in a few words."""
        values = [f"{value:.4g}" for value in output.flatten()[:9].tolist()]
        return " ".join(values if len(values) < 9 else [*values[:8], "..."])

    def annotate(self, image: Image, found: Sequence[Finding]) -> Image:
        """A picture of the image with what the network says of it; never drawn into the image itself."""
        from views.drawing import draw_headlines, enlarged

        picture, findings = enlarged(image, found)
        draw_headlines(picture, [(each.box, self.headline(each.output)) for each in findings])
        return picture
