"""The snapshot: what is written is the state at the moment of `save`, whatever happens to it afterwards."""

import collections
import concurrent.futures
import copy
import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import messages
from utils.utils_checkpoint import CheckpointFolder, Manifest
from utils.utils_progress import Progress
from utils.utils_snapshot import BackgroundWriter, Snapshot

KIND = "checkpoint set"


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    writer = BackgroundWriter()
    yield writer
    writer.close()


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def nested() -> dict[str, Any]:
    return {
        "weight": torch.arange(6.0).reshape(2, 3),
        "groups": [{"lr": 0.1, "params": [0, 1], "betas": (0.9, torch.tensor(0.5))}],
        "progress": {"best": 0.5, "names": ["a"], "seen": {1}},
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return (
            type(first) is type(second)
            and list(first) == list(second)
            and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return first == second


def mutate(state: dict[str, Any]) -> None:
    """Change everything that training could change in place."""
    state["weight"].zero_()
    state["groups"][0]["lr"] = 9.0
    state["groups"][0]["params"].append(7)
    state["groups"][0]["betas"][1].fill_(8.0)
    state["groups"].append({})
    state["progress"]["best"] = 0.9
    state["progress"]["names"].append("b")
    state["progress"]["seen"].add(2)
    state["new"] = 1


def save_while_writing_waits(writer: BackgroundWriter, state: Any, written: list[Any]) -> threading.Event:
    """Save with a writer that waits for the returned event before it looks at its copy."""
    go = threading.Event()

    def write(copied: Any) -> None:
        go.wait(10)
        written.append(copy.deepcopy(copied))

    writer.save(KIND, state, write)
    return go


def test_what_changes_after_save_is_not_written(writer: BackgroundWriter) -> None:
    state, written = nested(), []
    go = save_while_writing_waits(writer, state, written)
    mutate(state)
    go.set()
    writer.wait()
    assert same(written[0], nested())
    assert not same(state, nested())  # control: the changes are visible


def test_a_step_and_a_forward_pass_after_save_are_not_written(writer: BackgroundWriter) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        net(torch.ones(2, 3, 8, 8)).sum().backward()
        optimizer.step()

    step()
    before = copy.deepcopy((dict(net.state_dict()), optimizer.state_dict()))
    written: list[Any] = []
    go = save_while_writing_waits(writer, {"G": net.state_dict(), "optimizerG": optimizer.state_dict()}, written)
    step()
    go.set()
    writer.wait()
    assert same(dict(written[0]["G"]), before[0])
    assert same(written[0]["optimizerG"], before[1])
    assert not torch.equal(net.state_dict()["1.running_mean"], before[0]["1.running_mean"])


def test_strides_types_and_metadata_of_a_state_dict_are_kept() -> None:
    state = network().state_dict()
    taken = Snapshot().take(state)
    assert isinstance(taken, collections.OrderedDict)
    assert taken._metadata == state._metadata  # type: ignore[attr-defined]
    assert taken._metadata is not state._metadata  # type: ignore[attr-defined]
    for name, tensor in state.items():
        assert taken[name].stride() == tensor.stride()
        assert taken[name].dtype == tensor.dtype
        assert taken[name].data_ptr() != tensor.data_ptr()
        assert not taken[name].requires_grad
    assert not state["0.weight"].is_contiguous()  # control: the strides are unusual


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3.0),
        torch.zeros(0, 3),
        torch.arange(4, dtype=torch.int64),
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(8.0)[::2],
        torch.tensor(1.0).expand(3),
        None,
        "text",
        (1, [2.5, {"a": torch.ones(1)}], collections.Counter("aab")),
    ],
    ids=["0-dim", "empty", "int64", "bool", "bf16", "transposed", "sliced", "expanded", "None", "str", "nested"],
)
def test_any_value_is_copied_equal(value: Any) -> None:
    snapshot = Snapshot()
    for _ in range(2):
        assert same(snapshot.take({"value": value}), {"value": value})


def test_equal_texts_give_equal_files_whoever_made_them() -> None:
    """A resume brings texts of its own: those in a file, beside those in the code."""
    state = {"state": {0: {"step": 3}}, "groups": [{"step": 3, "mode": "step"}]}
    read: Any = copy.deepcopy(state)
    read["state"][0] = {"".join("step"): 3}
    files = [io.BytesIO(), io.BytesIO(), io.BytesIO()]
    for file, content in zip(files, (Snapshot().take(state), Snapshot().take(read), read), strict=True):
        torch.save(content, file)
    written, again, control = (file.getvalue() for file in files)
    assert written == again
    assert control != written


def test_buffers_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, snapshot = network(), Snapshot()
    first = snapshot.take(net.state_dict())
    places = {name: tensor.data_ptr() for name, tensor in first.items()}
    allocated: list[torch.Tensor] = []
    monkeypatch.setattr(torch, "empty_like", lambda *_args, **_kwargs: allocated.append(torch.empty(0)))
    for _ in range(3):
        with torch.no_grad():
            net(torch.randn(2, 3, 8, 8))
        taken = snapshot.take(net.state_dict())
        assert {name: tensor.data_ptr() for name, tensor in taken.items()} == places
        assert torch.equal(taken["1.running_mean"], net.state_dict()["1.running_mean"])
    assert not allocated


def test_nothing_is_written_before_the_copy_is_complete(
    writer: BackgroundWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the copy goes on after `take`."""
    done: list[str] = []
    monkeypatch.setattr(Snapshot, "wait", lambda _self: done.append("copied"))
    writer.save(KIND, {}, lambda _copied: done.append("written"))
    writer.wait()
    assert done == ["copied", "written"]


def test_a_tensor_that_grows_gets_a_buffer_that_fits() -> None:
    snapshot = Snapshot()
    for size in (2, 5, 3):
        assert torch.equal(snapshot.take([torch.arange(size)])[0], torch.arange(size))


def test_a_tensor_that_becomes_another_type_is_copied_as_that() -> None:
    snapshot = Snapshot()
    for value in (torch.tensor([1, 2]), torch.tensor([0.5, 1.5]), torch.tensor([0.1, 0.2], dtype=torch.float64)):
        (copied,) = snapshot.take([value])
        assert copied.dtype == value.dtype
        assert torch.equal(copied, value)


def test_a_writer_that_raises_is_logged_and_training_goes_on(
    writer: BackgroundWriter, logged: pytest.LogCaptureFixture
) -> None:
    def full(_copied: Any) -> None:
        raise OSError(28, "No space left on device")

    assert not writer.failed
    writer.save(KIND, {}, full)
    writer.wait()
    assert writer.failed
    error = messages(logged.records, logging.ERROR)
    assert KIND in error
    assert "No space left on device" in error
    writer.save(KIND, {}, lambda _copied: None)
    writer.wait()
    assert not writer.failed


def test_whoever_asks_is_told_of_each_save_that_fails() -> None:
    told: list[bool] = []
    writer = BackgroundWriter(lambda: told.append(True))
    for may_fail, expected in ((False, 0), (True, 1), (False, 1)):

        def write(_copied: Any, may_fail: bool = may_fail) -> None:
            if may_fail:
                raise OSError(28, "No space left on device")

        writer.save(KIND, {}, write)
        writer.wait()
        assert len(told) == expected
    writer.close()


def test_a_success_of_one_kind_does_not_clear_the_failure_of_another(writer: BackgroundWriter) -> None:
    def fail(_copied: Any) -> None:
        raise OSError("full")

    writer.save(KIND, {}, fail)
    writer.save("best_model.pth", {}, lambda _copied: None)
    writer.wait()
    assert writer.failed
    writer.save(KIND, {}, lambda _copied: None)
    writer.wait()
    assert not writer.failed


def test_a_save_that_failed_is_tried_again_once(writer: BackgroundWriter) -> None:
    """Saves of two other kinds come while it is."""
    go, tried = threading.Event(), []

    def fail_at_first(_copied: Any) -> None:
        tried.append(KIND)
        if len(tried) == 1:
            raise OSError("full")
        go.wait(10)

    writer.save(KIND, {}, fail_at_first)
    writer.wait()
    for kind in ("best_model.pth", "final_model.pth"):
        writer.save(kind, {}, lambda _copied: None)
    go.set()
    writer.wait()
    assert len(tried) == 2
    assert not writer.failed


def test_a_save_that_fails_leaves_the_set_before(tmp_path: Path, writer: BackgroundWriter) -> None:
    checkpoints = CheckpointFolder(tmp_path)

    def save(iteration: int, value: float) -> None:
        manifest = Manifest(iteration=iteration, epoch=0, reason="periodic", progress=Progress(), stream={}, machine={})
        states = {"G": {"weight": torch.tensor([value])}}
        writer.save(KIND, states, lambda copied: checkpoints.commit(copied, manifest, 2))
        writer.wait()

    save(4, 1.0)
    save(8, float("nan"))
    assert writer.failed
    point = checkpoints.find_resume_point(("G",))
    assert point is not None
    assert point.iteration == 4
    save(12, 3.0)
    assert not writer.failed
    assert torch.load(tmp_path / "12_G.pth", weights_only=True)["weight"].item() == 3.0


def test_a_writer_slower_than_the_interval_makes_the_next_save_wait_and_say_so(
    writer: BackgroundWriter, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, written = {"weight": torch.zeros(3)}, []
    go = save_while_writing_waits(writer, state, written)
    wait = concurrent.futures.Future.result

    def let_it_go_on_and_wait(future: Any, timeout: float | None = None) -> Any:
        go.set()  # not before somebody waits
        return wait(future, timeout)

    monkeypatch.setattr(concurrent.futures.Future, "result", let_it_go_on_and_wait)
    state["weight"].fill_(1.0)
    writer.save(KIND, state, lambda copied: written.append(copy.deepcopy(copied)))
    assert len(written) >= 1  # the first had to end before its buffers were used again
    writer.wait()
    assert [each["weight"].tolist() for each in written] == [[0.0] * 3, [1.0] * 3]
    warned = messages(logged.records, logging.WARNING)
    assert f"The next {KIND} was due before the last one was written" in warned
    assert re.search(r"training waited \d+\.\d s", warned)


def test_a_writer_that_keeps_up_says_nothing(writer: BackgroundWriter, logged: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        writer.save(KIND, {"weight": torch.zeros(3)}, lambda _copied: None)
        writer.wait()
    assert not messages(logged.records, logging.WARNING)


def test_close_finishes_what_is_pending() -> None:
    writer, written = BackgroundWriter(), []
    for number in range(3):
        writer.save(str(number), number, written.append)
    writer.close()
    assert written == [0, 1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread has a niceness of its own")
def test_training_goes_before_the_writer_and_its_threads(writer: BackgroundWriter) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, seen = niceness(), []

    def write(_copied: Any) -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            seen.extend([niceness(), threads.submit(niceness).result()])

    writer.save(KIND, {}, write)
    writer.wait()
    assert seen == [min(19, before + 5)] * 2
    assert niceness() == before
