"""What a user's own network, loss, optimizer, transform or data set may do, and a resume is exact all the same."""

import contextlib
import csv
import functools
import itertools
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn as nn

from data import loaders, transforms
from data.dataset_freihand import FreiHand
from data.transforms import TRANSFORMS
from models import evaluate, model_base, optimizer, probe
from models.buffers import KeptBuffers, fill_placeholders
from models.model_plain import ModelPlain
from models.optimizer import OPTIMIZERS
from models.optimizer_torch import without_dynamo
from tests.own_parts import LAST, NUM_CLASSES, Launch, Linear, Numbers, files, launch
from utils.utils_metric_sums import Metric, sample_mean
from utils.utils_state_file import load_state

__all__ = ["launch"]  # a fixture


class Shifting(Linear):
    """Writes to its input."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x.sub_(0.5).mul_(4))


def test_a_network_that_writes_to_its_input_resumes_exactly(launch: Launch, tmp_path: Path) -> None:
    assert launch("whole", net=Shifting) == 0
    assert launch("parts", net=Shifting, train__total_iter=3) == 0
    assert launch("parts", net=Shifting) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


class Noise:
    """A transform that draws from the three global generators, as many a user's does."""

    is_random = True

    def __call__(self, batch: dict[str, Any], _positions: Any, _seed: int) -> dict[str, Any]:
        drawn = np.random.rand() + random.random()  # noqa: NPY002
        return {**batch, "input": batch["input"] + drawn * torch.rand_like(batch["input"])}


def test_a_transform_that_draws_from_global_generators_resumes_exactly(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TRANSFORMS, "_entries", {**TRANSFORMS._entries, "own": Noise})
    noisy = {"datasets__train__transforms": [{"type": "own"}]}
    assert launch("plain") == launch("whole", **noisy) == 0
    assert files(tmp_path / "plain") != files(tmp_path / "whole")
    assert launch("parts", train__total_iter=3, **noisy) == launch("parts", **noisy) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


class Noisy(Linear):
    """Draws in a test, too."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x + torch.randn_like(x) + np.random.rand())  # noqa: NPY002 - as users do


class Summing(Numbers):
    """Sums so many numbers that torch shares them among its threads."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {**sample, "input": sample["input"] + torch.randn(1 << 17).mean()}


def test_a_data_set_that_computes_gives_the_same_bits_in_a_worker(launch: Launch, tmp_path: Path) -> None:
    for task, num_workers in (("process", 0), ("worker", 1)):
        assert launch(
            task, data=Summing, train__num_threads=2, datasets__train__dataloader_num_workers=num_workers
        ) == 0  # fmt: skip
    assert files(tmp_path / "worker") == files(tmp_path / "process")


class Decoding(Numbers):
    decoder = "own 1"


class DecodingAnew(Numbers):
    decoder = "own 2"


def test_what_decodes_the_samples_is_part_of_an_exact_resume(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(data: type, total_iter: int) -> str:
        assert launch(data=data, train__total_iter=total_iter) == 0
        return capsys.readouterr().out

    said(Decoding, 2)
    assert "EXACT" in said(Decoding, 4)
    assert "the updates differ (decoder: own 1 -> own 2)" in said(DecodingAnew, 6)
    assert FreiHand.decoder == f"opencv {cv2.__version__}"


def stop_in_first_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM before its second batch."""
    test, calls = ModelPlain.test, itertools.count(1)

    def stopped(model: ModelPlain, batch: Any) -> torch.Tensor:
        if next(calls) == 3:  # the first call looks whether the test fits
            os.kill(os.getpid(), signal.SIGTERM)
        return test(model, batch)

    monkeypatch.setattr(ModelPlain, "test", stopped)


def launch_whole_and_in_parts(launch: Launch, monkeypatch: pytest.MonkeyPatch, **parts: Any) -> None:
    """Train "whole", and "parts" with a stop in its first test."""
    parts = {"datasets__test__dataloader_batch_size": 8, **parts}
    assert launch("whole", **parts) == 0
    with monkeypatch.context() as patch:
        stop_in_first_test(patch)
        assert launch("parts", **parts) == 128 + signal.SIGTERM
    assert launch("parts", **parts) == 0


def rows_of_tests(folder: Path) -> list[dict[str, str]]:
    """The rows of tests in metrics.csv, without the speed."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{**row, "images_per_s": ""} for row in csv.DictReader(file) if row["split"] == "test"]


def test_a_network_that_draws_in_a_test_is_tested_alike_after_a_stop(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_whole_and_in_parts(launch, monkeypatch, net=Noisy)
    assert rows_of_tests(tmp_path / "parts") == rows_of_tests(tmp_path / "whole")
    assert launch("streamed", net=Noisy, data=Numbers, datasets__test__dataloader_batch_size=8) == 0
    assert rows_of_tests(tmp_path / "streamed") == rows_of_tests(tmp_path / "whole")


class Counting(Linear):
    """Writes to its buffers in a test, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x: torch.Tensor) -> Any:
        self.get_buffer("mean").lerp_(x.mean(dim=0), 0.1)
        return self.layer(x - self.get_buffer("mean"))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_network_that_changes_in_a_test_resumes_exactly_from_one(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    launch_whole_and_in_parts(launch, monkeypatch, net=Counting, train__E_decay=decay)
    parts = ("G", "E", "optimizerG") if decay else ("G", "optimizerG")
    assert files(tmp_path / "parts", parts) == files(tmp_path / "whole", parts)
    assert rows_of_tests(tmp_path / "parts") == rows_of_tests(tmp_path / "whole")


def test_a_test_that_is_made_again_gives_no_new_best_model(launch: Launch, tmp_path: Path) -> None:
    """A kill came before final_model.pth was written; the best model is that of the last test already."""
    calls = itertools.count(1)

    def rising() -> Metric:
        value = next(calls) / 100
        return sample_mean(lambda _output, target: torch.full((len(target),), value))

    models = tmp_path / "own" / "models"
    assert launch(metric=rising, val__best_metric="own") == 0
    best = (models / "best_model.pth").read_bytes()
    assert torch.load(models / "best_model.pth")["iter"] == LAST
    (models / "final_model.pth").unlink()
    assert launch(metric=rising, val__best_metric="own") == 0
    assert (models / "final_model.pth").exists()
    assert (models / "best_model.pth").read_bytes() == best


class OfManySizes(nn.Module):
    """Sees its inputs in another size each time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        size = 8 if not self.training else int(torch.randint(4, 9, ()))
        return self.head(self.layer(x.view(-1, 1, 8, 8)[..., :size]).mean(dim=(2, 3)))


def with_other_bits_in_any_size(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
    """A compiler whose code for sizes that it does not know has other bits, as inductor's has."""
    if all(isinstance(each, torch.Tensor) for each in inputs):
        return graph.forward  # type: ignore[no-any-return]
    return lambda *args: [output * 1.001 for output in graph.forward(*args)]


def test_a_compiled_network_that_sees_many_sizes_resumes_exactly(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = functools.partial(torch.compile, backend=with_other_bits_in_any_size)
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(model_base.shutil, "which", lambda name: name)
    for task, ends in (("whole", [LAST]), ("parts", [2, LAST])):
        for end in ends:
            torch.compiler.reset()  # as a new process
            assert launch(task, net=OfManySizes, train__compile=True, train__total_iter=end) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_the_order_of_several_ranks_sums_is_that_of_iteration_one(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP's follows the gradients, whose order a batch may decide; a resume begins with another batch."""
    ordered_by, trained_on = [], []
    optimize = ModelPlain.optimize_parameters

    def rebuild(_model: ModelPlain, first_micro_batches: Callable[[], Sequence[Any]]) -> None:
        ordered_by.append([batch["input"].tolist() for batch in first_micro_batches()])

    def noted(model: ModelPlain, micro_batches: Sequence[Any], current_iter: int) -> None:
        trained_on.append([batch["input"].tolist() for batch in micro_batches])
        optimize(model, micro_batches, current_iter)

    monkeypatch.setattr(ModelPlain, "rebuild_buckets", rebuild)
    monkeypatch.setattr(ModelPlain, "optimize_parameters", noted)
    assert launch(train__total_iter=3) == launch() == 0
    assert len(trained_on) == LAST
    assert len(trained_on[0]) == 2
    assert ordered_by == [trained_on[0]] * 2
    assert trained_on[3] != trained_on[0]


class Late(nn.Module):
    """The first layer in the order of the network takes part from the third iteration on."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.layer = nn.Linear(64, NUM_CLASSES), nn.Linear(64, NUM_CLASSES)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> Any:
        if self.training:
            self.get_buffer("count").add_(1)
        return (
            self.layer(x) + self.late(x) if self.get_buffer("count") > 4 else self.layer(x)
        )  # two passes an iteration


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_parameter_that_comes_later_resumes_exactly(launch: Launch, tmp_path: Path, optimizer: str) -> None:
    assert launch("whole", net=Late, train__G_optimizer_type=optimizer) == 0
    assert launch("parts", net=Late, train__G_optimizer_type=optimizer, train__total_iter=4) == 0
    assert launch("parts", net=Late, train__G_optimizer_type=optimizer) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_the_optimizer_in_a_best_model_is_that_of_a_run_without_a_stop(launch: Launch, tmp_path: Path) -> None:
    changes = {"val__metrics": ["confidence"], "val__best_metric": "confidence", "train__best_model_optimizer": True}
    assert launch("whole", net=Late, **changes) == 0
    assert launch("parts", net=Late, **changes, train__total_iter=4) == launch("parts", net=Late, **changes) == 0
    whole, parts = (load_state(tmp_path / task / "models" / "best_model.pth") for task in ("whole", "parts"))
    assert whole["iter"] == parts["iter"] == LAST
    assert list(whole["optimizer_state_dict"]["state"]) == list(parts["optimizer_state_dict"]["state"])


class Thawing(nn.Module):
    """Trains its first layer from the third iteration on, as a buffer counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(64, 64), nn.Linear(64, NUM_CLASSES)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> Any:
        if self.training:
            self.get_buffer("count").add_(1)
        self.first.requires_grad_(bool(self.get_buffer("count") > 4))  # two passes an iteration
        return self.layer(self.first(x))


def test_a_layer_that_is_frozen_at_first_resumes_exactly(launch: Launch, tmp_path: Path) -> None:
    assert launch("whole", net=Thawing) == 0
    assert launch("parts", net=Thawing, train__total_iter=4) == launch("parts", net=Thawing) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


class Warming(torch.optim.Optimizer):
    """Counts its steps in numbers, for each parameter and for each group, and keeps a mean of each row."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.1, "steps": 0})

    @torch.no_grad()
    def step(self, _closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += 1
            for each in group["params"]:
                state = self.state[each]
                state["step"] = state.get("step", 0) + 1
                state["row"] = state.get("row", 0) + each.grad.mean(dim=-1, keepdim=True)
                each.sub_(state["row"] / (1 - 0.9 ** state["step"]) * group["lr"] / group["steps"])


def test_an_optimizer_that_keeps_its_state_in_its_own_way_resumes_exactly(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {**OPTIMIZERS._entries, "own": lambda groups, _train: without_dynamo(Warming)(groups)}
    monkeypatch.setattr(OPTIMIZERS, "_entries", own)
    warming = {"train__G_optimizer_type": "own"}
    assert launch("whole", **warming) == 0
    assert launch("parts", train__total_iter=3, **warming) == launch("parts", **warming) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


class Cached(Linear):
    """Buffers as position encodings and masks are kept: filled by a forward pass, replaced, and an expanded one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filled", None, persistent=False)
        self.register_buffer("grown", torch.zeros(0), persistent=False)
        self.register_buffer("expanded", torch.ones(1, 64).expand(8, 64), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        if self.filled is None:
            self.filled = torch.ones(64)
        if self.training:
            self.register_buffer("of_training", x.detach().mean(), persistent=False)
        if not len(self.get_buffer("grown")):
            self.grown = torch.ones(64)
        return self.layer(x * self.filled * self.get_buffer("grown") * self.get_buffer("expanded")[0])


def test_a_pass_that_leaves_no_trace_puts_back_the_buffers_themselves() -> None:
    net = Cached()
    net.register_buffer("written", torch.zeros(2))
    before = dict(net._buffers)
    kept = KeptBuffers(net)
    net(torch.ones(8, 64))
    net.get_buffer("written").add_(1)
    kept.restore()
    assert net._buffers.keys() == before.keys()
    assert all(net._buffers[name] is buffer for name, buffer in before.items())
    assert net.get_buffer("written").tolist() == [0, 0]


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_caches_in_buffers_are_no_obstacle(launch: Launch, tmp_path: Path, nonfinite: str) -> None:
    assert launch("cached", net=Cached, train__nonfinite=nonfinite) == 0
    assert launch("plain", train__nonfinite=nonfinite) == 0
    assert files(tmp_path / "cached") == files(tmp_path / "plain")


class Formed(Linear):
    """Keeps in its files what its first forward pass makes: as a cache, and as a mean of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.empty(0))
        self.register_buffer("seen", None)

    def forward(self, x: torch.Tensor) -> Any:
        if self.get_buffer("steps").shape != x.shape[1:]:
            self.steps = torch.linspace(0, 1, x.shape[1])
        if self.seen is None:
            self.seen = torch.zeros(64)
        if self.training:
            self.seen = self.seen.lerp(x.detach().mean(dim=0), 0.3)
        return self.layer(x * self.get_buffer("steps") - self.seen)


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_buffers_that_a_forward_pass_makes_are_saved_and_resumed(
    launch: Launch, tmp_path: Path, nonfinite: str
) -> None:
    assert launch("whole", net=Formed, train__nonfinite=nonfinite) == 0
    assert launch("parts", net=Formed, train__nonfinite=nonfinite, train__total_iter=3) == 0
    assert launch("parts", net=Formed, train__nonfinite=nonfinite) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    models = tmp_path / "whole" / "models"
    netG, netE = (torch.load(models / f"{LAST}_{part}.pth") for part in ("G", "E"))
    assert netE["steps"].tolist() == netG["steps"].tolist() == torch.linspace(0, 1, 64).tolist()
    assert 0 < netE["seen"].mean() < 1
    path = {"pretrained_netG": str(models / f"{LAST}_G.pth"), "pretrained_netE": None}
    assert launch("tuned", net=Formed, path={"root": str(tmp_path), **path}, train__total_iter=1) == 0


class Resized(Linear):
    """Gives a buffer its size in place, in its first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> Any:
        seen = self.get_buffer("seen")
        if not len(seen):
            seen.resize_(64).zero_()
        if self.training:
            seen.lerp_(x.detach().mean(dim=0), 0.3)
        return self.layer(x - seen)


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_buffer_that_a_forward_pass_resizes_is_resumed(launch: Launch, tmp_path: Path, nonfinite: str) -> None:
    assert launch("whole", net=Resized, train__nonfinite=nonfinite) == 0
    assert launch("parts", net=Resized, train__nonfinite=nonfinite, train__total_iter=3) == 0
    assert launch("parts", net=Resized, train__nonfinite=nonfinite) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


class Remembering(Linear):
    """Has a state beside tensors, which each pass changes."""

    passes = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.passes += 1
        return self.layer(x)

    def get_extra_state(self) -> list[int]:
        return [0] * self.passes

    def set_extra_state(self, state: list[int]) -> None:
        self.passes = len(state)


def test_state_beside_tensors_is_resumed(launch: Launch, tmp_path: Path) -> None:
    assert launch("whole", net=Remembering) == 0
    assert launch("parts", net=Remembering, train__total_iter=3) == launch("parts", net=Remembering) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(torch.load(tmp_path / "parts" / "models" / f"{LAST}_G.pth")["_extra_state"]) >= LAST


def test_state_beside_tensors_is_that_before_a_test_that_was_cut_off(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_whole_and_in_parts(launch, monkeypatch, net=Remembering)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


class Looking(nn.Module):
    """Looks at its weights through an attribute that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(64, 64), nn.Linear(64, NUM_CLASSES)
        self.view = self.first.weight.detach().t()

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(torch.relu(self.first(x)) @ self.view)


def test_a_view_of_a_weight_follows_it(launch: Launch, tmp_path: Path) -> None:
    assert launch("whole", net=Looking) == 0
    assert launch("parts", net=Looking, train__total_iter=3) == launch("parts", net=Looking) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert launch("no_average", net=Looking, train__E_decay=0.0) == 0
    assert files(tmp_path / "no_average", ["G"]) == files(tmp_path / "whole", ["G"])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_a_norm_without_running_statistics_takes_none_from_a_file(norm: Callable[..., nn.Module]) -> None:
    net = norm(4, track_running_stats=False)
    fill_placeholders(net, norm(4, track_running_stats=True).state_dict())
    assert not list(net.buffers())


CONTROLS: dict[str, tuple[Any, str, Any, Callable[..., None]]] = {
    "a copy for the probe": (
        probe, "copied", dict,
        lambda launch, tmp_path, _: test_a_network_that_writes_to_its_input_resumes_exactly(launch, tmp_path),
    ),
    "a transform's seeds": (
        transforms, "seed_global_generators", lambda _seed: None,
        test_a_transform_that_draws_from_global_generators_resumes_exactly,
    ),
    "a test's seeds": (
        evaluate, "seed_global_generators", lambda _seed: None,
        test_a_network_that_draws_in_a_test_is_tested_alike_after_a_stop,
    ),
    "a test's buffers": (
        evaluate, "KeptBuffers", contextlib.nullcontext,
        functools.partial(test_a_network_that_changes_in_a_test_resumes_exactly_from_one, decay=0.9),
    ),
    "a test's extra state": (
        evaluate, "KeptBuffers", contextlib.nullcontext,
        test_state_beside_tensors_is_that_before_a_test_that_was_cut_off,
    ),
    "code for each shape": (
        model_base, "compiled", lambda net: torch.compile(net),
        test_a_compiled_network_that_sees_many_sizes_resumes_exactly,
    ),
    "one thread": (
        loaders, "_on_one_thread", iter,
        lambda launch, tmp_path, _: test_a_data_set_that_computes_gives_the_same_bits_in_a_worker(launch, tmp_path),
    ),
    "what a pass has made": (
        model_base, "fill_placeholders", lambda _net, _state: None,
        lambda launch, tmp_path, _: test_buffers_that_a_forward_pass_makes_are_saved_and_resumed(
            launch, tmp_path, "stop"
        ),
    ),
    "an optimizer's own numbers": (
        optimizer, "_as_saved", lambda key, value, parameter, _group: optimizer._like(key, value, parameter),
        test_an_optimizer_that_keeps_its_state_in_its_own_way_resumes_exactly,
    ),
    "an optimizer's own groups": (
        optimizer, "_restore_groups", lambda _optimizer, _saved: None,
        test_an_optimizer_that_keeps_its_state_in_its_own_way_resumes_exactly,
    ),
    "weights that stay": (
        torch._C, "_storage_Use_Count", lambda _storage: 2,
        lambda launch, tmp_path, _: test_a_view_of_a_weight_follows_it(launch, tmp_path),
    ),
}  # fmt: skip


@pytest.mark.parametrize("left_out", CONTROLS)
def test_what_is_left_out_would_be_noticed(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    owner, name, replacement, test = CONTROLS[left_out]
    monkeypatch.setattr(owner, name, replacement)
    with pytest.raises(AssertionError):
        test(launch, tmp_path, monkeypatch)
