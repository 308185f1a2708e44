"""FER2013 as folders of images: train/<emotion>/, validation/<emotion>/, test/<emotion>/."""

import hashlib
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.fer2013_faces import EMOTIONS, SIDE, Faces, refuse
from utils.utils_error import UserError

SPLIT_FOLDERS = {
    "Training": ("train", "training"),
    "PublicTest": ("validation", "val", "valid", "publictest"),
    "PrivateTest": ("test", "privatetest"),
}
SYNONYMS = {
    "anger": "angry", "disgusted": "disgust", "fearful": "fear", "afraid": "fear", "happiness": "happy",
    "sadness": "sad", "surprised": "surprise", "neutrality": "neutral",
}  # fmt: skip
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # every build of OpenCV that pip installs reads them
REMEDY = "Replace or delete these files."

logger = logging.getLogger("longhaul")


def split_folders(root: Path) -> dict[str, list[Path]]:
    """For each split the folders of `root` that can be it, by name in any case."""
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    return {split: [f for f in folders if f.name.lower() in names] for split, names in SPLIT_FOLDERS.items()}


def find_split_folder(root: Path, split: str) -> Path:
    """The folder of `split`. Raises UserError if it is missing or there are two."""
    found = split_folders(root)
    if len(found[split]) == 1:
        return found[split][0]
    if len(found[split]) > 1:
        raise UserError(f"{root}: {' and '.join(f.name for f in found[split])} both are the {split} split; keep one")
    present = [folder.name for folders in found.values() for folder in folders]
    message = f"{root}: no folder {' or '.join(SPLIT_FOLDERS[split])} for the {split} split"
    message += f"; the folder has {', '.join(present)}. " if present else ". "
    if split == "PublicTest" and present:
        message += (
            "The common copy with train/ and test/ only has PublicTest and PrivateTest mixed in test/, so neither can "
            "be told from it: take the official fer2013.csv, or move images held out for validation to "
            f"{root.name}/validation/<emotion>/."
        )
    else:
        message += f"dataroot must be fer2013.csv, or a folder with {SPLIT_FOLDERS[split][0]}/<emotion>/*.jpg or *.png."
    raise UserError(message)


class ImageFolder:
    """The images of one split: `files` (relative to the data root), sorted by class folder and name, and `targets`.

    Raises UserError for an unknown class folder, and where there are no images; other files are counted in the log.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.files: list[str] = []
        self.targets: list[int] = []
        state, left_out = hashlib.sha256(), Counter[str]()
        for name, target in _class_folders(folder):
            for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if not entry.name.lower().endswith(EXTENSIONS):
                    left_out[Path(entry.name).suffix.lower()] += 1
                    continue
                self.files.append(f"{folder.name}/{name}/{entry.name}")
                self.targets.append(target)
                state.update(os.fsencode(f"{name}/{entry.name}\0{_state(entry)}\0"))
        if left_out:
            kinds = ", ".join(f"{number:,} {suffix or 'without a suffix'}" for suffix, number in left_out.most_common())
            logger.info("%s: left out, because they are not %s: %s", folder, ", ".join(EXTENSIONS), kinds)
        if not self.files:
            raise UserError(f"{folder}: no images {', '.join(EXTENSIONS)} in <emotion> folders ({', '.join(EMOTIONS)})")
        # Names, sizes and times, not the bytes: reading 30,000 files takes about as long as decoding them would. The
        # change time is among the times because a copy that keeps the modification time does not keep that one.
        self.key = state.hexdigest()

    def decode(self) -> Faces:
        """All images as 48x48 grey faces; `rows` index `files`. Raises UserError that names all unreadable ones."""
        from utils.utils_image_file import UnreadableError  # only who has folders pays for OpenCV

        faces = Faces.empty(len(self.files))
        problems = []
        for row, file in enumerate(self.files):
            try:
                faces.images[row, 0] = read_face(self.root / file)
            except UnreadableError as error:
                problems.append(f"{file}: {error}")
        if problems:
            raise refuse(self.root, "unreadable image", problems, REMEDY)
        faces.targets[:] = self.targets
        faces.rows[:] = np.arange(len(self.files))
        return faces


def _state(entry: os.DirEntry[str]) -> str:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere: it is named with the unreadable images
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _class_folders(folder: Path) -> list[tuple[str, int]]:
    """Names of the class folders with their targets, sorted. Raises UserError that names the unknown ones."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    emotions = {name: SYNONYMS.get(name.lower(), name.lower()) for name in names}
    if unknown := [name for name in names if emotions[name] not in EMOTIONS]:
        raise UserError(
            f"{folder}: unknown class folder {', '.join(unknown)}; allowed are {', '.join(EMOTIONS)} (or "
            f"{', '.join(SYNONYMS)}). Rename or remove it."
        )
    return [(name, EMOTIONS.index(emotions[name])) for name in names]


def read_face(path: Path) -> NDArray[np.uint8]:
    """(48, 48) grey values of an image of any size and kind. Raises UnreadableError."""
    import cv2

    from utils.utils_image_file import decode_file

    image = decode_file(path, cv2.IMREAD_GRAYSCALE)
    if image.shape != (SIDE, SIDE):
        shrinking = min(image.shape) >= SIDE
        image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    return np.asarray(image, np.uint8)
