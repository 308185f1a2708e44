"""Images as files: all that OpenCV decodes, upright and with 8 bits a channel, or the reason why one cannot be read."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# fmt: off
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jp2",
                  ".ppm", ".pgm", ".pbm", ".hdr")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG"
_FORMATS = {_JPEG: "JPEG", _PNG: "PNG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF",
            b"RIFF": "WebP", b"\0\0\0\x0cjP  ": "JPEG 2000"}
# fmt: on

_Array = NDArray[np.integer | np.floating]


class UnreadableError(ValueError):
    """The reason why a file or a camera cannot be read; whoever asked for it knows its name."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) BGR of an image file, turned upright by its EXIF orientation; the first of several frames.

    What is transparent gets a white ground. Whole numbers of more than 8 bits are scaled by the depth that they have:
    the least of 8, 10, 12, 14 and 16 bits that holds the largest of them. Floating point is taken for 0 to 1. Raises
    UnreadableError.
    """
    data = _read(path)
    try:
        image = _decode(data)
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise UnreadableError(
                "more pixels than OpenCV reads; raise its limit with OPENCV_IO_MAX_IMAGE_PIXELS=<number>"
            ) from error
        raise UnreadableError(f"OpenCV cannot read it: {error.err}") from error
    if image is None:
        found = next((name for start, name in _FORMATS.items() if data.startswith(start)), None)
        raise UnreadableError(f"a {found} that is truncated, damaged or of a rare kind" if found else "not an image")
    return image


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Encode (H, W, 3) BGR or (H, W) grey as the suffix says. Raises OSError that names the file."""
    is_encoded, encoded = cv2.imencode(path.suffix, image)
    if not is_encoded:
        raise OSError(f"{path}: {image.shape[1]:,}x{image.shape[0]:,} pixels are more than a {path.suffix} can hold")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


def decode_file(path: Path, flags: int) -> NDArray[Any]:
    """cv2.imdecode of an image file. Raises UnreadableError."""
    try:
        image: NDArray[Any] | None = cv2.imdecode(np.frombuffer(_read(path), np.uint8), flags)
    except cv2.error:
        image = None  # more pixels than its limit, say
    if image is None:
        raise UnreadableError("not an image, or damaged")
    return image


def _read(path: Path) -> bytes:
    """Not cv2.imread: it cannot open every path on Windows, and never says what is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    if not data:
        raise UnreadableError("the file is empty")
    return data


def _decode(data: bytes) -> NDArray[np.uint8] | None:
    if data.startswith(_PNG) and b"IEND" not in data:
        return None  # libpng would say so on the console as well
    buffer = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    raw = None if data.startswith(_JPEG) else cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    if image is None and raw is not None and raw.ndim == 2:
        image = np.stack([raw] * 3, axis=-1)  # a grey TIFF of 32 bits, which OpenCV hands out only as it is
    if image is None:
        return None
    shallow = _to_8_bits(image)
    if raw is None or raw.ndim < 3 or raw.shape[2] != 4:
        return shallow
    opacity = _turned_alpha(raw, image).astype(np.float32)[..., None]
    opacity /= 1 if raw.dtype.kind == "f" else 2 ** (8 * raw.dtype.itemsize) - 1
    return (opacity * shallow + (1 - opacity) * 255).round().astype(np.uint8)


def _to_8_bits(image: _Array) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    if image.dtype.kind == "f":
        limited, largest = np.clip(np.nan_to_num(image), 0, 1), 1
    else:
        bits = max(8, int(image.max()).bit_length())
        limited, largest = np.maximum(image, 0), 2 ** (bits + bits % 2) - 1
    return np.asarray(cv2.convertScaleAbs(limited, alpha=255 / largest), np.uint8)


def _turned_alpha(raw: _Array, image: _Array) -> _Array:
    """The alpha channel of `raw`, turned as its colours are in `image`: with alpha OpenCV leaves EXIF alone."""
    for upright in (raw, raw[:, ::-1]):
        for quarters in range(4):
            turned = np.rot90(upright, quarters)
            if turned.shape[:2] == image.shape[:2] and np.array_equal(turned[..., :3], image):
                return turned[..., 3]
    return raw[..., 3] if raw.shape[:2] == image.shape[:2] else np.rot90(raw[..., 3])
