"""A run that dies at any named instant of saving or resuming ends, once launched again, with the same bytes.

The instants are those that a traced run really reaches; together the scenarios reach every name in FAILPOINTS.
"""

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.helpers import changed, tiny_csv
from tests.run_helpers import Accident, Run, RunServer, flip_bit, kill, run_options, server
from utils.utils_failpoint import FAILPOINTS

__all__ = ["server"]  # a fixture

LAST = 12
SIGKILLED = -signal.SIGKILL

Instant = tuple[str, str]
NewRun = Callable[[], Run]


@pytest.fixture(scope="module")
def new_run(server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> NewRun:
    """A fresh run of twelve iterations that keeps two of its three sets; its batch suits 1, 2 and 3 ranks."""
    faces = tmp_path_factory.mktemp("data")
    options = changed(
        run_options(faces),
        train__max_to_keep=2, datasets__train__dataroot=tiny_csv(faces, num_train=60), train__checkpoint_test=6,
        datasets__train__dataloader_batch_size=24,
    )  # fmt: skip
    return lambda: Run(server, tmp_path_factory.mktemp("run"), options)


def launched(run: Run, num_ranks: int, *accidents: Accident) -> int:
    return run.launch(accidents=accidents, num_ranks=num_ranks).status


def killed_at(name: str, file: str, skip: int = 0) -> Accident:
    return kill("failpoint", 0, name=name, file=file, skip=skip)


class Scenario:
    """What comes before the launch that is to die, and what that launch reaches when nothing kills it."""

    def __init__(self, new_run: NewRun, prepare: Callable[[Run, int], None]) -> None:
        self._new_run, self._prepare = new_run, prepare
        self._instants: dict[int, list[Instant]] = {}

    def prepared(self, num_ranks: int) -> Run:
        run = self._new_run()
        self._prepare(run, num_ranks)
        return run

    def instants(self, num_ranks: int) -> list[Instant]:
        if num_ranks not in self._instants:
            run = self.prepared(num_ranks)
            trace = run.folder.parent / "trace"
            assert launched(run, num_ranks, {"trace": str(trace)}) == 0
            self._instants[num_ranks] = [_instant(line) for line in trace.read_text().splitlines()]
        return self._instants[num_ranks]


def _instant(line: str) -> Instant:
    name, _, file = line.partition("\t")
    return name, file


def start_fresh(_run: Run, _num_ranks: int) -> None:
    """Nothing comes before the first launch."""


def leave_a_torn_set(run: Run, num_ranks: int) -> None:
    """A set that lacks its manifest, and an empty temporary file."""
    torn = killed_at(name="temporary file opened", file="8_manifest.json")
    assert launched(run, num_ranks, torn) == SIGKILLED


def leave_a_damaged_set(run: Run, num_ranks: int) -> None:
    """A flipped bit in the newest of two sets."""
    assert launched(run, num_ranks, killed_at(name="file durable", file="8_manifest.json")) == SIGKILLED
    flip_bit(run.models / "8_E.pth")


SCENARIOS = {"fresh": start_fresh, "torn set": leave_a_torn_set, "damaged set": leave_a_damaged_set}


@pytest.fixture(scope="module")
def scenarios(new_run: NewRun, hashes: Callable[[int], dict[str, str]]) -> dict[str, Scenario]:
    hashes(1)  # the first run also writes the cache of the faces, which no later one reaches
    return {name: Scenario(new_run, prepare) for name, prepare in SCENARIOS.items()}


@pytest.fixture(scope="module")
def hashes(new_run: NewRun) -> Callable[[int], dict[str, str]]:
    """Hashes of the last set of an uninterrupted run on so many ranks."""
    done: dict[int, dict[str, str]] = {}

    def hashes(num_ranks: int) -> dict[str, str]:
        if num_ranks not in done:
            run = new_run()
            assert launched(run, num_ranks) == 0
            done[num_ranks] = run.hashes(LAST)
        return done[num_ranks]

    return hashes


def strikes(instants: Sequence[Instant], only: Callable[[Instant], bool]) -> Iterator[Accident]:
    """A SIGKILL for each instant, each time that it is reached; torch.save's many writes of a file count once."""
    seen: Counter[Instant] = Counter()
    for name, file in instants:
        skip = seen[name, file]
        seen[name, file] += 1
        if only((name, file)) and not (name == "temporary file partly written" and skip):
            yield killed_at(name=name, file=file, skip=skip)


def survives(scenario: Scenario, num_ranks: int, accident: Accident, expected: dict[str, str]) -> None:
    run = scenario.prepared(num_ranks)
    assert launched(run, num_ranks, accident) == SIGKILLED
    again = run.launch(num_ranks=num_ranks)
    assert again.status == 0, again.output
    assert run.hashes(LAST) == expected
    assert run.status()["state"] == "DONE"
    assert run.committed()[-1] == LAST
    assert not list(run.folder.rglob("*.tmp"))


def test_the_scenarios_reach_every_failpoint(scenarios: dict[str, Scenario]) -> None:
    reached = {name for scenario in scenarios.values() for name, _ in scenario.instants(1)}
    assert reached == set(FAILPOINTS)


def test_every_failpoint_of_a_commit_that_prunes(
    scenarios: dict[str, Scenario], hashes: Callable[[int], dict[str, str]]
) -> None:
    """The last of three sets, and the first one, which goes."""
    scenario = scenarios["fresh"]
    accidents = list(strikes(scenario.instants(1), lambda each: each[1].startswith(f"{LAST}_") or "old" in each[0]))
    assert len(accidents) >= 4 * 5 + 5
    for accident in accidents:
        survives(scenario, 1, accident, hashes(1))


@pytest.mark.parametrize("name", ["torn set", "damaged set"])
def test_every_failpoint_of_setting_a_set_aside(
    scenarios: dict[str, Scenario], hashes: Callable[[int], dict[str, str]], name: str
) -> None:
    starting = ("moved to quarantine", "stale temporary file removed", "resume point chosen")
    accidents = list(strikes(scenarios[name].instants(1), lambda each: each[0] in starting))
    assert len(accidents) >= 4
    for accident in accidents:
        survives(scenarios[name], 1, accident, hashes(1))


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_failpoint_of_a_launch(
    scenarios: dict[str, Scenario], hashes: Callable[[int], dict[str, str]], name: str, num_ranks: int
) -> None:
    instants = scenarios[name].instants(num_ranks)
    if name != "fresh":  # once the resume point is chosen, this launch goes the way of a fresh one
        instants = instants[: instants.index(("resume point chosen", "tiny")) + 1]
    accidents = list(strikes(instants, lambda _: True))
    assert len(accidents) > (100 if name == "fresh" else 10)
    for accident in accidents:
        survives(scenarios[name], num_ranks, accident, hashes(num_ranks))
    print(f"{name}, {num_ranks} ranks: killed at {len(accidents)} instants, all ended alike")


def test_a_piece_that_is_not_restored_would_be_noticed(
    scenarios: dict[str, Scenario], hashes: Callable[[int], dict[str, str]]
) -> None:
    run = scenarios["fresh"].prepared(1)
    assert launched(run, 1, killed_at(name="file durable", file="8_manifest.json")) == SIGKILLED
    assert launched(run, 1, {"forget": "optimizerG"}) == 0
    assert run.hashes(LAST) != hashes(1)
