"""TensorBoard events that a full disk cannot end a run over."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("longhaul")


class TensorBoard:
    """A SummaryWriter that ends with its first failed write: it is said once, and training goes on without it.

    The first event opens the file: a launch does not wait for the import of tensorboard.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._folder, self._purge_step = folder, purge_step
        self._writer: SummaryWriter | None = None
        self._is_open = True
        self._hook = threading.excepthook
        threading.excepthook = self._thread_has_ended

    def add(self, kind: str, *arguments: Any) -> None:
        """Call SummaryWriter.add_<kind>."""
        with self._giving_up():
            if self._is_open and self._writer is None:
                self._writer = self._open()
            writer = self._writer  # its thread may give up meanwhile
            if writer is not None:
                getattr(writer, f"add_{kind}")(*arguments)

    def close(self) -> None:
        """Flush and close the file."""
        writer = self._writer
        if writer is not None:
            with self._giving_up():
                writer.close()
        threading.excepthook = self._hook

    def _open(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._purge_step)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: BaseException | None) -> None:
        if self._is_open:
            logger.error("TensorBoard could not be written, and will not be until the next launch: %s", error)
        self._is_open, self._writer = False, None

    def _thread_has_ended(self, failure: threading.ExceptHookArgs) -> None:
        """SummaryWriter writes on a thread, which prints its traceback and raises the error again in the next call."""
        is_ours = failure.thread is not None and type(failure.thread).__module__.startswith("tensorboard.")
        if is_ours and issubclass(failure.exc_type, OSError):
            self._give_up(failure.exc_value)
        else:
            self._hook(failure)
