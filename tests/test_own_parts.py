"""What a user's own network, loss, schedule or data set may do, and what it is told that it may not."""

import csv
import functools
import itertools
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.nn.utils import prune

import main_train
from data import transforms
from data.select_dataset import DATASETS
from data.transforms import TRANSFORMS
from models import model_base, probe
from models.buffers import KeptBuffers, fill_placeholders
from models.learning_rate import SCHEDULES
from models.loss import LOSSES
from models.model_plain import ModelPlain
from models.optimizer import OPTIMIZERS, without_dynamo
from models.select_network import NETWORKS
from tests.helpers import ONE_RANK, changed, net_options, tiny_option_mapping, write_options
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_metrics import METRICS

NUM_SAMPLES, NUM_CLASSES, LAST = 24, 3, 6

Launch = Callable[..., int]


class Numbers:
    """Resident samples (64,) of three classes; a subclass spoils one thing."""

    class_names = ("none", "one", "two")

    def __init__(self, dataroot: str, split: str = "train") -> None:
        self.fingerprint: Any = f"{dataroot} {split}"
        generator = torch.Generator().manual_seed(len(split))
        self._input = torch.rand(NUM_SAMPLES, 64, generator=generator)
        self._target = torch.arange(NUM_SAMPLES) % NUM_CLASSES

    @staticmethod
    def is_available(dataroot: str) -> bool:
        return bool(dataroot)

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self._input[index], "target": self._target[index], "name": str(index)}


class Resident(Numbers):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input, "target": self._target}

    def name(self, index: int) -> str:
        return str(index)


class Linear(nn.Module):
    """A linear classifier; a subclass does one thing more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Train on Resident with Linear and cross entropy, or with the parts given; returns the exit status."""

    def launch(
        task: str = "own", data: type = Resident, net: type = Linear,
        loss: Callable[[], nn.Module] = nn.CrossEntropyLoss,
        schedule: Callable[[int, Any], Any] = lambda _iter, _train: 1.0,
        metric: type | None = None, **more: Any,
    ) -> int:  # fmt: skip
        parts = [(DATASETS, data), (NETWORKS, net), (LOSSES, loss), (SCHEDULES, schedule)]
        for table, part in [*parts, *([(METRICS, metric)] if metric else [])]:
            monkeypatch.setattr(table, "_entries", {**table._entries, "own": part})  # type: ignore[attr-defined]
        options = changed(
            tiny_option_mapping(tmp_path, csv="unused"), task=task, netG={"net_type": "own"},
            datasets={
                "train": {"dataset_type": "own", "dataroot": "x", "split": "train", "dataloader_batch_size": 8},
                "test": {"split": "test"},
            },
            val={"metrics": ["accuracy", *(["own"] if metric else [])], "best_metric": "accuracy", "save_img": False},
            train__G_lossfn_type="own", train__G_lossfn_args={}, train__G_scheduler_type="own",
            train__total_iter=LAST,
        )  # fmt: skip
        options = changed(options, **more)
        monkeypatch.setattr(sys, "argv", ["main_train.py", "-opt", str(write_options(options, tmp_path / "o.json"))])
        return main_train.main()

    return launch


def refused(launch: Launch, capsys: pytest.CaptureFixture[str], **parts: Any) -> str:
    """What a launch says that ends before it trains."""
    assert launch(**parts) == 2
    said = capsys.readouterr()
    assert "iter:" not in said.out + said.err
    return said.out + said.err


def files(folder: Path, parts: Sequence[str] = ("G", "E", "optimizerG")) -> Mapping[str, bytes]:
    return {part: (folder / "models" / f"{LAST}_{part}.pth").read_bytes() for part in parts}


class Shifting(Linear):
    """Writes to its input."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x.sub_(0.5).mul_(4))


def test_a_network_that_writes_to_its_input_resumes_exactly(launch: Launch, tmp_path: Path) -> None:
    assert launch("whole", net=Shifting) == 0
    assert launch("parts", net=Shifting, train__total_iter=3) == 0
    assert launch("parts", net=Shifting) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_probe_on_what_is_trained_on_would_be_noticed(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "copied", dict)
    with pytest.raises(AssertionError):
        test_a_network_that_writes_to_its_input_resumes_exactly(launch, tmp_path)


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


def test_a_transform_that_draws_as_it_likes_would_be_noticed(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "seed_global_generators", lambda _seed: None)
    with pytest.raises(AssertionError):
        test_a_transform_that_draws_from_global_generators_resumes_exactly(launch, tmp_path, monkeypatch)


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


def test_batch_norm_of_all_ranks_needs_gpus() -> None:
    model = ModelPlain(net_options(), ONE_RANK, seed=0)
    model.dist = Dist(world_size=2)
    with pytest.raises(UserError, match=r"netG \(fer_resnet\): torch's SyncBatchNorm works on GPUs alone"):
        model.wrap(nn.SyncBatchNorm.convert_sync_batchnorm(model.netG))


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


class Registering(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        self.register_buffer("steps", torch.ones(64))
        return self.layer(x * self.get_buffer("steps"))


class Reshaping(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.ones(3))

    def forward(self, x: torch.Tensor) -> Any:
        self.steps = torch.ones(64)
        return self.layer(x * self.steps)


@pytest.mark.parametrize("net", [Registering, Reshaping])
def test_a_buffer_that_no_resume_could_load_is_refused(
    launch: Launch, capsys: pytest.CaptureFixture[str], net: type
) -> None:
    assert "netG (own): its forward pass makes 'steps', or gives" in refused(launch, capsys, net=net)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_a_norm_without_running_statistics_takes_none_from_a_file(norm: Callable[..., nn.Module]) -> None:
    net = norm(4, track_running_stats=False)
    fill_placeholders(net, norm(4, track_running_stats=True).state_dict())
    assert not list(net.buffers())


class Scripted(Linear):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.norm = torch.jit.script(nn.BatchNorm1d(64))  # type: ignore[no-untyped-call]

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(self.norm(x))


class Normed(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(self.norm(x))


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_scripted_layer_trains_as_the_layer(launch: Launch, tmp_path: Path, nonfinite: str) -> None:
    for task, net in (("scripted", Scripted), ("plain", Normed)):
        assert launch(task, net=net, train__nonfinite=nonfinite) == 0
    scripted, plain = (torch.load(tmp_path / task / "models/6_E.pth") for task in ("scripted", "plain"))
    assert scripted.keys() == plain.keys()
    assert all(torch.equal(scripted[name], value) for name, value in plain.items())


class Replacing(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        self.layer.weight = nn.Parameter(self.layer.weight.detach() * 0.99)
        return self.layer(x)


def test_a_network_that_replaces_its_parameters_is_refused(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(launch, capsys, net=Replacing)
    assert "netG (own): its forward pass puts another parameter in the place of 'layer.weight'" in said


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


class Pruned(Linear):
    """Prunes its weights in the third iteration, which names them anew."""

    passes = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.passes += self.training
        if self.passes == 4:  # the first pass looks whether the data fit
            prune.l1_unstructured(self.layer, "weight", 0.5)  # type: ignore[no-untyped-call]
        return self.layer(x)


def test_a_network_that_becomes_another_one_is_named_once(launch: Launch, tmp_path: Path) -> None:
    assert launch(net=Pruned) == 0
    log = (tmp_path / "own" / "train.log").read_text()
    named = "netG: 'layer.weight', 'layer.weight_mask', 'layer.weight_orig' came or went in training."
    assert log.count(named) == log.count("came or went") == 1


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv3d(1, 2, 3), nn.Conv2d(4, NUM_CLASSES, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.layer(x.view(-1, 1, 4, 4, 4)).flatten(1, 2)).flatten(1)


def test_channels_last_leaves_weights_of_five_dimensions_alone(launch: Launch) -> None:
    assert launch(net=Volume, train__channels_last=True) == 0


class Masked(Linear):
    persistent = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]), persistent=self.persistent)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x) + self.get_buffer("mask").nan_to_num(neginf=-9.0)


class MaskedInNoFile(Masked):
    persistent = False


def test_what_no_set_could_hold_is_refused_before_training(
    launch: Launch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(launch, capsys, net=Masked)
    assert "No checkpoint set of this run could be saved: G would hold non-finite values in mask" in said
    assert "persistent=False" in said
    assert launch(net=MaskedInNoFile) == 0
    assert all(value.isfinite().all() for value in torch.load(tmp_path / "own/models/6_E.pth").values())
    log = (tmp_path / "own" / "train.log").read_text()
    assert "Test Loss = " in log
    assert "Test Loss = nan" not in log


def test_a_schedule_may_give_numpy_s_numbers(launch: Launch, tmp_path: Path) -> None:
    assert launch(schedule=lambda current_iter, _train: np.cos(np.float32(current_iter / 10))) == 0
    assert (tmp_path / "own" / "models" / "6_manifest.json").exists()


@pytest.mark.parametrize("factor", [float("nan"), -0.1, float("inf"), None])
def test_a_schedule_that_gives_no_rate_is_named(
    launch: Launch, capsys: pytest.CaptureFixture[str], factor: float | None
) -> None:
    assert launch(schedule=lambda current_iter, _train: 1.0 if current_iter < 4 else factor) == 2
    said = capsys.readouterr()
    assert f"train.G_scheduler_type: own gives the factor {factor} in iteration 4" in said.out + said.err


class WithFingerprint(Resident):
    given: Any = None

    def __init__(self, dataroot: str, split: str = "train") -> None:
        super().__init__(dataroot, split)
        self.fingerprint = self.given


@pytest.mark.parametrize("given", [("train", 24), b"train", None])
def test_a_fingerprint_is_a_text(
    launch: Launch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    monkeypatch.setattr(WithFingerprint, "given", given)
    assert f"own has the fingerprint {given!r}; it must be a text" in refused(launch, capsys, data=WithFingerprint)


class FromOne(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input, "target": self._target + 1}


class TooShort(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input[:20], "target": self._target}


class Nameless(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input, "label": self._target}


class Arrays(Resident):
    def resident(self) -> dict[str, Any]:
        return {"input": self._input.numpy(), "target": self._target}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (FromOne, "targets from 1 to 3, and 3 classes are 0 to 2"),
        (Nameless, "resident() has no 'target'; it must give 'input' and 'target'"),
        (TooShort, "resident()['input'] is 20 rows; it must be a tensor of 24 rows"),
        (Arrays, "resident()['input'] is a ndarray; it must be a tensor of 24 rows"),
    ],
)
def test_what_a_data_set_hands_over_is_looked_at(
    launch: Launch, capsys: pytest.CaptureFixture[str], data: type, named: str
) -> None:
    assert named in refused(launch, capsys, data=data)


class Unreadable(Numbers):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 5:
            raise FileNotFoundError(2, "No such file or directory", "five.jpg")
        return super().__getitem__(index)


def test_a_sample_that_cannot_be_read_is_named(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(data=Unreadable) == 2
    said = capsys.readouterr()
    assert "sample 5 cannot be read: [Errno 2] No such file or directory: 'five.jpg'" in said.out + said.err
    assert "Traceback" not in said.out + said.err


class Pair(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x), x


class Detached(Linear):
    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x).detach()


class Frozen(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Complex(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(1, dtype=torch.complex64))


class Sparse(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4, 4, sparse=True)


class Lazy(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(NUM_CLASSES)


class EachSample(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__(reduction="none")


class AsNumber(nn.CrossEntropyLoss):
    def forward(self, output: torch.Tensor, target: torch.Tensor) -> Any:
        return super().forward(output, target).item()


class Learned(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class AsText:
    def update(self, output: torch.Tensor, target: torch.Tensor) -> None: ...

    def to(self, _device: torch.device) -> "AsText":
        return self

    def compute(self, _sum: Any = None) -> Any:
        return "good"


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"net": Pair}, "netG (own) answers with a tuple, and model: plain takes one tensor"),
        ({"net": Detached}, "depends on no parameter of netG that is trained"),
        ({"net": Frozen}, "netG: no parameter is trained"),
        ({"net": Complex}, "netG: 'turn' is torch.complex64"),
        ({"net": Sparse}, "netG: 'words' has sparse gradients"),
        ({"net": Lazy}, "netG (own): 'layer.weight' has no shape before the first forward pass"),
        ({"loss": EachSample}, "own gives a loss of shape (4,)"),
        ({"loss": AsNumber}, "own gives a loss that is a float"),
        ({"loss": Learned}, "own has parameters ('scale'), which nobody trains"),
        ({"metric": AsText}, "val.metrics: own computes a str"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_our_words(
    launch: Launch, capsys: pytest.CaptureFixture[str], parts: dict[str, type], named: str
) -> None:
    assert named in refused(launch, capsys, **parts)


class RunningMean(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.get_buffer("mean").lerp_(output.detach().mean(), 0.1)
        return super().forward(output, target)


class ClassWeights(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__(weight=torch.ones(NUM_CLASSES))


@pytest.mark.parametrize(("loss", "times"), [(RunningMean, 1), (ClassWeights, 0)])
def test_what_changes_and_is_in_no_file_is_named_once(
    launch: Launch, tmp_path: Path, loss: Callable[[], nn.Module], times: int
) -> None:
    assert launch(loss=loss) == 0
    log = (tmp_path / "own" / "train.log").read_text()
    assert log.count("lossfn.mean': changed in training and in no file") == times
    assert log.count("changed in training") == times
