"""What views cut out of images and draw into them: legible on 48 pixels and on 6000, on light and on dark ground."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from views.view_base import Box, Finding, Image, whole

_SMALL_SIDE, _LARGE_SIDE = 240, 1920  # pixels: an image is enlarged to the one, but not beyond the other
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_COLOUR, _DARK = (90, 225, 255), (30, 30, 30)


def cut(image: Image, box: Box) -> Image:
    """(height, width, 3) of a box; what lies beyond the border repeats the border's pixels."""
    height, width = image.shape[:2]
    top, bottom = max(0, -box.top), max(0, box.top + box.height - height)
    left, right = max(0, -box.left), max(0, box.left + box.width - width)
    inside = image[max(0, box.top) : max(0, box.top + box.height), max(0, box.left) : max(0, box.left + box.width)]
    return np.asarray(cv2.copyMakeBorder(inside, top, bottom, left, right, cv2.BORDER_REPLICATE), np.uint8)


def fitted(image: Image, box: Box, input_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """What is in a box as uint8 (C, H, W) of `input_shape`: grey if C is 1, RGB if it is 3; the sides are stretched."""
    channels, height, width = input_shape
    part = cv2.cvtColor(cut(image, box), cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB)
    if part.shape[:2] != (height, width):
        is_shrinking = part.shape[0] >= height and part.shape[1] >= width
        part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA if is_shrinking else cv2.INTER_LINEAR)
    return np.ascontiguousarray(np.moveaxis(part.reshape(height, width, channels), -1, 0), np.uint8)


def enlarged(image: Image, found: Sequence[Finding]) -> tuple[Image, list[Finding]]:
    """A copy to draw into; small images a whole number of times as large, and their boxes with them."""
    height, width = image.shape[:2]
    times = max(1, min(-(-_SMALL_SIDE // min(height, width)), _LARGE_SIDE // max(height, width)))
    picture = cv2.resize(image, (width * times, height * times), interpolation=cv2.INTER_CUBIC)
    boxes = [Box(*(side * times for side in dataclasses.astuple(each.box))) for each in found]
    findings = [Finding(box, each.output) for box, each in zip(boxes, found, strict=True)]
    return np.array(picture, np.uint8), findings


def line_width(image: Image) -> int:
    """Pixels of a line that is seen on an image of this size."""
    return max(1, round(min(image.shape[:2]) / 300))


def draw_box(image: Image, box: Box) -> None:
    """Draw the edge of a box, unless that is the edge of the image."""
    if box != whole(image):
        corners = (box.left, box.top), (box.left + box.width - 1, box.top + box.height - 1)
        cv2.rectangle(image, *corners, _DARK, 3 * line_width(image), cv2.LINE_AA)
        cv2.rectangle(image, *corners, _COLOUR, line_width(image), cv2.LINE_AA)


def draw_headlines(image: Image, headlines: Sequence[tuple[Box, str]]) -> None:
    """Draw boxes, each with its text on a dark strip above it, or inside where there is no room."""
    for box, _ in headlines:
        draw_box(image, box)
    for box, text in headlines:  # after all boxes: no line crosses a text
        _draw_text(image, box, text)


def _draw_text(image: Image, box: Box, text: str) -> None:
    """A line about as wide as its box, but no smaller than can be read and no larger than the image is wide."""
    (unit_width, unit_height), _ = cv2.getTextSize(text, _FONT, 1, 1)
    short = min(image.shape[:2])
    scale = min(box.width / unit_width, 0.05 * short / unit_height)
    scale = max(scale, 0.018 * short / unit_height, 10 / unit_height)
    scale = min(scale, 0.96 * image.shape[1] / unit_width)
    weight = max(1, round(1.5 * scale))
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, weight)
    pad = max(2, height // 4)
    strip_width, strip_height = width + 2 * pad, height + baseline + pad
    left = max(0, min(box.left, image.shape[1] - strip_width))
    top = box.top - strip_height if box.top >= strip_height else max(0, box.top)
    cv2.rectangle(image, (left, top), (left + strip_width - 1, top + strip_height - 1), _DARK, cv2.FILLED)
    base = left + pad, top + height + pad // 2 + 1
    if text.isascii():
        cv2.putText(image, text, base, _FONT, scale, _COLOUR, weight, cv2.LINE_AA)
    else:
        _draw_letters(image, text, base, width, height)


def _draw_letters(image: Image, text: str, base: tuple[int, int], width: int, height: int) -> None:
    """Text with letters that OpenCV lacks. base: where its line begins. height: of a capital; both in pixels."""
    from utils.utils_visualise import line_of_text

    covered, ascent = line_of_text(text, height)
    letters = cv2.resize(covered, (min(width, covered.shape[1]), len(covered)), interpolation=cv2.INTER_AREA)
    (left, bottom), top = base, max(0, base[1] - ascent)
    part = image[top : bottom - ascent + len(letters), left : left + letters.shape[1]]
    share = letters[-len(part) :, : part.shape[1], None] / 255
    part[:] = (part * (1 - share) + np.array(_COLOUR) * share).round().astype(np.uint8)
