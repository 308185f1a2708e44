"""The names of checkpoint files: `<iter>_G.pth`, `<iter>_E.pth`, `<iter>_optimizerG.pth`, `<iter>_manifest.json`."""

import contextlib
import re
from pathlib import Path

PARTS = ("G", "E", "optimizerG")


def set_file_name(iteration: int, part: str) -> str:
    """The file name of one part (G, E, optimizerG) of the set of `iteration`."""
    return f"{iteration}_{part}.pth"


def manifest_name(iteration: int) -> str:
    """The file name of the manifest of the set of `iteration`."""
    return f"{iteration}_manifest.json"


def list_parts(folder: Path, part: str) -> dict[int, Path]:
    """Iteration -> path of the files of one part."""
    return _list_iterations(folder, f"{part}.pth")


def list_manifests(folder: Path) -> dict[int, Path]:
    """Iteration -> path of the manifests."""
    return _list_iterations(folder, "manifest.json")


def find_last_checkpoint(
    save_dir: str | Path, net_type: str = "G", pretrained_path: str | None = None
) -> tuple[int, str | None]:
    """KAIR's lookup for one net type: (newest iteration, its path), or (0, pretrained_path) where there is none.

    Only whole names `<digits>_<net_type>.pth` count, and the path is the one on disk. It does not verify anything:
    a launch resumes from `CheckpointFolder.find_resume_point`.
    """
    found = list_parts(Path(save_dir), net_type)
    if not found:
        return 0, pretrained_path
    iteration = max(found)
    return iteration, str(found[iteration])


def _list_iterations(folder: Path, ending: str) -> dict[int, Path]:
    """The entries named `<digits>_<ending>`; where two spell one number, the plain one wins."""
    pattern = re.compile(rf"(\d+)_{re.escape(ending)}", re.ASCII)
    found: dict[int, Path] = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted(folder.iterdir(), key=lambda entry: len(entry.name), reverse=True):
            if match := pattern.fullmatch(entry.name):
                found[int(match[1])] = entry
    return found
