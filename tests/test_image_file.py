"""Every image becomes 8-bit BGR, upright and opaque; what cannot be read says why."""

import errno
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from utils.utils_image_file import UnreadableError, read_image, write_image

RGB = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    image = read_image(path)
    assert image.dtype == np.uint8
    return image[..., ::-1]


def encoded(suffix: str, values: NDArray[Any]) -> bytes:
    return cv2.imencode(suffix, values)[1].tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    alpha = np.zeros((12, 20, 1), np.uint8)
    alpha[:6, :5] = 255
    for name, pixels in (("opaque.png", RGB), ("alpha.png", np.concatenate([RGB, alpha], axis=2))):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as turned:
            upright = ImageOps.exif_transpose(turned).convert("RGBA")
        expected = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
        assert np.array_equal(read_rgb(tmp_path / name), np.asarray(expected))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp", ".ppm"])
def test_grey_and_colour_of_any_format(tmp_path: Path, suffix: str) -> None:
    smooth = cv2.resize(RGB[:2, :3], (60, 40), interpolation=cv2.INTER_CUBIC)
    write_image(tmp_path / f"colour{suffix}", smooth[..., ::-1])
    write_image(tmp_path / f"grey{suffix if suffix != '.ppm' else '.pgm'}", smooth[..., 0])
    grey = read_rgb(tmp_path / f"grey{suffix if suffix != '.ppm' else '.pgm'}")
    for found, expected in ((read_rgb(tmp_path / f"colour{suffix}"), smooth), (grey, smooth[..., :1])):
        assert found.shape == (40, 60, 3)
        assert np.abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_channels_are_scaled_by_their_own_depth(tmp_path: Path, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 240).round().astype(np.uint16).reshape(12, 20)
    (tmp_path / "deep.png").write_bytes(encoded(".png", ramp))
    found = read_image(tmp_path / "deep.png")
    assert np.abs(found[..., 1] - np.linspace(0, 255, 240).reshape(12, 20)).max() <= 0.5 + 255 / 2**bits


def test_floating_point_is_0_to_1_and_nothing_else(tmp_path: Path) -> None:
    values = np.array([[0, 0.5, 1, 2, -1, np.nan]], np.float32)
    for pixels in (values, np.stack([values] * 3, axis=-1)):
        (tmp_path / "float.tif").write_bytes(encoded(".tif", pixels))
        found = read_image(tmp_path / "float.tif")
        assert found.shape == (1, 6, 3)
        assert found[0, :, 0].tolist() == [0, 128, 255, 255, 0, 0]


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_what_is_transparent_is_white(tmp_path: Path, depth: type) -> None:
    full = np.iinfo(depth).max
    pixels = [[0, 0, 0, 0], [0, 0, 0, full], [full, 0, 0, full], [0, 0, 0, full // 2]]
    (tmp_path / "alpha.png").write_bytes(encoded(".png", np.array([pixels], depth)))
    expected = [[255, 255, 255], [0, 0, 0], [255, 0, 0], [128, 128, 128]]
    assert read_image(tmp_path / "alpha.png")[0].tolist() == expected


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_the_first_of_several_frames_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"many.{suffix}", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / f"many.{suffix}")[3, 3].tolist() == [255, 0, 0]


def test_one_pixel_and_a_palette_are_images(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encoded(".png", np.full((1, 1), 77, np.uint8)))
    assert read_image(tmp_path / "one.png").tolist() == [[[77, 77, 77]]]
    Image.fromarray(RGB).quantize(256).save(tmp_path / "palette.png")
    assert np.abs(read_rgb(tmp_path / "palette.png").astype(int) - RGB).mean() < 10


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


NOISE = (
    encoded(".png", np.tile(RGB, (20, 20, 1))),
    encoded(".jpg", RGB),
    encoded(".webp", RGB),
    encoded(".tif", RGB),
    encoded(".bmp", RGB),
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"holiday photos\n", "not an image"),
        (b"x", "not an image"),
        *((each[: len(each) // 2], "truncated") for each in NOISE),
        (NOISE[1][:-30], "a JPEG that is truncated"),
        (png_that_claims(60_000, 60_000), "OPENCV_IO_MAX_IMAGE_PIXELS"),
    ],
)
def test_what_cannot_be_read_says_why(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, reason: str
) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=reason):
        read_image(path)
    assert "libpng" not in capfd.readouterr().err


def test_the_system_says_what_is_wrong_with_a_path(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    for path, code in ((tmp_path / "loop.png", "ELOOP"), (tmp_path / "none.png", "ENOENT"), (tmp_path, "EISDIR")):
        with pytest.raises(UnreadableError, match=os.strerror(getattr(errno, code))):
            read_image(path)


def test_names_need_not_be_ascii(tmp_path: Path) -> None:
    write_image(tmp_path / "new" / "Gräfin 日本.png", RGB)
    assert np.array_equal(read_image(tmp_path / "new" / "Gräfin 日本.png"), RGB)
    assert Image.open(io.BytesIO((tmp_path / "new" / "Gräfin 日本.png").read_bytes())).size == (20, 12)


def test_an_image_that_its_format_cannot_hold_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"wide.jpg: 65,501x2 pixels"):
        write_image(tmp_path / "wide.jpg", np.zeros((2, 65_501, 3), np.uint8))
