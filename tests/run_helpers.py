"""Launching whole runs and looking at what they left: processes, accidents, hashes, files of the experiment folder."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from tests.helpers import changed, tiny_csv, tiny_option_mapping, write_options
from utils.utils_file import sha256_of

PROJECT = Path(__file__).resolve().parent.parent
DEADLINE = 120.0
PARTS = ("G", "E", "optimizerG")
LAST = 12
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")

Accident = dict[str, Any]


class Launched:
    """One process of a run, forked by the server."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder

    def wait(self, seconds: float = DEADLINE) -> int:
        """Its exit status, -n for signal n; after `seconds` its whole session is killed and the test fails."""
        wait_until((self._folder / "status").exists, seconds, lambda: f"no end of the run:\n{self.output}", self.kill)
        return int((self._folder / "status").read_text())

    def kill(self) -> None:
        """SIGKILL to the process and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def output(self) -> str:
        path = self._folder / "output"
        return path.read_text(errors="replace") if path.exists() else ""


class RunServer:
    """Starts run_server.py; a process a launch, without the seconds that imports take."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, str(PROJECT / "tests" / "run_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Launched:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        job = {"folder": str(folder), "arguments": list(arguments), "environment": dict(environment or {})}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return Launched(int(self._process.stdout.readline()), folder)

    def close(self) -> None:
        """End the server; again is harmless."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(DEADLINE)


class Ended:
    """How a launch ended: the exit status of each rank and what rank 0 said."""

    def __init__(self, ranks: Sequence[Launched]) -> None:
        self.statuses = [rank.wait() for rank in ranks]
        self.status = self.statuses[0]
        self.output = ranks[0].output
        self.outputs = [rank.output for rank in ranks]


class RealLaunch:
    """A launch through the real command, in a session of its own; its output goes to a file."""

    def __init__(self, run: "Run", command: Sequence[str]) -> None:
        self._run = run
        self._output = run.option_file.with_name("output")
        with open(self._output, "w") as output:
            self.process = subprocess.Popen(
                command, cwd=run.option_file.parent, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float = DEADLINE) -> int:
        """The exit status of the command, -n for signal n, once its last process has ended."""
        wait_until(self._has_ended, seconds, lambda: f"no end of the launch:\n{self.output}", self.kill)
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        for pid in self._run.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def _has_ended(self) -> bool:
        return self.process.poll() is not None and not self._run.processes()


class Run:
    """One experiment: an option file and the folder that its launches write."""

    def __init__(self, server: RunServer, folder: Path, options: Mapping[str, Any]) -> None:
        self._server = server
        self.options = {**options, "path": {**options["path"], "root": str(folder / "experiments")}}
        self.option_file = write_options(self.options, _made(folder) / "tiny.json")
        self.folder = folder / "experiments" / options["task"]
        self.models = self.folder / "models"

    def start(
        self, *arguments: str, accidents: Sequence[Accident] = (), num_ranks: int = 1,
        environment: Mapping[str, str] | None = None, homes: Sequence[Path] = (),
    ) -> list[Launched]:  # fmt: skip
        """Launch one process a rank, as torchrun does, and return at once; `environment` comes on top.

        homes: with them each rank is on a machine of its own, which has this as the home of its user.
        """
        command = [*self._armed(accidents), "--", "-opt", str(self.option_file), *arguments]
        if num_ranks == 1:
            return [self._server.start(command, environment)]
        # As torchrun does, the launcher keeps the store through which the ranks meet.
        self._store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return [
            self._server.start(
                command,
                {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(num_ranks),
                    "LOCAL_WORLD_SIZE": str(num_ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(self._store.port),
                    "TORCHELASTIC_USE_AGENT_STORE": "True",
                    **(environment or {}),
                    **({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "HOME": str(homes[rank])} if homes else {}),
                },
            )
            for rank in range(num_ranks)
        ]  # fmt: skip

    def command(self, *arguments: str, accidents: Sequence[Accident] = (), launcher: Sequence[str] = ()) -> list[str]:
        """The command line of a launch; with accidents run_and_stop.py stands in for main_train.py."""
        armed = self._armed(accidents)
        script = ["tests/run_and_stop.py", *armed, "--"] if armed else ["main_train.py"]
        options = ["-opt", str(self.option_file), *arguments]
        return [sys.executable, *launcher, str(PROJECT / script[0]), *script[1:], *options]

    def real_launch(
        self, *arguments: str, accidents: Sequence[Accident] = (), launcher: Sequence[str] = ()
    ) -> "RealLaunch":
        """Launch as a user does, in a session of its own, and return at once."""
        return RealLaunch(self, self.command(*arguments, accidents=accidents, launcher=launcher))

    def processes(self) -> list[int]:
        """The live processes whose command line names this run: of a real launch all, its agent and workers too."""
        return [pid for pid in live_processes() if str(self.option_file).encode() in command_line(pid)]

    def _armed(self, accidents: Sequence[Accident]) -> list[str]:
        return [json.dumps(self._after_the_last_save(each)) for each in accidents]

    def _after_the_last_save(self, accident: Accident) -> Accident:
        """A SIGKILL in the loop waits for the set that was due before it: that is what the next launch resumes from."""
        every = self.options["train"]["checkpoint_save"]
        due = (accident.get("iter", 0) - 1) // every * every
        if accident.get("signal") != signal.SIGKILL or accident["place"] not in ("step", "test") or due < 1:
            return accident
        return {**accident, "committed": str(self.models / f"{due}_manifest.json")}

    def launch(
        self, *arguments: str, accidents: Sequence[Accident] = (), num_ranks: int = 1,
        environment: Mapping[str, str] | None = None, homes: Sequence[Path] = (),
    ) -> Ended:  # fmt: skip
        """Launch and wait for the end; when one rank is killed, the others are too, as torchrun does."""
        ranks = self.start(*arguments, accidents=accidents, num_ranks=num_ranks, environment=environment, homes=homes)
        if any(accident.get("signal") == signal.SIGKILL for accident in accidents):
            victim = next(accident.get("rank", 0) for accident in accidents if "signal" in accident)
            ranks[victim].wait()
            for rank in ranks:
                rank.kill()
        return Ended(ranks)

    def hashes(self, iteration: int) -> dict[str, str]:
        """Part -> SHA-256 of its file in the set of that iteration."""
        return {part: sha256_of(self.models / f"{iteration}_{part}.pth") for part in PARTS}

    def manifest(self, iteration: int) -> dict[str, Any]:
        return json.loads((self.models / f"{iteration}_manifest.json").read_text())

    def committed(self) -> list[int]:
        """The iterations that have a manifest."""
        return sorted(int(path.name.partition("_")[0]) for path in self.models.glob("*_manifest.json"))

    def status(self) -> dict[str, Any]:
        return json.loads((self.folder / "status.json").read_text())

    def log(self) -> str:
        return (self.folder / "train.log").read_text()

    def rows(self, split: str) -> dict[int, dict[str, str]]:
        """Iteration -> row of metrics.csv, without the speed; a later row of an iteration wins."""
        with open(self.folder / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.pop("images_per_s") is not None]
        return {int(row["iter"]): row for row in rows if row["split"] == split}

    def model(self, name: str) -> dict[str, Any]:
        return torch.load(self.models / name, weights_only=True)

    def files(self) -> dict[str, tuple[str, int]]:
        """Everything in models/: name -> (SHA-256, time of the last change)."""
        found = (path for path in sorted(self.models.rglob("*")) if path.is_file())
        return {str(path.relative_to(self.models)): (sha256_of(path), path.stat().st_mtime_ns) for path in found}


def run_options(folder: Path, **changes: Any) -> dict[str, Any]:
    """Twelve iterations of everything at once, on 20 faces with batches of 8: most of them end in mid-epoch."""
    csv_file = tiny_csv(folder)
    options = changed(
        tiny_option_mapping(folder, csv_file),
        train__total_iter=LAST, train__checkpoint_save=4, train__amp="bf16", train__channels_last=True,
    )  # fmt: skip
    return changed(options, **changes)


def kill(place: str, iteration: int, number: int = signal.SIGKILL, **more: Any) -> Accident:
    """A signal at a definite place, see run_and_stop.py."""
    return {"place": place, "iter": iteration, "signal": int(number), **more}


NewRun = Callable[..., Run]

_servers: list[RunServer] = []


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Iterator[RunServer]:
    """The server of all test files that launch runs; it takes seconds to start."""
    assert session_cache.exists()
    if not _servers:
        _servers.append(RunServer(tmp_path_factory.mktemp("launches")))
    yield _servers[0]
    _servers[0].close()


@pytest.fixture(scope="module")
def new_run(server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> NewRun:
    """A fresh experiment; changes of the options as tiny_options takes them."""
    data = tmp_path_factory.mktemp("data")
    options = run_options(data)

    def new_run(**changes: Any) -> Run:
        return Run(server, tmp_path_factory.mktemp("run"), changed(options, **changes))

    return new_run


@pytest.fixture(scope="module")
def many_faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Changes for 3 and 4 ranks, which do not divide a batch of 8."""
    csv = tiny_csv(tmp_path_factory.mktemp("faces"), num_train=52, num_test=11)
    return {"datasets__train__dataroot": csv, "datasets__train__dataloader_batch_size": 48}


@pytest.fixture(scope="module")
def straight(new_run: NewRun, many_faces: dict[str, Any]) -> Callable[[int], Run]:
    """The uninterrupted run on so many ranks, launched once."""
    done: dict[int, Run] = {}

    def straight(num_ranks: int = 1) -> Run:
        if num_ranks not in done:
            done[num_ranks] = new_run(**(many_faces if num_ranks > 2 else {}))
            assert done[num_ranks].launch(num_ranks=num_ranks).statuses == [0] * num_ranks
        return done[num_ranks]

    return straight


def differences(first: Run, second: Run, last: int = LAST) -> list[str]:
    """What differs at the end of two runs: files of the last set, manifest, test rows, best and final model."""
    parts = {part: (first.hashes(last)[part], second.hashes(last)[part]) for part in first.hashes(last)}
    pairs = {
        **parts,
        "progress": (first.manifest(last)["progress"], second.manifest(last)["progress"]),
        "stream": (first.manifest(last)["stream"], second.manifest(last)["stream"]),
        "test rows": (first.rows("test"), second.rows("test")),
        "best_model": (portable(first, "best_model.pth"), portable(second, "best_model.pth")),
        "final_model": (portable(first, "final_model.pth"), portable(second, "final_model.pth")),
    }
    return [name for name, (one, other) in pairs.items() if one != other]


def portable(run: Run, name: str) -> dict[str, Any]:
    """A self-contained model as plain values, without the options, which name the folder."""
    content = run.model(name)
    del content["options"]
    weights = content.pop("model_state_dict")
    return {**content, "weights": {key: (value.dtype, value.tolist()) for key, value in weights.items()}}


@contextlib.contextmanager
def run_server(folder: Path) -> Iterator[RunServer]:
    server = RunServer(folder)
    try:
        yield server
    finally:
        server.close()


def wait_until(condition: Any, seconds: float, failure: Any, clean_up: Any = lambda: None) -> None:
    """Poll until `condition()`; after `seconds`, clean up and fail with `failure()`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            message = failure()
            clean_up()
            raise AssertionError(message)
        time.sleep(0.005)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def in_child(function: Callable[[], Any]) -> int:
    """Call `function` in a forked child; returns its exit status, -n for signal n, 1 for an exception."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle, where a checkpoint holds tensor data."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def punch_hole(path: Path) -> None:
    """Zero the middle, at most 4 KiB: what a lost write leaves."""
    data = bytearray(path.read_bytes())
    size = min(4096, len(data) // 4)
    start = (len(data) - size) // 2
    data[start : start + size] = bytes(size)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def session_members(session: int) -> list[int]:
    """The live processes of a session: a trainer that was forked as its leader, and its loader workers. Linux only."""
    return [pid for pid, (_state, _parent, _group, its_session) in live_processes().items() if its_session == session]


def live_processes() -> dict[int, tuple[str, int, int, int]]:
    """Process id -> state, parent, group and session, without zombies. Linux only."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            state, *ids = stat.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                parent, group, session = map(int, ids)
                found[int(stat.parent.name)] = (state, parent, group, session)
    return found


def command_line(pid: int) -> bytes:
    """Arguments of a process, each ended by a zero; empty once it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_stopped(pid: int) -> bool:
    """Whether a SIGSTOP holds the process."""
    return live_processes().get(pid, ("",))[0] == "T"


def everything(folder: Path) -> dict[str, int]:
    """All files and folders below, with the time of their last change."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
