"""Grey 48 x 48 faces with the seven expressions of FER2013, drawn from scratch and written in its official CSV form."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.face_canvas import Camera, light, photograph
from data.face_parts import Expression, Look, sketch_face
from data.fer2013_faces import EMOTIONS, SPLITS, Split
from utils.utils_error import check_whole_number
from utils.utils_file import atomic_write, make_room_for

DRAWING_VERSION = 1  # raise it when a pixel changes: it is part of the file name, so no stale file is reused
MAX_FACES = 1_000_000
PIXEL_TEXT = np.array([b"%d " % value for value in range(256)], dtype="S4")

logger = logging.getLogger("longhaul")

# Each emotion with the ways people show it, after the action units of Ekman and Friesen's Facial Action Coding System.
GLARE = Expression(brow_inner=-0.17, brow_middle=-0.08, brow_outer=0.06, brow_together=0.07, lid_upper=-0.3,
                   lid_lower=0.4, lid_slant=-0.05, frown=1.0)  # fmt: skip
WRINKLE = Expression(brow_inner=-0.09, brow_middle=-0.08, brow_outer=-0.05, brow_together=0.04, lid_upper=-0.45,
                     lid_lower=0.8, corner=-0.07, stretch=-0.03, upper_lip=0.07, sneer=0.1, cheek=0.9,
                     nose_wrinkle=1.0)  # fmt: skip
DREAD = Expression(brow_inner=0.15, brow_middle=0.07, brow_outer=-0.01, brow_together=0.05, lid_upper=0.55,
                   lid_lower=-0.3, lid_slant=0.02, corner=-0.05, stretch=0.1, square=0.75, forehead=0.8)  # fmt: skip
SMILE = Expression(brow_middle=0.03, lid_upper=-0.2, lid_lower=1.1, corner=0.16, stretch=0.12, press=0.2, cheek=0.9)
GRIEF = Expression(brow_inner=0.13, brow_outer=-0.08, brow_together=0.03, lid_upper=-0.35, lid_slant=0.075,
                   corner=-0.14, stretch=-0.04, forehead=0.3, frown=0.3)  # fmt: skip
WONDER = Expression(brow_inner=0.13, brow_middle=0.2, brow_outer=0.12, brow_together=-0.01, lid_upper=0.6,
                    lid_lower=-0.35, stretch=-0.12, square=0.3, forehead=0.7)  # fmt: skip
EXPRESSIONS: tuple[tuple[Expression, ...], ...] = (
    (  # angry: lips pressed, or square around clenched teeth
        GLARE._replace(corner=-0.06, stretch=-0.05, press=0.7),
        GLARE._replace(corner=-0.03, stretch=0.02, gape=0.19, square=1.0, teeth=0.9, cheek=0.4),
    ),
    (  # disgust: teeth bared on one side, or lips closed
        WRINKLE._replace(gape=0.06, teeth=0.7, frown=0.3),
        WRINKLE._replace(corner=-0.1, press=0.2),
    ),
    (  # fear: mouth stretched over the teeth, or open
        DREAD._replace(gape=0.1, teeth=0.45, jaw=0.03),
        DREAD._replace(gape=0.16, teeth=0.15, jaw=0.06),
    ),
    (  # happy: a smile, a grin, a laugh
        SMILE,
        SMILE._replace(gape=0.14, teeth=0.85),
        SMILE._replace(gape=0.24, teeth=0.45, jaw=0.06),
    ),
    (  # sad: moping, or sulking with the lower lip pushed out and the eyes half closed
        GRIEF,
        GRIEF._replace(lid_upper=-0.5, lid_lower=0.1, press=-0.25),
    ),
    (  # surprise: the jaw drops, or half of that
        WONDER._replace(gape=0.36, jaw=0.16),
        WONDER._replace(gape=0.24, stretch=-0.14, jaw=0.1),
    ),
    (Expression(),),  # neutral
)
# No two faces rest alike: standard deviations, whatever the emotion.
JITTER = Expression(brow_inner=0.022, brow_middle=0.022, brow_outer=0.022, brow_together=0.012, lid_upper=0.1,
                    lid_lower=0.12, lid_slant=0.012, corner=0.018, stretch=0.02, gape=0.012, square=0.05,
                    upper_lip=0.008, sneer=0.008, press=0.1, cheek=0.1, frown=0.1, nose_wrinkle=0.06,
                    forehead=0.1)  # fmt: skip

UPPER_FACE = np.array([name.startswith(("brow", "lid", "frown", "forehead")) for name in Expression._fields])

LOOK_RANGES: dict[str, tuple[float, float]] = {
    "head_width": (0.68, 0.8),
    "jaw_taper": (0.1, 0.34),
    "eye_distance": (0.29, 0.36),
    "eye_width": (0.15, 0.19),
    "eye_height": (0.075, 0.11),
    "eye_y": (-0.2, -0.12),
    "brow_gap": (0.19, 0.25),
    "brow_arch": (0.02, 0.08),
    "brow_thickness": (0.035, 0.085),
    "nose_width": (0.12, 0.19),
    "nose_y": (0.2, 0.28),
    "mouth_y": (0.5, 0.58),
    "mouth_width": (0.25, 0.33),
    "lip_thickness": (0.05, 0.1),
    "skin": (95.0, 215.0),
    "hair": (0.12, 0.75),
    "lips": (0.6, 0.85),
    "iris": (25.0, 95.0),
    "age": (0.0, 0.6),
    "gaze": (-1.0, 1.0),
    "hairline": (-0.78, -0.52),
    "parting": (-0.8, 0.8),
    "hair_volume": (0.06, 0.22),
    "hair_length": (-0.6, 1.3),
    "beard": (-4.0, 1.0),
    "glasses": (0.0, 1.0),
    "background": (15.0, 240.0),
    "wall": (15.0, 240.0),
    "wall_edge": (-2.0, 2.0),
    "clothes": (20.0, 230.0),
}
LOOK_LOW, LOOK_HIGH = np.array([LOOK_RANGES[name] for name in Look._fields]).T
SHARE_WITH_GLASSES = 0.08


def pull_muscles(ways: tuple[Expression, ...], rng: np.random.Generator) -> Expression:
    """One of the ways to show an emotion, more or less strongly, on a face that has its own way to rest."""
    way, right = ways[int(rng.random() * len(ways))], rng.random() < 0.5
    both, eyes, mouth = rng.uniform(0.4, 1.1, size=3)  # eyes and mouth seldom agree fully
    muscles = (0.6 * both + 0.4 * np.where(UPPER_FACE, eyes, mouth)) * way
    muscles += np.clip(rng.standard_normal(len(JITTER)), -2, 2) * JITTER
    face = Expression._make(muscles.tolist())
    return face._replace(sneer=face.sneer if right else -face.sneer)


def draw_face(emotion: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A (48, 48) uint8 face with the expression `emotion`, 0 to 6.

    Equal generators give one person in one pose under one lamp, whatever the emotion.
    """
    look = Look._make(rng.uniform(LOOK_LOW, LOOK_HIGH).tolist())
    look = look._replace(glasses=look.glasses < SHARE_WITH_GLASSES)
    yaw, pitch, roll, x, y = np.clip(rng.standard_normal(5), -2, 2) * (0.22, 0.12, 0.14, 1.5, 1.5)
    camera = Camera(yaw, pitch, roll, rng.uniform(20.0, 25.5), 23.5 + x, 23.0 + y)
    face = pull_muscles(EXPRESSIONS[emotion], rng)
    picture = sketch_face(look, face).render(camera, look.background)
    azimuth, height, ambient = rng.uniform((-1.1, -0.3, 0.35), (1.1, 0.8, 0.75))
    brightness, contrast, blur, noise = rng.uniform((90.0, 36.0, 0.2, 1.0), (155.0, 64.0, 0.7, 5.0))
    return photograph(light(picture, camera, azimuth, height, ambient), brightness, contrast, blur, noise, rng)


def labelled_face(seed: int, usage: Split, index: int) -> tuple[int, NDArray[np.uint8]]:
    """Emotion and (48, 48) uint8 face number `index` of a split; a function of these three, so no split shares any."""
    rng = np.random.default_rng([seed, SPLITS.index(usage), index])
    emotion = int(rng.integers(len(EMOTIONS)))
    return emotion, draw_face(emotion, rng)


def write_synthetic_faces(
    folder: Path,
    num_training: int = 10_000,
    num_public_test: int = 1_400,
    num_private_test: int = 1_400,
    seed: int = 0,
) -> Path:
    """Write the faces as `emotion,pixels,Usage` into `folder` and return the file.

    Its name holds all the arguments and the drawing's version, and it appears whole or not at all: if it is there, it
    is reused.
    """
    counts = {"num_training": num_training, "num_public_test": num_public_test, "num_private_test": num_private_test}
    for name, value in counts.items():
        check_whole_number(f"synthetic faces: {name}", value, 1, MAX_FACES)
    check_whole_number("synthetic faces: seed", seed, 0, 2**63 - 1)
    numbers = "_".join(str(value) for value in counts.values())
    path = Path(folder) / f"synthetic_faces_v{DRAWING_VERSION}_{numbers}_seed{seed}.csv"
    if path.is_file():
        return path
    logger.info("drawing %s synthetic faces into %s", f"{sum(counts.values()):,}", path)
    make_room_for(path)
    with atomic_write(path) as file:
        file.write(b"emotion,pixels,Usage\n")
        for usage, num_faces in zip(SPLITS, counts.values(), strict=True):
            for index in range(num_faces):
                emotion, face = labelled_face(seed, usage, index)
                pixels = PIXEL_TEXT[face].tobytes().replace(b"\0", b"").rstrip()
                file.write(b"%d,%s,%s\n" % (emotion, pixels, usage.encode()))
    return path
