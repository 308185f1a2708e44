"""The generated hands: FreiHAND's layout, right hands that bend as hands do, drawn where their joints say."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data import synthetic_hands
from data.dataset_freihand import SPLITS, VERSIONS, FreiHand
from data.hand_canvas import Cones, Surface, hand_cones, ray_cast
from data.hand_skeleton import draw_pose, pose_skeleton
from data.synthetic_hands import Hand, draw_hand, draw_photo, write_synthetic_hands
from utils.utils_error import UserError

FEW = {"num_training": 3, "num_evaluation": 2}
PROXIMAL, MIDDLE, DISTAL = (np.array([first + 4 * finger for finger in range(1, 5)]) for first in (1, 2, 3))


@pytest.fixture(scope="module")
def hands() -> list[Hand]:
    return [draw_hand(0, "training", number) for number in range(30)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_hands(tmp_path_factory.mktemp("hands"), **FEW)


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of each file, without the hash of the images that a data set has cached beside them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".txt")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def pixels(hand: Hand) -> NDArray[np.float64]:
    """(21, 2), by the formula of FreiHAND's own tools."""
    seen = hand.joints_mm @ hand.intrinsics.T
    return seen[:, :2] / seen[:, 2:]


def share_on(surface: Surface, places: NDArray[np.float64]) -> float:
    """The fraction of places (N, 2), in pixels, that the hand covers."""
    column, row = np.clip(np.floor(places), 0, 223).astype(int).T
    return float((surface.coverage[row, column] > 0.5).mean())


# The files.


def test_the_folder_is_in_the_official_layout(written: Path) -> None:
    names = {f"{part}_{kind}.json" for part in ("training", "evaluation") for kind in ("xyz", "K", "scale")}
    names |= {f"training/rgb/{file:08d}.jpg" for file in range(12)} | {f"evaluation/rgb/{i:08d}.jpg" for i in range(2)}
    assert set(content(written)) == names
    for part, num in (("training", 3), ("evaluation", 2)):
        xyz, intrinsics, scale = (
            json.loads((written / f"{part}_{kind}.json").read_text()) for kind in ("xyz", "K", "scale")
        )
        assert np.shape(xyz) == (num, 21, 3)
        assert np.shape(intrinsics) == (num, 3, 3)
        assert np.allclose(scale, np.linalg.norm(np.subtract(xyz, np.roll(xyz, -1, axis=1))[:, 9], axis=1))
        assert np.array(xyz)[..., 2].min() > 0.25, "metres in front of the camera"
        assert np.array(xyz)[..., 2].max() < 1.5
    for path in written.rglob("*.jpg"):
        image = cv2.imread(str(path))
        assert image is not None
        assert image.shape == (224, 224, 3)


def test_the_files_hold_the_drawn_hands(written: Path) -> None:
    dataset = FreiHand(str(written), "train", size=224, versions=["hom"])
    hand = draw_hand(0, "training", 1)
    expected = hand.joints_mm - hand.joints_mm[0]
    sample: Any = dataset[1]
    assert np.allclose(sample["target"].numpy(), expected, atol=1e-3)
    error = sample["input"].numpy().transpose(1, 2, 0) - draw_photo(hand, 0, "training", 1, 1).astype(float)
    assert np.abs(error).mean() < 4, "more than what a JPEG loses"


@pytest.mark.parametrize("split", SPLITS)
def test_the_data_set_opens_it(written: Path, split: Any) -> None:
    dataset = FreiHand(str(written), split)
    assert FreiHand.is_available(str(written))
    assert len(dataset) == {"train": 8, "val": 1, "evaluation": 2}[split]
    assert len({dataset[i]["input"].numpy().tobytes() for i in range(len(dataset))}) == len(dataset)  # type: ignore[union-attr]


def test_equal_arguments_give_equal_bytes_and_another_seed_other_ones(written: Path, tmp_path: Path) -> None:
    again, other = write_synthetic_hands(tmp_path, **FEW), write_synthetic_hands(tmp_path, **FEW, seed=1)
    assert content(again) == content(written)
    assert again.name == written.name != other.name
    assert not set(content(other).values()) & set(content(written).values())


def test_a_larger_set_begins_with_the_smaller_one(written: Path, tmp_path: Path) -> None:
    small, large = content(written), content(write_synthetic_hands(tmp_path, num_training=4, num_evaluation=3))
    for version in range(4):
        for number in range(3):
            file, moved = (f"training/rgb/{version * num + number:08d}.jpg" for num in (3, 4))
            assert small[file] == large[moved]
    assert json.loads(small["evaluation_xyz.json"]) == json.loads(large["evaluation_xyz.json"])[:2]


def test_a_folder_that_is_there_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_synthetic_hands(tmp_path, **FEW)
    monkeypatch.setattr(synthetic_hands, "draw_hand", None)
    assert write_synthetic_hands(tmp_path, **FEW) == path


@pytest.mark.parametrize("change", [{"num_training": 4}, {"num_evaluation": 1}, {"seed": 1}])
def test_other_arguments_get_another_folder(written: Path, tmp_path: Path, change: dict[str, int]) -> None:
    assert write_synthetic_hands(tmp_path, **{**FEW, **change}).name != written.name


def test_a_changed_drawing_gets_another_folder(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_hands, "DRAWING_VERSION", synthetic_hands.DRAWING_VERSION + 1)
    assert write_synthetic_hands(tmp_path, **FEW).name != written.name


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seed: int, part: str, number: int) -> Hand:
        if part == "evaluation":
            raise KeyboardInterrupt
        return draw_hand(seed, part, number)

    monkeypatch.setattr(synthetic_hands, "draw_hand", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_hands(tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_no_data_set_and_in_nobodys_way(written: Path, tmp_path: Path) -> None:
    left = tmp_path / f".{written.name}.4711-0a1b.tmp"
    (left / "training/rgb").mkdir(parents=True)
    (left / "training/rgb/half.jpg").write_bytes(b"half")
    days_old = left.with_name(f".{written.name}.4712.tmp")
    days_old.mkdir()
    os.utime(days_old, (0, 0))
    assert content(write_synthetic_hands(tmp_path, **FEW)) == content(written)
    assert {path.name for path in tmp_path.iterdir()} == {written.name, left.name}


def test_all_files_are_durable_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recording_fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def checking_rename(path: Path, target: Path) -> Path:
        assert {each.name for each in path.rglob("*")} <= set(synced)
        assert path.name in synced
        synced.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "rename", checking_rename)
    write_synthetic_hands(tmp_path, **FEW)
    assert synced.count("renamed") == 1


def test_two_writers_at_once_end_with_one_whole_folder(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(seed: int, part: str, number: int) -> Hand:
        monkeypatch.setattr(synthetic_hands, "draw_hand", draw_hand)
        monkeypatch.setattr(synthetic_hands, "temporary_path", lambda path: path.with_name("other"))
        write_synthetic_hands(tmp_path, **FEW)
        return draw_hand(seed, part, number)

    monkeypatch.setattr(synthetic_hands, "draw_hand", overtaken)
    assert content(write_synthetic_hands(tmp_path, **FEW)) == content(written)
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_training", 1),
        ("num_training", 10_000_000),
        ("num_evaluation", 0),
        ("num_evaluation", 2.5),
        ("num_evaluation", True),
        ("seed", -1),
        ("seed", "0"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        write_synthetic_hands(tmp_path, **{**FEW, name: value})
    assert f"{name}: {value!r} is not a whole number from" in str(error.value)
    assert list(tmp_path.iterdir()) == []


# The skeleton, measured from the joints alone.


def angles(joints: NDArray[np.float64], inner: NDArray[np.int64]) -> NDArray[np.float64]:
    """Degrees between the bones that meet at the joints `inner`, whose neighbours have the next indices."""
    before, after = joints[inner] - joints[inner - 1], joints[inner + 1] - joints[inner]
    return np.degrees(np.arccos(np.clip((unit(before) * unit(after)).sum(axis=1), -1, 1)))


def test_all_are_right_hands(hands: list[Hand]) -> None:
    """Fingers curl into the palm: by the right-hand rule about an axis that points to the thumb's side."""
    num_bent = 0
    for hand in hands:
        joints = hand.joints_mm
        axes = np.cross(joints[MIDDLE] - joints[PROXIMAL], joints[DISTAL] - joints[MIDDLE])
        bent = angles(joints, MIDDLE) > 5
        assert (axes[bent] @ (joints[5] - joints[17]) > 0).all()
        num_bent += bent.sum()
    assert num_bent > 60


def test_joints_bend_within_anatomical_limits_and_the_last_two_together(hands: list[Hand]) -> None:
    middle = np.array([angles(hand.joints_mm, MIDDLE) for hand in hands])
    last = np.array([angles(hand.joints_mm, DISTAL) for hand in hands])
    assert middle.max() <= 100.01
    assert middle.max() > 80, "no fist among them"
    assert middle.min() < 10, "no open hand among them"
    assert np.allclose(last, middle * 2 / 3, atol=0.01)


def test_fingers_bend_in_one_plane(hands: list[Hand]) -> None:
    for hand in hands:
        for root in PROXIMAL:
            bones = unit(np.diff(hand.joints_mm[root : root + 4], axis=0))
            assert abs(np.linalg.det(bones)) < 1e-9


def test_bones_have_human_lengths_that_vary(hands: list[Hand]) -> None:
    """The middle finger of adults: 44.6, 26.3 and 17.4 + 4.0 mm (Buryanov and Kotiuk, 2010), up to 20 % either way."""
    lengths = np.array([np.linalg.norm(np.diff(hand.joints_mm[9:13], axis=0), axis=1) for hand in hands])
    assert (np.abs(lengths / (44.6, 26.3, 21.4) - 1) < 0.21).all()
    assert (lengths.std(axis=0) / lengths.mean(axis=0) > 0.03).all()
    wrist_to_knuckle = np.array([np.linalg.norm(hand.joints_mm[9] - hand.joints_mm[0]) for hand in hands])
    assert 75 < wrist_to_knuckle.min() < wrist_to_knuckle.max() < 115


def test_fingers_do_not_run_through_each_other(hands: list[Hand]) -> None:
    for hand in hands:
        tips = [hand.joints_mm[[2 + 4 * finger, 3 + 4 * finger, 4 + 4 * finger]] for finger in range(5)]
        for first in range(5):
            for second in range(first):
                apart = np.linalg.norm(tips[first][:, None] - tips[second][None], axis=-1)
                assert apart.min() > 10


def test_hands_are_seen_from_all_sides_and_lie_in_the_image(hands: list[Hand]) -> None:
    palms = []
    for hand in hands:
        places = pixels(hand)
        assert places.min() > 2
        assert places.max() < 222
        assert 70 < np.ptp(places, axis=0).max() < 200
        joints = hand.joints_mm
        palms.append(unit(np.cross(joints[5] - joints[0], joints[17] - joints[0])))
    assert (np.min(palms, axis=0) < -0.5).all()
    assert (np.max(palms, axis=0) > 0.5).all()


# The drawing.


def test_hands_are_drawn_where_their_joints_are(hands: list[Hand]) -> None:
    assert all(share_on(hand.surface, pixels(hand)) == 1 for hand in hands)
    wrong = [
        ("mirrored", np.array([-1.0, 1.0]), 224.0 * np.array([1.0, 0.0])),
        ("upside down", np.array([1.0, -1.0]), 224.0 * np.array([0.0, 1.0])),
        ("shifted by 8 pixels", np.ones(2), np.array([8.0, 0.0])),
    ]
    for what, factor, offset in wrong:
        assert np.mean([share_on(hand.surface, pixels(hand) * factor + offset) for hand in hands]) < 0.95, what


def test_no_joint_lies_in_front_of_the_skin(hands: list[Hand]) -> None:
    for hand in hands:
        column, row = np.floor(pixels(hand)).astype(int).T
        assert (hand.surface.depth[row, column] < hand.joints_mm[:, 2] + 1.0).all()


def cones(*rows: tuple[Any, Any, float, float]) -> Cones:
    first, second, r, s = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    no = np.zeros(len(rows), np.bool_)
    return Cones(first, second, r, s, np.tile((0.0, 0.0, 1.0), (len(rows), 1)), no, no)


def test_a_rounded_cone_is_the_union_of_the_balls_on_its_axis() -> None:
    """Against 1000 balls one by one, from several sides; also one that points at the camera."""
    rng = np.random.default_rng(0)
    for trial in range(4):
        first = np.array([0.0, 0.0, 500.0]) + rng.uniform(-40, 40, 3)
        second = first + (rng.uniform(-60, 60, 3) if trial else np.array([3.0, -2.0, 60.0]))
        r, s = rng.uniform(8, 25, 2) if trial else (12.0, 9.0)
        surface = ray_cast(cones((first, second, r, s)), 480.0, (112.0, 112.0))
        nearest = np.full((224, 224), np.inf)
        x, y = np.meshgrid((np.arange(224) + 0.5 - 112) / 480, (np.arange(224) + 0.5 - 112) / 480)
        square = x * x + y * y + 1
        for t in np.linspace(0, 1, 1000):
            centre, radius = first + t * (second - first), r + t * (s - r)
            along = x * centre[0] + y * centre[1] + centre[2]
            under = along * along - square * (centre @ centre - radius * radius)
            nearest = np.where(under >= 0, np.minimum(nearest, (along - np.sqrt(np.abs(under))) / square), nearest)
        inside = surface.coverage == 1
        assert inside.sum() > 200
        assert np.abs(surface.depth[inside] - nearest[inside]).max() < 1.0  # rays beside the pixel's centre
        assert np.median(np.abs(surface.depth[inside] - nearest[inside])) < 0.02
        assert abs(surface.coverage.sum() - np.isfinite(nearest).sum()) < 0.02 * inside.sum()


def test_what_is_nearer_hides_what_is_behind_it_in_any_order() -> None:
    near, far = ((-20, 0, 400), (20, 0, 400), 10.0, 10.0), ((0, -60, 600), (0, 60, 600), 20.0, 20.0)
    for order in ((near, far), (far, near)):
        depth = ray_cast(cones(*order), 480.0, (112.0, 112.0)).depth
        assert abs(depth[112, 112] - 390) < 0.5
        assert abs(depth[80, 112] - 581) < 3
    assert ray_cast(cones(far), 480.0, (112.0, 112.0)).depth[112, 112] > 575


def test_nearer_hands_look_larger() -> None:
    """By the inverse of the distance: it is a pinhole camera."""
    skeleton = pose_skeleton(draw_pose(np.random.default_rng(0)))
    areas = []
    for distance in (600.0, 1200.0):
        seen = hand_cones(skeleton, 1.0).seen(np.diag([1.0, -1.0, -1.0]), np.array([0.0, 0.0, distance]))
        areas.append(ray_cast(seen, 480.0, (112.0, 100.0)).coverage[:100].sum())
    assert areas[0] / areas[1] == pytest.approx(4, rel=0.15)


def test_the_versions_of_a_hand_differ_in_all_but_the_hand(hands: list[Hand]) -> None:
    photos = [draw_photo(hands[4], 0, "training", 4, version).astype(float) for version in range(len(VERSIONS))]
    for first in range(4):
        for second in range(first):
            assert np.abs(photos[first] - photos[second]).mean() > 10


def test_the_first_version_has_a_green_screen_and_the_others_seldom(hands: list[Hand]) -> None:
    def is_green(number: int, version: int) -> bool:
        red, green, blue = draw_photo(hands[number], 0, "training", number, version)[:12, :12].mean(axis=(0, 1))
        return bool(green > 1.3 * red and green > 1.3 * blue)

    assert all(is_green(number, 0) for number in range(12))
    assert sum(is_green(number, version) for number in range(12) for version in (1, 2, 3)) < 12


def test_hands_stand_out_from_their_background(hands: list[Hand]) -> None:
    """A picture of a hand, and not of its background alone: the silhouette is an edge."""
    contrasts = []
    for number, hand in enumerate(hands[:12]):
        photo = draw_photo(hand, 0, "training", number, 1).astype(float)
        inside = cv2.erode((hand.surface.coverage > 0.5).astype(np.uint8), np.ones((5, 5))) > 0
        outside = cv2.dilate((hand.surface.coverage > 0.5).astype(np.uint8), np.ones((9, 9))) == 0
        contrasts.append(np.abs(photo[inside].mean(axis=0) - photo[outside].mean(axis=0)).max())
    assert np.median(contrasts) > 20
