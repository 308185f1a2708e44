"""What every floor stands on. For anybody's own loop: `from utils import CheckpointManager`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.checkpoint_manager import CheckpointManager

__all__ = ["CheckpointManager"]


def __getattr__(name: str) -> Any:
    """Import torch for the one who asks for the manager, not for everyone who imports something of utils."""
    if name == "CheckpointManager":
        from utils.checkpoint_manager import CheckpointManager

        return CheckpointManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
