"""Batched tensor transforms (batch, positions, seed) -> batch, on the device that holds the batch.

A batch is {"input": (B, C, H, W) float32 in [0, 1], "target": ..., "name": a sequence of str}. What a sample gets
depends on (seed, its position in the stream) alone: equal for any number of ranks, workers and relaunches. A transform
that draws from a global generator instead is equal for any relaunch with as many ranks.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from data.upload import upload
from utils.utils_error import UserError
from utils.utils_seed import seed_global_generators, seed_of, uniform
from utils.utils_table import Table

Batch = dict[str, Any]
Positions = npt.NDArray[np.int64]


class Transform(Protocol):
    """One step of a pipeline. `is_random` ones may not stand in a test data set."""

    is_random: bool

    def __call__(self, batch: Batch, positions: Positions, seed: int) -> Batch: ...


class RandomAffine:
    """Flip, rotation, scale and shift as one bilinear resampling; the border is repeated outwards.

    It changes images alone; targets that have places in them, (B, J, D) or (B, C, H, W), are a UserError.
    flip: probability of a horizontal flip. rotation: up to +- so many degrees. scale: up to x or / (1 + scale).
    shift: up to +- this fraction of the width and height.
    """

    is_random = True
    _name = "random_affine"

    def __init__(self, flip: float = 0.5, rotation: float = 0.0, scale: float = 0.0, shift: float = 0.0) -> None:
        _check_range(f"{self._name}.flip", flip, 0, 1)
        _check_range(f"{self._name}.rotation", rotation, 0, 180)
        _check_range(f"{self._name}.scale", scale, 0, 1)
        _check_range(f"{self._name}.shift", shift, 0, 1)
        self.flip, self.rotation, self.scale, self.shift = flip, math.radians(rotation), math.log1p(scale), shift

    def __call__(self, batch: Batch, positions: Positions, seed: int) -> Batch:
        if batch["target"].ndim > 2:
            raise UserError(
                f"random_affine: targets {tuple(batch['target'].shape)} would stay where they are while the images "
                "move; use random_affine_joints for joints, or remove it"
            )
        return {**batch, "input": self._moved(batch, positions, seed)}

    def _moved(self, batch: Batch, positions: Positions, seed: int) -> torch.Tensor:
        images = _images(self._name, batch)
        mirror, angle, zoom, shift_x, shift_y = self._draw(positions, seed)
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        # The grid spans [-1, 1], twice the fraction of the image.
        shift_x, shift_y = 2 * shift_x, 2 * shift_y
        aspect = images.shape[-1] / images.shape[-2]
        matrix = np.stack([cos * mirror, -sin / aspect, shift_x, sin * aspect * mirror, cos, shift_y])
        grid = _affine_grid(_to(matrix, images.device), images.shape[-2], images.shape[-1])
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _draw(self, positions: Positions, seed: int) -> tuple[npt.NDArray[Any], ...]:
        """(B,) each: 1 or -1 for a flip, radians, zoom, and the shifts as fractions, from the result to the source."""
        draws = uniform(seed, "affine", positions, 5)
        angle, zoom, shift_x, shift_y = (2 * draws[:, 1:] - 1).T
        mirror = np.where(draws[:, 0] < self.flip, -1, 1)
        return mirror, angle * self.rotation, np.exp(-zoom * self.scale), self.shift * shift_x, self.shift * shift_y


class RandomAffineJoints(RandomAffine):
    """random_affine for targets that are joints (B, J, 3), relative to one of them: they turn with the image.

    Rotation is exact for a pinhole camera: about any point of the image, it is the camera turned about its optical
    axis, with another principal point. Scale and shift are another camera, so joints in mm stay as they are. A flip
    makes a left hand of a right one.
    """

    _name = "random_affine_joints"

    def __init__(self, flip: float = 0.0, rotation: float = 0.0, scale: float = 0.0, shift: float = 0.0) -> None:
        super().__init__(flip, rotation, scale, shift)

    def __call__(self, batch: Batch, positions: Positions, seed: int) -> Batch:
        joints = batch["target"]
        if joints.ndim != 3 or joints.shape[-1] != 3 or not joints.is_floating_point():
            raise UserError(
                f"random_affine_joints: targets must be joints (B, J, 3), and these are {tuple(joints.shape)} "
                f"{joints.dtype}; random_affine changes images alone"
            )
        mirror, angle, *_ = self._draw(positions, seed)
        # _draw leads from a place in the result to its source; joints go the other way.
        turn = np.stack([mirror * np.cos(angle), mirror * np.sin(angle), -np.sin(angle), np.cos(angle)])
        a, b, c, d = _to(turn, joints.device)[:, :, None]
        x, y, z = joints.unbind(-1)
        return {
            **batch,
            "input": self._moved(batch, positions, seed),
            "target": torch.stack([a * x + b * y, c * x + d * y, z], -1),
        }


class BrightnessContrast:
    """Add up to +- brightness and stretch the contrast by up to x or / (1 + contrast) around the image's mean."""

    is_random = True

    def __init__(self, brightness: float = 0.2, contrast: float = 0.2) -> None:
        _check_range("brightness_contrast.brightness", brightness, 0, 1)
        _check_range("brightness_contrast.contrast", contrast, 0, 10)
        self.brightness, self.contrast = brightness, math.log1p(contrast)

    def __call__(self, batch: Batch, positions: Positions, seed: int) -> Batch:
        images = _images("brightness_contrast", batch)
        draws = 2 * uniform(seed, "brightness_contrast", positions, 2) - 1
        gain = _per_image(np.exp(draws[:, 0] * self.contrast), images)
        offset = _per_image(draws[:, 1] * self.brightness, images)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return {**batch, "input": (images - mean).mul_(gain).add_(mean + offset).clamp_(0, 1)}


class ColourJitter:
    """Tint and saturate RGB images, as other lamps and cameras do.

    gain: each channel is multiplied by up to x or / (1 + gain). saturation: the distance of each pixel from its grey
    by up to x or / (1 + saturation).
    """

    is_random = True

    def __init__(self, gain: float = 0.1, saturation: float = 0.2) -> None:
        _check_range("colour_jitter.gain", gain, 0, 10)
        _check_range("colour_jitter.saturation", saturation, 0, 10)
        self.gain, self.saturation = math.log1p(gain), math.log1p(saturation)

    def __call__(self, batch: Batch, positions: Positions, seed: int) -> Batch:
        images = _images("colour_jitter", batch)
        if images.shape[1] != 3:
            raise UserError(f"colour_jitter: images must have 3 channels (RGB), and these have {images.shape[1]}")
        draws = 2 * uniform(seed, "colour_jitter", positions, 4) - 1
        gain = _to(np.exp(draws[:, :3] * self.gain), images.device)[:, :, None, None]
        factor = _per_image(np.exp(draws[:, 3] * self.saturation), images)
        tinted = images * gain
        red, green, blue = torch.split(tinted, 1, dim=1)
        grey = 0.299 * red + 0.587 * green + 0.114 * blue  # luma of ITU-R BT.601
        return {**batch, "input": torch.clamp(grey + (tinted - grey) * factor, 0, 1)}


class RandomErasing:
    """Grey out one rectangle (Zhong et al., AAAI 2020) with probability `probability`.

    area: smallest and largest fraction of the image; aspect: largest ratio of the sides.
    """

    is_random = True

    def __init__(self, probability: float = 0.5, area: tuple[float, float] = (0.02, 0.2), aspect: float = 3.0) -> None:
        _check_range("random_erasing.probability", probability, 0, 1)
        _check_range("random_erasing.area[1]", area[1], 0, 1)
        _check_range("random_erasing.area[0]", area[0], 0, area[1])
        _check_range("random_erasing.aspect", aspect, 1, 100)
        self.probability, self.area, self.aspect = probability, area, math.log(aspect)

    def __call__(self, batch: Batch, positions: Positions, seed: int) -> Batch:
        images = _images("random_erasing", batch)
        height, width = images.shape[-2:]
        chance, area, aspect, left, top = uniform(seed, "erasing", positions, 5).T
        fraction = self.area[0] + area * (self.area[1] - self.area[0])
        ratio = np.exp((2 * aspect - 1) * self.aspect)
        erased_h = np.minimum(np.sqrt(fraction * ratio), 1).astype(np.float32) * height
        erased_w = np.minimum(np.sqrt(fraction / ratio), 1).astype(np.float32) * width
        top, left = top * (height - erased_h), left * (width - erased_w)
        erased_h = np.where(chance < self.probability, erased_h, np.float32(0))
        box = _to(np.stack([top, top + erased_h, left, left + erased_w]), images.device)[:, :, None]
        rows = torch.arange(height, device=images.device) + 0.5
        columns = torch.arange(width, device=images.device) + 0.5
        in_rows, in_columns = (rows > box[0]) & (rows < box[1]), (columns > box[2]) & (columns < box[3])
        mask = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
        return {**batch, "input": torch.where(mask, 0.5, images)}


class Normalize:
    """(input - mean) / std of inputs (B, C, ...), one number or one a channel."""

    is_random = False

    def __init__(self, mean: float | list[float], std: float | list[float]) -> None:
        self.mean, self.std = torch.tensor(mean).reshape(-1), torch.tensor(std).reshape(-1)
        if not bool((self.std > 0).all()):
            raise UserError(f"normalize.std: {std} is not allowed; every value must be greater than 0")

    def __call__(self, batch: Batch, _positions: Positions, _seed: int) -> Batch:
        inputs = batch["input"]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, inputs.shape[1]):  # it would broadcast, or not fit
                raise UserError(
                    f"normalize.{name}: {len(values)} values for inputs of {inputs.shape[1]} channels; give one "
                    "number, or one for each channel"
                )
        self.mean, self.std = self.mean.to(inputs.device), self.std.to(inputs.device)
        mean, std = (values.reshape(-1, *[1] * (inputs.ndim - 2)) for values in (self.mean, self.std))
        return {**batch, "input": (inputs - mean).div_(std)}


class Mixup:
    """Mix each sample with its neighbour in the stream (Zhang et al., ICLR 2018); the shuffle makes that a random one.

    alpha in [0.001, 1]: the weight is drawn from Beta(alpha, alpha). Class ids become soft targets (B, num_classes);
    other targets are mixed as they are. Positions 2k and 2k + 1 are partners, so each rank needs an even share.
    """

    is_random = True
    _ROUNDS = (4, 32)  # few do for nearly every batch, and give the numbers that many give

    def __init__(self, alpha: float, num_classes: int | None = None) -> None:
        _check_range("mixup.alpha", alpha, 0.001, 1)  # below, powers of draws underflow; without mixup, remove it
        self.alpha, self.num_classes = alpha, num_classes

    def __call__(self, batch: Batch, positions: Positions, seed: int) -> Batch:
        images, target = batch["input"], batch["target"]
        if len(images) % 2 or positions[0] % 2:
            raise UserError(
                f"mixup: pairs of samples need an even batch on every rank, and this one holds {len(images)}; "
                "choose a dataloader_batch_size that is a multiple of 2 x ranks x G_accumulation_steps"
            )
        if not target.is_floating_point():
            if self.num_classes is None:
                raise UserError("mixup: the data set has class ids as targets and does not name its classes")
            target = F.one_hot(target.long(), self.num_classes).float()
        weight = upload(self._weights(positions, seed), images.device)
        return {**batch, "input": _mix(images, weight), "target": _mix(target, weight)}

    def _weights(self, positions: Positions, seed: int) -> npt.NDArray[np.float32]:
        """Beta(alpha, alpha) by Johnk's rejection (1964); for alpha <= 1 every second round succeeds or more."""
        for rounds in self._ROUNDS:
            draws = uniform(seed, "mixup", positions, 2 * rounds).astype(np.float64) ** (1 / self.alpha)
            first, total = draws[:, ::2], draws[:, ::2] + draws[:, 1::2]
            accepted = (total <= 1) & (total > 1e-300)
            if accepted.any(axis=1).all():
                break
        chosen = accepted.argmax(axis=1)[:, None]
        ratio = np.take_along_axis(first, chosen, 1) / np.maximum(np.take_along_axis(total, chosen, 1), 1e-300)
        return np.where(accepted.any(axis=1), ratio[:, 0], 0.5).astype(np.float32)


TRANSFORMS = Table(
    "transform",
    {
        "random_affine": RandomAffine,
        "random_affine_joints": RandomAffineJoints,
        "brightness_contrast": BrightnessContrast,
        "colour_jitter": ColourJitter,
        "random_erasing": RandomErasing,
        "mixup": Mixup,
        "normalize": Normalize,
    },
    supplied={"num_classes"},
)
CLAMPING = (BrightnessContrast, ColourJitter)
"""What keeps images in [0, 1], and would cut most off those that are normalised."""


class Pipeline:
    """uint8 inputs, and targets that are images, to [0, 1], then the option file's transforms in order.

    A transform that stands there a second time draws other numbers.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int) -> None:
        self._seed = seed
        self._is_random = any(each.is_random for each in transforms)
        self._steps: list[tuple[Transform, int]] = []
        for number, each in enumerate(transforms):
            alike = sum(type(other) is type(each) for other in transforms[:number])
            self._steps.append((each, seed_of(seed, "again", alike) if alike else seed))

    def __call__(self, batch: Batch, positions: Positions) -> Batch:
        raw = ["input", *(["target"] if batch["target"].ndim == 4 else [])]
        images = {key: batch[key].float().div_(255) for key in raw if batch[key].dtype == torch.uint8}
        batch = {**batch, **images}
        if self._is_random:  # ours draw from `uniform`, those of others maybe from a global generator
            seed_global_generators(seed_of(self._seed, "batch", int(positions[0])))
        for transform, seed in self._steps:
            changed: object = transform(batch, positions, seed)
            if not isinstance(changed, dict):
                raise UserError(
                    f"{type(transform).__name__}: a transform returns the batch, a dict, and this one returns a "
                    f"{type(changed).__name__}"
                )
            batch = changed
        return batch


def _affine_grid(matrix: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Sampling grid (B, H, W, 2) of (6, B) row-major 2x3 matrices.

    Element by element rather than F.affine_grid's batched product, whose rounding may depend on the batch size.
    """
    x = (torch.arange(width, device=matrix.device) * 2 + 1) / width - 1
    y = ((torch.arange(height, device=matrix.device) * 2 + 1) / height - 1)[:, None]
    a, b, c, d, e, f = matrix[:, :, None, None]
    # A pair of coordinates is a complex number: so they are summed, and written next to each other, in one pass.
    return torch.view_as_real(torch.complex(a * x, d * x) + torch.complex(b * y + c, e * y + f))


def _images(name: str, batch: Batch) -> torch.Tensor:
    """The inputs (B, C, H, W) of a batch; UserError that names the transform where they are no images."""
    images: torch.Tensor = batch["input"]
    if images.ndim != 4:
        raise UserError(f"{name}: inputs must be images (B, C, H, W), and these are {tuple(images.shape)}; remove it")
    return images


def _mix(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """weight * value + (1 - weight) * partner's value; the partners are rows 2k and 2k + 1."""
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    partners = values.reshape(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)
    return torch.lerp(partners, values, weight)


def _per_image(values: npt.NDArray[np.float32], images: torch.Tensor) -> torch.Tensor:
    return _to(values, images.device).reshape(-1, 1, 1, 1)


def _to(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    return upload(np.ascontiguousarray(values, dtype=np.float32), device)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}: {value} is not allowed; it must lie between {low} and {high}")
