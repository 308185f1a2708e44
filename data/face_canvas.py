"""A canvas for faces: shapes in face coordinates, a camera that lays them on a turned head, a lamp, a photograph.

Face coordinates: x to the right, y down, the origin between eyes and nose, the head about 1.5 wide and 2 high.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 48
SUPERSAMPLE = 4  # painted four times too large, then shrunk by averaging

Points = NDArray[np.float64]  # (N, 2)
Image = NDArray[np.float64]  # (48, 48); double precision, so that all processors round to the same grey values

TURN = np.linspace(0.0, 2 * np.pi, 40, endpoint=False)
UNIT_CIRCLE = np.stack([np.cos(TURN), np.sin(TURN)], axis=1)
GRID_Y, GRID_X = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float64)


def curve(x: NDArray[np.float64] | float, y: NDArray[np.float64] | float) -> Points:
    """Points (N, 2) from their coordinates; a number stands for all."""
    points = np.empty((max(np.size(x), np.size(y)), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """An ellipse (40, 2)."""
    return UNIT_CIRCLE * (radius_x, radius_y) + (x, y)


def loop(upper: Points, lower: Points) -> Points:
    """The polygon between two curves that run the same way."""
    return np.concatenate([upper, lower[::-1]])


class Camera(NamedTuple):
    """The turn of the head in radians, pixels per face unit, and where the origin falls, in pixels."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    x: float
    y: float

    def project(self, points: Points, lift: NDArray[np.float64]) -> Points:
        """Pixels (N, 2) of face points (N, 2) that stand `lift` (N,) above the ellipsoid of the head."""
        depth = 0.6 * np.sqrt(np.clip(1.0 - (points[:, 0] / 0.8) ** 2 - (points[:, 1] / 1.1) ** 2, 0, None)) + lift
        x = points[:, 0] * np.cos(self.yaw) + depth * np.sin(self.yaw)
        y = points[:, 1] * np.cos(self.pitch) + depth * np.sin(self.pitch)
        cos, sin = self.scale * np.cos(self.roll), self.scale * np.sin(self.roll)
        return curve(self.x + cos * x - sin * y, self.y + sin * x + cos * y)


class Sketch:
    """Shapes in the order they are painted: grey ones, and soft shadows and lights that multiply the grey ones."""

    def __init__(self) -> None:
        self.shapes: list[tuple[bool, Points, float, float, float]] = []  # soft?, points, tone, width, lift

    def fill(self, points: Points, tone: float, lift: float = 0.0) -> None:
        """A filled polygon; tone 0 to 255."""
        self.shapes.append((False, points, tone, 0.0, lift))

    def line(self, points: Points, tone: float, width: float, lift: float = 0.0) -> None:
        """An open stroke, `width` face units wide; tone 0 to 255."""
        self.shapes.append((False, points, tone, width, lift))

    def shade(self, points: Points, factor: float, width: float = 0.0, lift: float = 0.0) -> None:
        """A blurred polygon (or stroke, where `width` is given) that multiplies what it covers by `factor`, 0 to 2."""
        self.shapes.append((True, points, 127.0 * factor, width, lift))

    def render(self, camera: Camera, background: float) -> Image:
        """The painting, (48, 48) grey values."""
        size = IMAGE_SIZE * SUPERSAMPLE
        grey = np.full((size, size), int(background), np.uint8)
        soft = np.full((size // 2, size // 2), 127, np.uint8)
        lengths = [len(shape[1]) for shape in self.shapes]
        lift = np.repeat([shape[4] for shape in self.shapes], lengths)
        pixels = camera.project(np.concatenate([shape[1] for shape in self.shapes]), lift)
        fixed = np.rint(pixels * (SUPERSAMPLE * 16)).astype(np.int32)  # OpenCV's fixed point, 4 fractional bits
        start = 0
        for length, (is_soft, _, tone, width, _) in zip(lengths, self.shapes, strict=True):
            canvas, shift, zoom = (soft, 5, SUPERSAMPLE / 2) if is_soft else (grey, 4, SUPERSAMPLE)
            outline = fixed[start : start + length]
            start += length
            if width:
                thickness = max(1, round(width * camera.scale * zoom))
                cv2.polylines(canvas, [outline], False, tone, thickness, cv2.LINE_8, shift)
            else:
                cv2.fillPoly(canvas, [outline], tone, cv2.LINE_8, shift)
        return shrink(grey) * (shrink(cv2.GaussianBlur(soft, (9, 9), 2.2)) / 127.0)


def shrink(canvas: NDArray[Any]) -> Image:
    """The means over the blocks of a canvas (48 k, 48 k), (48, 48)."""
    small = cv2.resize(canvas, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float64)


def light(grey: Image, camera: Camera, azimuth: float, height: float, ambient: float) -> Image:
    """The head lit by a lamp at `azimuth` and `height` (radians, 0 in front) over `ambient` light (fraction)."""
    x, y = (GRID_X - camera.x) / (camera.scale * 0.85), (GRID_Y - camera.y) / (camera.scale * 1.15)
    inside = np.minimum(1.0, 0.96 / np.maximum(np.sqrt(x * x + y * y), 1e-6))  # the wall is lit like the nearest cheek
    x, y = x * inside, y * inside
    z = np.sqrt(1.0 - x * x - y * y)
    facing = x * np.sin(azimuth) - y * np.sin(height) + z * np.cos(azimuth) * np.cos(height)
    return np.asarray(grey * (ambient + (1.15 - ambient) * np.maximum(facing, 0.0)))


def photograph(
    lit: Image, brightness: float, contrast: float, blur: float, noise: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(48, 48) uint8; `brightness` (mean), `contrast` (deviation) and `noise` in grey values, `blur` in pixels."""
    exposed = (lit - lit.mean()) * (contrast / max(1.0, float(lit.std()))) + brightness
    grain = noise * rng.standard_normal(lit.shape)
    blurred = np.asarray(cv2.GaussianBlur(exposed, (3, 3), blur))
    return np.clip(np.rint(blurred + grain), 0, 255).astype(np.uint8)
