"""export: the tested network as one file for other programs, written only if it says what the model says.

The graph takes batches of any size and is the inference form of the network that the run tested (netE where there is
one). Class names, input and transforms stand in the file's metadata. The file is compared with the model on real inputs
before it gets its name.

Exit status: 0 written; 1 the graph does not say what the model says; 2 the model or the arguments are wrong.
"""

import argparse
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from commands.inference_graph import FORMATS, InferenceGraph, Run, capture, reason
from commands.outputs import check_output
from commands.trained_model import TrainedModel, load_trained_model
from models.model_plain import without_targets
from utils.utils_dist import Dist, process_group
from utils.utils_error import UserError, check_at_least_one
from utils.utils_file import atomic_write
from utils.utils_logger import print_block
from views.view_classification import ClassificationView

logger = logging.getLogger("longhaul")

SUMMARY = "the network as ONNX or torch.export, checked against the model"
EXAMPLES = """
    python main_test.py export experiments/fer
    python main_test.py export experiments/fer --with_preprocessing --with_softmax --output faces.onnx
    python main_test.py export experiments/fer/models/best_model.pth --format torch_export
"""

TOLERANCE = 1e-4
"""Of the model's largest output: float32 sums in another order differ by 1e-6 or so, a wrong graph by far more."""

_SPEED_BATCHES = (1, 64)
_SPEED_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="form of the file (default: onnx)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: beside the model)")
    parser.add_argument(
        "--with_preprocessing", action="store_true",
        help="the graph takes raw images, uint8, and normalises them itself",
    )  # fmt: skip
    parser.add_argument("--with_softmax", action="store_true", help="the graph gives probabilities of the classes")
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: torch's choice)")
    parser.add_argument(
        "--num_samples", type=int, default=64, metavar="N", help="inputs of the comparison (default: 64)"
    )


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Raw inputs (N, C, H, W) and where they are from; `synthetic` and `random` say why they are not real."""

    raw: torch.Tensor
    origin: str
    synthetic: str = ""
    random: str = ""


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Outputs (N, ...) of the graph and of the model, and their largest absolute difference by size of batch."""

    outputs: torch.Tensor
    reference: torch.Tensor
    differences: Mapping[int, float]

    @property
    def difference(self) -> float:
        """The largest of all; NaN if one is."""
        return float(np.max(list(self.differences.values())))

    @property
    def largest_output(self) -> float:
        """Of the model, in magnitude."""
        return float(self.reference.abs().max())

    @property
    def is_close(self) -> bool:
        return self.difference <= TOLERANCE * self.largest_output


@dataclasses.dataclass(frozen=True)
class _Exported:
    """The content of the file, and what is known of it.

    speeds: size of batch -> images/s of the graph and of PyTorch.
    """

    data: bytes
    kind: str
    metadata: Mapping[str, Any]
    compared: _Comparison
    num_threads: int
    speeds: Mapping[int, Sequence[float]]


def run(args: argparse.Namespace) -> int:
    """Exit status: see the module."""
    _check_arguments(args)
    FORMATS[args.format].check_packages()
    trained = load_trained_model(args.model, args.opt, args.set)
    if args.with_softmax and not trained.class_names:
        raise UserError(f"--with_softmax: the outputs of {trained.path} are no classes; leave it out")
    output = args.output or trained.path.with_suffix(FORMATS[args.format].suffix)
    check_output("--output", output, trained.reads())
    samples = _samples(trained, args.num_samples)
    with process_group(trained.opt.train.num_threads) as dist:
        exported = _export(trained, samples, args, dataclasses.replace(dist, device=torch.device("cpu")))
    if not exported.compared.is_close:
        _report_difference(exported.compared)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write(exported.data)
    _print(trained, samples, exported, output)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    suffix = FORMATS[args.format].suffix
    check_at_least_one("--num_samples", args.num_samples)
    if args.output is not None and args.output.suffix != suffix:  # no slip may overwrite a model
        raise UserError(f"--output: {args.output} is not allowed: {args.format} files end in {suffix}")
    if args.opset is not None and args.format != "onnx":
        raise UserError(f"--opset: {args.format} has none; leave it out, or use --format onnx")


def _samples(trained: TrainedModel, num_samples: int) -> _Samples:
    """Inputs spread over datasets.test; random ones where there are no data."""
    try:
        source = trained.test_source(None, is_judged=False)
    except UserError as error:
        if trained.input_shape is None:
            raise
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (num_samples, *trained.input_shape), dtype=np.uint8)
        return _Samples(torch.from_numpy(images), "random inputs", random=str(error))
    chosen = np.linspace(0, len(source.dataset) - 1, min(num_samples, len(source.dataset))).round().astype(int)
    raw = torch.stack([torch.as_tensor(source.dataset[i]["input"]) for i in chosen.tolist()])
    origin = f"inputs of {source.title}"
    return _Samples(raw, origin, synthetic=source.synthetic or "")


def _export(trained: TrainedModel, samples: _Samples, args: argparse.Namespace, dist: Dist) -> _Exported:
    """Make the file's content, load it again, and compare it with the model."""

    def define_graph() -> InferenceGraph:
        preprocessing = trained.preprocessing() if args.with_preprocessing else None
        return InferenceGraph(trained.load(dist), preprocessing, args.with_softmax)

    reference = trained.predictor(dist)(samples.raw)
    reference = reference.softmax(dim=1) if args.with_softmax else reference
    inputs = samples.raw if args.with_preprocessing else _preprocessed(trained, samples.raw)
    metadata = _metadata(trained, args, inputs, reference, samples.raw.dtype)
    file_format = FORMATS[args.format]
    data, kind = file_format.write(capture(define_graph(), _batch(inputs, 2)), metadata, args.opset)
    graph = file_format.load(data, dist.num_threads)
    compared = _compare(graph, inputs, reference)
    pytorch = define_graph()
    speeds = {size: _speeds((graph, pytorch), _batch(inputs, size)) for size in _SPEED_BATCHES}
    return _Exported(data, kind, metadata, compared, dist.num_threads, speeds)


def _preprocessed(trained: TrainedModel, raw: torch.Tensor) -> torch.Tensor:
    images: torch.Tensor = trained.preprocessing()(without_targets(raw), np.arange(len(raw)))["input"]
    return images


def _batch(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` inputs, from the start again where there are fewer."""
    return inputs[torch.arange(size) % len(inputs)]


def _metadata(
    trained: TrainedModel, args: argparse.Namespace, inputs: torch.Tensor, reference: torch.Tensor, raw: torch.dtype
) -> dict[str, Any]:
    """What a program that holds nothing but the file must know; `transforms` are those that are left to it."""
    division = "values / 255, then " if raw == torch.uint8 else ""
    normalised = f"{division}the transforms in this order"
    loss, view = trained.opt.train.G_lossfn_type, trained.view()
    colours = {1: "grey", 3: "RGB"}.get(inputs.shape[1] if inputs.ndim == 4 else 0, "")
    as_is = view.output_meaning or f"as netG gives it, trained with {loss}"
    return {
        "task": trained.opt.task,
        "net_type": trained.opt.netG.net_type,
        "iteration": trained.iteration,
        "class_names": list(trained.class_names),
        "joint_names": list(view.joint_names),
        "root_joint_idx": trained.opt.netG.arguments.get("root_joint_idx", 0) if view.joint_names else None,
        "input": {
            **_tensor(inputs, "raw, as the data set has them" if args.with_preprocessing else normalised),
            "colours": colours,
        },
        "transforms": [] if args.with_preprocessing else trained.input_transforms(),
        "output": _tensor(reference, "probabilities of the classes" if args.with_softmax else as_is),
    }


def _tensor(values: torch.Tensor, meaning: str) -> dict[str, Any]:
    """Shape of one sample, type and meaning, as JSON values."""
    return {"shape": list(values.shape[1:]), "dtype": str(values.dtype).removeprefix("torch."), "meaning": meaning}


def _described(tensor: Mapping[str, Any]) -> str:
    shape = ", ".join(map(str, ["batch", *tensor["shape"]]))
    return f"{tensor['dtype']} ({shape}), {tensor['meaning']}"


def _compare(graph: Run, inputs: torch.Tensor, reference: torch.Tensor) -> _Comparison:
    """The graph's outputs in batches of 1, 2 and all inputs against the model's; another shape differs infinitely."""
    differences = {}
    for size in sorted({1, 2, len(inputs)}):
        expected = _batch(reference, size)
        try:
            outputs = graph(_batch(inputs, size))
        except Exception as error:  # those of the runtimes share no class
            raise UserError(f"the exported graph fails in a batch of {size}: {reason(error)}") from error
        is_same_shape = outputs.shape == expected.shape  # else they might be broadcast
        differences[size] = float((outputs - expected).abs().max()) if is_same_shape else math.inf
    return _Comparison(outputs[: len(inputs)], reference, differences)


def _report_difference(compared: _Comparison) -> None:
    found = ", ".join(f"{difference:.3g} in a batch of {size}" for size, difference in compared.differences.items())
    logger.error(
        "The exported graph does not say what the model says, and nothing is written. Largest absolute difference: %s; "
        "allowed is %.3g, %g of the model's largest output. Try the other --format.",
        found, TOLERANCE * compared.largest_output, TOLERANCE,
    )  # fmt: skip


def _print(trained: TrainedModel, samples: _Samples, exported: _Exported, output: Path) -> None:
    compared = exported.compared
    relative = compared.difference / (compared.largest_output or 1)
    sizes = ", ".join(map(str, compared.differences))
    lines = {
        "model": f"{trained.path}: {trained.opt.netG.net_type}, iteration {trained.iteration:,}",
        "file": f"{output}: {exported.kind}, {len(exported.data) / 1e6:.2f} MB",
        "input": _described(exported.metadata["input"]),
        "output": _described(exported.metadata["output"]),
        "checked on": f"{len(samples.raw):,} {samples.origin}, in batches of {sizes}",
        "SYNTHETIC": samples.synthetic,
        "RANDOM": samples.random,
        "difference": f"{compared.difference:.2g} at most, {relative:.1g} of the largest output",
    }
    if trained.class_names and isinstance(trained.view(), ClassificationView):  # others may have several in a sample
        same = (compared.outputs.argmax(dim=1) == compared.reference.argmax(dim=1)).sum()
        lines["same class"] = f"{int(same):,} of {len(samples.raw):,}"
    lines["threads"] = str(exported.num_threads)
    for size, (graph, pytorch) in exported.speeds.items():
        ratio = f"{graph / pytorch:.2f} times the {pytorch:,.0f} of PyTorch"
        lines[f"batches of {size}"] = f"{graph:,.0f} images/s, {ratio}"
    print_block("Export", lines.items())


def _speeds(graphs: tuple[Run, Run], batch: torch.Tensor) -> list[float]:
    """Images per second of each, from the median of calls in turn: what else the machine does slows both alike."""
    times: list[list[float]] = [[], []]
    with torch.no_grad():
        end = time.perf_counter() + _SPEED_SECONDS
        while len(times[0]) < 5 or time.perf_counter() < end:
            for graph, each in zip(graphs, times, strict=True):
                start = time.perf_counter()
                graph(batch)
                each.append(time.perf_counter() - start)
    return [len(batch) / float(np.median(each)) for each in times]
