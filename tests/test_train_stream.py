"""The stream: which sample stands at which position, and which positions a rank draws in which iteration."""

import numpy as np
import pytest

from data.train_stream import TrainStream
from utils.utils_error import UserError


def drawn(stream: TrainStream, first_iter: int, last_iter: int) -> list[int]:
    """The samples of these iterations, in order."""
    return [
        int(sample)
        for current_iter in range(first_iter, last_iter + 1)
        for sample in stream.samples(stream.positions(current_iter))
    ]


@pytest.mark.parametrize("world_size", range(1, 9))
def test_ranks_together_draw_the_range(world_size: int) -> None:
    batch_size = 8 * 3 * 5 * 7  # divisible by 1 to 8
    ranks = [TrainStream(1000, batch_size, 5, rank, world_size) for rank in range(world_size)]
    for current_iter in (1, 2, 7):
        shares = [stream.positions(current_iter) for stream in ranks]
        assert {len(share) for share in shares} == {batch_size // world_size}
        start = (current_iter - 1) * batch_size
        assert np.concatenate(shares).tolist() == list(range(start, start + batch_size))


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_ranks_together_draw_what_one_rank_draws(world_size: int) -> None:
    alone = TrainStream(29, 12, 5)
    ranks = [TrainStream(29, 12, 5, rank, world_size) for rank in range(world_size)]
    for current_iter in range(1, 20):
        together = [sample for stream in ranks for sample in drawn(stream, current_iter, current_iter)]
        assert together == drawn(alone, current_iter, current_iter)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(20, 8), (7, 7), (13, 5), (8, 1), (30, 10), (11, 10)])
def test_each_epoch_is_a_permutation(num_samples: int, batch_size: int) -> None:
    num_epochs = 4
    stream = TrainStream(num_samples, batch_size, 0)
    samples = drawn(stream, 1, stream.num_iters(num_epochs))[: num_epochs * num_samples]
    epochs = np.reshape(samples, (num_epochs, num_samples))
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(num_samples))] * num_epochs
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == num_epochs, "two epochs have one order"


def test_a_batch_that_straddles_epochs_takes_the_tail_and_the_head() -> None:
    whole = TrainStream(10, 10, 3)
    orders = [drawn(whole, epoch + 1, epoch + 1) for epoch in range(3)]
    stream = TrainStream(10, 8, 3)
    assert drawn(stream, 2, 2) == orders[0][8:] + orders[1][:6]
    assert drawn(stream, 3, 3) == orders[1][6:] + orders[2][:4]


def test_samples_of_positions_over_many_epochs() -> None:
    stream = TrainStream(4, 4, 3)
    one_by_one = [int(stream.samples(np.array([position]))[0]) for position in range(15)]
    assert stream.samples(np.arange(15)).tolist() == one_by_one


@pytest.mark.parametrize("start_iter", [0, 1, 2, 5, 17, 200])
def test_starting_anywhere_gives_the_suffix(start_iter: int) -> None:
    straight = drawn(TrainStream(23, 6, 1), 1, start_iter + 9)
    assert drawn(TrainStream(23, 6, 1), start_iter + 1, start_iter + 9) == straight[start_iter * 6 :]


def test_iterations_may_be_asked_in_any_order() -> None:
    stream = TrainStream(23, 6, 1)
    forward = {current_iter: drawn(stream, current_iter, current_iter) for current_iter in range(1, 30)}
    for current_iter in (29, 1, 12, 1, 28, 5):
        assert drawn(stream, current_iter, current_iter) == forward[current_iter]


def test_positions_far_in_the_stream_are_exact() -> None:
    current_iter = 3 * 10**12
    positions = TrainStream(100, 10, 0).positions(current_iter)
    assert positions.tolist() == [(current_iter - 1) * 10 + place for place in range(10)]


SIZES = [(samples, batch) for samples in (1, 2, 5, 7, 12, 16) for batch in (1, 2, 3, 5, 7, 12) if samples >= batch]


@pytest.mark.parametrize(("num_samples", "batch_size"), SIZES)
def test_epochs_against_brute_force(num_samples: int, batch_size: int) -> None:
    stream = TrainStream(num_samples, batch_size, 0)
    num_drawn = 0
    for current_iter in range(1, 60):
        batch = range(num_drawn, num_drawn + batch_size)
        num_drawn += batch_size
        assert stream.epoch(current_iter) == batch[0] // num_samples
        is_last = [position % num_samples == num_samples - 1 for position in batch]
        assert stream.ends_epoch(current_iter) == any(is_last)
    for num_epochs in range(1, 6):
        enough = next(i for i in range(1, 1000) if i * batch_size >= num_epochs * num_samples)
        assert stream.num_iters(num_epochs) == enough


def test_nothing_drawn_is_epoch_zero() -> None:
    assert TrainStream(10, 4, 0).epoch(0) == 0


def test_another_seed_gives_another_order() -> None:
    orders = {tuple(drawn(TrainStream(50, 50, seed), 1, 1)) for seed in (0, 1, 2, 2**31 - 1, 2**62)}
    assert len(orders) == 5
    assert drawn(TrainStream(50, 50, 7), 1, 1) == drawn(TrainStream(50, 50, 7), 1, 1)


def test_the_order_is_no_rotation_and_near_uniform() -> None:
    """Over many epochs each sample is first about equally often: chi square of 10 cells."""
    stream = TrainStream(10, 10, 0)
    first = np.bincount([drawn(stream, epoch, epoch)[0] for epoch in range(1, 1001)], minlength=10)
    assert ((first - 100) ** 2 / 100).sum() < 27.9  # 99.9 %, 9 degrees of freedom


def test_more_samples_a_batch_than_there_are() -> None:
    with pytest.raises(UserError) as caught:
        TrainStream(20, 21, 0)
    message = str(caught.value)
    assert message.startswith("datasets.train.dataloader_batch_size: 21 ")
    assert "20 training samples" in message
    assert "use 20 or less" in message


@pytest.mark.parametrize(
    ("batch_size", "world_size", "remedy"), [(100, 8, "use 96 or 104"), (5, 3, "use 3 or 6"), (3, 4, "use 4")]
)
def test_batch_that_does_not_divide(batch_size: int, world_size: int, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainStream(1000, batch_size, 0, 0, world_size)
    message = str(caught.value)
    assert message.startswith(f"datasets.train.dataloader_batch_size: {batch_size} ")
    assert f"{world_size} ranks" in message
    assert message.endswith(remedy)
