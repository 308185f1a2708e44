"""FER2013: 48x48 grey faces with seven expressions, from the official CSV file or from folders of images."""

import functools
from pathlib import Path

import torch

from data.fer2013_csv import read_csv
from data.fer2013_faces import EMOTIONS, SPLITS, Faces, Split, cached_faces
from data.fer2013_folder import ImageFolder, find_split_folder, split_folders
from utils.utils_error import UserError
from utils.utils_file import sha256_of

__all__ = ["EMOTIONS", "Fer2013"]

CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")


class Fer2013:
    """Index -> {"input": uint8 (1, 48, 48), "target": int64 (), "name": str}.

    `dataroot` is the CSV file, a folder that contains fer2013.csv, or one with images in train/<emotion>/, validation/
    and test/. Training, PublicTest and PrivateTest are the Usage of a row, or these folders. `fingerprint` identifies
    the images and labels of the split and their order, whatever form they were read from. Decoded faces are cached
    beside the data. Raises UserError for missing or bad data.
    """

    class_names = EMOTIONS
    input_shape = (1, 48, 48)
    final_split = "PrivateTest"
    view = "faces"

    def __init__(self, dataroot: str, split: Split) -> None:
        if split not in SPLITS:
            raise UserError(f"FER2013: split {split!r} is unknown; allowed are {', '.join(SPLITS)}")
        root = Path(dataroot)
        if not root.exists():
            raise UserError(
                f"{dataroot}: no such file or folder; dataroot must be fer2013.csv, or a folder with it or with "
                "train/<emotion>/, validation/<emotion>/ and test/<emotion>/"
            )
        csv = _find_csv(root)
        self._csv_name = csv.name if csv else ""
        self._files: list[str] = []
        if csv:
            faces, self.fingerprint = _faces_of_csv(csv, split)
        else:
            images = ImageFolder(root, find_split_folder(root, split))
            self._files = images.files
            faces, self.fingerprint = cached_faces(images.folder, split, images.key, lambda: {split: images.decode()})
        self._rows = faces.rows
        self._input = torch.from_numpy(faces.images)
        self._target = torch.from_numpy(faces.targets)

    @staticmethod
    def is_available(dataroot: str) -> bool:
        """Whether `dataroot` is a file, or a folder with a CSV or at least one split of images in it."""
        root = Path(dataroot)
        if not root.is_dir():
            return root.exists()
        return _find_csv(root) is not None or any(split_folders(root).values())

    def __len__(self) -> int:
        return len(self._target)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        # Clones, because a sample changed in place must not change the data set.
        return {"input": self._input[index].clone(), "target": self._target[index].clone(), "name": self.name(index)}

    def name(self, index: int) -> str:
        """Where the sample comes from: "fer2013.csv:row 17" (the header is row 1), or the image below the data root."""
        row = int(self._rows[index])
        return self._files[row] if self._files else f"{self._csv_name}:row {row}"

    def resident(self) -> dict[str, torch.Tensor]:
        """The whole split: {"input": uint8 (N, 1, 48, 48), "target": int64 (N,)}. Not copies: do not write to them."""
        return {"input": self._input, "target": self._target}


def _find_csv(root: Path) -> Path | None:
    if not root.is_dir():
        return root
    return next((root / name for name in CSV_NAMES if (root / name).is_file()), None)


def _faces_of_csv(csv: Path, split: Split) -> tuple[Faces, str]:
    try:
        stat = csv.stat()
        key = _sha256(csv, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    except OSError as error:
        raise UserError(f"{csv}: cannot be read: {error.strerror}") from None
    decode = functools.partial(read_csv, csv)
    faces, fingerprint = cached_faces(csv, split, key, decode)
    if len(faces) == 0:
        counts = {other: len(cached_faces(csv, other, key, decode)[0]) for other in SPLITS}
        has = ", ".join(f"{count} {other}" for other, count in counts.items() if count) or "no rows at all"
        raise UserError(
            f"{csv}: no row has Usage {split}; the file has {has}. Choose one of these as split, or take the official "
            "fer2013.csv, which has 28709 Training, 3589 PublicTest and 3589 PrivateTest rows."
        )
    return faces, fingerprint


@functools.lru_cache(maxsize=8)
def _sha256(csv: Path, *_stat: int) -> str:
    """The content's hash, read anew in every process (0.2 s), but once for the splits of one unchanged file."""
    return sha256_of(csv)
