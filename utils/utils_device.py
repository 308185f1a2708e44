"""What this machine computes on: its name, and the precision that suits it."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

CPUINFO = Path("/proc/cpuinfo")

_KERNEL_FLAGS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")
_KERNEL_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_STRIPES",
    "NPY_DISABLE_CPU_FEATURES",
)  # fmt: skip
_GPU_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")
_NCCL_VARIABLES = (
    "NCCL_ALGO", "NCCL_PROTO", "NCCL_COLLNET_ENABLE", "NCCL_NVLS_ENABLE", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL",
    "NCCL_SHM_DISABLE", "NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_MIN_CTAS", "NCCL_MAX_CTAS", "NCCL_GRAPH_FILE",
    "NCCL_TOPO_FILE",
)  # fmt: skip
_COMPILER_VARIABLES = ("TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCH_COMPILE_")


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and what decides which kernels it runs: sums of others differ in their last bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + _told(_GPU_VARIABLES)
    facts = _processor_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= facts.keys():  # in a virtual machine the name alone may be as vague as "AMD EPYC"
        name = f"{name} {facts['cpu family']}/{facts['model']}"
    flags = [flag for flag in _KERNEL_FLAGS if flag in facts.get("flags", "").split()]
    return f"{name} ({', '.join([torch.backends.cpu.get_cpu_capability(), *flags, *_chosen(_KERNEL_VARIABLES)])})"


def trains_faster_in_bf16(device: torch.device) -> bool | None:
    """Whether convolutions train faster in bf16 than in float32 here; None where nobody has measured it.

    So they do on GPUs from Ampere on, on CPUs with AMX, and on AMD's with avx512_bf16. Intel's avx512_bf16 multiplies
    no faster than float32, and without such instructions bf16 is emulated (`python -m benchmarks.training_speed`).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    facts = _processor_facts()
    if "flags" not in facts:  # no x86, or no Linux
        return None
    flags = facts["flags"].split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == "AuthenticAMD")


def chosen_amp(amp: Literal["auto", "bf16"] | None, device: torch.device) -> Literal["bf16"] | None:
    """The precision that `train.amp` stands for on this device; None is float32."""
    if amp == "auto":
        return "bf16" if trains_faster_in_bf16(device) else None
    return amp


def compiler_name(is_compiled: bool, device: torch.device) -> bool | str:
    """Whether torch.compile makes the kernels and, if so, what may change their sums: compiler and environment."""
    if not is_compiled:
        return False
    compiler = _cpp_compiler() if device.type == "cpu" else ""  # a GPU's comes with torch
    chosen = _chosen(
        name for name in sorted(os.environ) if name.startswith(_COMPILER_VARIABLES) and "CACHE" not in name
    )
    facts = ", ".join(filter(None, [compiler, *chosen]))
    return f"True ({facts})" if facts else True


def nccl_name() -> str:
    """The version of NCCL, and what the environment tells it of how to sum."""
    return ".".join(map(str, torch.cuda.nccl.version())) + _told(_NCCL_VARIABLES)  # type: ignore[no-untyped-call]


def _cpp_compiler() -> str:
    """Name and version of the compiler that torch.compile takes for CPUs; "" if there is none."""
    command = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    try:
        said = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return said.partition("\n")[0].strip()


def _chosen(names: Iterable[str]) -> list[str]:
    """What the environment says otherwise than every launch does by itself (see `process_group`)."""
    chosen = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return [each for each in chosen if each not in ("TORCHINDUCTOR_DETERMINISTIC=1", "CUBLAS_WORKSPACE_CONFIG=:4096:8")]


def _told(names: Iterable[str]) -> str:
    chosen = _chosen(names)
    return f" ({', '.join(chosen)})" if chosen else ""


def precision_name(amp: Literal["bf16"] | None, device: torch.device) -> str:
    """The precision of a training step in words: torch's float32 convolutions are TF32 on GPUs from Ampere on."""
    if amp is not None or device.type != "cuda":
        return amp or "float32"
    convolutions: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    is_tf32 = convolutions == "tf32" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "float32, convolutions in TF32" if is_tf32 else "float32"


def _processor_facts() -> dict[str, str]:
    """What Linux says of one core, by its names; nothing elsewhere."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
