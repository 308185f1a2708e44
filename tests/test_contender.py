"""benchmarks.contender: loops in processes of their own, asked for one stretch after another."""

import sys
from pathlib import Path

import pytest

from benchmarks.contender import contenders

COUNTING = """
import sys
from pathlib import Path
from benchmarks.contender import Pacer

tick, done = Pacer(num_iters=3), 0
print("chatter that is no measurement", flush=True)
while True:
    done += 1
    Path(sys.argv[1]).write_text(str(done))
    tick()
"""


def test_a_loop_stands_still_until_the_next_stretch(tmp_path: Path) -> None:
    counts = [tmp_path / name for name in ("a", "b")]
    commands = {path.name: [sys.executable, "-c", COUNTING, str(path)] for path in counts}
    with contenders(commands, tmp_path) as started:
        # The first iteration and a stretch of three to warm up, then what is asked for.
        assert [path.read_text() for path in counts] == ["4", "4"]
        assert started["a"]() >= 0
        assert started["a"]() >= 0
        assert [path.read_text() for path in counts] == ["10", "4"]
    assert "chatter" in (tmp_path / "0.txt").read_text()


def test_a_loop_that_dies_says_why(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "raise ValueError('no such data')"]
    with pytest.raises(RuntimeError, match="no such data"), contenders({"dying": dying}, tmp_path):
        raise AssertionError("it never started")
