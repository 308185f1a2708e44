"""Files that exist whole or not at all, folders that are durable, and systems that cannot sync a directory."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from utils.utils_file import (
    PROJECT_FOLDER,
    TEMPORARY_NAME,
    atomic_write,
    cache_folder,
    code_record,
    fsync_directory,
    make_folder,
    project_path,
    sha256_of,
    temporary_path,
    write_cache,
)


class Interrupted(Exception):
    pass


def interrupt() -> NoReturn:
    raise Interrupted


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "status.json"
    content = "new" if mode == "w" else b"new"

    def write_and(then: Callable[[], Any]) -> None:
        with atomic_write(path, mode) as file:
            file.write(content)
            then()

    path.write_text("old")
    with pytest.raises(Interrupted):
        write_and(interrupt)
    assert path.read_text() == "old"
    write_and(lambda: path.read_text() == "old" or interrupt())
    assert path.read_text() == "new"
    assert names(tmp_path) == {"status.json"}


def test_temporary_names_are_hidden_recognised_and_beside_their_file(tmp_path: Path) -> None:
    path = temporary_path(tmp_path / "8_G.pth")
    assert path.parent == tmp_path
    assert TEMPORARY_NAME.fullmatch(path.name)
    assert path.name.startswith(".")
    assert not TEMPORARY_NAME.fullmatch("8_G.pth")


def test_temporary_names_differ_between_processes_of_one_number() -> None:
    """In two containers that share a cache, both writers may be process 1."""
    code = (
        "import os; os.getpid = lambda: 1\n"
        "from pathlib import Path; from utils.utils_file import temporary_path; print(temporary_path(Path('x')))"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT_FOLDER, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    first, second = (TEMPORARY_NAME.fullmatch(each.stdout.strip()) for each in said)
    assert first
    assert second
    assert first[0] != second[0]
    assert (first["name"], first["pid"]) == (second["name"], second["pid"]) == ("x", "1")


def test_hash_is_that_of_hashlib(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 999)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(bytes(range(256)) * 999).hexdigest()


def test_cache_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGHAUL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LONGHAUL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "longhaul"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "longhaul"


def test_a_cache_removes_what_its_killed_writers_left(tmp_path: Path) -> None:
    days_old = [".data.csv.x.7-ab.tmp", ".data.csv.y.7-ab.tmp", "data.csv.x.7-ab.tmp"]
    for name in (*days_old, ".data.csv.x.8-ab.tmp"):
        (tmp_path / name).touch()
    for name in days_old:
        os.utime(tmp_path / name, (0, 0))
    assert not write_cache(tmp_path / "data.csv", "x", lambda file: file.write(b"derived"))
    assert {path.name for path in tmp_path.iterdir()} == {*days_old[1:], ".data.csv.x.8-ab.tmp", "data.csv.x"}


def test_a_folder_is_made_with_all_above_it_and_each_is_synced_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path.parent, tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")  # whoever made it may have died before the sync
    assert synced[3:] == [tmp_path / "a"]


def test_a_folder_is_not_made_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "models")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "is_error"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True), (errno.ENOSPC, True)]
)
def test_only_a_file_system_that_cannot_sync_directories_is_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_error: bool
) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    if not is_error:
        return fsync_directory(tmp_path)
    with pytest.raises(OSError, match=os.strerror(code)):
        fsync_directory(tmp_path)
    return None


@pytest.mark.parametrize(
    ("given", "meant"),
    [("a/b", PROJECT_FOLDER / "a/b"), ("/a/b", Path("/a/b")), ("~/a", Path.home() / "a"), ("~nobody_here/a", None)],
)
def test_the_path_of_an_option_is_below_the_project_unless_it_says_otherwise(given: str, meant: Path | None) -> None:
    """A home folder that does not exist is no error here: whoever opens the file will name it."""
    assert project_path(given) == (meant or PROJECT_FOLDER / given)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a few files; returns its folder."""
    for name in ("main_train.py", "models/network.py", "models/own/net.py", "data/set.py", "utils/log.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    monkeypatch.setattr("utils.utils_file.PROJECT_FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["main_train.py", "models/network.py", "models/own/net.py", "data/new.py"])
def test_an_edited_or_added_file_is_other_code(project: Path, name: str) -> None:
    before = code_record()
    assert code_record() == before
    (project / name).write_text("pass  # otherwise\n")
    assert code_record()["code"] != before["code"]


def test_a_renamed_file_is_other_code(project: Path) -> None:
    before = code_record()
    (project / "data/set.py").rename(project / "data/sets.py")
    assert code_record()["code"] != before["code"]


@pytest.mark.parametrize("name", ["tests/test_net.py", "options/fer.json", "models/.#net.py", "models/net.py~"])
def test_what_no_training_imports_is_not_its_code(project: Path, name: str) -> None:
    before = code_record()
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("{}")
    (project / "models/gone.py").symlink_to("nowhere.py")
    assert code_record() == before


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_commit_is_read_from_the_repository(project: Path, is_packed: bool) -> None:
    assert code_record()["commit"] is None
    identity = ("-c", "user.name=a", "-c", "user.email=b")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "All"), ("pack-refs",) * is_packed):
        if command:
            subprocess.run(["git", *command], cwd=project, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, check=True, capture_output=True, text=True)
    assert code_record()["commit"] == head.stdout.strip()
