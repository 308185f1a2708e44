"""A trained model as one graph for other programs: captured, written as ONNX or torch.export, and run again."""

import contextlib
import copy
import dataclasses
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch.export import ExportedProgram

from data.transforms import Pipeline
from models.model_plain import ModelPlain, without_targets
from utils.utils_error import UserError

Run = Callable[[torch.Tensor], torch.Tensor]
"""Inputs (B, ...) -> outputs (B, ...), both on the CPU."""

_NO_LIMIT = 2**31
"""A batch that may be this large may have any size: torch's own infinity is larger."""


class InferenceGraph(nn.Module):
    """What `model.test` computes, as a module that can be captured: inputs (B, C, H, W) -> float32 outputs.

    The model's own `feed_data` and `netG_forward` are used, so that a subclass is exported as it is tested.
    preprocessing: inputs are raw, and pass through it. softmax: outputs are probabilities over dimension 1.
    """

    def __init__(self, model: ModelPlain, preprocessing: Pipeline | None = None, softmax: bool = False) -> None:
        super().__init__()
        self.net = model.tested_net
        self._model, self._preprocessing, self._softmax = model, preprocessing, softmax
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch = without_targets(images)
        if self._preprocessing is not None:
            batch = self._preprocessing(batch, np.arange(0))  # nothing in it depends on positions
        model = copy.copy(self._model)  # feed_data writes to it, and a capture's tensors are no tensors
        model.feed_data(batch)
        output = model.netG_forward(self.net).float()
        return output.softmax(dim=1) if self._softmax else output


def capture(graph: InferenceGraph, images: torch.Tensor) -> ExportedProgram:
    """The graph for batches of any size; UserError for a network that has no such graph. images: at least two."""
    graph.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the layout is the runtime's choice
    shapes = ({0: torch.export.Dim.DYNAMIC},)  # a named dimension must be proved free, and some that are free cannot be
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the network's own code raises, and torch about it
        raise UserError(
            f"this network cannot be exported: {reason(error)}; its forward pass must not depend on the values of its "
            "input, nor on the size of the batch (len(x) is a fixed number to torch.export, x.shape[0] is not)"
        ) from error
    for limits in program.range_constraints.values():
        if limits.upper < _NO_LIMIT:
            raise UserError(
                f"this network cannot be exported: beyond {limits.upper} it does something else; its forward pass must "
                "not depend on the size of the batch"
            )
    return program


@dataclasses.dataclass(frozen=True)
class GraphFormat:
    """One kind of file.

    packages: optional ones that it needs. write: a program and its metadata (every value becomes JSON) -> the file's
    bytes and what they are, in words. load: such bytes and a number of threads -> the graph.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Mapping[str, Any], int | None], tuple[bytes, str]]
    load: Callable[[bytes, int], Run]

    def check_packages(self) -> None:
        """UserError if a package is missing."""
        for name in self.packages:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(
                    f"this format needs {', '.join(self.packages)}, and {name} cannot be imported ({error}); "
                    f"python -m pip install {' '.join(self.packages)}, or use --format torch_export"
                ) from error


def _write_onnx(program: ExportedProgram, metadata: Mapping[str, Any], opset: int | None) -> tuple[bytes, str]:
    note = ""
    try:
        try:
            converted = _as_onnx(program, opset, optimize=True)
        except torch.onnx.OnnxExporterError:
            raise
        except Exception:  # onnxscript 0.7.2 cannot optimize a split into parts of unknown size
            converted, note = _as_onnx(program, opset, optimize=False), ", not optimized"
    except Exception as error:  # errors in conversion share no class
        why = reason(_first_cause(error))
        raise UserError(f"this network has no form in ONNX: {why}; use --format torch_export") from error
    written = converted.model.opset_imports[""]
    if opset not in (None, written):
        raise UserError(f"--opset: {opset} cannot be written, only {written}; leave --opset out")
    converted.model.metadata_props.update(_as_json(metadata))
    return converted.model_proto.SerializeToString(), f"ONNX, opset {written}{note}"


def _as_onnx(program: ExportedProgram, opset: int | None, optimize: bool) -> torch.onnx.ONNXProgram:
    with _quiet():
        converted = torch.onnx.export(
            program, input_names=["input"], output_names=["output"], dynamic_shapes=({0: "batch"},),
            opset_version=opset, optimize=optimize, dynamo=True, verbose=False,
        )  # fmt: skip
    assert converted is not None, "dynamo=True returns the program"
    return converted


def _load_onnx(data: bytes, num_threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class
        raise UserError(f"onnxruntime does not take the graph: {reason(error)}; try another --opset") from error

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["output"], {"input": images.numpy()})[0])

    return run


def _write_torch_export(program: ExportedProgram, metadata: Mapping[str, Any], _opset: int | None) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=_as_json(metadata))
    return buffer.getvalue(), f"torch.export, torch {torch.__version__}"


def _load_torch_export(data: bytes, _num_threads: int) -> Run:
    module = torch.export.load(io.BytesIO(data)).module()

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return module(images)

    return run


FORMATS = {
    "onnx": GraphFormat(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "torch_export": GraphFormat(".pt2", (), _write_torch_export, _load_torch_export),
}


def _as_json(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in metadata.items()}


def reason(error: BaseException) -> str:
    """The first line that says something, without torch's advice to its developers."""
    lines = (line.partition("For more information")[0].strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def _first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _first_cause(error.__cause__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch 2.13 prints and logs while it captures and converts; what it raises says what went wrong."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # its own
            yield
    finally:
        logging.disable(disabled)
