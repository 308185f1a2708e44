"""What a resume guarantees, and why."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.utils_checkpoint import ResumePoint
from utils.utils_error import UserError

_KERNEL_FLAGS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")
_KERNEL_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


def resume_guarantee(
    resume: ResumePoint | None, stream: Mapping[str, Any], machine: Mapping[str, Any], accept_changes: bool
) -> str:
    """EXACT, SAME-DATA or NEW STREAM, with the reason; "" for a fresh run.

    stream: what decides which sample comes when; a difference is a UserError unless accepted. machine: what decides
    the order of float operations; a difference leaves the data the same.
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
    if changed := _differences(resume.manifest.machine, machine):
        return f"SAME-DATA: every sample once an epoch, same rates; the updates differ ({changed})"
    return "EXACT: same ranks, threads, device and software as when it was saved"


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = {**saved, **now}
    return "; ".join(f"{key}: {saved.get(key)} -> {now.get(key)}" for key in keys if saved.get(key) != now.get(key))


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and what decides which kernels it runs: sums of others differ in their last bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= facts.keys():  # in a virtual machine the name alone may be as vague as "AMD EPYC"
        name = f"{name} {facts['cpu family']}/{facts['model']}"
    flags = [flag for flag in _KERNEL_FLAGS if flag in facts.get("flags", "").split()]
    chosen = [f"{name}={os.environ[name]}" for name in _KERNEL_VARIABLES if name in os.environ]
    return f"{name} ({', '.join([torch.backends.cpu.get_cpu_capability(), *flags, *chosen])})"
