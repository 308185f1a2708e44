"""What a resume guarantees, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from utils.utils_checkpoint import ResumePoint
from utils.utils_error import UserError


def resume_guarantee(
    resume: ResumePoint | None,
    parts: Sequence[str],
    stream: Mapping[str, Any],
    machine: Mapping[str, Any],
    accept_changes: bool,
) -> str:
    """EXACT, SAME-DATA or NEW STREAM, with the reason; "" for a fresh run.

    parts: what is to be restored; those that the set does not hold start afresh, and so does the optimizer's state
    where it is not one of them. stream: what decides which sample comes when; a difference is a UserError unless
    accepted. machine: what decides the order of float operations; a difference leaves the data the same.
    """
    if resume is None:
        return ""
    if resume.manifest is None:
        return "NEW STREAM: the files carry no manifest, so the order of their samples is not known"
    if changed := _differences(resume.manifest.stream, stream):
        if not accept_changes:
            raise UserError(
                "The run cannot be resumed exactly, because what decides the order of its samples has changed "
                f"({changed}). Restore the options, give the run another task name, or add "
                "--set resume.accept_changes=true to go on with the new ones from here"
            )
        return f"NEW STREAM: {changed}"
    afresh = [f"{part} starts afresh" for part in dict.fromkeys((*parts, "optimizerG")) if part not in resume.files]
    if changed := "; ".join(filter(None, [_differences(resume.manifest.machine, machine), *afresh])):
        return f"SAME-DATA: every sample once an epoch, same rates; the updates differ ({changed})"
    return "EXACT: same ranks, threads, device, torch and NumPy as when it was saved"


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = {**saved, **now}
    return "; ".join(f"{key}: {saved.get(key)} -> {now.get(key)}" for key in keys if saved.get(key) != now.get(key))
