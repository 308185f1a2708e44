"""What benchmarks.resume counts, on histories made by hand: 8 samples in batches of 2, so 4 iterations an epoch."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks.resume import (
    Launch,
    Outcome,
    Scenario,
    Update,
    broken_promises,
    damage_file,
    effective_history,
    first_jump,
    loaded_text,
    lost_iterations,
    read_launches,
    repeated_iterations,
    scenarios,
    twice_and_never,
)
from benchmarks.resume_task import Task

NUM_SAMPLES = 8


def launch(start: int, stop: int, first_sample: int | None = None) -> Launch:
    """Iterations start + 1 to stop; the data goes on where it was, or begins again at first_sample."""
    sample = 2 * start if first_sample is None else first_sample
    samples = [((sample + 2 * i) % NUM_SAMPLES, (sample + 2 * i + 1) % NUM_SAMPLES) for i in range(stop - start)]
    updates = [Update(start + 1 + i, 0.1 / (start + 1 + i), pair) for i, pair in enumerate(samples)]
    return Launch({"G": start}, updates)


def counts(*launches: Launch) -> tuple[int, int, tuple[int, int]]:
    """(lost, repeated, (twice, never))"""
    resumed_at = [each.loaded["G"] for each in launches[1:]]
    history = effective_history(launches)
    return lost_iterations(launches), repeated_iterations(launches), twice_and_never(history, resumed_at, NUM_SAMPLES)


@pytest.mark.parametrize(
    ("launches", "expected"),
    [
        ([launch(0, 8)], (0, 0, (0, 0))),
        ([launch(0, 5), launch(5, 8)], (0, 0, (0, 0))),  # saved when it was stopped
        ([launch(0, 6), launch(5, 8)], (1, 1, (0, 0))),  # killed after a save, and right afterwards
        ([launch(0, 6), launch(5, 7), launch(6, 8)], (2, 2, (0, 0))),
        ([launch(0, 6), launch(0, 8)], (6, 6, (0, 0))),  # from the start
        ([launch(0, 6), launch(6, 8, 0)], (0, 0, (4, 4))),  # the head of the data again
        ([launch(0, 5), launch(5, 8, 0)], (0, 0, (2, 2))),
        ([launch(0, 4), launch(4, 8, 0)], (0, 0, (0, 0))),  # stopped between two epochs
        ([launch(0, 2), launch(2, 5, 0), launch(5, 8, 0)], (0, 0, (6, 6))),  # both epochs
    ],
)
def test_what_is_lost_repeated_seen_twice_and_never(
    launches: list[Launch], expected: tuple[int, int, tuple[int, int]]
) -> None:
    assert counts(*launches) == expected


def test_later_epochs_that_are_whole_but_shifted_do_not_count() -> None:
    fresh_order = launch(2, 12, 0)
    assert counts(launch(0, 2), fresh_order) == (0, 0, (4, 4))


def test_the_history_leaves_out_what_was_not_loaded() -> None:
    history = effective_history([launch(0, 6), launch(4, 5), launch(4, 8)])
    assert [update.iteration for update in history] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_jump_is_the_first_other_rate_or_number() -> None:
    right = effective_history([launch(0, 8)])
    assert first_jump(right, right) is None
    assert first_jump(effective_history([launch(0, 3), launch(2, 8)]), right) is None
    warmer = [Update(each.iteration, each.rate * (1 + (each.iteration >= 5)), each.samples) for each in right]
    assert first_jump(warmer, right) == 5
    skipped = [*right[:3], *right[4:]]
    assert first_jump(skipped, right) == 4
    assert first_jump(right[:7], right) == 8


def test_launches_are_read_as_they_were_recorded() -> None:
    lines = [
        {"started": {"G": 0}},
        {"iter": 1, "rate": 0.5, "samples": [4, 2]},
        {"started": {"G": 1, "E": 0}},
        {"ended": {"G": "a", "E": "b"}},
    ]
    first, second = read_launches(map(json.dumps, lines))
    assert first == Launch({"G": 0}, [Update(1, 0.5, (4, 2))])
    assert second == Launch({"G": 1, "E": 0}, (), {"G": "a", "E": "b"})
    assert [loaded_text(first), loaded_text(second)] == ["0", "G 1 + E 0"]


def test_accidents_happen_in_the_middle_of_an_epoch_and_follow_the_seed() -> None:
    task = Task("", "")
    drawn = [scenarios(task, seed) for seed in range(20)]
    assert drawn[0] == scenarios(task, 0)
    assert len({str(each) for each in drawn}) > 1
    per_epoch = task.num_samples // task.batch_size
    for iteration, kind in (accident for each in drawn for scenario in each for accident in scenario.accidents):
        assert 0 < iteration % per_epoch < per_epoch
        assert (iteration % task.save_every == 0) == (kind in ("between files", "in a file"))


def test_a_broken_promise_is_named() -> None:
    scenario = Scenario("SIGKILL at 6", [(6, "SIGKILL")], None, max_lost=1)
    kept = ["yes, from 5", "1 / 1", "0 / 0", "no", "yes"]
    assert broken_promises(scenario, Outcome([launch(0, 6), launch(5, 8)], None), kept) == []
    outcome = Outcome([launch(0, 6), launch(4, 8)], "OSError: torn")
    broken = broken_promises(scenario, outcome, [*kept[:2], "2 / 2", "YES, at 5", "NO"])
    assert len(broken) == 5
    assert all(each.startswith("SIGKILL at 6: ") for each in broken)


def test_an_accident_that_did_not_happen_proves_nothing() -> None:
    scenario = Scenario("SIGKILL at 6", [(6, "SIGKILL")], None, max_lost=1)
    undisturbed = ["-", "0 / 0", "0 / 0", "no", "yes"]
    (said,) = broken_promises(scenario, Outcome([launch(0, 8)], None), undisturbed)
    assert said == "SIGKILL at 6: shows nothing: an accident did not happen"
    assert broken_promises(Scenario("nothing", [], None, 0), Outcome([launch(0, 8)], None), undisturbed) == []


@pytest.mark.parametrize(("damage", "loads"), [("half", False), ("bit", True)])
def test_damage_is_a_short_file_or_one_other_number(tmp_path: Path, damage: str, loads: bool) -> None:
    path = tmp_path / "8_G.pth"
    weights = torch.linspace(1, 2, 1000)
    torch.save({"small": torch.ones(3), "large": weights.clone()}, path)
    damage_file(path, damage)
    if not loads:
        assert not zipfile.is_zipfile(path)
        return
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["small"], torch.ones(3))
    assert int((found["large"] != weights).sum()) == 1
