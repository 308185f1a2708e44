"""Which precision suits this machine, and that training keeps to it."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn as nn

from models.model_plain import ModelPlain
from tests.conftest import pytest_configure
from tests.helpers import ONE_RANK, class_batch, net_options
from tests.run_helpers import NewRun, new_run, server
from utils import utils_device
from utils.utils_checkpoint import Manifest, ResumePoint
from utils.utils_device import chosen_amp, precision_name, trains_faster_in_bf16
from utils.utils_experiment import machine_record
from utils.utils_progress import Progress
from utils.utils_resume import resume_guarantee

__all__ = ["new_run", "server"]  # fixtures

CPU = torch.device("cpu")
BASE = "fpu avx2 avx512f avx512bw"

PROCESSORS = {
    "AMD with bf16": (f"vendor_id\t: AuthenticAMD\nflags\t\t: {BASE} avx512_bf16\n", True),
    "Intel with AMX": (f"vendor_id\t: GenuineIntel\nflags\t\t: {BASE} avx512_bf16 amx_bf16 amx_tile\n", True),
    "Intel without AMX": (f"vendor_id\t: GenuineIntel\nflags\t\t: {BASE} avx512_bf16\n", False),
    "AMD before bf16": (f"vendor_id\t: AuthenticAMD\nflags\t\t: {BASE}\n", False),
    "ARM": ("CPU implementer\t: 0x41\nFeatures\t: fp asimd bf16\n", None),
    "no Linux": (None, None),
}


def become(monkeypatch: pytest.MonkeyPatch, folder: Path, processor: str) -> None:
    """Let this machine look like one of PROCESSORS."""
    text, _ = PROCESSORS[processor]
    if text is not None:
        (folder / "cpuinfo").write_text(text)
    monkeypatch.setattr(utils_device, "CPUINFO", folder / "cpuinfo")


def trained_dtype(model: ModelPlain) -> torch.dtype:
    """What the network computes in during one iteration of training."""
    seen: list[torch.dtype] = []
    first = next(module for module in model.netG.modules() if isinstance(module, nn.Conv2d))
    handle = first.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    model.update_learning_rate(1)
    model.optimize_parameters([class_batch(1)], 1)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("arguments", "visible"),
    [((), ""), (("-q", "tests/test_device.py"), ""), (("tests/test_gpu.py::test_no_iteration_waits", "-x"), "1")],
)
def test_the_suite_sees_no_gpu(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    pytest_configure(SimpleNamespace(invocation_params=SimpleNamespace(args=arguments)))  # type: ignore[arg-type]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize("processor", PROCESSORS)
def test_auto_takes_the_faster_precision(processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, tmp_path, processor)
    is_faster = PROCESSORS[processor][1]
    assert trains_faster_in_bf16(CPU) is is_faster
    options = net_options({"amp": "auto"})
    assert trained_dtype(ModelPlain(options, ONE_RANK, 0)) == (torch.bfloat16 if is_faster else torch.float32)
    assert machine_record(options, ONE_RANK)["amp"] == ("bf16" if is_faster else None)


@pytest.mark.parametrize(
    ("amp", "capability", "convolutions", "wanted"),
    [
        (None, (9, 0), "tf32", "float32, convolutions in TF32"),
        (None, (9, 0), "ieee", "float32"),
        (None, (7, 5), "tf32", "float32"),
        ("bf16", (9, 0), "tf32", "bf16"),
    ],
)
def test_float32_on_a_gpu_says_what_its_convolutions_are(
    monkeypatch: pytest.MonkeyPatch, amp: Literal["bf16"] | None, capability: tuple[int, int], convolutions: str,
    wanted: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision=convolutions))
    assert precision_name(amp, torch.device("cuda", 0)) == wanted


@pytest.mark.parametrize("processor", ["Intel with AMX", "Intel without AMX"])
def test_what_the_options_say_is_what_is_done(processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, tmp_path, processor)
    assert trained_dtype(ModelPlain(net_options({"amp": "bf16"}), ONE_RANK, 0)) == torch.bfloat16
    assert trained_dtype(ModelPlain(net_options({"amp": None}), ONE_RANK, 0)) == torch.float32


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ("Intel with AMX", "Intel without AMX", "amp: bf16 -> None"),
        ("AMD before bf16", "AMD with bf16", "amp: None -> bf16"),
        ("AMD with bf16", "AMD with bf16", ""),
    ],
)
def test_a_resume_says_that_auto_has_chosen_anew(
    before: str, now: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = net_options({"amp": "auto"})
    become(monkeypatch, tmp_path, before)
    manifest = Manifest(
        iteration=4, epoch=0, reason="periodic", progress=Progress(), stream={},
        machine=machine_record(options, ONE_RANK),
    )  # fmt: skip
    become(monkeypatch, tmp_path, now)
    resume = ResumePoint(4, {"optimizerG": tmp_path}, manifest)
    said = resume_guarantee(resume, {}, machine_record(options, ONE_RANK), [])
    assert said.startswith("SAME-DATA" if change else "EXACT")
    assert change in said


@pytest.mark.skipif(os.name != "posix", reason="the compilers are shell scripts")
def test_another_compiler_is_no_exact_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(version: str) -> Any:
        compiler = tmp_path / "c++"
        compiler.write_text(f"#!/bin/sh\necho 'g++ {version}'\necho 'Copyright'\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        return [machine_record(net_options({"compile": compiles}), ONE_RANK)["compile"] for compiles in (True, False)]

    assert record("12.2") == ["True (g++ 12.2)", False]
    assert record("13.1") == ["True (g++ 13.1)", False]
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    assert machine_record(net_options({"compile": True}), ONE_RANK)["compile"] is True


def test_the_start_block_names_the_precision(new_run: NewRun) -> None:
    def start(amp: str) -> str:
        ended = new_run().launch("--dry_run", "--set", f"train.amp={amp}")
        assert ended.status == 0
        return ended.output

    automatic, forced = start("auto"), start("bf16")
    assert f"{chosen_amp('auto', CPU) or 'float32'}, the faster one here" in automatic
    assert "more slowly" not in automatic
    assert ("bf16 trains more slowly than float32" in forced) == (trains_faster_in_bf16(CPU) is False)
