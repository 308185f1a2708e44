"""Batched transforms: what a sample gets depends on (seed, position) alone, and is what the option says."""

import math
import re
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from data import transforms
from data.transforms import (
    TRANSFORMS,
    Batch,
    BrightnessContrast,
    ColourJitter,
    Mixup,
    Normalize,
    Pipeline,
    RandomAffine,
    RandomAffineJoints,
    RandomErasing,
    Transform,
)
from utils.utils_error import UserError

SEED = 11
RANDOM: dict[str, Any] = {
    "affine": RandomAffine(0.5, 20, 0.2, 0.1),
    "joints": RandomAffineJoints(0.5, 20, 0.2, 0.1),
    "brightness": BrightnessContrast(0.2, 0.4),
    "colour": ColourJitter(0.2, 0.4),
    "erasing": RandomErasing(0.7),
    "mixup": Mixup(0.4, 7),
}


def images(count: int, channels: int = 1, height: int = 12, width: int = 12) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.random((count, channels, height, width), dtype=np.float32))


def batch_of(inputs: torch.Tensor) -> Batch:
    return {"input": inputs, "target": torch.arange(len(inputs)) % 7, "name": [str(i) for i in range(len(inputs))]}


def joints_batch(inputs: torch.Tensor) -> Batch:
    rng = np.random.default_rng(1)
    return {**batch_of(inputs), "target": torch.from_numpy(rng.normal(0, 60, (len(inputs), 21, 3))).float()}


def batch_for(name: str, inputs: torch.Tensor) -> Batch:
    """What the transform `name` of RANDOM takes."""
    inputs = inputs.expand(-1, 3, -1, -1).contiguous() if name == "colour" else inputs
    return joints_batch(inputs) if name == "joints" else batch_of(inputs)


def apply(transform: Transform, inputs: torch.Tensor, first: int = 0, seed: int = SEED) -> Batch:
    name = next((name for name, each in RANDOM.items() if type(each) is type(transform)), "")
    return transform(batch_for(name, inputs), np.arange(first, first + len(inputs)), seed)


def same_image(count: int, **form: int) -> torch.Tensor:
    """One image `count` times: differences between rows come from the positions."""
    return images(1, **form).expand(count, -1, -1, -1).contiguous()


@pytest.fixture
def forced_draws(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The numbers in [0, 1) that every sample draws from now on; fill the list."""
    draws: list[float] = []

    def uniform(_seed: int, _purpose: str, positions: NDArray[np.int64], num: int) -> NDArray[np.float32]:
        return np.tile(np.array(draws, dtype=np.float32), (len(positions), 1))[:, :num]

    monkeypatch.setattr(transforms, "uniform", uniform)
    return draws


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize(("channels", "size"), [(1, 12), (1, 48), (3, 160)])
def test_a_sample_gets_the_same_bits_in_any_batch(name: str, channels: int, size: int) -> None:
    count, step = (12, 2) if size < 100 else (4, 2)
    whole = batch_for(name, images(count, channels, size, size))
    positions = np.arange(100, 100 + count)
    together = RANDOM[name](whole, positions, SEED)
    sizes = [2, count] if name == "mixup" else [1, 2, 3, count]
    for part in sizes:
        for start in range(0, count - part + 1, step):
            rows = slice(start, start + part)
            alone = {"input": whole["input"][rows].clone(), "target": whole["target"][rows], "name": []}
            for key in ("input", "target"):
                expected = together[key][rows]
                assert torch.equal(RANDOM[name](alone, positions[rows], SEED)[key], expected), (part, start, key)


@pytest.mark.parametrize("name", RANDOM)
def test_the_number_of_threads_does_not_matter(name: str) -> None:
    inputs = images(4, 3, 160, 160)
    one = apply(RANDOM[name], inputs)["input"]
    torch.set_num_threads(2)
    assert torch.equal(apply(RANDOM[name], inputs)["input"], one)
    assert torch.equal(apply(RANDOM[name], inputs[:2])["input"], one[:2])


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_see_what_one_rank_sees(name: str, world_size: int) -> None:
    inputs = images(12)
    share = 12 // world_size
    parts = [
        apply(RANDOM[name], inputs[rank * share : (rank + 1) * share], 24 + rank * share)["input"]
        for rank in range(world_size)
    ]
    assert torch.equal(torch.cat(parts), apply(RANDOM[name], inputs, 24)["input"])


@pytest.mark.parametrize("name", ["affine", "joints", "brightness", "colour", "erasing"])
def test_positions_and_seeds_give_different_results(name: str) -> None:
    transform: Any = {**RANDOM, "erasing": RandomErasing(1.0)}[name]
    inputs = same_image(64)
    moved = apply(transform, inputs)["input"]
    assert len({row.numpy().tobytes() for row in moved}) > 60
    other = apply(transform, inputs, seed=SEED + 1)["input"]
    assert sum(torch.equal(a, b) for a, b in zip(moved, other, strict=True)) < 4
    shifted = apply(transform, inputs, first=1)["input"]
    assert torch.equal(shifted[:-1], moved[1:])


def test_a_mixup_weight_does_not_depend_on_how_often_others_are_drawn() -> None:
    mixup, positions = Mixup(1.0, 7), np.arange(400)
    together = mixup._weights(positions, 3)  # some of 400 are refused more often than the first few rounds
    assert together.tolist() == [float(mixup._weights(positions[k : k + 1], 3)[0]) for k in positions]
    assert 0.5 not in together  # nor did any run out of rounds


def test_mixup_weights_differ_between_positions_and_seeds() -> None:
    weights = Mixup(0.4)._weights(np.arange(64), SEED)
    assert len(set(weights.tolist())) > 50
    assert not np.array_equal(weights, Mixup(0.4)._weights(np.arange(64), SEED + 1))


@pytest.mark.parametrize("name", RANDOM)
def test_the_given_batch_is_not_changed(name: str) -> None:
    given = batch_for(name, images(8))
    before = {key: given[key].clone() for key in ("input", "target")}
    RANDOM[name](given, np.arange(8), SEED)
    for key, value in before.items():
        assert torch.equal(given[key], value)
    assert "name" in RANDOM[name](given, np.arange(8), SEED)


# Affine.


def test_affine_with_nothing_to_do_is_the_identity() -> None:
    inputs = images(8, 3, 10, 14)
    moved = apply(RandomAffine(flip=0, rotation=0, scale=0, shift=0), inputs)["input"]
    assert torch.allclose(moved, inputs, atol=2e-6)


@pytest.mark.parametrize("form", [(1, 12, 12), (3, 9, 14)])
def test_certain_flip_is_that_of_torch(form: tuple[int, int, int]) -> None:
    inputs = images(6, *form)
    moved = apply(RandomAffine(flip=1), inputs)["input"]
    assert torch.allclose(moved, inputs.flip(-1), atol=2e-6)
    assert not torch.allclose(moved, inputs, atol=1e-2)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_so_many_images_are_flipped(probability: float) -> None:
    inputs = same_image(2000, height=4, width=4)
    moved = apply(RandomAffine(flip=probability), inputs)["input"]
    flipped = (moved - inputs.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    kept = (moved - inputs).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((flipped ^ kept).all())
    assert flipped.float().mean().item() == pytest.approx(probability, abs=0.04)


@pytest.mark.parametrize("draw", [0.0, 1.0])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16), (12, 6)])
def test_rotation_by_90_degrees(forced_draws: list[float], draw: float, height: int, width: int) -> None:
    """The largest centred square of an image of any form turns as NumPy turns it, one way or the other."""
    forced_draws[:] = [0.9, draw, 0.5, 0.5, 0.5]
    inputs = images(2, 2, height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = (..., slice(top, top + side), slice(left, left + side))
    found = apply(RandomAffine(flip=0, rotation=90), inputs)["input"].numpy()[square]
    errors = [np.abs(found - np.rot90(inputs.numpy()[square], turns, axes=(2, 3))).max() for turns in (-1, 1)]
    assert min(errors) < 1e-4
    assert max(errors) > 0.1, "the comparison would not notice"


def test_the_two_extremes_of_rotation_are_opposite(forced_draws: list[float]) -> None:
    inputs = images(2, 1, 9, 9)
    results = []
    for draw in (0.0, 1.0):
        forced_draws[:] = [0.9, draw, 0.5, 0.5, 0.5]
        results.append(apply(RandomAffine(flip=0, rotation=90), inputs)["input"])
    assert torch.allclose(results[0], results[1].flip(-1, -2), atol=1e-4)


@pytest.mark.parametrize(("draw_x", "draw_y", "columns", "rows"), [(1, 0.5, 3, 0), (0.5, 0, 0, -2), (0, 1, -3, 2)])
def test_shift_by_whole_pixels(
    forced_draws: list[float], draw_x: float, draw_y: float, columns: int, rows: int
) -> None:
    """A shift of a quarter of 12 x 8 pixels; the border is repeated outwards."""
    forced_draws[:] = [0.9, 0.5, 0.5, draw_x, draw_y]
    inputs = images(2, 1, 8, 12)
    moved = apply(RandomAffine(flip=0, shift=0.25), inputs)["input"].numpy()
    y = np.clip(np.arange(8) + rows, 0, 7)
    x = np.clip(np.arange(12) + columns, 0, 11)
    expected = inputs.numpy()[:, :, y][:, :, :, x]
    assert np.allclose(moved, expected, atol=1e-5)


def test_scale_by_two(forced_draws: list[float]) -> None:
    """A ramp's slope tells the zoom; the two extremes of `scale` are 2 and 1/2."""
    ramp = torch.linspace(-1, 1, 33).expand(1, 1, 33, 33).contiguous()
    slopes = []
    for draw in (0.0, 1.0):
        forced_draws[:] = [0.9, 0.5, draw, 0.5, 0.5]
        moved = apply(RandomAffine(flip=0, scale=1.0), ramp)["input"][0, 0, 16]
        slopes.append(float((moved[17] - moved[15]) / (ramp[0, 0, 0, 17] - ramp[0, 0, 0, 15])))
        assert moved[16].item() == pytest.approx(0, abs=1e-6)
    assert sorted(slopes) == pytest.approx([0.5, 2.0], rel=1e-4)


def measured_shifts(transform: RandomAffine, count: int = 3000) -> NDArray[np.float64]:
    """(count, 2) shifts of ramps along x and y in fractions of the image."""
    size = 64
    ramp = (torch.arange(size) + 0.5) / size
    both = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)])
    centre = slice(size // 2 - 1, size // 2 + 1)
    moved = apply(transform, both.expand(count, 2, size, size).contiguous())["input"]
    return (moved[:, :, centre, centre].mean(dim=(2, 3)) - 0.5).double().numpy()


def test_shifts_are_uniform_within_their_bounds() -> None:
    shifts = measured_shifts(RandomAffine(flip=0, shift=0.1), 1000)
    for along in shifts.T:
        assert np.abs(along).max() <= 0.1 + 1e-4
        assert stats.kstest(along, "uniform", args=(-0.1, 0.2)).pvalue > 1e-3
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.1


def test_rotation_and_scale_stay_within_their_bounds() -> None:
    size = 33
    ramp = torch.linspace(-1, 1, size)
    both = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size)])
    transform = RandomAffine(flip=0, rotation=15, scale=0.25)
    moved = apply(transform, both.expand(1000, 2, size, size).contiguous())["input"].double().numpy()
    middle, step = size // 2, 4 / (size - 1)
    along_x = (moved[:, 0, middle, middle + 1] - moved[:, 0, middle, middle - 1]) / step
    along_y = (moved[:, 1, middle, middle + 1] - moved[:, 1, middle, middle - 1]) / step
    degrees, zoom = np.degrees(np.arctan2(along_y, along_x)), np.hypot(along_x, along_y)
    assert np.abs(degrees).max() <= 15.01
    assert stats.kstest(degrees, "uniform", args=(-15, 30)).pvalue > 1e-3
    assert 1 / 1.251 <= zoom.min() < 0.82
    assert 1.22 < zoom.max() <= 1.251
    assert abs(np.log(zoom).mean()) < 0.02, "zooming in and out are not balanced"


# Affine with joints.

FOCAL, SIDE = 130.0, 96


def project(joints_mm: NDArray[np.float64], centre: tuple[float, float]) -> NDArray[np.float64]:
    """Pixels (B, J, 2) of joints in camera coordinates; (0, 0) is the middle of the first pixel."""
    return FOCAL * joints_mm[..., :2] / joints_mm[..., 2:] + centre - 0.5


def blobs(pixels: NDArray[np.float64]) -> torch.Tensor:
    """(B, J, 96, 96): a Gaussian spot at each pixel (B, J, 2), in a channel of its own."""
    grid = np.arange(SIDE)
    across = np.exp(-((grid - pixels[..., :1]) ** 2) / 18)
    down = np.exp(-((grid - pixels[..., 1:]) ** 2) / 18)
    return torch.from_numpy(down[..., :, None] * across[..., None, :]).float()


def spots(images: torch.Tensor) -> NDArray[np.float64]:
    """Where the spots are: the centres of mass, (B, J, 2)."""
    weight = images.double().numpy() ** 2
    grid, total = np.arange(SIDE), weight.sum(axis=(2, 3))
    return np.stack([(weight.sum(axis=2) * grid).sum(-1) / total, (weight.sum(axis=3) * grid).sum(-1) / total], -1)


def camera_of(spot: NDArray[np.float64], joints_mm: NDArray[np.float64], root_z: NDArray[np.float64]) -> float:
    """How far, in pixels, the best pinhole camera with a known depth of the root shows joints from the spots.

    Its focal length, its principal point and the root's place are free: what zoom and shift may change.
    """
    worst = 0.0
    for pixels, joints, depth in zip(spot, joints_mm, root_z, strict=True):
        z = joints[:, 2] + depth
        zero, one = np.zeros_like(z), np.ones_like(z)
        # u = f x / z + f x0 / z + cx, and the same for v: linear in f, f x0, f y0, cx and cy.
        across = np.stack([joints[:, 0] / z, 1 / z, zero, one, zero], 1)
        down = np.stack([joints[:, 1] / z, zero, 1 / z, zero, one], 1)
        system, right = np.concatenate([across, down]), np.concatenate([pixels[:, 0], pixels[:, 1]])
        found = np.linalg.lstsq(system, right, rcond=None)[0]
        worst = max(worst, float(np.abs(system @ found - right).max()), FOCAL / 3 - found[0])
    return worst


@pytest.mark.parametrize(
    "arguments", [{"rotation": 60}, {"rotation": 40, "scale": 0.3, "shift": 0.08}, {"flip": 0.5, "rotation": 40}]
)
@pytest.mark.parametrize("centre", [(48.0, 48.0), (55.0, 43.0)])
def test_turned_joints_are_seen_where_the_turned_image_shows_them(
    arguments: dict[str, float], centre: tuple[float, float]
) -> None:
    """Spots at the joints that a known camera sees; image and joints are transformed, and some camera sees both.

    The hand is large and near, so that perspective matters. Joints that do not turn, or the wrong way, do not fit.
    """
    rng = np.random.default_rng(2)
    joints = rng.uniform(-60, 60, (12, 5, 3)) + (8, -5, 400)
    root = joints[:, :1]
    batch = {"input": blobs(project(joints, centre)), "target": torch.from_numpy(joints - root).float(), "name": []}
    moved = RandomAffineJoints(**arguments)(batch, np.arange(12), SEED)
    target, depth = moved["target"].double().numpy(), root[:, 0, 2]
    assert np.allclose(target[:, 0], 0)
    assert camera_of(spots(moved["input"]), target, depth) < 0.15
    for turns, x in ((0, 1), (2, 1), (0, -1)):  # left as they were, the wrong way, mirrored
        wrong = (joints - root if turns == 0 else 2 * (joints - root) - target) * (x, 1, 1)
        assert camera_of(spots(moved["input"]), wrong, depth) > 2, "the comparison would not notice"


def test_joints_turn_as_the_image_and_do_not_grow(forced_draws: list[float]) -> None:
    """A quarter turn sends a joint on the right up or down with the pixel that shows it; mm stay mm."""
    image, joints = torch.zeros(1, 1, 9, 9), torch.tensor([[[0.0, 0.0, 0.0], [30.0, 0.0, 7.0]]])
    image[0, 0, 4, 7] = 1  # to the right of the centre
    for draw in (0.0, 1.0):
        forced_draws[:] = [0.9, draw, 0.9, 0.5, 0.5]
        batch = {"input": image, "target": joints, "name": []}
        moved = RandomAffineJoints(rotation=90, scale=0.01)(batch, np.arange(1), SEED)
        row = int(moved["input"][0, 0, :, 4].argmax())
        assert row in (1, 7)
        expected = torch.tensor([0.0, -30.0 if row == 1 else 30.0, 7.0])
        assert torch.allclose(moved["target"][0, 1], expected, atol=1e-4)


def test_certain_flip_mirrors_joints() -> None:
    batch = joints_batch(images(4))
    moved = RandomAffineJoints(flip=1)(batch, np.arange(4), SEED)
    assert torch.equal(moved["target"], batch["target"] * torch.tensor([-1.0, 1.0, 1.0]))
    assert torch.allclose(moved["input"], batch["input"].flip(-1), atol=2e-6)


def test_joints_leave_the_image_to_random_affine() -> None:
    inputs = images(12, 3)
    arguments = {"flip": 0.5, "rotation": 30, "scale": 0.2, "shift": 0.1}
    moved = RandomAffineJoints(**arguments)(joints_batch(inputs), np.arange(12), SEED)["input"]
    assert torch.equal(moved, apply(RandomAffine(**arguments), inputs)["input"])


def test_joints_are_not_flipped_unless_asked() -> None:
    batch = joints_batch(images(64))
    assert torch.equal(RandomAffineJoints()(batch, np.arange(64), SEED)["target"], batch["target"])


def test_targets_that_are_no_joints_are_refused() -> None:
    for target in (torch.arange(4), torch.zeros(4, 21, 2), torch.zeros(4, 21, 3, dtype=torch.int64)):
        with pytest.raises(UserError, match=r"random_affine_joints: targets must be joints \(B, J, 3\)"):
            RandomAffineJoints()({**batch_of(images(4)), "target": target}, np.arange(4), SEED)


@pytest.mark.parametrize("shape", [(4, 21, 3), (4, 1, 12, 12)])
def test_targets_with_places_do_not_stay_behind(shape: tuple[int, ...]) -> None:
    """Joints and images to restore; class ids, mixed ones and vectors have no places."""
    with pytest.raises(UserError, match=r"random_affine: targets .* use random_affine_joints"):
        RandomAffine()({**batch_of(images(4)), "target": torch.zeros(shape)}, np.arange(4), SEED)
    for allowed in (torch.zeros(4, 7), torch.zeros(4)):
        RandomAffine()({**batch_of(images(4)), "target": allowed}, np.arange(4), SEED)


@pytest.mark.parametrize("name", ["affine", "joints", "brightness", "colour", "erasing"])
@pytest.mark.parametrize("shape", [(4, 64), (4, 3, 16)])
def test_what_is_for_images_refuses_other_inputs(name: str, shape: tuple[int, ...]) -> None:
    batch = {**batch_for(name, images(4)), "input": torch.rand(shape)}
    with pytest.raises(UserError, match=re.escape(f"inputs must be images (B, C, H, W), and these are {shape}")):
        RANDOM[name](batch, np.arange(4), SEED)


# Colour.


def test_no_colour_jitter_is_the_identity() -> None:
    inputs = images(5, 3)
    assert torch.allclose(apply(ColourJitter(0, 0), inputs)["input"], inputs, atol=1e-6)


def test_gains_of_grey_images_are_those_of_the_channels() -> None:
    """Three independent gains within their bounds, balanced between more and less."""
    inputs = torch.full((2000, 3, 2, 2), 0.4)
    gains = (apply(ColourJitter(gain=0.5, saturation=0), inputs)["input"] / 0.4).mean(dim=(2, 3)).double().numpy()
    for channel in gains.T:
        assert stats.kstest(np.log(channel), "uniform", args=(-math.log(1.5), 2 * math.log(1.5))).pvalue > 1e-3
    assert np.abs(np.corrcoef(gains.T) - np.eye(3)).max() < 0.1


def test_saturation_keeps_the_luma_and_stretches_colours() -> None:
    """Luma by OpenCV; grey stays grey."""
    inputs = same_image(500, channels=3) * 0.2 + 0.4
    changed = apply(ColourJitter(gain=0, saturation=0.5), inputs)["input"]
    luma = [cv2.cvtColor(each[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for each in (inputs, changed)]
    assert np.allclose(luma[0], luma[1], atol=1e-4)
    spread = [(each - each.mean(dim=1, keepdim=True)).abs().mean(dim=(1, 2, 3)) for each in (changed, inputs)]
    factors = (spread[0] / spread[1]).double().numpy()
    assert stats.kstest(np.log(factors), "uniform", args=(-math.log(1.5), 2 * math.log(1.5))).pvalue > 1e-3
    grey = torch.full((8, 3, 4, 4), 0.3)
    assert torch.allclose(apply(ColourJitter(0, 0.5), grey)["input"], grey, atol=1e-6)


def test_colours_stay_within_the_range_of_images() -> None:
    changed = apply(ColourJitter(3, 3), images(100, 3))["input"]
    assert changed.min() == 0
    assert changed.max() == 1


def test_colour_jitter_of_grey_images_is_refused() -> None:
    with pytest.raises(UserError, match="colour_jitter: images must have 3 channels"):
        ColourJitter()(batch_of(images(4)), np.arange(4), SEED)


# Brightness and contrast.


def test_no_brightness_and_contrast_is_the_identity() -> None:
    inputs = images(5, 3)
    assert torch.allclose(apply(BrightnessContrast(0, 0), inputs)["input"], inputs, atol=1e-6)


def test_brightness_moves_the_mean_within_its_bounds() -> None:
    inputs = same_image(1000) * 0.2 + 0.4
    changed = apply(BrightnessContrast(brightness=0.3, contrast=0), inputs)["input"]
    offsets = (changed - inputs).mean(dim=(1, 2, 3)).double().numpy()
    assert np.abs(offsets).max() <= 0.3 + 1e-5
    assert stats.kstest(offsets, "uniform", args=(-0.3, 0.6)).pvalue > 1e-3
    assert (changed - inputs).std(dim=(1, 2, 3)).max() < 1e-6


def test_contrast_stretches_around_the_mean_within_its_bounds() -> None:
    inputs = same_image(1000) * 0.2 + 0.4
    changed = apply(BrightnessContrast(brightness=0, contrast=0.5), inputs)["input"]
    gains = (changed.std(dim=(1, 2, 3)) / inputs.std(dim=(1, 2, 3))).double().numpy()
    assert gains.min() >= 1 / 1.5 - 1e-4
    assert gains.max() <= 1.5 + 1e-4
    assert stats.kstest(np.log(gains), "uniform", args=(-math.log(1.5), 2 * math.log(1.5))).pvalue > 1e-3
    assert torch.allclose(changed.mean(dim=(1, 2, 3)), inputs.mean(dim=(1, 2, 3)), atol=1e-5)


def test_brightness_and_contrast_are_clipped_to_the_range_of_images() -> None:
    changed = apply(BrightnessContrast(1, 10), images(200))["input"]
    assert changed.min() == 0
    assert changed.max() == 1


# Erasing.


def erased(transform: RandomErasing, count: int = 2000, size: int = 32) -> NDArray[np.bool_]:
    """(count, size, size): which pixels were erased."""
    inputs = torch.zeros(count, 2, size, size)
    changed = apply(transform, inputs)["input"]
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert set(changed.unique().tolist()) <= {0.0, 0.5}
    return (changed[:, 0] != 0).numpy()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_so_many_images_are_erased(probability: float) -> None:
    mask = erased(RandomErasing(probability, area=(0.1, 0.2)))
    assert mask.any(axis=(1, 2)).mean() == pytest.approx(probability, abs=0.04)


def test_erased_is_one_rectangle_within_its_bounds() -> None:
    size, low, high, aspect = 64, 0.05, 0.25, 2.0
    mask = erased(RandomErasing(1.0, (low, high), aspect), 1000, size)
    rows, columns = mask.any(axis=2), mask.any(axis=1)
    heights, widths = rows.sum(axis=1), columns.sum(axis=1)
    assert np.array_equal(mask, rows[:, :, None] & columns[:, None, :])
    for extent in (rows, columns):
        assert (np.diff(extent.astype(int), axis=1, prepend=0) == 1).sum(axis=1).max() == 1
    # A side of s pixels covers the centres of s - 1 to s + 1 of them.
    assert ((heights - 1) * (widths - 1)).max() <= high * size**2
    assert ((heights + 1) * (widths + 1)).min() >= low * size**2
    assert ((heights - 1) / (widths + 1)).max() <= aspect
    assert ((widths - 1) / (heights + 1)).max() <= aspect
    areas = heights * widths / size**2
    assert areas.mean() == pytest.approx((low + high) / 2, abs=0.01)
    assert areas.min() < 0.07
    assert areas.max() > 0.23


def test_every_place_of_an_image_may_be_erased() -> None:
    share = erased(RandomErasing(1.0, (0.05, 0.25)), 3000, 16).mean(axis=0)
    assert share.min() > 0
    assert share[8, 8] < 0.5
    assert np.allclose(share, share[::-1], atol=0.06)
    assert np.allclose(share, share[:, ::-1], atol=0.06)


def test_no_area_erases_nothing_and_the_whole_area_everything() -> None:
    assert not erased(RandomErasing(1.0, (0, 0)), 50).any()
    assert erased(RandomErasing(1.0, (1, 1), aspect=1), 50).all()


# Normalisation and the pipeline.


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), ([0.4, 0.5, 0.6], [0.1, 0.2, 0.3]), (0, 1), (0.1, [1, 2, 3])])
@pytest.mark.parametrize("shape", [(4, 3, 12, 12), (4, 3), (3, 3, 9), (2, 3, 4, 5, 6)])
def test_normalize_by_hand(mean: Any, std: Any, shape: tuple[int, ...]) -> None:
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    shape = (1, -1, *[1] * (len(shape) - 2))
    expected = (inputs.numpy() - np.reshape(np.float32(mean), shape)) / np.reshape(np.float32(std), shape)
    assert np.allclose(apply(Normalize(mean, std), inputs)["input"].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("std", [0, -1.0, [0.1, 0.0, 0.1]])
def test_normalize_by_nothing_is_refused(std: Any) -> None:
    with pytest.raises(UserError, match=r"normalize\.std: .* greater than 0"):
        Normalize(0.5, std)


@pytest.mark.parametrize(("channels", "mean", "std", "named"), [
    (1, 0.5, [0.2, 0.3, 0.4], "normalize.std: 3 values for inputs of 1 channels"),
    (3, [0.5, 0.4], 0.2, "normalize.mean: 2 values for inputs of 3 channels"),
    (1, [0.5, 0.4, 0.3], 0.2, "normalize.mean: 3 values for inputs of 1 channels"),
])  # fmt: skip
def test_normalize_for_other_channels_is_refused(channels: int, mean: Any, std: Any, named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        apply(Normalize(mean, std), images(2, channels))


def test_a_transform_that_stands_twice_draws_twice() -> None:
    """Two flips of half of the images leave half of them; with the same draws they would leave all."""
    inputs, positions = same_image(400), np.arange(400)
    flip = RandomAffine(flip=0.5)
    once, twice = (Pipeline([flip] * n, SEED)(batch_of(inputs), positions)["input"] for n in (1, 2))
    assert torch.equal(once, flip(batch_of(inputs), positions, SEED)["input"])
    assert 150 < int(((twice - inputs).abs().amax(dim=(1, 2, 3)) > 1e-3).sum()) < 250
    again = Pipeline([flip, Normalize(0, 1), flip], SEED)(batch_of(inputs), positions)["input"]
    assert torch.equal(again, twice), "others in between do not matter"


def test_pipeline_scales_bytes_and_keeps_the_order() -> None:
    raw = batch_of(torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2) * 17)
    pipeline = Pipeline([Normalize(1.0, 1.0), Normalize(0.0, 2.0)], 0)
    expected = (raw["input"].numpy() / np.float32(255) - 1) / 2
    result = pipeline(raw, np.arange(4))
    assert np.allclose(result["input"].numpy(), expected, atol=1e-7)
    other = Pipeline([Normalize(0.0, 2.0), Normalize(1.0, 1.0)], 0)(raw, np.arange(4))
    assert not torch.equal(other["input"], result["input"])


@pytest.mark.parametrize(("shape", "divisor"), [((4, 3, 2, 2), 255), ((4, 2, 2), 1), ((4,), 1)])
def test_targets_that_are_images_are_scaled_with_them(shape: tuple[int, ...], divisor: int) -> None:
    """Masks and counts of one byte are no images."""
    target = torch.full(shape, 51, dtype=torch.uint8)
    raw = {"input": torch.zeros(4, 1, 2, 2, dtype=torch.uint8), "target": target, "name": []}
    result = Pipeline([], 0)(raw, np.arange(4))["target"]
    assert np.allclose(result.numpy(), 51 / divisor)
    assert result.is_floating_point() == (divisor > 1)


def test_pipeline_leaves_floats_as_they_are() -> None:
    inputs = images(2) * 300
    assert torch.equal(Pipeline([], 0)(batch_of(inputs), np.arange(2))["input"], inputs)


# Mixup.


def test_mixup_partner_is_the_neighbour() -> None:
    """Image k is all k: a mixed value between 2k and 2k + 1 tells the weight and the partner."""
    count = 12
    inputs = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    mixed = apply(Mixup(1.0, 7), inputs, first=40)
    values = mixed["input"][:, 0, 0, 0]
    weights = Mixup(1.0)._weights(np.arange(40, 40 + count), SEED)
    for row in range(count):
        partner = row ^ 1
        assert values[row].item() == pytest.approx(weights[row] * row + (1 - weights[row]) * partner, abs=1e-5)
        expected = np.zeros(7)
        expected[row % 7] += weights[row]
        expected[partner % 7] += 1 - weights[row]
        assert np.allclose(mixed["target"][row].numpy(), expected, atol=1e-6)
    assert 0.05 < weights.mean() < 0.95


def test_mixup_targets_are_distributions() -> None:
    target = apply(Mixup(0.3, 7), images(64))["target"]
    assert target.shape == (64, 7)
    assert torch.allclose(target.sum(dim=1), torch.ones(64), atol=1e-6)
    assert target.min() >= 0


def test_mixup_of_the_smallest_alpha_favours_no_side() -> None:
    weights = Mixup(0.001)._weights(np.arange(100_000), SEED)
    assert weights.mean() == pytest.approx(0.5, abs=0.006)  # four standard errors


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_mixup_weights_are_beta_distributed(alpha: float) -> None:
    weights = Mixup(alpha)._weights(np.arange(20_000), SEED).astype(np.float64)
    beta = stats.beta(alpha, alpha)
    lower = weights[weights < 0.5]  # near 1 the steps of float32 are coarser than the distribution
    assert stats.kstest(lower, lambda weight: 2 * beta.cdf(weight)).pvalue > 1e-3
    for weight in (0.5, 0.75, 0.9, 0.99):
        assert (weights <= weight).mean() == pytest.approx(beta.cdf(weight), abs=0.015)
    other = stats.beta(0.7 * alpha, 0.7 * alpha)
    assert stats.kstest(lower, lambda weight: 2 * other.cdf(weight)).pvalue < 1e-6, "the test would not notice"
    assert abs(np.corrcoef(weights[:-1], weights[1:])[0, 1]) < 0.03


def test_mixup_of_regression_targets() -> None:
    given = batch_of(images(8))
    given["target"] = torch.from_numpy(np.random.default_rng(1).normal(size=(8, 3, 2))).float()
    mixed = Mixup(0.5)(given, np.arange(8), SEED)
    weights = Mixup(0.5)._weights(np.arange(8), SEED).reshape(8, 1, 1)
    partners = given["target"].numpy()[[1, 0, 3, 2, 5, 4, 7, 6]]
    expected = weights * given["target"].numpy() + (1 - weights) * partners
    assert np.allclose(mixed["target"].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("count", "first"), [(7, 0), (1, 4), (8, 3)])
def test_mixup_of_an_odd_share_is_refused(count: int, first: int) -> None:
    with pytest.raises(UserError, match=r"mixup: .* multiple of 2 x ranks x G_accumulation_steps"):
        apply(Mixup(0.5, 7), images(count), first)


def test_mixup_of_ids_without_class_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"mixup: .* does not name its classes"):
        apply(Mixup(0.5), images(4))


# Arguments.


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("random_affine", {"flip": 1.5}, "random_affine.flip: 1.5"),
        ("random_affine", {"flip": -0.1}, "random_affine.flip: -0.1"),
        ("random_affine", {"rotation": 181}, "random_affine.rotation: 181"),
        ("random_affine", {"scale": -1}, "random_affine.scale: -1"),
        ("random_affine", {"shift": 2}, "random_affine.shift: 2"),
        ("brightness_contrast", {"brightness": 1.1}, "brightness_contrast.brightness: 1.1"),
        ("brightness_contrast", {"contrast": -0.5}, "brightness_contrast.contrast: -0.5"),
        ("random_affine_joints", {"rotation": 181}, "random_affine_joints.rotation: 181"),
        ("colour_jitter", {"gain": -0.5}, "colour_jitter.gain: -0.5"),
        ("colour_jitter", {"saturation": 11}, "colour_jitter.saturation: 11"),
        ("random_erasing", {"probability": 2}, "random_erasing.probability: 2"),
        ("random_erasing", {"area": [0.3, 0.1]}, "random_erasing.area[0]: 0.3"),
        ("random_erasing", {"area": [0.3, 1.1]}, "random_erasing.area[1]: 1.1"),
        ("random_erasing", {"aspect": 0.5}, "random_erasing.aspect: 0.5"),
        ("mixup", {"alpha": 0}, "mixup.alpha: 0"),
        ("mixup", {"alpha": 1e-4}, "mixup.alpha: 0.0001"),
        ("mixup", {"alpha": 1.5}, "mixup.alpha: 1.5"),
        ("mixup", {}, "alpha"),
        ("normalize", {"mean": 0.5}, "std"),
        ("random_affine", {"flipp": 0.5}, "flipp"),
        ("random_affine", {"flip": "0.5"}, "flip"),
    ],
)
def test_bad_argument_is_named(name: str, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        TRANSFORMS.build(name, arguments)
    assert named in str(caught.value)
    assert name in str(caught.value)


def test_which_transforms_are_random() -> None:
    assert [name for name in TRANSFORMS if not TRANSFORMS[name].is_random] == ["normalize"]  # type: ignore[attr-defined]
