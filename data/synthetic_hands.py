"""Generated right hands in FreiHAND's layout: a jointed skeleton, drawn from any side before any background."""

import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.dataset_freihand import METRES_TO_MM, VERSIONS
from data.hand_canvas import IMAGE_SIZE, Surface, hand_cones, ray_cast
from data.hand_photo import draw_light, draw_tints, green_screen, photograph, scene, shade
from data.hand_skeleton import Vectors, draw_skeleton, turn_x, turn_y, turn_z
from utils.utils_error import check_whole_number
from utils.utils_file import fsync_directory, fsync_tree, make_room_for, temporary_path

DRAWING_VERSION = 1  # raise it when a pixel or a joint changes: it is part of the folder's name
PARTS = ("training", "evaluation")
MAX_HANDS = 100_000
MIDDLE_MCP, MIDDLE_PIP = 9, 10  # the ends of FreiHAND's reference bone
JPEG_QUALITY = 92
GREEN_SHARE = 0.5  # of the evaluation images, which FreiHAND took with and without a green screen
MIN_DISTANCE = 450.0  # mm: a forearm that points at the camera ends before it
UPRIGHT = np.diag([1.0, -1.0, -1.0])  # fingers up, palm to the camera

logger = logging.getLogger("longhaul")


class Hand(NamedTuple):
    """joints_mm (21, 3) in camera coordinates, intrinsics (3, 3) in pixels, and what a camera sees of it."""

    joints_mm: Vectors
    intrinsics: NDArray[np.float64]
    surface: Surface


def draw_hand(seed: int, part: str, number: int) -> Hand:
    """Hand `number` of a part, a function of these three: one pose before one camera."""
    rng = np.random.default_rng([seed, PARTS.index(part), number])
    skeleton = draw_skeleton(rng)
    rotation = _draw_view(rng)
    focal = rng.uniform(420.0, 560.0)
    centre = IMAGE_SIZE / 2 + rng.uniform(-3.0, 3.0, 2)
    turned = skeleton.joints @ rotation.T
    extent = np.ptp(turned[:, :2], axis=0).max()
    middle = (turned.min(axis=0) + turned.max(axis=0)) / 2
    # So far away that the hand fills this share of the image, and about in the middle of it.
    distance = max(focal * extent / (IMAGE_SIZE * rng.uniform(0.5, 0.72)), MIN_DISTANCE)
    aside = rng.uniform(-0.07, 0.07, 2) * IMAGE_SIZE * distance / focal
    place = np.array([*(aside - middle[:2]), distance - middle[2]])
    cones = hand_cones(skeleton, rng.uniform(0.88, 1.12)).seen(rotation, place)
    intrinsics = np.array([(focal, 0.0, centre[0]), (0.0, focal, centre[1]), (0.0, 0.0, 1.0)])
    return Hand(turned + place, intrinsics, ray_cast(cones, focal, (centre[0], centre[1])))


def _draw_view(rng: np.random.Generator) -> NDArray[np.float64]:
    """Hand to camera coordinates (3, 3): from any side but nearly along the arm, and mostly upright."""
    yaw, pitch = rng.uniform(-np.pi, np.pi), np.arcsin(rng.uniform(-0.8, 0.8))
    roll = np.clip(rng.standard_normal(), -2.5, 2.5) * np.radians(40.0)
    return turn_z(roll) @ turn_x(pitch) @ UPRIGHT @ turn_y(yaw)


def draw_photo(hand: Hand, seed: int, part: str, number: int, version: int) -> NDArray[np.uint8]:
    """(224, 224, 3) RGB: the hand with the skin, light and background of a version; version 0 has a green screen."""
    rng = np.random.default_rng([seed, PARTS.index(part), number, version])
    lit = shade(hand.surface, draw_tints(rng), draw_light(rng))
    is_green = version == 0 if part == "training" else rng.random() < GREEN_SHARE
    return photograph(lit, hand.surface.coverage, green_screen(rng) if is_green else scene(rng), rng)


def write_synthetic_hands(folder: Path, num_training: int = 1_500, num_evaluation: int = 200, seed: int = 0) -> Path:
    """Write so many hands into a folder in `folder` and return it; a training hand has four images.

    Its name holds all the arguments and the drawing's version, and it appears whole or not at all: if it is there, it
    is reused.
    """
    check_whole_number("synthetic hands: num_training", num_training, 2, MAX_HANDS)
    check_whole_number("synthetic hands: num_evaluation", num_evaluation, 1, MAX_HANDS)
    check_whole_number("synthetic hands: seed", seed, 0, 2**63 - 1)
    path = Path(folder) / f"synthetic_hands_v{DRAWING_VERSION}_{num_training}_{num_evaluation}_seed{seed}"
    if path.is_dir():
        return path
    num_images = num_training * len(VERSIONS) + num_evaluation
    logger.info("drawing %s images of synthetic hands into %s", f"{num_images:,}", path)
    make_room_for(path)
    temporary = temporary_path(path)
    try:
        for part, num_hands in zip(PARTS, (num_training, num_evaluation), strict=True):
            _write_part(temporary, part, num_hands, seed)
        fsync_tree(temporary)
        temporary.rename(path)
    except OSError:
        if not path.is_dir():  # nobody else has written the same in the meantime
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_directory(path.parent)
    return path


def _write_part(folder: Path, part: str, num_hands: int, seed: int) -> None:
    images = folder / part / "rgb"
    images.mkdir(parents=True)
    hands = []
    for number in range(num_hands):
        hand = draw_hand(seed, part, number)
        hands.append((hand.joints_mm / METRES_TO_MM, hand.intrinsics))
        for version in range(len(VERSIONS) if part == "training" else 1):
            photo = draw_photo(hand, seed, part, number, version)
            _, data = cv2.imencode(".jpg", photo[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            (images / f"{version * num_hands + number:08d}.jpg").write_bytes(data.tobytes())
    annotations = {
        "xyz": [joints.tolist() for joints, _ in hands],
        "K": [intrinsics.tolist() for _, intrinsics in hands],
        "scale": [float(np.linalg.norm(joints[MIDDLE_PIP] - joints[MIDDLE_MCP])) for joints, _ in hands],
    }
    for kind, values in annotations.items():
        (folder / f"{part}_{kind}.json").write_text(json.dumps(values), encoding="utf-8")
