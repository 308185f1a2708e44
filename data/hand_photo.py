"""Photographs of a generated hand: skin, light, what is behind it, and the flaws of a camera."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.hand_canvas import IMAGE_SIZE, Image, Surface

Colour = NDArray[np.float32]  # (3,) RGB, 0 to 1, linear

# Skin from light to dark, linear RGB of its back.
SKINS = np.array([(0.78, 0.55, 0.44), (0.66, 0.42, 0.30), (0.50, 0.29, 0.18), (0.32, 0.17, 0.10), (0.15, 0.08, 0.05)])
GREEN_SCREEN = np.array([0.05, 0.42, 0.12])
REACH = 0.25  # of the light around the edge of the shadow, which skin scatters
SCATTER = np.array([0.35, 0.0, -0.12], np.float32)  # red light goes deepest, so the edges of shadows on skin are warm
GRID = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1).astype(np.float32)  # -1 to 1 across the image


class Light(NamedTuple):
    """A lamp over a sky: direction (3,) towards the lamp in camera coordinates, and what both give, (3,) each."""

    direction: NDArray[np.float64]
    lamp: Colour
    sky: Colour


def draw_light(rng: np.random.Generator) -> Light:
    """A lamp anywhere on the camera's side, warm or cool."""
    direction = np.array([rng.uniform(-1.0, 1.0), rng.uniform(-1.0, 0.4), rng.uniform(-1.2, -0.2)])
    warmth = rng.uniform(-0.15, 0.15) * np.array([1.0, 0.1, -1.0])
    ambient = rng.uniform(0.22, 0.58)
    lamp, sky = (1.25 - ambient) * (1.0 + warmth), ambient * (1.0 - 0.6 * warmth)
    return Light(direction / np.linalg.norm(direction), lamp.astype(np.float32), sky.astype(np.float32))


def draw_tints(rng: np.random.Generator) -> Image:
    """(4, 3): the colours of palm, back, nail and sleeve; a sleeve may be skin."""
    tone = rng.uniform(0.0, len(SKINS) - 1.001)
    nearest, fraction = int(tone), tone % 1
    back = SKINS[nearest] * (1 - fraction) + SKINS[nearest + 1] * fraction
    back = back * rng.uniform(0.88, 1.12, 3)
    palm = np.clip(0.75 * back + 0.25 * np.array([0.72, 0.42, 0.36]), 0.0, 0.9)
    nail = np.clip(0.6 * palm + 0.4 * np.array([0.85, 0.55, 0.50]), 0.0, 0.95)
    bare = rng.random() < 0.5
    sleeve = back if bare else rng.uniform(0.02, 0.8, 3)
    return np.stack([palm, back, nail, sleeve]).astype(np.float32)


def shade(surface: Surface, tints: Image, light: Light) -> Image:
    """Linear colours (224, 224, 3) of the hand; black where there is none."""
    seen = surface.coverage > 0
    normals, parts = surface.normals[seen], surface.tints[seen]
    facing = np.clip((normals @ light.direction.astype(np.float32) + REACH) / (1 + REACH), 0.0, 1.0)[:, None]
    halfway = light.direction + np.array([0.0, 0.0, -1.0])
    halfway = (halfway / np.linalg.norm(halfway)).astype(np.float32)
    gloss = np.clip(normals @ halfway, 0.0, 1.0) ** 16 * (0.06 + 0.12 * parts[:, 2])
    lit = light.sky + light.lamp * facing * (1.0 + SCATTER * (1.0 - facing))
    open_sky = 1.0 - 0.75 * surface.occlusion[seen]
    colours = np.zeros((*seen.shape, 3), np.float32)
    colours[seen] = ((parts @ tints) * lit + gloss[:, None] * light.lamp) * open_sky[:, None]
    return colours


def green_screen(rng: np.random.Generator) -> Image:
    """A green cloth in uneven light, (224, 224, 3) linear."""
    colour = GREEN_SCREEN * rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, 3)
    slope_x, slope_y = rng.uniform(-0.25, 0.25, 2)
    falloff = 1.0 + slope_x * GRID[None, :] + slope_y * GRID[:, None]
    folds = _clouds(rng, 6) * 0.12
    return np.asarray(np.clip(colour * (falloff + folds)[..., None], 0.0, 1.0), np.float32)


def scene(rng: np.random.Generator) -> Image:
    """A wall with clouds of colour and things in front of it, out of focus; (224, 224, 3) linear."""
    first, second = rng.uniform(0.02, 0.85, (2, 3))
    angle = rng.uniform(0.0, 2 * np.pi)
    ramp = 0.5 + 0.35 * (np.cos(angle) * GRID[None, :] + np.sin(angle) * GRID[:, None])
    canvas = (first * (1 - ramp[..., None]) + second * ramp[..., None]).astype(np.float32)
    canvas += rng.uniform(0.0, 0.3) * _clouds(rng, int(rng.integers(3, 24)))[..., None]
    for _ in range(int(rng.integers(0, 9))):
        _draw_thing(canvas, rng)
    blurred = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 4.0))
    return np.asarray(np.clip(blurred, 0.0, 1.0), np.float32)


def _draw_thing(canvas: Image, rng: np.random.Generator) -> None:
    """A box, a disc or a rod of any colour, now and then that of skin."""
    colour = SKINS[int(rng.integers(len(SKINS)))] if rng.random() < 0.25 else rng.uniform(0.02, 0.9, 3)
    x, y = (int(value) for value in rng.uniform(-20, IMAGE_SIZE + 20, 2))
    width, height = (float(value) for value in rng.uniform(8, 90, 2))
    turn, kind = float(rng.uniform(0, 180)), int(rng.integers(3))
    if kind == 0:
        corners = cv2.boxPoints(((x, y), (width, height), turn))
        cv2.fillPoly(canvas, [corners.astype(np.int32)], colour.tolist(), cv2.LINE_AA)
    elif kind == 1:
        cv2.ellipse(canvas, ((x, y), (width, height), turn), colour.tolist(), -1, cv2.LINE_AA)
    else:
        end = (int(x + 3 * width * np.cos(turn)), int(y + 3 * height * np.sin(turn)))
        cv2.line(canvas, (x, y), end, colour.tolist(), int(rng.integers(4, 26)), cv2.LINE_AA)


def _clouds(rng: np.random.Generator, num_cells: int) -> Image:
    """Smooth noise (224, 224) of about -1 to 1 with so many lumps across the image."""
    coarse = rng.uniform(-1.0, 1.0, (num_cells, num_cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC), np.float32)


def photograph(hand: Image, coverage: Image, background: Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(224, 224, 3) RGB bytes of a hand before a background: exposure, blur, gamma, noise."""
    picture = background + coverage[..., None] * (hand - background)
    blur, noise = rng.uniform(0.25, 0.8), rng.uniform(0.5, 5.0)
    exposed = cv2.GaussianBlur(picture * np.float32(np.exp(rng.uniform(-0.35, 0.25))), (5, 5), blur)
    bright = 255 * np.sqrt(np.clip(exposed, 0.0, 1.0))  # a gamma of 2, nearly that of sRGB
    grain = np.float32(noise) * rng.standard_normal(bright.shape, np.float32)
    return np.clip(np.rint(bright + grain), 0, 255).astype(np.uint8)
