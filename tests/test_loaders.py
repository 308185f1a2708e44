"""How a batch and its workers are shared among the ranks."""

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.utils.data

from data import loaders
from data.loaders import define_train_loader
from data.select_dataset import DataSource, define_dataset
from data.train_stream import TrainStream
from tests.helpers import tiny_csv
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_option import DatasetOptions

BATCH = 8
TWO_RANKS = [Dist(rank=rank, world_size=2) for rank in range(2)]


def source(folder: Path, **given: Any) -> DataSource:
    mapping = {"dataset_type": "fer2013", "dataroot": tiny_csv(folder), "split": "Training", **given}
    return define_dataset("train", DatasetOptions.model_validate_json(json.dumps(mapping)))


def stream(each: DataSource, dist: Dist) -> TrainStream:
    return TrainStream(len(each.dataset), BATCH, 0, dist.rank, dist.world_size)


def test_accumulation_divides_the_share_of_a_rank_not_the_batch(tmp_path: Path) -> None:
    each = source(tmp_path)
    with pytest.raises(UserError, match=r"8 does not divide the 4 samples of each rank .*, such as 4"):
        define_train_loader(each, stream(each, TWO_RANKS[0]), TWO_RANKS[0], 0, 0, num_micro_batches=8)


@pytest.mark.parametrize("resident", [True, False])
def test_the_micro_batches_of_all_ranks_are_the_batch_of_one(tmp_path: Path, resident: bool) -> None:
    each = source(tmp_path, resident=resident)
    alone = define_train_loader(each, stream(each, Dist()), Dist(), 0, 3)
    shared = [define_train_loader(each, stream(each, dist), dist, 0, 3, num_micro_batches=2) for dist in TWO_RANKS]
    for number, [whole] in itertools.islice(alone, 6):  # past the end of an epoch
        parts = [next(loader) for loader in shared]
        assert [place for place, _ in parts] == [number] * 2
        assert [name for _, micro in parts for part in micro for name in part["name"]] == list(whole["name"])
        assert torch.equal(torch.cat([part["input"] for _, micro in parts for part in micro]), whole["input"])


@pytest.mark.parametrize(("asked", "started"), [(0, 0), (1, 1), (3, 2), (4, 2)])
def test_the_ranks_share_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, started: int) -> None:
    """As many as were asked for, or one more so that all ranks have the same."""
    found = []

    def loader(*_args: Any, num_workers: int, **_kwargs: Any) -> list[Any]:
        found.append(num_workers)
        return []

    monkeypatch.setattr(torch.utils.data, "DataLoader", loader)
    each = source(tmp_path, resident=False, dataloader_num_workers=asked)
    assert next(define_train_loader(each, stream(each, TWO_RANKS[0]), TWO_RANKS[0], 0, 0)) == (1, [])
    assert found == [started]


class Augmenting:
    """Samples of numbers from all three global generators, as many a data set augments."""

    fingerprint = "augmenting"

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = [float(torch.rand(())), np.random.rand(), random.random()]  # noqa: NPY002
        return {"input": torch.tensor([index, *drawn]), "target": index, "name": str(index)}


def augmented(start_iter: int, num_workers: int, num_ranks: int = 1, seed: int = 0) -> torch.Tensor:
    """The inputs of the iterations from start_iter + 1 to 6: (iterations, BATCH, 4)."""
    options = DatasetOptions(dataset_type="fer2013", resident=False, dataloader_num_workers=num_workers)
    each = DataSource("train", Augmenting(), options, None)
    parts = []
    for rank in range(num_ranks):
        dist = Dist(rank=rank, world_size=num_ranks)
        batches = define_train_loader(each, stream(each, dist), dist, seed, start_iter)
        parts.append(torch.stack([batch["input"] for _, [batch] in itertools.islice(batches, 6 - start_iter)]))
        del batches  # and its workers
    return torch.cat(parts, dim=1)


def test_what_a_data_set_draws_depends_on_the_seed_and_the_position_alone() -> None:
    whole = augmented(0, num_workers=0)
    for place in range(1, 4):
        assert whole[..., place].unique().numel() == 6 * BATCH  # also where an epoch repeats a sample
    assert torch.equal(augmented(0, num_workers=2), whole)
    assert torch.equal(augmented(3, num_workers=0), whole[3:])
    assert torch.equal(augmented(3, num_workers=1), whole[3:])
    assert torch.equal(augmented(0, num_workers=0, num_ranks=2), whole)
    assert not torch.equal(augmented(0, num_workers=0, seed=1), whole)


class HalfResident(Augmenting):
    """Samples in memory, which nothing names."""

    def resident(self) -> dict[str, torch.Tensor]:
        return {"input": torch.zeros(20, 4), "target": torch.arange(20)}


@pytest.mark.parametrize(
    ("dataset", "missing"), [(Augmenting(), r"no resident\(\) and no name\(i\)"), (HalfResident(), r"no name\(i\)")]
)
def test_what_a_resident_data_set_lacks_is_named(dataset: Augmenting, missing: str) -> None:
    each = DataSource("train", dataset, DatasetOptions(dataset_type="fer2013", resident=True), None)
    with pytest.raises(UserError, match=rf"^datasets\.train\.resident: fer2013 has {missing}, so "):
        next(define_train_loader(each, stream(each, Dist()), Dist(), 0, 0))


class TooLarge(torch.Tensor):
    """One that no device has room for."""

    def to(self, *_args: Any, **_options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 MiB.")


class Large(HalfResident):
    def resident(self) -> dict[str, torch.Tensor]:
        return {"input": torch.zeros(20, 3 * 2**20, dtype=torch.uint8).as_subclass(TooLarge)}

    def name(self, index: int) -> str:
        return f"row {index}"


@pytest.mark.parametrize("resident", [True, "auto"])
def test_resident_data_that_do_not_fit_the_device_are_named(resident: bool | Literal["auto"]) -> None:
    each = DataSource("train", Large(), DatasetOptions(dataset_type="fer2013", resident=resident), None)
    with pytest.raises(UserError, match=r"^datasets\.train\.resident: the 60 MiB of its .* on cpu; use false"):
        next(define_train_loader(each, stream(each, Dist()), Dist(), 0, 0))


class TellingTheProcess(Augmenting):
    """Samples that tell the process which made them."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": torch.tensor([os.getpid()]), "target": index, "name": str(index)}


def test_the_end_of_an_epoch_starts_no_workers_anew() -> None:
    options = DatasetOptions(dataset_type="fer2013", resident=False, dataloader_num_workers=2)
    each = DataSource("train", TellingTheProcess(), options, None)
    batches = define_train_loader(each, stream(each, Dist()), Dist(), 0, 0)
    pids = torch.cat([batch["input"].flatten() for _, [batch] in itertools.islice(batches, 8)])  # of 20 / 8 an epoch
    assert os.getpid() not in pids
    assert len(pids.unique()) == 2


def test_a_data_set_that_draws_as_it_likes_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "seed_cpu_generators", lambda _seed: None)
    assert not torch.equal(augmented(3, num_workers=0), augmented(0, num_workers=0)[3:])
