"""benchmarks.saving measures what it says, on a set of a few kilobytes."""

from pathlib import Path

from benchmarks.saving import Training, measure_in
from utils.utils_checkpoint import CheckpointFolder


def test_every_contender_is_measured_in_every_round_and_the_sets_are_whole(tmp_path: Path) -> None:
    training = Training(width=4, depth=2)
    rows = measure_in(tmp_path, training, rounds=2)
    assert [sorted(row.samples) for row in rows] == [
        ["DCP async_save", "KAIR style", "Longhaul", "memcpy", "memcpy of one block"],
        ["DCP async_save", "KAIR style", "Longhaul", "memcpy", "memcpy of one block"],
        ["Longhaul", "torch.save + fsync"],
        ["a step", "a step during a save"],
    ]
    for row in rows:
        assert row.ours in row.samples
        assert all(len(values) == 2 and min(values) > 0 for values in row.samples.values())
    point = CheckpointFolder(tmp_path).find_resume_point(("G", "E", "optimizerG"))
    assert point is not None
    assert point.iteration == 2 + 3 * 2
    assert training.num_bytes() == sum(
        tensor.nbytes for part in ("netG", "netE") for tensor in getattr(training, part).state_dict().values()
    ) + sum(tensor.nbytes for state in training.optimizer.state.values() for tensor in state.values())
