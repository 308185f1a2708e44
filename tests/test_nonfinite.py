"""A loss or a gradient that is not finite stops the run or is skipped, on all ranks alike, and never reaches a file."""

import math
import signal
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from models.buffers import KeptBuffers
from models.loss_meter import NonFiniteLossError
from models.model_plain import ModelPlain
from tests.helpers import ONE_RANK, changed, class_batch, messages, net_options, same_tensors
from tests.run_helpers import Run, RunServer, kill, run_options, server

__all__ = ["server"]  # a fixture

SKIP = {"nonfinite": "skip", "nonfinite_max_skips": 2}
TRAIN = {"G_optimizer_type": "adamw", "G_optimizer_lr": 0.01, "E_decay": 0.9, "G_optimizer_clipgrad": 1.0}


def model_of(**train: Any) -> ModelPlain:
    return ModelPlain(net_options({**TRAIN, **train}, dropout=0.2), ONE_RANK, seed=0)


def train(model: ModelPlain, bad: Sequence[int] = (), last: int = 6, value: float = math.nan) -> ModelPlain:
    """Iterations 1 to `last`; the inputs of the iterations in `bad` are `value`."""
    for current_iter in range(1, last + 1):
        batch = class_batch(current_iter)
        if current_iter in bad:
            batch["input"] = torch.full_like(batch["input"], value)
        model.update_learning_rate(current_iter)
        model.optimize_parameters([batch], current_iter)
        model.update_E(current_iter)
    return model


def leaving_out(model: ModelPlain, left_out: Sequence[int], last: int = 6) -> ModelPlain:
    """The oracle: the same iterations, where nothing at all is done to netG in those left out."""
    for current_iter in range(1, last + 1):
        model.update_learning_rate(current_iter)
        if current_iter not in left_out:
            model.optimize_parameters([class_batch(current_iter)], current_iter)
        model.update_E(current_iter)
    return model


def flat(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of G, E and optimizerG."""
    moments = {f"{i}.{name}": each for i, s in state["optimizerG"]["state"].items() for name, each in s.items()}
    return {**state["G"], **{f"E.{name}": each for name, each in state["E"].items()}, **moments}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [(3,), (1,), (6,), (2, 3, 5, 6)])
def test_a_skipped_step_leaves_no_trace(bad: tuple[int, ...], value: float) -> None:
    skipped = train(model_of(**SKIP), bad, value=value)
    assert same_tensors(flat(skipped.state()), flat(leaving_out(model_of(), bad).state()))
    assert all(tensor.isfinite().all() for tensor in flat(skipped.state()).values())
    assert math.isfinite(skipped.current_log(6)["G_loss"])
    assert skipped.num_skipped_in_a_row == (2 if bad[-2:] == (5, 6) else 1 if bad[-1] == 6 else 0)


def test_statistics_that_are_not_restored_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptBuffers, "restore", lambda _: None)
    state = flat(train(model_of(**SKIP), [3]).state())
    assert not all(tensor.isfinite().all() for tensor in state.values())


def test_with_nothing_to_skip_the_weights_are_the_same() -> None:
    assert same_tensors(flat(train(model_of(**SKIP)).state()), flat(train(model_of()).state()))


def test_more_in_a_row_than_allowed_stop_the_run(logged: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NonFiniteLossError, match=r"iteration 5: the loss is nan.* 2 steps in a row"):
        train(model_of(**SKIP), [3, 4, 5])
    assert "Skipped iteration 3" in messages(logged.records)
    assert "(2 in a row)" in messages(logged.records)


def test_a_step_that_is_taken_ends_the_row() -> None:
    assert train(model_of(**SKIP), [1, 2, 4, 5], last=6).num_skipped_in_a_row == 0


def test_an_interval_without_a_step_logs_no_loss() -> None:
    assert train(model_of(**SKIP), [1, 2], last=2).current_log(2) == {}


@pytest.fixture
def new_run(server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A run whose option "skip" allows three steps in a row."""
    options = changed(
        run_options(tmp_path_factory.mktemp("data")), train__nonfinite="skip", train__nonfinite_max_skips=3
    )
    return lambda **changes: Run(server, tmp_path_factory.mktemp("run"), changed(options, **changes))


def spoiled(*iters: int, rank: int = 0) -> dict[str, Any]:
    return {"place": "feed", "iters": list(iters), "rank": rank}


def test_a_run_skips_says_so_and_resumes_exactly(new_run: Callable[..., Run]) -> None:
    whole, run, bad = new_run(), new_run(), spoiled(5, 6, 7)
    ended = whole.launch(accidents=[bad])
    assert ended.status == 0, ended.output
    assert "Skipped iteration 6: the loss is nan" in ended.output
    assert run.launch(accidents=[bad, kill("step", 6, signal.SIGTERM)]).status == 128 + signal.SIGTERM
    assert run.manifest(6)["progress"]["num_skipped_in_a_row"] == 2
    assert run.launch(accidents=[bad]).status == 0
    assert run.hashes(12) == whole.hashes(12)
    unspoiled = new_run()
    assert unspoiled.launch().status == 0
    assert unspoiled.hashes(12) != whole.hashes(12)


def test_a_run_that_cannot_go_on_stops_at_the_same_iteration_after_a_resume(new_run: Callable[..., Run]) -> None:
    run, bad = new_run(), spoiled(*range(5, 13))
    assert run.launch(accidents=[bad, kill("step", 7, signal.SIGTERM)]).status == 128 + signal.SIGTERM
    ended = run.launch(accidents=[bad])
    assert ended.status == 1
    assert "iteration 8: the loss is nan" in ended.output
    assert "train.nonfinite_max_skips" in ended.output
    assert "The newest good set is that of iteration 7" in ended.output
    assert "Traceback" not in ended.output
    assert run.status()["state"] == "FAILED"
    assert run.committed() == [4, 7]


def test_the_ranks_skip_together(new_run: Callable[..., Run]) -> None:
    run = new_run()
    ended = run.launch(accidents=[spoiled(5, rank=1)], num_ranks=2)
    assert ended.statuses == [0, 0], ended.outputs
    assert "Skipped iteration 5" in ended.outputs[0]
    assert ended.outputs[1] == ""
    assert all(tensor.isfinite().all() for tensor in run.model("12_G.pth").values())
    whole = new_run()
    assert whole.launch(num_ranks=2).statuses == [0, 0]
    assert whole.hashes(12) != run.hashes(12)


def test_a_run_stops_by_itself_without_the_option(new_run: Callable[..., Run]) -> None:
    run = new_run(train__nonfinite="stop")
    ended = run.launch(accidents=[spoiled(6)])
    assert ended.status == 1
    assert "the loss of iteration 6 is nan" in ended.output
    assert "The newest good set is that of iteration 4" in ended.output
    assert run.committed() == [4]


def test_a_stop_does_not_save_what_is_not_finite(new_run: Callable[..., Run]) -> None:
    run = new_run(train__nonfinite="stop")
    ended = run.launch(accidents=[spoiled(6), kill("step", 6, signal.SIGTERM)])
    assert ended.status == 1
    assert "the loss of iteration 6 is nan" in ended.output
    assert run.committed() == [4]
    assert run.status()["state"] == "FAILED"
