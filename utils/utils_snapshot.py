"""Saving without stopping: one copy of the state for the loop, everything else on a background thread."""

import concurrent.futures
import contextlib
import copy
import itertools
import logging
import os
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

logger = logging.getLogger("longhaul")


class Snapshot:
    """A copy of a nested state in host buffers that are allocated once (pinned where the state lives on a GPU).

    A GPU clones its state, which takes one pass over its memory, and trains on, while a second stream carries the clone
    to the host. Neither the loop nor the GPU waits, unless there is no memory for the clone.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None

    def take(self, state: Any) -> Any:
        """Copy `state` (containers, tensors, Python values); complete after `wait`, valid until the next call.

        Strides are kept, so that on the CPU the copy is a memcpy for channels_last weights too.
        """
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        copied = self._walk(state, (), targets, sources)
        self._copied = None
        on_gpu = [source.is_cuda for source in sources]
        on_host = [not is_cuda for is_cuda in on_gpu]
        if any(on_host):
            torch._foreach_copy_(_chosen(targets, on_host), _chosen(sources, on_host))
        if any(on_gpu):
            self._copy_from_gpu(_chosen(targets, on_gpu), _chosen(sources, on_gpu))
        return copied

    def wait(self) -> None:
        """Return when the last `take` is complete. From any thread; on the CPU it always is."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy_from_gpu(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        try:
            clones = [torch.empty_like(source) for source in sources]
        except torch.OutOfMemoryError:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
            return
        torch._foreach_copy_(clones, sources)
        device = sources[0].device
        self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for target, clone in zip(targets, clones, strict=True):
                target.copy_(clone, non_blocking=True)
                clone.record_stream(self._stream)  # so that its memory is used again only after the copy
        # Blocking: the writer sleeps in `wait`, it must not take a core.
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._copied.record(self._stream)

    def _walk(
        self, state: Any, place: tuple[Any, ...], targets: list[torch.Tensor], sources: list[torch.Tensor]
    ) -> Any:
        if isinstance(state, torch.Tensor):
            source = state.detach()
            targets.append(self._buffer(place, source))
            sources.append(source)
            return targets[-1]
        if isinstance(state, Mapping):
            items = [(_copied(key), self._walk(value, (*place, key), targets, sources)) for key, value in state.items()]
            if not isinstance(state, OrderedDict):
                return Counter(dict(items)) if isinstance(state, Counter) else dict(items)
            ordered = OrderedDict(items)
            ordered.__dict__.update(copy.deepcopy(state.__dict__))  # a state dict's module versions (_metadata)
            return ordered
        if isinstance(state, (list, tuple)):
            return type(state)(self._walk(value, (*place, i), targets, sources) for i, value in enumerate(state))
        return _copied(state)

    def _buffer(self, place: tuple[Any, ...], source: torch.Tensor) -> torch.Tensor:
        buffer, form = self._buffers.get(place), (source.shape, source.dtype, source.stride())
        if buffer is None or (buffer.shape, buffer.dtype, buffer.stride()) != form:
            buffer = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
            self._buffers[place] = buffer
        return buffer


def _copied(value: Any) -> Any:
    """A deep copy; equal strings become one object.

    Pickle writes an object once and refers to it from then on. After a resume, strings from the file and equal ones of
    the code would be different objects, and the next file would have other bytes than that of a run without a stop.
    """
    return sys.intern(value) if type(value) is str else copy.deepcopy(value)


def _chosen(tensors: list[torch.Tensor], flags: list[bool]) -> list[torch.Tensor]:
    return list(itertools.compress(tensors, flags))


def _give_way() -> None:
    """Let training have the cores that it needs: a niceness of 5 more, for this thread and those that it starts.

    Enough for a step to keep its core beside two writers, and little enough for a save to end on a crowded machine.
    Only on Linux has a thread a niceness of its own.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 5)


class BackgroundWriter:
    """Writes snapshots on one thread; per kind (the checkpoint set, the best model) one save is in flight.

    A save that fails is logged as an error, and training goes on with the older files; `failed` tells whether the last
    save of any kind did. Unless a newer save of its kind comes first, it is tried again with the next of another kind.
    `on_failure` is called on the writer's thread.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        self._on_failure = on_failure
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint-writer", initializer=_give_way)
        self._snapshots: dict[str, Snapshot] = {}
        self._pending: dict[str, concurrent.futures.Future[None]] = {}
        self._failed: dict[str, Callable[[], None]] = {}

    @property
    def failed(self) -> bool:
        """Whether the last save of any kind failed; call `wait` first for a final answer."""
        return bool(self._failed)

    def save(self, kind: str, state: Any, write: Callable[[Any], None]) -> None:
        """Snapshot `state` now and call `write(copy)` in the background; waits for an earlier save of this kind."""
        self._wait_for(kind)
        self._failed.pop(kind, None)
        snapshot = self._snapshots.setdefault(kind, Snapshot())
        copied = snapshot.take(state)

        def write_copied() -> None:
            snapshot.wait()
            write(copied)

        self._submit_failed()
        self._submit(kind, write_copied)

    def wait(self) -> None:
        """Return when everything submitted is on disk or has failed."""
        for future in self._pending.values():
            future.result()

    def retry(self) -> None:
        """Try once more what has failed, and wait."""
        self.wait()
        self._submit_failed()
        self.wait()

    def close(self) -> None:
        """Finish what is pending and end the thread."""
        self._thread.shutdown(wait=True)

    def _wait_for(self, kind: str) -> None:
        future = self._pending.get(kind)
        if future is None or future.done():
            return
        start = time.perf_counter()
        future.result()
        logger.warning(
            "The next %s was due before the last one was written: training waited %.1f s. "
            "Save less often or to a faster disk.", kind, time.perf_counter() - start,
        )  # fmt: skip

    def _submit(self, kind: str, write: Callable[[], None]) -> None:
        self._pending[kind] = self._thread.submit(self._write, kind, write)

    def _submit_failed(self) -> None:
        for kind in list(self._failed):
            self._submit(kind, self._failed.pop(kind))

    def _write(self, kind: str, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # a failed save must never end a run that is training well
            self._failed[kind] = write
            logger.error("The %s could not be saved: %s: %s", kind, type(error).__name__, error)
            self._on_failure()
