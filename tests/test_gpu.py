"""The loop where work is queued: nothing in it waits for the device, and saves and resumes are exact all the same.

These tests run on the device that a launch would take, where pytest is given this file: the whole suite sees no GPU. On
a GPU torch itself finds whoever waits; on the CPU, where nothing is queued, a dispatch mode finds the calls that would
wait on a GPU.
"""

import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import main_train
from models.model_plain import ModelPlain
from models.optimizer import define_optimizer, load_optimizer
from models.select_network import NETWORKS
from tests import test_optimizer, test_pose_metrics
from tests.helpers import changed, tiny_csv, tiny_option_mapping, validated, write_options
from tests.run_helpers import PARTS
from trainer import Batch, Trainer
from utils.checkpoint_manager import CheckpointManager
from utils.utils_dist import process_group
from utils.utils_file import PROJECT_FOLDER, sha256_of
from utils.utils_pose import POSE_METRICS
from utils.utils_seed import seed_global_generators
from utils.utils_signal import StopRequest
from utils.utils_snapshot import Snapshot
from utils.utils_state_file import load_state

# torch says so once a process, when it is asked to find whoever waits.
pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")

FIRST, LAST, TOTAL = 4, 24, 26
"""The iterations from FIRST to LAST must not wait; compiling, and the test and the save at the end, may."""

_READS_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "is_nonzero", "equal")


class Waits(RuntimeError):
    """A call whose result depends on values, so that a GPU has to be waited for."""


class RefusesToWait(TorchDispatchMode):
    """What torch.cuda.set_sync_debug_mode("error") does, for code that runs on the CPU."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        is_masked = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        if is_masked or name in _READS_VALUES:
            raise Waits(f"called a synchronizing operation, {func}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_waits() -> Iterator[None]:
    if not HAS_GPU:
        with RefusesToWait():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run on everything at once; it prints, tests and saves at its end alone."""
    rare = {f"train__checkpoint_{what}": 10 * TOTAL for what in ("print", "test", "save")}
    mapping = tiny_option_mapping(folder / "experiments", tiny_csv(folder))
    mapping = changed(mapping, train__total_iter=TOTAL, train__amp="bf16", train__channels_last=True, **rare)
    if not HAS_GPU:  # there one_hot looks at its values, which it leaves to the kernel on a GPU
        train = mapping["datasets"]["train"]
        train["transforms"] = [each for each in train["transforms"] if each["type"] != "mixup"]
    return changed(mapping, **changes)


def train(mapping: dict[str, Any], folder: Path) -> int:
    """A launch in this process."""
    opt, option_file = validated(mapping), write_options(mapping, folder / "options.json")
    with process_group(opt.train.num_threads) as dist, StopRequest(dist) as stop:
        return main_train.train(opt, dist, stop, option_file, dry_run=False)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Refuse to wait in the middle of every run; the iterations that were watched, from batch to batch."""
    batches, seen = Trainer.batches, []
    watch = contextlib.ExitStack()

    def watched_batches(self: Trainer) -> Iterator[tuple[int, list[Batch]]]:
        for current_iter, micro_batches in batches(self):
            if current_iter == FIRST:
                watch.enter_context(nothing_waits())
            if current_iter == LAST:
                watch.close()
            if FIRST <= current_iter < LAST:
                seen.append(current_iter)
            yield current_iter, micro_batches

    monkeypatch.setattr(Trainer, "batches", watched_batches)
    with watch:
        yield seen


@pytest.mark.parametrize(
    ("optimizer", "accumulation", "resident"), [("sgd", 1, True), ("adamw", 2, False), ("muon", 1, True)]
)
def test_no_iteration_waits_for_the_device(
    tmp_path: Path, watched: list[int], optimizer: str, accumulation: int, resident: bool
) -> None:
    mapping = options(tmp_path, train__G_optimizer_type=optimizer, train__G_accumulation_steps=accumulation)
    mapping["datasets"]["train"] |= {"resident": resident, "dataloader_num_workers": 2}
    assert train(mapping, tmp_path) == 0
    assert watched == list(range(FIRST, LAST))


@pytest.fixture
def compiles_alone() -> Iterator[None]:
    """Compile in this process: torch's pool of others has a timer, a thread that outlives it by half a minute."""
    from torch._inductor import config

    with config.patch(compile_threads=1):
        yield


@needs_gpu
@pytest.mark.usefixtures("compiles_alone")
@pytest.mark.filterwarnings("default")  # torch.compile's own
def test_no_compiled_iteration_waits_for_the_device(tmp_path: Path, watched: list[int]) -> None:
    assert train(options(tmp_path, train__compile=True, train__G_accumulation_steps=1), tmp_path) == 0
    assert watched == list(range(FIRST, LAST))


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda model: model.netG.head.bias.sum().item(), id="item"),
        pytest.param(lambda model: model.input[model.input > 0], id="boolean index"),
        pytest.param(lambda model: model.input[0, 0, 0].tolist(), id="tolist", marks=needs_gpu),  # no call on the CPU
    ],
)
@pytest.mark.usefixtures("watched")
def test_whoever_waits_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: Callable[[ModelPlain], Any]
) -> None:
    update = ModelPlain.update_E

    def update_and_wait(self: ModelPlain, current_iter: int) -> None:
        update(self, current_iter)
        wait(self)

    monkeypatch.setattr(ModelPlain, "update_E", update_and_wait)
    with pytest.raises(RuntimeError, match="called a synchronizing"):
        train(options(tmp_path), tmp_path)


def test_a_resume_ends_in_the_same_bytes(tmp_path: Path) -> None:
    mapping = options(tmp_path, train__checkpoint_save=TOTAL // 2, train__total_iter=TOTAL)
    models = tmp_path / "experiments" / "tiny" / "models"

    def last_set() -> dict[str, str]:
        return {part: sha256_of(models / f"{TOTAL}_{part}.pth") for part in PARTS}

    assert train(mapping, tmp_path) == 0
    straight = last_set()
    for path in [*models.glob(f"{TOTAL}_*"), models / "final_model.pth"]:
        path.unlink()
    assert train(mapping, tmp_path) == 0
    launches = json.loads((models.parent / "status.json").read_text())["launches"]
    assert [launch["from_iter"] for launch in launches] == [0, TOTAL // 2]
    assert last_set() == straight


@needs_gpu
def test_a_single_rank_of_torchruns_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """It sets NCCL up and leaves it, though there is nothing to sum."""
    ways = {way: options(tmp_path / way) for way in ("alone", "torchrun")}
    assert train(ways["alone"], tmp_path) == 0
    option_file = write_options(ways["torchrun"], tmp_path / "options.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    subprocess.run([*launcher, "main_train.py", "-opt", str(option_file)], cwd=PROJECT_FOLDER, check=True)
    for part in PARTS:
        alone, launched = (tmp_path / way / "experiments/tiny/models" / f"{TOTAL}_{part}.pth" for way in ways)
        assert sha256_of(alone) == sha256_of(launched), part


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_waits_for_nothing_and_sums_in_the_same_order(name: str) -> None:
    """Torch would warn of a gradient that it cannot sum so, and warnings are errors here."""
    with process_group(1) as dist:
        net = NETWORKS[name]().to(dist.device, memory_format=torch.channels_last)
        channels, size = next(net.parameters()).shape[1], getattr(net, "size", 48)
        images = torch.rand(2, channels, size, size, device=dist.device)

        def gradients() -> list[torch.Tensor]:
            seed_global_generators(0)
            with torch.autocast(dist.device.type, torch.bfloat16):
                output = net(images)
            return list(torch.autograd.grad(output.float().square().mean(), list(net.parameters())))

        gradients()
        with nothing_waits():
            first, second = gradients(), gradients()
        assert all(map(torch.equal, first, second))


@needs_gpu
def test_a_snapshot_is_of_its_moment_and_waits_for_nothing() -> None:
    state = {
        "large": torch.randn(1 << 26, device="cuda"),
        "step": torch.tensor(3.0, device="cuda"),
        "host": torch.ones(2),
    }
    state["filters"] = torch.randn(8, 4, 3, 3, device="cuda").to(memory_format=torch.channels_last)
    state["sliced"] = torch.randn(6, 6, device="cuda")[::2]
    snapshot = Snapshot()
    snapshot.take(state)  # allocates the buffers
    snapshot.wait()
    for _ in range(3):
        expected = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
        with nothing_waits():
            copied = snapshot.take(state)
            for tensor in state.values():
                tensor.add_(1)
        snapshot.wait()
        assert all(torch.equal(copied[name], tensor) for name, tensor in expected.items())
        assert copied["large"].is_pinned()
        assert copied["filters"].stride() == state["filters"].stride()


@needs_gpu
@pytest.mark.parametrize("kind", test_optimizer.TYPES)
def test_an_optimizer_goes_on_from_a_file_of_the_cpu(kind: str) -> None:
    net = test_optimizer.small_net()
    plain = test_optimizer.PLAIN[kind](net.parameters())
    test_optimizer.steps(net, plain, 1, 3)
    ours_net = copy.deepcopy(net).cuda()
    ours = define_optimizer(ours_net, test_optimizer.options(kind))
    load_optimizer(ours, test_optimizer.through_file(plain.state_dict()), ours_net)
    for parameter in ours_net.parameters():
        for value in ours.state[parameter].values():
            assert value.device == parameter.device
        parameter.grad = torch.ones_like(parameter)
    ours.step()


@needs_gpu
def test_a_file_of_a_gpu_is_loaded_onto_the_cpu(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3, device="cuda")}, tmp_path / "5_G.pth")
    assert torch.load(tmp_path / "5_G.pth", weights_only=True)["weight"].is_cuda  # control
    for is_glance in (False, True):
        assert load_state(tmp_path / "5_G.pth", is_glance)["weight"].device.type == "cpu"


@needs_gpu
def test_files_of_a_manager_hold_cpu_tensors_and_load_onto_the_gpu(tmp_path: Path) -> None:
    content = {"parameter": torch.nn.Parameter(torch.randn(3, device="cuda")), "other": torch.ones(2, device="cuda")}
    CheckpointManager(tmp_path, "cuda").save_epoch_checkpoint(content, 1)
    plain = torch.load(tmp_path / "checkpoint_epoch_1.pth", weights_only=True)
    assert {tensor.device.type for tensor in plain.values()} == {"cpu"}
    loaded = CheckpointManager(tmp_path, "cuda").load_latest_checkpoint()
    assert loaded is not None
    assert {(tensor.device.type, tensor.is_leaf) for tensor in loaded.values()} == {("cuda", True)}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in content.items())


@needs_gpu
@pytest.mark.parametrize("name", POSE_METRICS)
def test_a_pose_metric_is_that_of_the_cpu(name: str) -> None:
    target = test_pose_metrics.hands(50)
    output = test_pose_metrics.moved(test_pose_metrics.noisy(target, 10))
    output[3], output[4] = 0, target[4] * [-1, 1, 1]
    on_cpu, on_gpu = (
        POSE_METRICS[name](*(torch.from_numpy(each).to(device) for each in (output, target)))
        for device in ("cpu", "cuda")
    )
    assert on_gpu.is_cuda
    assert torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-6)


@needs_gpu
def test_without_memory_for_a_clone_a_snapshot_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    state, snapshot = {"weight": torch.randn(1 << 20, device="cuda")}, Snapshot()
    snapshot.take(state)
    snapshot.wait()
    state["weight"].add_(1)

    def full(*_args: Any, **_kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "empty_like", full)
    copied = snapshot.take(state)
    snapshot.wait()
    assert torch.equal(copied["weight"], state["weight"].cpu())
