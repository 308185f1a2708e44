"""One launch of the trainer, seen from outside: its processes in /proc, its output, the files it is writing."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from utils.utils_checkpoint_names import PARTS, list_manifests, list_parts
from utils.utils_file import PROJECT_FOLDER, TEMPORARY_NAME

MARK = "LONGHAUL_DRILL"
_OF_A_LAUNCHER = re.compile(r"(RANK|WORLD_SIZE|LOCAL_.*|GROUP_.*|ROLE_.*|MASTER_.*|TORCHELASTIC_.*)")
_ITERATION = re.compile(r"<epoch: *\d+, iter: *([\d,]+?)(, lr:|>)")
_START = re.compile(r"  start  +(?:resumed from iteration ([\d,]+)|fresh, iteration 0)")
_GUARANTEE = re.compile(r"  resume  +(EXACT|SAME-DATA|NEW STREAM)")
_SAVED = re.compile(r"Saved iteration .*, ([\d.]+) s in the background")


@dataclasses.dataclass(frozen=True)
class Process:
    """A live process; `rank` also of a rank's children. Launchers and ranks lead a session, loader workers do not."""

    pid: int
    mark: str
    parent: int
    leads_session: bool
    rank: int | None
    command: bytes


def marked_processes(marks: Iterable[str]) -> Iterator[Process]:
    """The live processes whose environment carries one of the marks: orphans too, but no zombies."""
    wanted = {f"{MARK}={mark}".encode(): mark for mark in marks}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is not ours to read
            environment = (folder / "environ").read_bytes().split(b"\0")
            mark = next((wanted[each] for each in environment if each in wanted), None)
            if mark is not None:
                parent, _group, session = (folder / "stat").read_text().rpartition(")")[2].split()[1:4]
                rank = next((int(each[5:]) for each in environment if each.startswith(b"RANK=")), None)
                pid, command = int(folder.name), (folder / "cmdline").read_bytes()
                yield Process(pid, mark, int(parent), int(session) == pid, rank, command)


def send(number: signal.Signals, pid: int, mark: str) -> bool:
    """Signal a process if it still is the one that carries the mark: ids are used again."""
    with contextlib.suppress(OSError):
        if f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(pid, number)
            return True
    return False


class Launch:
    """A started command; `read` brings what is known of it up to date."""

    def __init__(self, command: Sequence[str], models: Path, log: Path, mark: str, has_launcher: bool) -> None:
        self.log, self.mark = log, mark
        self._has_launcher = has_launcher
        self._models = models
        self.began_from = max(list_manifests(models), default=0)
        self.reached: int | None = None
        """The last iteration that was trained, as far as it has said."""
        self.resumed_from: int | None = None
        self.guarantee = ""
        self.seconds_to_first_iter: float | None = None
        self.save_seconds: list[float] = []
        self.num_tests = 0
        self.was_training_last = False
        """Whether it has trained since it last reported a test."""
        self._offset = 0
        self._started = self._changed = time.monotonic()
        self._found: tuple[float, list[Process]] = (0.0, [])
        environment = {key: value for key, value in os.environ.items() if not _OF_A_LAUNCHER.fullmatch(key)}
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                command, cwd=PROJECT_FOLDER, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**environment, MARK: mark}, start_new_session=True,
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Seconds since it was launched."""
        return time.monotonic() - self._started

    @property
    def seconds_of_silence(self) -> float:
        """Seconds since it last said anything."""
        return time.monotonic() - self._changed

    @property
    def status(self) -> int | None:
        """The exit status of the launcher (of the trainer, where there is none); None while it lives."""
        return self._process.poll()

    def wait(self) -> int:
        """The exit status of a launcher that is about to end."""
        return self._process.wait()

    @property
    def was_refused(self) -> bool:
        """Whether the folder's lock kept it out."""
        return "another trainer is running" in self.log.read_text(errors="replace")

    def read(self) -> None:
        """Read the complete lines that the log has got since the last call."""
        with open(self.log, "rb") as file:
            file.seek(self._offset)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        if text:
            self._changed = time.monotonic()
        for line in text.decode(errors="replace").splitlines():
            self._read_line(line)

    def trainers(self) -> list[Process]:
        """The launcher and the ranks that live; their loader workers may outlive them for some seconds."""
        return [each for each in marked_processes([self.mark]) if each.leads_session]

    def find(self, victim: str) -> list[int]:
        """The ids of "launcher", "rank N" or "worker" (of a DataLoader), some 0.1 s old."""
        if time.monotonic() - self._found[0] > 0.1:
            self._found = (time.monotonic(), list(marked_processes([self.mark])))
        found = self._found[1]
        main = [each for each in found if each.pid == self._process.pid]
        ranks = [each for each in found if each.leads_session and each.rank is not None] if self._has_launcher else main
        if victim == "launcher":
            return [each.pid for each in main]
        if victim == "worker":  # forked, so that it has its rank's command line
            commands = {each.pid: each.command for each in ranks}
            return [each.pid for each in found if each.command == commands.get(each.parent)]
        return [each.pid for each in ranks if f"rank {each.rank or 0}" == victim]

    def unfinished_files(self) -> list[str]:
        """The files that are being written into models/: temporary ones, and parts of a set without its manifest."""
        try:
            temporary = [path.name for path in self._models.iterdir() if TEMPORARY_NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        committed = list_manifests(self._models)
        parts = [
            path.name for part in PARTS for i, path in list_parts(self._models, part).items() if i not in committed
        ]
        return temporary + parts

    def tail(self, num_lines: int = 25) -> str:
        """The end of what it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])

    def _read_line(self, line: str) -> None:
        if found := _ITERATION.search(line):
            self.was_training_last = found[2] != ">"
            self.num_tests += not self.was_training_last
            if self.was_training_last:
                self.reached = _number(found[1])
                self.seconds_to_first_iter = self.seconds_to_first_iter or self.seconds
        elif found := _START.search(line):
            self.resumed_from = _number(found[1] or "0")
        elif found := _GUARANTEE.search(line):
            self.guarantee = found[1]
        elif found := _SAVED.search(line):
            self.save_seconds.append(float(found[1]))


def _number(text: str) -> int:
    return int(text.replace(",", ""))
