"""What a resume guarantees, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.utils_checkpoint import Manifest, ResumePoint
from utils.utils_error import UserError


def check_stream(manifest: Manifest | None, stream: Mapping[str, Any]) -> None:
    """UserError if what decides which sample comes when, `stream`, is another than when the set was saved."""
    if manifest and (changed := _differences(manifest.stream, stream)):
        raise UserError(
            "The run cannot be resumed exactly, because what decides the order of its samples has changed "
            f"({changed}). Restore the options, give the run another task name, or add "
            "--set resume.accept_changes=true to go on with the new ones from here"
        )


def resume_guarantee(
    resume: ResumePoint | None, stream: Mapping[str, Any], machine: Mapping[str, Any], afresh: Sequence[str]
) -> str:
    """EXACT, SAME-DATA or NEW STREAM, with the reason; "" for a fresh run.

    stream: what decides which sample comes when. machine: what decides the order of float operations; a difference
    leaves the data the same. afresh: what of the state the model could not restore, in words.
    """
    if resume is None:
        return ""
    if resume.manifest is None:
        return "NEW STREAM: the files carry no manifest, so the order of their samples is not known"
    if changed := _differences(resume.manifest.stream, stream):
        return f"NEW STREAM: {changed}"
    if changed := "; ".join(filter(None, [_differences(resume.manifest.machine, machine), *afresh])):
        return f"SAME-DATA: every sample once an epoch, same rates; the updates differ ({changed})"
    return "EXACT: same ranks, threads, device, torch and NumPy as when it was saved"


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = {**saved, **now}
    return "; ".join(f"{key}: {saved.get(key)} -> {now.get(key)}" for key in keys if saved.get(key) != now.get(key))
