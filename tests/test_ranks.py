"""What a rank is given: its share of the cores, the buffers of rank 0 where training may read them, and gradients."""

import contextlib
import copy
import functools
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from models import model_base, model_plain
from models.model_base import ModelBase, has_own_buffers
from models.model_plain import ModelPlain
from tests.helpers import class_batch, free_port, messages, net_options, same_tensors
from tests.run_helpers import PROJECT, in_child
from utils import utils_dist
from utils.utils_dist import Dist, leave_process_group, process_group
from utils.utils_error import UserError

NUM_RANKS = 2
Weights = dict[str, torch.Tensor]


class Centred(nn.Module):
    """Logits of what is left of an image (B, 256) after the mean of the images before; training reads a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 7)
        self.register_buffer("mean", torch.zeros(256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(x - self.mean)
        self.mean = torch.lerp(self.mean, x.mean(0), 0.5)
        return logits


class HalfUsed(nn.Module):
    """Logits of an image (B, 1, 16, 16); two parameters take no part in them, and a frozen one need not."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.idle = nn.Linear(256, 7), nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


class Clamping(nn.Module):
    """Writes to its weights in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.head.weight.clamp_(-0.01, 0.01)
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


class OwnNorm(nn.BatchNorm1d):
    """Whatever a user makes of batch norm."""


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 16), nn.BatchNorm1d(16), nn.Linear(16, 7))


NETWORKS = {"normed": normed, "centred": Centred}


def trained(net: nn.Module, wrapped: nn.Module, rank: int) -> Weights:
    """Three updates on batches of this rank's own."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        images, classes = torch.rand(4, 256, generator=generator), torch.randint(7, (4,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(images + rank), classes).backward()
        optimizer.step()
    return net.state_dict()


def run_rank(rank: int, port: int, folder: Path) -> None:
    """What a process that torchrun starts does: train both networks, wrapped by us and by hand."""
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUM_RANKS, "LOCAL_WORLD_SIZE": NUM_RANKS}
    os.environ.update({key: str(value) for key, value in given.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with process_group(num_threads=1) as dist:
        ours = ModelBase(net_options(), dist, 0)
        wrappers = {
            "ours": ours.wrap,
            "synced": lambda net: DistributedDataParallel(net, forward_sync_buffers=True),
            "unsynced": lambda net: DistributedDataParallel(net, forward_sync_buffers=False),
        }
        for name, define in NETWORKS.items():
            for way, wrap in wrappers.items():
                torch.manual_seed(0)
                net = define()
                torch.save(trained(net, wrap(net), rank), folder / f"{name}_{way}_{rank}.pth")
        (folder / f"first_{rank}.txt").write_text(str(dist.main_first(lambda: was_made(folder / "cache"))))
        (folder / f"trace_{rank}.txt").write_text(trace_of_the_first_pass(dist, rank))
        (folder / f"refusal_{rank}.txt").write_text(refusal_of_half_used(dist, rank))
        (folder / f"warning_{rank}.txt").write_text(warning_of_clamping(dist, rank))
        # Dynamo's own backend needs no C++ compiler.
        torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]
        model_base.shutil.which = lambda name: name  # type: ignore[attr-defined]
        for way in ("plain", "compiled"):
            model = ModelBase(net_options({"compile": way == "compiled"}), dist, 0)
            torch.save(kept_and_summed(model, rank), folder / f"gradients_{way}_{rank}.pth")


def was_made(cache: Path) -> bool:
    """Whether another rank has made it; this one does otherwise."""
    is_there = cache.exists()
    cache.touch()
    return is_there


def trace_of_the_first_pass(dist: Dist, rank: int) -> str:
    """What the pass that orders DDP's buckets has changed."""
    model = ModelPlain(net_options({"E_decay": 0.5}, dropout=0.2), dist, 0)
    before = copy.deepcopy(model.state())
    model.rebuild_buckets(lambda: [class_batch(rank)])
    changed = [part for part in "GE" if not same_tensors(model.state()[part], before[part])]
    gradients = [name for name, each in model.netG.named_parameters() if each.grad is not None]
    return " ".join([*changed, *gradients, *map(str, model.optimizer.state)])


def refusal_of_half_used(dist: Dist, rank: int) -> str:
    """What a launch on several ranks says of a network that is not used as a whole."""
    model_plain.define_G = lambda _options: HalfUsed()
    with pytest.raises(UserError) as caught:
        ModelPlain(net_options(), dist, 0).rebuild_buckets(lambda: [class_batch(rank)])
    return str(caught.value)


def warning_of_clamping(dist: Dist, rank: int) -> str:
    """What the same says of a network that writes to its weights."""
    model_plain.define_G = lambda _options: Clamping()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logging.getLogger("longhaul").addHandler(handler)
    ModelPlain(net_options(), dist, 0).rebuild_buckets(lambda: [class_batch(rank)])
    return messages(records)


def kept_and_summed(model: ModelBase, rank: int) -> Weights:
    """Gradients of one weight: of a bare network, after a pass without sync, and after one more with it."""
    torch.manual_seed(0)
    net = normed()
    bare, wrapped = copy.deepcopy(net), model.wrap(net)
    images = torch.rand(4, 256, generator=torch.Generator().manual_seed(rank))
    bare(images).square().mean().backward()
    with model.without_sync(wrapped):
        wrapped(images).square().mean().backward()
    kept = net[0].weight.grad.clone()
    wrapped(images).square().mean().backward()
    return {"alone": bare[0].weight.grad, "kept": kept, "summed": net[0].weight.grad}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights after training on two ranks: <network>_<way>_<rank>.pth."""
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    context = multiprocessing.get_context("fork")  # torch is imported already, and importing it takes seconds
    ranks = [context.Process(target=run_rank, args=(rank, port, folder)) for rank in range(NUM_RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * NUM_RANKS
    return folder


def weights(folder: Path, name: str, way: str, rank: int = 0) -> Weights:
    return torch.load(folder / f"{name}_{way}_{rank}.pth", weights_only=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_rank_0_saves_does_not_depend_on_how_buffers_are_shared(folder: Path, name: str) -> None:
    assert same_tensors(weights(folder, name, "ours"), weights(folder, name, "synced"))


@pytest.mark.parametrize("way", ["plain", "compiled"])
def test_micro_batches_are_summed_over_the_ranks_once(folder: Path, way: str) -> None:
    one, other = (weights(folder, "gradients", way, rank) for rank in range(NUM_RANKS))
    for each in (one, other):
        assert torch.allclose(each["kept"], each["alone"])
    assert not torch.allclose(one["kept"], other["kept"])
    assert torch.equal(one["summed"], other["summed"])


@pytest.mark.parametrize("name", NETWORKS)
def test_all_ranks_have_the_same_parameters(folder: Path, name: str) -> None:
    parameters = [key for key, _ in NETWORKS[name]().named_parameters()]
    one, other = (weights(folder, name, "ours", rank) for rank in range(NUM_RANKS))
    assert same_tensors({key: one[key] for key in parameters}, {key: other[key] for key in parameters})


@pytest.mark.parametrize("rank", range(NUM_RANKS))
def test_the_pass_that_orders_the_buckets_leaves_no_trace(folder: Path, rank: int) -> None:
    assert (folder / f"trace_{rank}.txt").read_text() == ""


def test_the_first_rank_of_a_machine_goes_first_and_the_others_find_what_it_made(folder: Path) -> None:
    assert [(folder / f"first_{rank}.txt").read_text() for rank in range(NUM_RANKS)] == ["False", "True"]


@pytest.mark.parametrize("rank", range(NUM_RANKS))
def test_parameters_that_take_no_part_in_the_loss_are_named(folder: Path, rank: int) -> None:
    refusal = (folder / f"refusal_{rank}.txt").read_text()
    assert "'idle.weight', 'idle.bias' took no part in the loss of the first batch" in refusal
    assert "requires_grad_(False)" in refusal


@pytest.mark.parametrize("rank", range(NUM_RANKS))
def test_weights_that_a_forward_pass_writes_to_are_named(folder: Path, rank: int) -> None:
    said = (folder / f"warning_{rank}.txt").read_text()
    assert "writes to 'head.weight' in its forward pass: the weights of several ranks drift apart" in said


def test_ranks_that_read_buffers_of_their_own_would_be_noticed(folder: Path) -> None:
    assert not same_tensors(weights(folder, "centred", "unsynced"), weights(folder, "centred", "synced"))


def test_batch_norms_statistics_are_not_sent_in_every_forward_pass(folder: Path) -> None:
    statistics = [weights(folder, "normed", "ours", rank)["1.running_mean"] for rank in range(NUM_RANKS)]
    assert not statistics[0].equal(statistics[1])


@pytest.mark.parametrize(
    ("net", "may"),
    [
        (nn.Linear(2, 2), False),
        (normed(), False),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), False),
        (Centred(), True),
        (nn.Sequential(normed(), Centred()), True),
        (nn.Sequential(OwnNorm(2)), True),
    ],
)
def test_only_torchs_own_batch_norm_is_known_not_to_read_its_buffers(net: nn.Module, may: bool) -> None:
    assert has_own_buffers(net) is may


def test_the_error_of_another_rank_is_everyones(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(failures: list[str | None], mine: str | None, group: object) -> None:
        assert (mine, group) == (None, control)
        failures[:] = [None, "a wrong sample"]

    control: Any = object()
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    with pytest.raises(UserError, match="a wrong sample"):
        Dist(world_size=2, control=control).together(lambda: None)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_rank_0_refuses_all_refuse(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The others wait for its answer: a refusal is one."""
    sent: list[Any] = [None, "a damaged set"] if rank else []

    def broadcast(outcome: list[Any], **_: Any) -> None:
        sent[:] = outcome if rank == 0 else sent
        outcome[:] = sent

    def refuse() -> None:
        assert rank == 0
        raise UserError("a damaged set")

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    control: Any = object()
    with pytest.raises(UserError, match="a damaged set"):
        Dist(rank=rank, world_size=2, control=control).on_main(refuse)
    assert sent == [None, "a damaged set"]


@pytest.mark.parametrize(("option", "wanted"), [(None, 4), (3, 3)])
def test_the_cores_are_shared_among_the_ranks_whatever_torchrun_says(option: int | None, wanted: int) -> None:
    """torchrun sets OMP_NUM_THREADS=1 where nothing is set, which torch reads when it is imported."""
    code = (
        "import torch; from utils import utils_dist\n"
        "utils_dist._num_cores = lambda: 8\n"
        f"with utils_dist.process_group({option}) as dist: print(dist.num_threads, torch.get_num_threads())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    environment.pop("WORLD_SIZE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(wanted)] * 2


def test_the_gradient_of_an_index_has_the_same_bits_every_time() -> None:
    with process_group(num_threads=2):
        assert len({_gradient_of_an_index() for _ in range(10)}) == 1


def test_a_gradient_that_is_added_atomically_would_be_noticed() -> None:
    torch.set_num_threads(2)
    assert len({_gradient_of_an_index() for _ in range(10)}) > 1


def _gradient_of_an_index() -> bytes:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(64, 512, generator=generator, requires_grad=True)
    rows, weights = torch.randint(64, (4000,), generator=generator), torch.randn(4000, 512, generator=generator)
    (table[rows] * weights).sum().backward()
    assert table.grad is not None
    return table.grad.numpy().tobytes()


@pytest.mark.parametrize(
    ("content", "wanted"), [("250000 100000\n", 3), ("50000 100000\n", 1), ("max 100000\n", 8), ("9999999 100000", 8)]
)
def test_a_quota_of_cpu_time_counts_as_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, wanted: int
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    monkeypatch.setattr(utils_dist, "CPU_QUOTA", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    with process_group() as dist:
        assert dist.num_threads == wanted


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("OMP_THREAD_LIMIT", "1", 1),
        ("OMP_THREAD_LIMIT", "9", 2),
        ("OMP_THREAD_LIMIT", "", 2),
        ("OMP_DYNAMIC", "TRUE", 1),
        ("OMP_DYNAMIC", "false", 2),
    ],
)
def test_no_thread_is_waited_for_that_openmp_does_not_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: int
) -> None:
    """The gradient of a convolution would never be ready."""
    monkeypatch.setenv(name, value)
    with process_group(num_threads=2) as dist:
        assert dist.num_threads == torch.get_num_threads() == wanted


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_ranks_that_do_not_know_their_place_on_the_machine_are_refused(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """All would take the first GPU and every core."""
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=f"lacks {missing}: launch with torchrun"), process_group():
        pass


def as_the_only_rank(port: int) -> None:
    """What torchrun gives a process that it starts alone."""
    given = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in given.items()}, MASTER_ADDR="127.0.0.1")


def end_by_itself() -> None:
    pass


def end_by_an_error() -> None:
    raise UserError("a wrong option")


@pytest.mark.parametrize("end", [end_by_itself, end_by_an_error, leave_process_group])
def test_no_rank_leaves_its_process_group_behind(end: Callable[[], None]) -> None:
    """torch warns of one at the exit, and its threads may abort a rank whose run is finished."""

    def run() -> None:
        as_the_only_rank(free_port())
        with contextlib.suppress(UserError), process_group(num_threads=1) as dist:
            assert torch.distributed.is_initialized()
            assert dist.control is not None
            end()
        assert not torch.distributed.is_initialized()

    assert in_child(run) == 0


def test_the_gpu_of_a_rank_is_the_one_that_its_launcher_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three ranks on the second machine, whose four GPUs are not all for them: rank % 4 is the first."""
    given = {"RANK": 4, "WORLD_SIZE": 6, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 3, "MASTER_ADDR": "0", "MASTER_PORT": 1}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    current: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 4)
        patch.setattr(torch.cuda, "set_device", current.append)
        backends: list[str] = []
        patch.setattr(torch.distributed, "init_process_group", lambda backend, **_: backends.append(backend))
        patch.setattr(torch.distributed, "new_group", lambda **_: None)
        patch.setattr(torch.distributed, "get_rank", lambda: 4)
        patch.setattr(torch.distributed, "get_world_size", lambda: 6)
        with process_group(num_threads=1) as dist:
            assert (dist.rank, dist.device) == (4, torch.device("cuda", 1))
    assert (current, backends) == ([1], ["nccl"])


@pytest.mark.parametrize(("backend", "is_destroyed"), [("gloo", True), ("nccl", False)])
def test_a_group_whose_end_waits_for_all_ranks_is_not_ended_alone(
    monkeypatch: pytest.MonkeyPatch, backend: str, is_destroyed: bool
) -> None:
    """NCCL's, while an error is on its way: the others may wait in turn for this rank."""
    ended: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_backend", lambda: backend)
        patch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
        leave_process_group()
    assert bool(ended) == is_destroyed


def test_a_sum_on_the_cpu_goes_through_the_group_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    control: Any = object()
    groups: list[object] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _values, group: groups.append(group))
    Dist(world_size=2, control=control).sum(torch.ones(1))
    Dist(world_size=2, control=control).sum(torch.ones(1, device="meta"))
    assert groups == [control, None]
