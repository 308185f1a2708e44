"""Files that the commands write where they are told to: whole or not at all, and over nothing that a run needs."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from utils.utils_error import UserError
from utils.utils_file import atomic_write

_NEEDED = re.compile(r".*\.pth|.*_manifest\.json|status\.json|metrics\.csv|train\.log")


def check_output(option: str, path: Path, kept: Iterable[Path] = ()) -> None:
    """UserError if `path` is a folder, or a file that a run needs: by its name, or in or among `kept`."""
    if path.is_dir():
        raise UserError(f"{option}: {path} is a folder; give the name of a file")
    target = Path(os.path.realpath(path))
    places = {Path(os.path.realpath(each)) for each in kept}
    if target.is_file() and (_NEEDED.fullmatch(target.name) or places & {target, *target.parents}):
        raise UserError(f"{option}: {path} is needed as it is, and would be overwritten; choose another name")


def write_output(path: Path, text: str) -> None:
    """Write UTF-8 text; a link stays one, and a device such as /dev/stdout is written into. Raises OSError."""
    if path.parts[:2] == ("/", "dev") or (path.exists() and not path.is_file()):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(Path(os.path.realpath(path)), "w") as file:
        file.write(text)
