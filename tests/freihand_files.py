"""A tiny FreiHAND of random joints and pictures, written with the standard library and OpenCV alone."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIDE = 224


def annotations(num: int, seed: int = 0) -> dict[str, Any]:
    """xyz in metres, K in pixels and scale in metres, as lists."""
    rng = np.random.default_rng(seed)
    xyz = rng.normal(0, 0.05, (num, 21, 3)) + (0, 0, 0.7)
    intrinsics = [[[480.0 + i, 0.0, 112.0], [0.0, 480.0 + i, 110.0], [0.0, 0.0, 1.0]] for i in range(num)]
    return {"xyz": xyz.tolist(), "K": intrinsics, "scale": rng.uniform(0.02, 0.03, num).tolist()}


def tone(file: int) -> tuple[int, int, int]:
    """The red, green and blue with which image `file` is filled."""
    return 40 + 3 * file % 200, 230 - 5 * file % 200, 20 + 7 * file % 200


def write_freihand(folder: Path, num_training: int = 20, num_evaluation: int = 3) -> Path:
    """Training and evaluation; each image has one colour."""
    for part, num, num_images in (
        ("training", num_training, 4 * num_training),
        ("evaluation", num_evaluation, num_evaluation),
    ):
        (folder / part / "rgb").mkdir(parents=True)
        for kind, values in annotations(num, seed=len(part)).items():
            (folder / f"{part}_{kind}.json").write_text(json.dumps(values))
        for file in range(num_images):
            write_image(folder / part / "rgb" / f"{file:08d}.jpg", tone(file))
    return folder


def write_image(path: Path, colour: tuple[int, int, int], width: int = SIDE, height: int = SIDE) -> None:
    """A JPEG of one RGB colour."""
    image = np.full((height, width, 3), colour[::-1], np.uint8)
    assert cv2.imwrite(str(path), image)
