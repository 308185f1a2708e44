"""What every floor stands on. For anybody's own loop: `from utils import CheckpointManager, Evaluator`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.checkpoint_manager import CheckpointManager
    from utils.utils_evaluator import Evaluator

__all__ = ["CheckpointManager", "Evaluator"]


def __getattr__(name: str) -> Any:
    """Import torch for the one who asks for one of these, not for everyone who imports something of utils."""
    if name == "CheckpointManager":
        from utils.checkpoint_manager import CheckpointManager

        return CheckpointManager
    if name == "Evaluator":
        from utils.utils_evaluator import Evaluator

        return Evaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
