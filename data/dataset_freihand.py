"""FreiHAND: photographs of right hands with 21 joints in 3D (Zimmermann et al., ICCV 2019), version 2."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from utils.utils_error import UserError
from utils.utils_file import cache_paths, sha256_of, write_cache
from utils.utils_image_file import UnreadableError, decode_file

Split = Literal["train", "val", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)
Version = Literal["gs", "hom", "sample", "auto"]
VERSIONS: tuple[Version, ...] = get_args(Version)  # image `number` of version v is file v * num_samples + number
FINGERS = ("thumb", "index", "middle", "ring", "little")
NUM_JOINTS = 1 + 4 * len(FINGERS)
JOINT_NAMES = ("wrist", *(
    f"{finger}_{joint}"
    for finger in FINGERS
    for joint in (("cmc", "mcp", "ip", "tip") if finger == "thumb" else ("mcp", "pip", "dip", "tip"))
))  # fmt: skip
IMAGE_SIZE = 224  # pixels
VAL_SHARE = 10
METRES_TO_MM = 1000.0

logger = logging.getLogger("longhaul")


class FreiHand:
    """Index -> {"input": uint8 (3, size, size) RGB, "target": float32 (21, 3) mm, "name": str}.

    Targets are camera coordinates (x right, y down, z away from the camera) relative to joint `root_joint_idx`;
    `joint_names` has their order. `dataroot` holds training/rgb/*.jpg, training_xyz.json and training_K.json, or the
    same of evaluation. "val" is the last tenth of the training samples and "train" the others: all versions of a hand
    are in one split, and so are neighbours, which may show it from another camera.
    versions: the backgrounds to use: "gs" (green screen, as photographed), "hom", "sample" and "auto" (composed);
    default: all of them for "train", "gs" for "val". Evaluation has "gs" alone.
    Images are decoded when they are asked for. For the fingerprint all are read once; their hash is cached beside the
    data. Raises UserError for missing or bad data.
    """

    joint_names = JOINT_NAMES
    final_split = "evaluation"
    view = "hand_pose"
    decoder = f"opencv {cv2.__version__}"

    def __init__(
        self,
        dataroot: str,
        split: Split,
        size: int = 128,
        root_joint_idx: int = 0,
        versions: Sequence[Version] | None = None,
    ) -> None:
        _check_arguments(split, size, root_joint_idx, versions)
        self._root, self._size, self._root_joint_idx = Path(dataroot), size, root_joint_idx
        self.netG_arguments = {"root_joint_idx": root_joint_idx}
        part = "evaluation" if split == "evaluation" else "training"
        xyz, intrinsics = (self._root / f"{part}_{kind}.json" for kind in ("xyz", "K"))
        self._joints_mm = _read(xyz, (NUM_JOINTS, 3)) * METRES_TO_MM
        self._intrinsics = _read(intrinsics, (3, 3))
        num_samples = len(self._joints_mm)
        if len(self._intrinsics) != num_samples:
            raise UserError(
                f"{intrinsics}: {len(self._intrinsics)} samples, but {xyz.name} has {num_samples}; "
                "they must come from one download"
            )
        samples = _samples_of(split, num_samples, xyz)
        self.sample_keys = frozenset(f"{part} {i}" for i in samples)  # of a hand, in whatever version
        chosen = versions or (VERSIONS if split == "train" else VERSIONS[:1])
        # (file, sample) of each index
        self._places = [(VERSIONS.index(each) * num_samples + i, i) for each in chosen for i in samples]
        self._files = [f"{part}/rgb/{file:08d}.jpg" for file, _ in self._places]
        images = _content_of(self._root, part, self._files, "-".join((split, *chosen)))
        content = f"{sha256_of(xyz)} {sha256_of(intrinsics)} {images} {size} {root_joint_idx}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    @staticmethod
    def input_shape(size: int = 128, **_others: Any) -> tuple[int, int, int]:
        """(C, H, W) of every input, by the arguments of the data set."""
        return 3, size, size

    @staticmethod
    def is_available(dataroot: str) -> bool:
        """Whether the folder has anything of FreiHAND; what it lacks is said when it is opened."""
        names = ("training", "training_xyz.json", "evaluation", "evaluation_xyz.json")
        return any((Path(dataroot) / name).exists() for name in names)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        image = _read_image(self._root / self._files[index], self._size)
        joints = self._joints_mm[self._places[index][1]]
        target = torch.from_numpy((joints - joints[self._root_joint_idx]).astype(np.float32))
        return {"input": torch.from_numpy(image), "target": target, "name": self.name(index)}

    def name(self, index: int) -> str:
        """The image below the data root, such as "training/rgb/00032560.jpg"."""
        return self._files[index]

    def camera(self, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What turns a target or an output into pixels: intrinsics (3, 3) of the resized image, the root (3,) in mm.

        A joint is seen where K @ (joint + root) points.
        """
        sample = self._places[index][1]
        shrunk = np.diag([self._size / IMAGE_SIZE, self._size / IMAGE_SIZE, 1.0])
        return shrunk @ self._intrinsics[sample], self._joints_mm[sample, self._root_joint_idx]


def _check_arguments(split: str, size: int, root_joint_idx: int, versions: Sequence[str] | None) -> None:
    if split not in SPLITS:
        raise UserError(f"FreiHAND: split {split!r} is unknown; allowed are {', '.join(SPLITS)}")
    if not 16 <= size <= IMAGE_SIZE:
        raise UserError(f"FreiHAND: size {size} is not allowed; it must lie between 16 and {IMAGE_SIZE} pixels")
    if not 0 <= root_joint_idx < NUM_JOINTS:
        raise UserError(f"FreiHAND: root_joint_idx {root_joint_idx} is not one of the joints 0 to {NUM_JOINTS - 1}")
    if versions is None:
        return
    if not versions or len(set(versions)) < len(versions) or not set(versions) <= set(VERSIONS):
        raise UserError(f"FreiHAND: versions {list(versions)} is not allowed; name some of {', '.join(VERSIONS)}, once")
    if split == "evaluation" and list(versions) != ["gs"]:
        raise UserError(f'FreiHAND: versions {list(versions)}: the evaluation split has "gs" alone; remove it')


def _samples_of(split: Split, num_samples: int, xyz: Path) -> range:
    if split == "evaluation":
        return range(num_samples)
    if num_samples < 2:
        raise UserError(f"{xyz}: {num_samples} samples; train and val need at least one each")
    num_train = num_samples - max(1, num_samples // VAL_SHARE)
    return range(num_train) if split == "train" else range(num_train, num_samples)


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """(N, *shape) finite numbers of an annotation file."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {_remedy(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is not whole JSON ({error}); unpack FreiHAND again") from None
    if not isinstance(values, list) or not values:
        raise UserError(f"{path}: is not a list of samples; unpack FreiHAND again")
    if (numbers := _finite_numbers(values, (len(values), *shape))) is not None:
        return numbers
    wrong = next(i for i, value in enumerate(values) if _finite_numbers(value, shape) is None)
    raise UserError(f"{path}: sample {wrong} is not {shape[0]} x {shape[1]} finite numbers; unpack FreiHAND again")


def _finite_numbers(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Nested lists as an array of this shape; None if they are of another one, or not all finite numbers."""
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        return None
    return numbers if numbers.shape == shape and np.isfinite(numbers).all() else None


def _remedy(path: Path) -> str:
    if path.name == "evaluation_xyz.json":
        return "FreiHAND published it after the images, as a download of its own (evaluation annotations)"
    return "dataroot must be the folder of FreiHAND v2, with training_xyz.json, training_K.json and training/rgb/"


def _content_of(root: Path, part: str, files: Sequence[str], name: str) -> str:
    """Hex SHA-256 of the images' bytes; from the cache `name` unless a file's name, size or time has changed."""
    key = json.dumps(list(zip(files, _file_states(root, part, files), strict=True)))
    source, name = root / part, f"{name}.cache.txt"
    for path in cache_paths(source, name):
        with contextlib.suppress(OSError, ValueError):  # none yet, or damaged
            content, seal = path.read_text(encoding="utf-8").split()
            if seal == _seal(content, key):
                return content
    logger.info("%s: reading %s images once; later launches take their hash from a cache", source, f"{len(files):,}")
    images = hashlib.sha256()
    for file in files:
        try:
            images.update(sha256_of(root / file).encode())
        except OSError as error:
            raise UserError(f"{root / file}: cannot be read: {error.strerror}") from None
    content = images.hexdigest()
    if failures := write_cache(source, name, lambda file: file.write(f"{content} {_seal(content, key)}\n".encode())):
        logger.warning("%s: going on without a cache, each launch reads them again: %s", source, "; ".join(failures))
    return content


def _seal(content: str, key: str) -> str:
    """What fits this hash of these files and no other."""
    return hashlib.sha256(f"{content} {key}".encode()).hexdigest()


def _file_states(root: Path, part: str, files: Sequence[str]) -> list[tuple[int, int, int]]:
    """Bytes, time of modification and of change of each file; UserError names the first that is missing.

    One scan: stating 130,240 by name takes longer.
    """
    folder = root / part / "rgb"
    try:
        with os.scandir(folder) as entries:
            stats = ((entry.name, entry.stat()) for entry in entries)
            found = {f"{part}/rgb/{name}": (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats}
    except OSError as error:
        raise UserError(f"{folder}: the images cannot be listed: {error.strerror}") from None
    missing = [file for file in files if file not in found]
    if missing:
        raise UserError(
            f"{root / missing[0]}: is missing ({len(missing)} of {len(files)} images are); "
            f"each version has one for every sample of {part}_xyz.json. Unpack FreiHAND again."
        )
    return [found[file] for file in files]


def _read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """(3, size, size) RGB. Raises UserError with the file and the reason."""
    try:
        image = decode_file(path, cv2.IMREAD_COLOR)
    except UnreadableError as error:
        raise UserError(f"{path}: {error}; unpack FreiHAND again") from error
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        height, width = image.shape[:2]
        raise UserError(f"{path}: {width} x {height} pixels, but images of FreiHAND have {IMAGE_SIZE} x {IMAGE_SIZE}")
    if size != IMAGE_SIZE:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1), np.uint8)  # OpenCV's order is BGR
