"""Best value and patience."""

import dataclasses
import functools
from typing import Any

import pytest

from utils.utils_progress import Progress

NAN = float("nan")


def after(values: list[float], mode: Any) -> Progress:
    """Progress after tests at iterations 10, 20, ..."""
    return functools.reduce(
        lambda progress, test: progress.after_test(10 * test[0], test[1], mode), enumerate(values, 1), Progress()
    )


@pytest.mark.parametrize(
    ("mode", "values", "best_value", "best_iter", "without"),
    [
        ("max", [0.5], 0.5, 10, 0),
        ("max", [0.5, 0.7], 0.7, 20, 0),
        ("max", [0.5, 0.7, 0.6, 0.65], 0.7, 20, 2),
        ("max", [0.5, 0.5], 0.5, 10, 1),
        ("max", [-1.0, 0.0], 0.0, 20, 0),
        ("max", [0.0, -1.0], 0.0, 10, 1),
        ("min", [0.5, 0.7], 0.5, 10, 1),
        ("min", [0.7, 0.5, 0.6], 0.5, 20, 1),
        ("min", [0.5, 0.5, 0.4], 0.4, 30, 0),
        ("max", [NAN], None, 0, 1),
        ("max", [NAN, 0.1], 0.1, 20, 0),
        ("max", [0.5, NAN, NAN], 0.5, 10, 2),
        ("min", [0.5, NAN, 0.4], 0.4, 30, 0),
    ],
)
def test_best_value_and_patience(
    mode: str, values: list[float], best_value: float | None, best_iter: int, without: int
) -> None:
    progress = after(values, mode)
    assert dataclasses.asdict(progress) == {
        "best_value": best_value,
        "best_iter": best_iter,
        "num_tests_without_improvement": without,
        "last_test_iter": 10 * len(values),
        "num_skipped_in_a_row": 0,
        "loss_sum": 0.0,
        "num_losses": 0,
        "judged_by": "",
    }


def test_another_judge_forgets_the_best_and_patience() -> None:
    before = dataclasses.replace(after([0.5, 0.4], "max"), loss_sum=1.5)
    first = before.now_judged_by("max accuracy of faces")
    assert dataclasses.replace(first, judged_by="") == before, "older manifests do not say who judged"
    assert first.now_judged_by("max accuracy of faces") == first
    other = first.now_judged_by("max accuracy of other faces")
    assert (other.best_value, other.best_iter, other.num_tests_without_improvement) == (None, 0, 0)
    assert (other.last_test_iter, other.loss_sum) == (20, 1.5)


def test_progress_does_not_change_in_place() -> None:
    start = Progress()
    start.after_test(10, 0.5, "max")
    assert start == Progress()
    with pytest.raises(dataclasses.FrozenInstanceError):
        start.best_value = 1.0  # type: ignore[misc]


def test_progress_survives_the_manifest() -> None:
    progress = after([0.5, 0.7, 0.6], "max")
    assert Progress(**dataclasses.asdict(progress)) == progress


@pytest.mark.parametrize("value", [0.4, 0.6])  # a worse test and a better one
def test_a_test_is_no_step_that_was_taken(value: float) -> None:
    assert Progress(0.5, 10, 0, 10, num_skipped_in_a_row=3).after_test(20, value, "max").num_skipped_in_a_row == 3
