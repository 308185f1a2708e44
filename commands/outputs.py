"""Files that the commands write where they are told to: whole or not at all, and over nothing that a run needs."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from utils.utils_error import UserError
from utils.utils_file import atomic_write

_NEEDED = re.compile(r".*\.pth|.*_manifest\.json|status\.json|metrics\.csv|train\.log")


def check_output(option: str, path: Path, kept: Iterable[Path] = ()) -> None:
    """UserError if `path` is a folder, cannot be written, or is a file that a run needs: by its name, or one of `kept`.

    kept: files, and folders with all that is in them.
    """
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder; give the name of a file")
    target = Path(os.path.realpath(path))
    places = {Path(os.path.realpath(each)) for each in kept}
    if target.is_file() and (_NEEDED.fullmatch(target.name) or places & {target, *target.parents}):
        raise UserError(f"{option}: {path} is needed as it is, and would be overwritten; choose another name")
    if not path.exists() or path.is_file():  # a device or a pipe takes up no place
        check_folder(option, target.parent)


def check_folder(option: str, folder: Path) -> None:
    """UserError if no file can be made in `folder`, or in the folder in which it would have to be made first."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"{option}: nothing can be written into {folder}: {error.strerror}; choose another place"
        ) from error


def write_output(path: Path, text: str) -> None:
    """Write UTF-8 text; a link stays one, and a device such as /dev/stdout is written into. Raises OSError."""
    if path.parts[:2] == ("/", "dev") or (path.exists() and not path.is_file()):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(Path(os.path.realpath(path)), "w") as file:
        file.write(text)
