"""CheckpointManager: whole files only, nothing lost at any instant, nothing touched that is not its own."""

import collections
import concurrent.futures
import errno
import itertools
import logging
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import utils
from tests.helpers import messages
from tests.run_helpers import flip_bit, in_child, punch_hole, truncate
from utils import checkpoint_manager
from utils.checkpoint_manager import BEST_MODEL_NAME, EPOCH_CKPT_PREFIX, INTERRUPT_CKPT_NAME, CheckpointManager
from utils.utils_error import UserError
from utils.utils_file import TEMPORARY_NAME, temporary_path

LOADED = "interrupt_checkpoint.loaded.pth"


def state(age: int) -> dict[str, Any]:
    """A state that tells its age; in the middle of its file there are 16 KiB of random numbers."""
    return {"age": age, "weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(age))}


def age(loaded: dict[str, Any] | None) -> int | None:
    """The age of a loaded state, whose tensor must be that of this age too."""
    if loaded is None:
        return None
    assert torch.equal(loaded["weight"], state(loaded["age"])["weight"])
    return loaded["age"]


def latest(folder: Path) -> int | None:
    """What a new process would resume from."""
    return age(CheckpointManager(folder).load_latest_checkpoint())


def epoch_name(epoch: int) -> str:
    return f"checkpoint_epoch_{epoch}.pth"


def manager_with(folder: Path, *epochs: int, max_to_keep: int = 5) -> CheckpointManager:
    """A manager that has saved these epochs, each as old as its number."""
    manager = CheckpointManager(folder, max_to_keep=max_to_keep)
    for epoch in epochs:
        manager.save_epoch_checkpoint(state(epoch), epoch)
    return manager


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same(first: Any, second: Any) -> bool:
    """Equal values of equal types, tensors bit for bit, all the way down."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


class Payload:
    """Unpickling it runs code that leaves a folder behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.folder),)


Point = collections.namedtuple("Point", "x")


def test_names_are_the_promised_ones_defined_once() -> None:
    assert (BEST_MODEL_NAME, EPOCH_CKPT_PREFIX) == ("best_model.pth", "checkpoint_epoch_")
    assert INTERRUPT_CKPT_NAME == "interrupt_checkpoint.pth"
    assert CheckpointManager.BEST_MODEL_NAME is BEST_MODEL_NAME
    assert CheckpointManager.EPOCH_CKPT_PREFIX is EPOCH_CKPT_PREFIX
    assert CheckpointManager.INTERRUPT_CKPT_NAME is INTERRUPT_CKPT_NAME


def test_defaults_are_the_promised_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager = CheckpointManager()
    assert (manager.save_dir, manager.device) == (tmp_path / "checkpoint", torch.device("cpu"))
    assert manager.max_to_keep == 5


def test_only_who_asks_for_the_manager_imports_torch() -> None:
    code = (
        "import sys, utils, utils.utils_file; assert 'torch' not in sys.modules; "
        "from utils import CheckpointManager; assert 'torch' in sys.modules; "
        "assert CheckpointManager.__module__ == 'utils.checkpoint_manager'"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=Path(__file__).parent.parent, check=True)


def test_the_package_exports_the_manager_and_knows_nothing_else() -> None:
    assert utils.CheckpointManager is CheckpointManager
    assert utils.__all__ == ["CheckpointManager", "Evaluator"]
    with pytest.raises(AttributeError, match="module 'utils' has no attribute 'nothing'"):
        _ = utils.nothing


def test_nothing_saved_is_none_and_leaves_no_folder(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    manager = CheckpointManager(tmp_path / "deep" / "checkpoint")
    assert manager.load_best_model() is None
    assert manager.load_latest_checkpoint() is None
    assert not (tmp_path / "deep").exists()
    assert messages(logged.records) == ""
    manager.save_epoch_checkpoint(state(1), 1)
    assert names(tmp_path / "deep" / "checkpoint") == {epoch_name(1)}


def test_the_folder_stays_the_same_after_a_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager = manager_with(Path("checkpoint"), 1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert age(manager.load_latest_checkpoint()) == 1


def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    manager = manager_with(tmp_path / "checkpoint", 1)
    shutil.rmtree(tmp_path / "checkpoint")
    assert manager.load_latest_checkpoint() is None
    manager.save_epoch_checkpoint(state(2), 2)
    assert latest(tmp_path / "checkpoint") == 2


CONTAINERS = {
    "epoch": 3,
    "none": None,
    "flags": [True, False, None],
    "text": "é",
    "raw": b"\x00\xff",
    "complex": 1j,
    "nested": {"list": [1, 2.5, ("a", [torch.arange(3)])], 7: {"set": {1, 2}}},
    "ordered": collections.OrderedDict(b=torch.ones(2, dtype=torch.bfloat16), a=torch.tensor(2)),
    "dtype": torch.float16,
    "size": torch.Size([2, 3]),
    "empty": torch.empty(0),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("kind", ["best", "epoch", "interrupt"])
def test_what_was_saved_is_what_is_loaded(tmp_path: Path, kind: str) -> None:
    manager = CheckpointManager(tmp_path)
    content = {**CONTAINERS, "metric": 0.5}
    if kind == "best":
        manager.save_best_model(content, 0.9)  # a state's own metric is not overwritten
        loaded, name = manager.load_best_model(), BEST_MODEL_NAME
    elif kind == "epoch":
        manager.save_epoch_checkpoint(content, 0)
        loaded, name = manager.load_latest_checkpoint(), epoch_name(0)
    else:
        manager.save_interrupt_checkpoint(content)
        loaded, name = manager.load_latest_checkpoint(), LOADED
    assert same(loaded, content)
    assert same(torch.load(tmp_path / name, weights_only=True), content)
    assert not same(loaded, {**content, "nested": {}})  # control


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, epochs: range) -> None:
    for epoch in epochs:
        batch = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(epoch))
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
        scheduler.step()


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, amsgrad=True)
    return net, optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8)


@pytest.mark.parametrize("restored", [("net", "optimizer", "scheduler"), ("net", "scheduler"), ("net", "optimizer")])
def test_a_loop_goes_on_bit_for_bit_if_all_of_it_is_restored(tmp_path: Path, restored: tuple[str, ...]) -> None:
    straight = parts()
    train(*straight, range(8))
    stopped = parts()
    train(*stopped, range(4))
    content = dict(zip(("net", "optimizer", "scheduler"), (part.state_dict() for part in stopped), strict=True))
    CheckpointManager(tmp_path).save_epoch_checkpoint(content, 3)
    resumed = dict(zip(content, parts(), strict=True))
    loaded = CheckpointManager(tmp_path).load_latest_checkpoint()
    assert loaded is not None
    for part in restored:
        resumed[part].load_state_dict(loaded[part])
    train(resumed["net"], resumed["optimizer"], resumed["scheduler"], range(4, 8))
    equal = same(resumed["net"].state_dict(), straight[0].state_dict())
    assert equal == (len(restored) == 3)  # the other two are the controls


def test_module_versions_of_a_state_dict_are_kept(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    weights = torch.nn.BatchNorm2d(2).state_dict()
    manager.save_epoch_checkpoint({"net": weights}, 1)
    loaded = manager.load_latest_checkpoint()
    assert loaded is not None
    assert loaded["net"]._metadata == weights._metadata


def test_a_scheduler_with_counted_milestones_is_the_same_after_two_saves(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters())
    saved = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4, 4]).state_dict()
    loaded: Any = {"scheduler": saved}
    for epoch in range(2):
        manager = manager_with(tmp_path)
        manager.save_epoch_checkpoint(loaded, epoch)
        loaded = manager.load_latest_checkpoint()
    assert isinstance(saved["milestones"], collections.Counter)
    assert same(loaded["scheduler"], saved)


def test_the_metric_is_stored_with_the_best_model(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    content = state(1)
    manager.save_best_model(content, torch.tensor(0.75))
    assert same(manager.load_best_model(), {**content, "metric": 0.75})
    assert "metric" not in content
    manager.save_best_model(state(2), np.float64(0.5))  # worse, but the caller has decided
    loaded = manager.load_best_model()
    assert loaded is not None
    assert (loaded["metric"], loaded["age"]) == (0.5, 2)


def test_a_bare_state_dict_stays_one(tmp_path: Path) -> None:
    manager, net = CheckpointManager(tmp_path), torch.nn.Linear(2, 2)
    manager.save_best_model(net.state_dict(), 0.5)
    loaded = torch.nn.Linear(2, 2)
    loaded.load_state_dict(manager.load_best_model(), strict=True)
    assert torch.equal(loaded.weight, net.weight)


def test_a_metric_of_nan_is_refused_and_infinity_is_not(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save_best_model(state(1), float("inf"))  # the PSNR of equal images
    with pytest.raises(FloatingPointError, match=r"best_model\.pth: the metric is NaN"):
        manager.save_best_model(state(2), float("nan"))
    assert age(manager.load_best_model()) == 1


def test_the_best_model_is_no_latest_checkpoint_and_is_never_cleaned_up(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, max_to_keep=1)
    manager.save_best_model(state(9), 1.0)
    assert manager.load_latest_checkpoint() is None
    manager_with(tmp_path, 1, 2, 3, max_to_keep=1)
    assert age(manager.load_best_model()) == 9


def tensors_of(content: Any) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for each in content.values() if isinstance(content, dict) else content:
            yield from tensors_of(each)


def test_all_tensors_land_on_the_device(tmp_path: Path) -> None:
    net, optimizer, scheduler = parts()
    train(net, optimizer, scheduler, range(2))
    content = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), **CONTAINERS}
    CheckpointManager(tmp_path).save_best_model(content, 1.0)
    CheckpointManager(tmp_path).save_interrupt_checkpoint(content)
    for device in ("meta", "cpu"):  # meta stands for a device that this machine has not got
        manager = CheckpointManager(tmp_path, device)
        for loaded in (manager.load_best_model(), manager.load_latest_checkpoint()):
            assert {tensor.device.type for tensor in tensors_of(loaded)} == {device}
            assert len(list(tensors_of(loaded))) == len(list(tensors_of(content))) > 20


def test_epochs_are_ordered_by_number(tmp_path: Path) -> None:
    manager = manager_with(tmp_path, 9, 10, 100, 11)
    for epoch in (9, 11):
        os.utime(tmp_path / epoch_name(epoch), (2**31, 2**31))
    assert age(manager.load_latest_checkpoint()) == 100
    (tmp_path / epoch_name(100)).unlink()
    assert age(manager.load_latest_checkpoint()) == 11
    (tmp_path / epoch_name(11)).unlink()
    assert age(manager.load_latest_checkpoint()) == 10


def test_the_highest_epochs_are_kept(tmp_path: Path) -> None:
    manager_with(tmp_path, 8, 9, 10, 11, max_to_keep=3)
    assert names(tmp_path) == {epoch_name(epoch) for epoch in (9, 10, 11)}
    manager_with(tmp_path, 12, max_to_keep=1)
    assert names(tmp_path) == {epoch_name(12)}


def test_an_epoch_just_saved_is_kept_whatever_its_number_and_the_order_is_pointed_out(
    tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    manager_with(tmp_path, 50, 51, 52, max_to_keep=2)
    assert messages(logged.records) == ""
    manager_with(tmp_path, 0, max_to_keep=2)
    assert names(tmp_path) == {epoch_name(epoch) for epoch in (0, 51, 52)}
    assert re.search(r"checkpoint_epoch_0\.pth was saved.*which is 52", messages(logged.records, logging.WARNING))
    manager_with(tmp_path, 1, max_to_keep=2)
    assert names(tmp_path) == {epoch_name(epoch) for epoch in (1, 51, 52)}


def test_old_epochs_go_only_after_the_new_one_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = manager_with(tmp_path, 1, max_to_keep=1)
    events = recorded_events(monkeypatch)
    manager.save_epoch_checkpoint(state(2), 2)
    temporary = temporary_path(tmp_path / epoch_name(2)).name
    assert events == [
        ("fsync", temporary),
        ("rename", temporary, epoch_name(2)),
        ("fsync", tmp_path.name),
        ("unlink", epoch_name(1)),
    ]


FOREIGN = [
    "checkpoint_epoch_best.pth", "my_checkpoint_epoch_3.pth", "checkpoint_epoch_3.pth.bak", "checkpoint_epoch_3_pth",
    "checkpoint_epoch_-3.pth", "checkpoint_epoch_03.pth", "checkpoint_epoch_3.pt", "checkpoint_epoch_٣.pth",
    "checkpoint_epoch_.pth", "Checkpoint_epoch_99.pth", "checkpoint_epoch_1e9.pth", "notes.txt", "1000_G.pth",
    "final_model.pth", "interrupt_checkpoint.pth.old", "checkpoint_epoch_99.pth\n", "checkpoint_epoch_9 9.pth",
]  # fmt: skip


def test_foreign_files_folders_and_links_are_neither_loaded_nor_touched(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "a[b]*?", tmp_path / "elsewhere.pth"
    folder.mkdir()
    torch.save(state(99), elsewhere)
    for name in FOREIGN:
        (folder / name).write_bytes(elsewhere.read_bytes())
    (folder / "checkpoint_epoch_98.pth").mkdir()
    (folder / "checkpoint_epoch_0.pth").symlink_to(elsewhere)
    (folder / "checkpoint_epoch_97.pth").symlink_to(tmp_path / "nowhere")
    manager_with(folder, *range(3, 9), max_to_keep=2)
    assert names(folder) == {*FOREIGN, *(f"checkpoint_epoch_{epoch}.pth" for epoch in (0, 7, 8, 97, 98))}
    assert latest(folder) == 8
    assert all((folder / name).read_bytes() == elsewhere.read_bytes() for name in FOREIGN)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "5"])
def test_max_to_keep_is_a_number_of_files(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=rf"max_to_keep is {value!r}; allowed: whole numbers from 1"):
        CheckpointManager(tmp_path, max_to_keep=value)


@pytest.mark.parametrize("value", [-1, 2.0, True, None, "5", "../5"])
def test_an_epoch_is_a_number(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=rf"epoch is {value!r}; allowed: whole numbers from 0"):
        CheckpointManager(tmp_path).save_epoch_checkpoint(state(1), value)
    assert names(tmp_path) == set()


SAVES: dict[str, Callable[[CheckpointManager, Any], None]] = {
    BEST_MODEL_NAME: lambda manager, content: manager.save_best_model(content, 1.0),
    epoch_name(7): lambda manager, content: manager.save_epoch_checkpoint(content, 7),
    INTERRUPT_CKPT_NAME: CheckpointManager.save_interrupt_checkpoint,
}


@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"deep": [{"w": torch.tensor([1.0, float("nan")])}]}, FloatingPointError, "non-finite"),
        ({"w": torch.tensor(float("inf"))}, FloatingPointError, "non-finite"),
        ({"lr": np.float64(0.5)}, TypeError, "numpy"),
        ({"array": [np.zeros(3)]}, TypeError, "numpy"),
        ({"path": Path("here")}, TypeError, "pathlib"),
        ({"point": Point(torch.ones(1))}, TypeError, "Point"),
        ({"code": Payload(Path("never"))}, TypeError, "mkdir"),
        ([torch.zeros(1)], TypeError, "a state is a dict, not a list"),
        (None, TypeError, "a state is a dict, not a NoneType"),
    ],
    ids=["nan", "inf", "numpy scalar", "numpy array", "path", "named tuple", "code", "list", "None"],
)  # fmt: skip
def test_a_wrong_state_fails_at_save_by_name_and_changes_nothing(
    tmp_path: Path, name: str, bad: Any, error: Any, says: str
) -> None:
    manager = CheckpointManager(tmp_path, max_to_keep=1)
    for each, save in SAVES.items():
        save(manager, {**state(1), "file": each})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(error, match=says):
        SAVES[name](manager, bad)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", SAVES)
def test_a_full_disk_changes_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = manager_with(tmp_path, 6, max_to_keep=1)
    manager.save_interrupt_checkpoint(state(7))
    assert age(manager.load_latest_checkpoint()) == 7

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            SAVES[name](manager, state(8))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def write_text(path: Path) -> None:
    path.write_text("just some text\n")


def write_list(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def write_zip_payload(path: Path) -> None:
    torch.save({"weight": torch.zeros(2), "payload": Payload(path.with_suffix(".trace"))}, path)


def write_plain_payload(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.with_suffix(".trace")), protocol=2))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "flipped bit": (flip_bit, "checksum"),
    "zero hole": (punch_hole, "checksum"),
    "truncation": (truncate, "it was cut off"),
    "text": (write_text, "torch.save did not write it"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "no dict": (write_list, "it holds a list and no dict"),
    "code in a zip": (write_zip_payload, "nothing in it was run.*mkdir"),
    "code": (write_plain_payload, "nothing in it was run.*mkdir"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_epoch_is_reported_and_passed_over(
    tmp_path: Path, damage: str, logged: pytest.LogCaptureFixture
) -> None:
    manager = manager_with(tmp_path, 8, 9, 10)
    assert age(manager.load_latest_checkpoint()) == 10  # control
    assert messages(logged.records) == ""
    (how, says) = DAMAGES[damage]
    how(tmp_path / epoch_name(10))
    assert age(manager.load_latest_checkpoint()) == 9
    reported = messages(logged.records, logging.ERROR)
    assert re.search(rf"checkpoint_epoch_10\.pth is passed over: .*{says}", reported), reported
    assert names(tmp_path) == {epoch_name(epoch) for epoch in (8, 9, 10)}  # nothing was run, nothing removed


@pytest.mark.parametrize("damage", [*DAMAGES, "folder"])
def test_a_damaged_interrupt_checkpoint_is_reported_and_passed_over(
    tmp_path: Path, damage: str, logged: pytest.LogCaptureFixture
) -> None:
    manager = manager_with(tmp_path, 9)
    manager.save_interrupt_checkpoint(state(10))
    DAMAGES.get(damage, (make_folder,))[0](tmp_path / INTERRUPT_CKPT_NAME)
    assert age(manager.load_latest_checkpoint()) == 9
    assert f"{INTERRUPT_CKPT_NAME} is passed over" in messages(logged.records, logging.ERROR)
    assert names(tmp_path) == {epoch_name(9), INTERRUPT_CKPT_NAME}


def test_a_damaged_best_model_is_reported(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save_best_model(state(1), 1.0)
    flip_bit(tmp_path / BEST_MODEL_NAME)
    torch.load(tmp_path / BEST_MODEL_NAME, weights_only=True)  # control: torch does not notice
    assert manager.load_best_model() is None
    assert f"{BEST_MODEL_NAME} is passed over" in messages(logged.records, logging.ERROR)


def test_if_all_are_damaged_there_is_none(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    manager = manager_with(tmp_path, 1, 2)
    manager.save_interrupt_checkpoint(state(3))
    for path in tmp_path.iterdir():
        truncate(path)
    assert manager.load_latest_checkpoint() is None
    assert messages(logged.records, logging.ERROR).count("is passed over") == 3


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    write_zip_payload(tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "evil.trace").exists()


def test_wherever_one_bit_flips_the_file_is_passed_over_or_holds_what_was_saved(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    content = {"weight": torch.randn(3, 3), "list": [1, "a"]}
    manager.save_epoch_checkpoint(content, 1)
    path, choose, passed_over = tmp_path / epoch_name(1), random.Random(0), 0
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << choose.randrange(8)
        path.write_bytes(flipped)
        loaded = manager.load_latest_checkpoint()
        assert loaded is None or same(loaded, content), place
        passed_over += loaded is None
    assert passed_over > 100


def test_the_interrupt_checkpoint_is_the_latest_until_an_epoch_is_saved_after_it_was_loaded(tmp_path: Path) -> None:
    manager = manager_with(tmp_path, 20)
    manager.save_interrupt_checkpoint(state(15))
    manager.save_epoch_checkpoint(state(21), 21)  # by a run that has not loaded it
    assert age(manager.load_latest_checkpoint()) == 15
    assert names(tmp_path) == {epoch_name(20), epoch_name(21), LOADED}
    assert latest(tmp_path) == 15  # a relaunch after a crash
    manager.save_best_model(state(99), 1.0)
    assert latest(tmp_path) == 15
    manager.save_epoch_checkpoint(state(22), 22)
    assert names(tmp_path) == {*(epoch_name(epoch) for epoch in (20, 21, 22)), BEST_MODEL_NAME}
    assert latest(tmp_path) == 22


def test_an_epoch_that_is_saved_again_ends_a_loaded_interrupt_checkpoint_too(tmp_path: Path) -> None:
    manager = manager_with(tmp_path, 4, 5)
    manager.save_interrupt_checkpoint(state(6))
    manager.load_latest_checkpoint()
    manager.save_epoch_checkpoint(state(7), 5)
    assert latest(tmp_path) == 7
    assert names(tmp_path) == {epoch_name(4), epoch_name(5)}


def test_a_newer_interrupt_checkpoint_comes_before_the_loaded_one(tmp_path: Path) -> None:
    manager = manager_with(tmp_path, 1)
    for each in (2, 3):
        manager.save_interrupt_checkpoint(state(each))
        assert age(manager.load_latest_checkpoint()) == each
    manager.save_interrupt_checkpoint(state(4))
    truncate(tmp_path / INTERRUPT_CKPT_NAME)
    assert latest(tmp_path) == 3
    manager.save_epoch_checkpoint(state(5), 5)
    assert latest(tmp_path) == 5


def test_if_the_folder_is_read_only_loading_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    CheckpointManager(tmp_path).save_interrupt_checkpoint(state(1))

    def refused(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refused)
    assert latest(tmp_path) == 1
    assert re.search("will be loaded again.*Read-only", messages(logged.records, logging.WARNING))


@pytest.mark.parametrize("moment", ["before reading", "after reading"])
def test_ranks_that_load_at_once_get_the_same_state(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    manager_with(tmp_path, 1).save_interrupt_checkpoint(state(2))
    others: list[int | None] = []
    load_state = checkpoint_manager.load_state

    def slow_load(path: Path) -> Any:
        monkeypatch.undo()
        read = load_state(path) if moment == "after reading" else None
        others.append(latest(tmp_path))
        return read or load_state(path)

    monkeypatch.setattr(checkpoint_manager, "load_state", slow_load)
    assert latest(tmp_path) == 2
    assert others == [2]
    assert messages(logged.records) == ""


def test_two_managers_in_one_folder_see_each_others_files(tmp_path: Path) -> None:
    first, second = CheckpointManager(tmp_path, max_to_keep=2), CheckpointManager(tmp_path, max_to_keep=2)
    for epoch in range(1, 5):
        (first, second)[epoch % 2].save_epoch_checkpoint(state(epoch), epoch)
    assert names(tmp_path) == {epoch_name(3), epoch_name(4)}
    first.save_interrupt_checkpoint(state(5))
    assert age(second.load_latest_checkpoint()) == age(first.load_latest_checkpoint()) == 5
    first.save_epoch_checkpoint(state(6), 6)
    assert age(second.load_latest_checkpoint()) == 6


def test_threads_that_save_the_same_file_wait_for_each_other(tmp_path: Path) -> None:
    def save_best(number: int) -> None:
        CheckpointManager(tmp_path).save_best_model(state(number), number)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(save_best, range(40)))
    assert age(CheckpointManager(tmp_path).load_best_model()) in range(40)
    assert names(tmp_path) == {BEST_MODEL_NAME}


def ended_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_only_own_temporaries_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    gone = ended_process()
    own = [BEST_MODEL_NAME, epoch_name(3), INTERRUPT_CKPT_NAME]
    alive = [f".{name}.{pid}.tmp" for name in own for pid in (os.getppid(), 1)]
    foreign = [
        f".{name}.{gone}.tmp" for name in ("1000_G.pth", "train.log", "checkpoint_epoch_best.pth", ".best_model.pth")
    ]
    foreign += [f"{epoch_name(3)}.{gone}.tmp", f".{epoch_name(3)}.tmp", f".{epoch_name(3)}.{2**70}.tmp"]
    alive += [temporary_path(Path(name)).name for name in own]
    # In containers an earlier launch often had this process's number.
    stale = [f".{name}.{pid}{token}.tmp" for name in own for token in ("", "-01ab") for pid in (gone, os.getpid())]
    for name in [*alive, *foreign, *stale]:
        (tmp_path / name).write_bytes(b"torn")
    (tmp_path / f".{epoch_name(4)}.{gone}.tmp").mkdir()
    manager = CheckpointManager(tmp_path)
    assert manager.load_latest_checkpoint() is None
    assert len(names(tmp_path)) == len(alive) + len(foreign) + len(stale) + 1  # loading removes nothing
    manager.save_epoch_checkpoint(state(9), 9)
    assert names(tmp_path) == {*alive, *foreign, epoch_name(9), f".{epoch_name(4)}.{gone}.tmp"}


def recorded_events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The names of what is fsynced, renamed and unlinked from now on, in order."""
    events: list[tuple[str, ...]] = []
    replace, unlink, fsync = os.replace, os.unlink, os.fsync

    def recording_replace(source: Path, target: Path) -> None:
        events.append(("rename", source.name, target.name))
        replace(source, target)

    def recording_unlink(path: Path) -> None:
        events.append(("unlink", path.name))
        unlink(path)

    def recording_fsync(descriptor: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", recording_replace)
    monkeypatch.setattr(os, "unlink", recording_unlink)
    monkeypatch.setattr(os, "fsync", recording_fsync)
    return events


def test_the_interrupt_checkpoint_ends_in_the_rename_that_publishes_the_next_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save_interrupt_checkpoint(state(1))
    events = recorded_events(monkeypatch)
    manager.load_latest_checkpoint()
    assert events == [("rename", INTERRUPT_CKPT_NAME, LOADED), ("fsync", tmp_path.name)]
    events.clear()
    manager.save_epoch_checkpoint(state(2), 2)
    temporary = temporary_path(tmp_path / epoch_name(2)).name
    assert events[0] == ("fsync", temporary)
    assert [event for event in events if event[0] != "fsync"] == [
        ("rename", LOADED, epoch_name(2)),
        ("rename", temporary, epoch_name(2)),
    ]
    assert events[-1] == ("fsync", tmp_path.name)


class ForgetsWhenLoading(CheckpointManager):
    """A control: removes the interrupt checkpoint when it is loaded."""

    def _rename_loaded(self, interrupt: Path, loaded: Path) -> None:
        del loaded
        interrupt.unlink()


class NeverEnds(CheckpointManager):
    """A control: keeps a loaded interrupt checkpoint when an epoch is saved."""

    def _write(self, path: Path, state: dict[str, Any], replaced: Path | None = None) -> None:
        del replaced
        super()._write(path, state)


class WritesInPlace(CheckpointManager):
    """A control: the final name is there before the content."""

    def _write(self, path: Path, state: dict[str, Any], replaced: Path | None = None) -> None:
        self.save_dir.mkdir(exist_ok=True)
        path.write_bytes(b"")
        super()._write(path, state, replaced)


# What a run does, and the age of the latest checkpoint once it is done: load, train, save, be interrupted, ...
SCRIPT: list[tuple[str, int]] = [
    ("load", 10), ("epoch 4", 11), ("epoch 5", 12), ("load", 12), ("interrupt", 13), ("load", 13), ("interrupt", 14),
    ("load", 14), ("epoch 5", 15), ("interrupt", 16), ("load", 16), ("load", 16), ("epoch 6", 17), ("epoch 7", 18),
    ("epoch 7", 19),
]  # fmt: skip


def do(manager: CheckpointManager, action: str, its_age: int) -> None:
    kind, _, epoch = action.partition(" ")
    if kind == "epoch":
        manager.save_epoch_checkpoint(state(its_age), int(epoch))
    elif kind == "interrupt":
        manager.save_interrupt_checkpoint(state(its_age))
    else:
        assert age(manager.load_latest_checkpoint()) == its_age


def run_and_die(manager: CheckpointManager, done: Path, step: int) -> None:
    """Do the script; SIGKILL just before the file-system call number `step`. `done` counts what was completed."""
    count = iter(range(10**6))

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*arguments: Any, **more: Any) -> Any:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)

        return dying

    for name in ("replace", "unlink", "fsync"):
        setattr(os, name, deadly(getattr(os, name)))
    for number, (action, its_age) in enumerate(SCRIPT, start=1):
        do(manager, action, its_age)
        done.write_text(str(number))


def kill_everywhere(folder: Path, kind: type[CheckpointManager]) -> tuple[int, str]:
    """Run the script once for each of its file-system calls, killed there; how many runs, and what first went wrong."""
    for step in itertools.count():
        each, done = folder / f"{step}", folder / f"{step}.done"
        manager = kind(each, max_to_keep=2)
        manager.save_epoch_checkpoint(state(9), 3)
        manager.save_interrupt_checkpoint(state(10))
        done.write_text("0")
        status = in_child(lambda manager=manager, done=done, step=step: run_and_die(manager, done, step))
        completed = int(done.read_text())
        if status != -signal.SIGKILL:
            return step, "" if (status, completed) == (
                0,
                len(SCRIPT),
            ) else f"status {status} after {SCRIPT[:completed]}"
        before = SCRIPT[completed - 1][1] if completed else 10
        under_way = SCRIPT[min(completed, len(SCRIPT) - 1)][1]
        found = [age(kind(each).load_latest_checkpoint()) for _ in range(2)]  # twice: a relaunch may crash as well
        if found not in ([before, before], [under_way, under_way]):
            return step, f"{SCRIPT[completed : completed + 1]}: {before} became {found}"
        if message := _goes_on(kind(each, max_to_keep=2), completed):
            return step, f"{SCRIPT[completed : completed + 1]}: {message}"
    raise AssertionError


def _goes_on(manager: CheckpointManager, completed: int) -> str:
    """What is wrong when a relaunch does the rest of the script, beginning with the next save."""
    rest = SCRIPT[completed:]
    while rest and rest[0][0] == "load":
        rest = rest[1:]
    try:
        for action, its_age in rest:
            do(manager, action, its_age)
    except AssertionError:
        return "a load gives another state than a run that is not killed"
    left = names(manager.save_dir)
    if latest(manager.save_dir) != SCRIPT[-1][1] or left != {epoch_name(6), epoch_name(7)}:
        return f"in the end there is {sorted(left)}"
    return ""


def test_a_kill_between_any_two_file_system_calls_loses_nothing(tmp_path: Path) -> None:
    num_steps, wrong = kill_everywhere(tmp_path, CheckpointManager)
    assert wrong == ""
    assert num_steps > 40


@pytest.mark.parametrize("kind", [ForgetsWhenLoading, WritesInPlace])
def test_managers_that_lose_something_are_found_out(tmp_path: Path, kind: type[CheckpointManager]) -> None:
    assert "became" in kill_everywhere(tmp_path, kind)[1]


def test_a_manager_that_loads_twice_is_found_out(tmp_path: Path) -> None:
    assert in_child(lambda: do_all(CheckpointManager(tmp_path / "right"))) == 0
    assert in_child(lambda: do_all(NeverEnds(tmp_path / "wrong"))) == 1


def do_all(manager: CheckpointManager) -> None:
    manager.save_interrupt_checkpoint(state(10))
    for action, its_age in SCRIPT:
        do(manager, action, its_age)


def test_a_killed_writer_leaves_one_temporary_that_the_next_save_removes(tmp_path: Path) -> None:
    def die_before_the_rename() -> None:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        CheckpointManager(tmp_path).save_epoch_checkpoint(state(2), 2)

    manager = manager_with(tmp_path, 1)
    assert in_child(die_before_the_rename) == -signal.SIGKILL
    assert sum(bool(TEMPORARY_NAME.fullmatch(name)) for name in names(tmp_path)) == 1
    assert age(manager.load_latest_checkpoint()) == 1
    manager.save_best_model(state(3), 1.0)
    assert names(tmp_path) == {epoch_name(1), BEST_MODEL_NAME}


def test_the_users_state_is_left_as_it_is(tmp_path: Path) -> None:
    manager, content = CheckpointManager(tmp_path, "meta"), {"list": [torch.ones(2)], "net": {"w": torch.ones(3)}}
    inner, tensor = content["net"], content["list"][0]
    for save in SAVES.values():
        save(manager, content)
    manager.load_latest_checkpoint()
    assert list(content) == ["list", "net"]
    assert content["net"] is inner
    assert content["list"][0] is tensor
    assert tensor.device.type == "cpu"


def test_warnings_are_errors_in_this_suite() -> None:
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    # What may differ is how many cores the machine has.
    ignored = ["ignore:This DataLoader will create"]
    assert pyproject["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error", *ignored]
