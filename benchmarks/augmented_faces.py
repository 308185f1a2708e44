"""Faces augmented one by one, as data sets for a DataLoader usually do it, with the transforms of an option file."""

import json
import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data.select_dataset import define_dataset
from data.transforms import TRANSFORMS
from utils.utils_option import DatasetOptions

Image = NDArray[np.float32]


class AugmentedFaces(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Index -> (image float32 (1, H, W), class); mixup, which needs a batch, is left out."""

    def __init__(self, options: DatasetOptions) -> None:
        self._faces = define_dataset("train", options).dataset
        self._transforms = {each.type: _with_defaults(each.type, each.arguments) for each in options.transforms}
        self._rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._faces)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self._faces[index]
        image: Image = sample["input"][0].numpy().astype(np.float32) / 255
        for name, apply in (
            ("random_affine", self._affine),
            ("brightness_contrast", self._brightness_contrast),
            ("random_erasing", self._erase),
        ):
            if name in self._transforms:
                image = apply(image, **self._transforms[name])
        if "normalize" in self._transforms:
            image = (image - self._transforms["normalize"]["mean"]) / self._transforms["normalize"]["std"]
        return torch.from_numpy(np.ascontiguousarray(image, np.float32))[None], sample["target"]

    def _affine(self, image: Image, flip: float, rotation: float, scale: float, shift: float) -> Image:
        side = image.shape[0]
        angle, zoom, right, down = self._rng.uniform(-1, 1, 4)
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), angle * rotation, (1 + scale) ** zoom)
        matrix[:, 2] += np.array([right, down]) * shift * side
        moved = cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
        return moved[:, ::-1] if self._rng.random() < flip else moved  # type: ignore[return-value]

    def _brightness_contrast(self, image: Image, brightness: float, contrast: float) -> Image:
        bright, steep = self._rng.uniform(-1, 1, 2)
        mean = image.mean()
        return np.clip((image - mean) * (1 + contrast) ** steep + mean + bright * brightness, 0, 1)

    def _erase(self, image: Image, probability: float, area: tuple[float, float], aspect: float = 3.0) -> Image:
        if self._rng.random() >= probability:
            return image
        side = image.shape[0]
        fraction, ratio = self._rng.uniform(*area), math.exp(self._rng.uniform(-1, 1) * math.log(aspect))
        height, width = (min(side, round(side * math.sqrt(each))) for each in (fraction * ratio, fraction / ratio))
        top, left = (int(self._rng.integers(side - size + 1)) for size in (height, width))
        image = image.copy()
        image[top : top + height, left : left + width] = 0.5
        return image


def _with_defaults(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return TRANSFORMS.arguments(name).model_validate_json(json.dumps(arguments)).model_dump()
