"""The process group: who this rank is, on which device, and the few collectives that the trainer needs."""

import atexit
import contextlib
import dataclasses
import datetime
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed
import torch.utils.deterministic
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from utils.utils_error import UserError

T = TypeVar("T")

# Groups stay referenced until the process ends. A gloo group joins its threads when its last reference goes, and holds
# the GIL that they may still need to drop the last collective: a deadlock. At exit they are idle.
_groups: list[Any] = []

_STORE_SECONDS = 60
# Rank 0 alone may decode a data set, or wait for a slow disk, while the others stand in a collective.
_PATIENCE = datetime.timedelta(hours=2)
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclasses.dataclass(frozen=True)
class Dist:
    """One rank's place in the run. `control` is a gloo group for small messages on the CPU; None without torchrun."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    num_threads: int = 1
    control: torch.distributed.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 and return its result everywhere; a UserError too. Collective."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except UserError as error:
                outcome[1] = str(error)
        if self.control is not None:
            torch.distributed.broadcast_object_list(outcome, src=0, group=self.control)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        result: T = outcome[0]
        return result

    def main_first(self, function: Callable[[], T]) -> T:
        """Call `function` on the first rank of each machine, then on the others, which find its cache. Collective."""
        result: list[T] = []
        for is_turn in (self.local_rank == 0, self.local_rank != 0):
            self.together(lambda: result.append(function()) if is_turn else None)  # noqa: B023  # called at once
        return result[0]

    def together(self, function: Callable[[], None]) -> None:
        """Call `function` on every rank; the first UserError is everyone's. Collective."""
        failure = None
        try:
            function()
        except UserError as error:
            failure = str(error)
        if (failure := self._first_failure(failure)) is not None:
            raise UserError(failure)

    def same_on_machines(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """UserError unless the first rank of each machine finds the same facts, by name, as rank 0. Collective."""
        if self.world_size == self.local_world_size:
            return
        found: dict[str, str] = {}
        self.together(lambda: found.update(facts()) if self.local_rank == 0 else None)
        of_main = self.on_main(lambda: found)

        def check() -> None:
            if others := [name for name, fact in found.items() if of_main.get(name) != fact]:
                raise UserError(
                    f"{', '.join(others)}: rank {self.rank}, on another machine, finds something else there than rank "
                    "0; give all machines the same files"
                )

        self.together(check)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place; on the CPU through `control`, which raises if a rank is gone. Collective."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values, group=self.control if values.is_cpu else None)
        return values

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        """Give every rank rank 0's values, in place. Collective."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def max_async(self, value: torch.Tensor) -> torch.distributed.Work | None:
        """Start the maximum over the ranks of a CPU tensor, in place; None on a single rank. Collective."""
        if self.world_size == 1:
            return None
        return torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX, group=self.control, async_op=True)

    def _first_failure(self, failure: str | None) -> str | None:
        if self.control is None:
            return failure
        failures: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(failures, failure, group=self.control)
        return next((each for each in failures if each is not None), None)


def is_launched_distributed() -> bool:
    """Whether torchrun (or another launcher that sets the same variables) started this process."""
    return all(name in os.environ for name in _LAUNCHER_VARIABLES)


def launched_rank() -> int:
    """This process's rank as its launcher gave it, before any group exists."""
    return int(os.environ["RANK"]) if is_launched_distributed() else 0


def is_first_of_machine() -> bool:
    """Whether this is the first of the ranks that its launcher started on this machine."""
    return not is_launched_distributed() or os.environ["LOCAL_RANK"] == "0"


@contextlib.contextmanager
def process_group(num_threads: int | None = None) -> Iterator[Dist]:
    """Join the run: device from LOCAL_RANK, nccl on GPUs and gloo on CPUs, threads per rank. Collective.

    num_threads: CPU threads of this rank; None shares the machine's cores evenly among its ranks. OpenMP's own
    limits go before both. The number is part of an exact resume, because CPU kernels sum in another order with another
    number of threads.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = min(num_threads or max(1, _num_cores() // local_world_size), _most_threads())
    torch.set_num_threads(threads)
    _compute_reproducibly()
    device = _device(local_rank, local_world_size)
    if not is_launched_distributed():
        _check_not_half_launched()
        yield Dist(device=device, num_threads=threads)
        return
    _check_launcher()
    _init_process_group("nccl" if device.type == "cuda" else "gloo")
    control = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    _groups.extend([torch.distributed.group.WORLD, control])
    try:
        yield Dist(
            rank=torch.distributed.get_rank(),
            world_size=torch.distributed.get_world_size(),
            local_rank=local_rank,
            local_world_size=local_world_size,
            device=device,
            num_threads=threads,
            control=control,
        )
    except BaseException:
        leave_process_group()
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave_process_group() -> None:
    """Go on alone, whatever the other ranks do: destroy the group, or leave it to the end of the process under NCCL.

    There destroying waits for all ranks, of which some may be gone, or wait in turn for what this one does not send.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() != "nccl":
        torch.distributed.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """Exit with this status, after everything that was registered to run at the end.

    A rank of several leaves out the interpreter's teardown: threads of torch's that are still there have aborted a rank
    whose run was finished ("terminate called without an active exception", torch 2.13, seen once in the suite).
    """
    if not is_launched_distributed():
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # a closed terminal
            stream.flush()
    os._exit(status)


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether another rank, or the launcher, is gone; gloo says so in words only."""
    if not is_launched_distributed():
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def _init_process_group(backend: str) -> None:
    """Join the group through the launcher's store.

    When torchrun restarts its ranks (--max-restarts) it keeps its store (torch 2.13), where they would find the
    addresses of those that died: a restart gets keys of its own. Only on a single machine do all ranks count alike.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)
        return
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(f"restart_{restart}", store)
    torch.distributed.init_process_group(backend, timeout=_PATIENCE, store=store, rank=rank, world_size=world_size)


def _check_not_half_launched() -> None:
    """UserError for one of several ranks that would train alone, beside the others, in their folder."""
    if (ranks := os.environ.get("WORLD_SIZE", "1")) != "1":
        missing = ", ".join(name for name in _LAUNCHER_VARIABLES if name not in os.environ)
        raise UserError(
            f"WORLD_SIZE is {ranks} in the environment, which lacks {missing}: "
            "launch with torchrun, or unset WORLD_SIZE to train alone"
        )


def _check_launcher() -> None:
    """DistNetworkError if torchrun, which keeps the store of the ranks, is gone: torch would try for half an hour."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(address, timeout=_STORE_SECONDS).close()
    except OSError as error:
        raise torch.distributed.DistNetworkError(f"the launcher at {address[0]}:{address[1]}: {error}") from error


def _device(local_rank: int, local_world_size: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_world_size > torch.cuda.device_count():
        raise UserError(
            f"{local_world_size} ranks on this machine, but it shows {torch.cuda.device_count()} GPUs; "
            f"use torchrun --nproc_per_node={torch.cuda.device_count()}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _compute_reproducibly() -> None:
    """Of an operation's algorithms take one that always sums in the same order; torch warns where there is none.

    Others add atomically, so that an exact resume would differ: on GPUs many do, on CPUs the gradient of x[indices].
    """
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports torch._inductor, 1 s
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _most_threads() -> int:
    """What the environment lets OpenMP start. oneDNN waits for ever for threads that were asked for and do not come."""
    if os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true":
        return 1  # as many as the machine's load leaves: other sums each time
    limit = os.environ.get("OMP_THREAD_LIMIT", "").strip()
    return max(1, int(limit)) if limit.isdecimal() else sys.maxsize


def _num_cores() -> int:
    """Cores this process may use: taskset or a container's quota of CPU time may grant fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no Linux, or "max"
        quota, period = map(int, CPU_QUOTA.read_text(encoding="ascii").split())
        cores = min(cores, math.ceil(quota / period))
    return cores
