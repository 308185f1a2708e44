"""What feeds the model: batches of an open data set on this rank's device, in training and in a test."""

import atexit
import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
import torch.utils.data

from data.select_dataset import DataSource, ResidentDataset
from data.train_stream import Indices, TrainStream
from data.transforms import CLAMPING, TRANSFORMS, Batch, Normalize, Pipeline, Transform
from data.upload import upload
from utils.utils_dist import Dist
from utils.utils_error import SampleError, UserError
from utils.utils_option import DatasetOptions
from utils.utils_seed import seed_cpu_generators, seed_of
from utils.utils_signal import held_stop_signals, ignore_ended_children, ignore_stop_signals, kill_workers

logger = logging.getLogger("longhaul")


def define_train_loader(
    source: DataSource, stream: TrainStream, dist: Dist, seed: int, start_iter: int, num_micro_batches: int = 1
) -> Iterator[tuple[int, list[Batch]]]:
    """Endless (current_iter, micro-batches) from iteration `start_iter` + 1 on; this rank's share, on its device.

    UserError if `num_micro_batches` does not divide that share, or a transform cannot stand where it does.
    """
    share = stream.batch_size // dist.world_size
    if share % num_micro_batches:
        raise UserError(
            f"train.G_accumulation_steps: {num_micro_batches} does not divide the {share} samples of each rank "
            f"(dataloader_batch_size {stream.batch_size} / {dist.world_size} ranks); use a number that does, such as "
            f"{max(n for n in range(1, min(num_micro_batches, share) + 1) if share % n == 0)}"
        )
    transforms = _transforms(source.name, source.options, source.class_names)
    pipeline = Pipeline(transforms, seed_of(seed, "transforms"))

    def positions() -> Iterator[Indices]:
        for current_iter in itertools.count(start_iter + 1):
            yield from stream.positions(current_iter).reshape(num_micro_batches, -1)

    fetched, transformed = itertools.tee(positions())
    drawn = ((each, stream.samples(each)) for each in fetched)  # may run ahead of what is trained
    raw = _fetch(source, drawn, dist, seed)
    batches = map(pipeline, raw, transformed)
    return ((i, list(itertools.islice(batches, num_micro_batches))) for i in itertools.count(start_iter + 1))


class TestLoader:
    """One pass over this rank's unpadded share of a test data set: samples rank, rank + world_size, ...

    "index" of a batch has the numbers of its samples. Every rank makes `num_rounds` rounds; a rank whose share is
    shorter gets None in the last one, so that code which talks between rounds stays in step.
    """

    __test__ = False  # not a pytest class

    def __init__(self, source: DataSource, dist: Dist) -> None:
        self.source = source
        self._dist = dist
        self._pipeline = define_test_pipeline(source.name, source.options, source.class_names)
        self._samples = np.arange(dist.rank, len(source.dataset), dist.world_size, dtype=np.int64)
        self._batch_size = max(1, source.options.dataloader_batch_size // dist.world_size)
        longest = -(-len(source.dataset) // dist.world_size)
        self.num_rounds = -(-longest // self._batch_size)

    def __iter__(self) -> Iterator[Batch | None]:
        starts = range(0, len(self._samples), self._batch_size)
        drawn = [self._samples[start : start + self._batch_size] for start in starts]
        pairs = ((samples, samples) for samples in drawn)
        for samples, batch in zip(drawn, _fetch(self.source, pairs, self._dist, seed=0), strict=True):
            yield {**self._pipeline(batch, samples), "index": samples}
        yield from [None] * (self.num_rounds - len(drawn))

    def first(self, num: int) -> Batch | None:
        """The first samples of this rank's share, without any worker; None if it has none."""
        samples = self._samples[:num]
        if not len(samples):
            return None
        dataset = _Samples(self.source, seed=0)
        raw = _collated(self.source.name, [dataset[int(sample), int(sample)] for sample in samples])
        return {**self._pipeline(_on_device(raw, self._dist.device), samples), "index": samples}


def define_test_loaders(sources: Mapping[str, DataSource], dist: Dist) -> dict[str, TestLoader]:
    """A loader for each test data set, "test" (which selects the best model) first."""
    trained_on = without_random(sources["train"].options).transforms
    names = sorted(sources.keys() - {"train"})
    for name in names:
        if dist.is_main and (tested_on := sources[name].options.transforms) != trained_on:
            shown = ([each.model_dump() for each in transforms] for transforms in (tested_on, trained_on))
            logger.warning(
                "datasets.%s.transforms: %s, but datasets.train has %s beside what is random: the network is tested on "
                "other inputs than it learns from.", name, *shown,
            )  # fmt: skip
    return {name: TestLoader(sources[name], dist) for name in names}


def define_test_pipeline(name: str, options: DatasetOptions, class_names: Sequence[str]) -> Pipeline:
    """What the inputs of a test pass through, without anything random."""
    return Pipeline(_transforms(name, options, class_names, allow_random=False), seed=0)


def without_random(options: DatasetOptions) -> DatasetOptions:
    """The same data set with those transforms alone that every input of the network needs."""
    kept = tuple(each for each in options.transforms if not TRANSFORMS[each.type].is_random)  # type: ignore[attr-defined]
    return options.model_copy(update={"transforms": kept})


def _transforms(
    name: str, options: DatasetOptions, class_names: Sequence[str], allow_random: bool = True
) -> list[Transform]:
    built: list[Transform] = []
    for number, each in enumerate(options.transforms):
        transform = TRANSFORMS.build(each.type, each.arguments, num_classes=len(class_names) or None)
        if transform.is_random and not allow_random:
            raise UserError(
                f"datasets.{name}.transforms.{number}: {each.type} is random, and a test must give the same result "
                "every time; remove it"
            )
        if isinstance(transform, CLAMPING) and any(isinstance(before, Normalize) for before in built):
            raise UserError(
                f"datasets.{name}.transforms.{number}: {each.type} is for images from 0 to 1, and cuts off what is "
                "beyond; move it before normalize"
            )
        built.append(transform)
    return built


def _fetch(source: DataSource, drawn: Iterable[tuple[Indices, Indices]], dist: Dist, seed: int) -> Iterator[Batch]:
    """Raw batches of what is drawn, (positions, samples), on the device."""
    if source.options.resident is not False and isinstance(source.dataset, ResidentDataset):
        return _fetch_resident(source.name, source.dataset, (samples for _, samples in drawn), dist.device)
    if source.options.resident is True:
        methods = {"resident()": "resident", "name(i)": "name"}
        missing = [shown for shown, name in methods.items() if not callable(getattr(source.dataset, name, None))]
        raise UserError(
            f"datasets.{source.name}.resident: {source.options.dataset_type} has no {' and no '.join(missing)}, so its "
            'samples are streamed and cannot be resident; use "auto" or false, or give the class what is missing'
        )
    return _fetch_streamed(source, drawn, dist, seed)


def _fetch_resident(
    name: str, dataset: ResidentDataset, drawn: Iterable[Indices], device: torch.device
) -> Iterator[Batch]:
    on_host = dataset.resident()
    try:
        tensors = {key: value.to(device) for key, value in on_host.items()}
    except torch.OutOfMemoryError as error:
        size = sum(value.nbytes for value in on_host.values())
        raise UserError(
            f"datasets.{name}.resident: the {size / 2**20:,.0f} MiB of its samples do not fit into what is free on "
            f"{device}; use false, which streams them"
        ) from error
    for samples in drawn:
        index = upload(samples, device)
        batch: Batch = {key: value.index_select(0, index) for key, value in tensors.items()}
        batch["name"] = _Names(dataset, samples)
        yield batch


class _Names(Sequence[str]):
    """The names of some samples, each made when somebody asks for it: training does not."""

    def __init__(self, dataset: ResidentDataset, samples: Indices) -> None:
        self._dataset, self._samples = dataset, samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "_Names": ...

    def __getitem__(self, place: int | slice) -> "str | _Names":
        chosen = self._samples[place]
        return _Names(self._dataset, chosen) if isinstance(place, slice) else self._dataset.name(int(chosen))


class _Samples:
    """(position, sample) -> the raw sample.

    What it draws from a global generator depends on (seed, position) alone: whoever augments in a data set resumes
    exactly too, with any number of workers. A file that cannot be read is a UserError that names the sample.
    """

    def __init__(self, source: DataSource, seed: int) -> None:
        self._source = source
        self._seed = seed

    def __len__(self) -> int:
        return len(self._source.dataset)

    def __getitem__(self, place: Sequence[int]) -> Batch:
        position, index = place
        seed_cpu_generators(seed_of(self._seed, "sample", position))
        try:
            return self._source.dataset[index]
        except OSError as error:
            raise UserError(f"datasets.{self._source.name}: sample {index} cannot be read: {error}") from error


def _collated(name: str, samples: list[Batch]) -> Batch:
    """The samples of `datasets.<name>` as one batch. UserError if they differ in shape."""
    try:
        return torch.utils.data.default_collate(samples)
    except RuntimeError as error:  # also where there is no room in shared memory
        for key in samples[0]:
            shapes = {tuple(getattr(sample[key], "shape", ())): sample.get("name", "a sample") for sample in samples}
            if len(shapes) > 1:
                found = " and ".join(f"{list(shape)} in {example}" for shape, example in [*shapes.items()][:2])
                raise UserError(
                    f"datasets.{name}: the {key} is {found}, and a batch needs samples of one shape; crop, pad or "
                    "resize them in the data set"
                ) from error
        raise


def _fetch_streamed(
    source: DataSource, drawn: Iterable[tuple[Indices, Indices]], dist: Dist, seed: int
) -> Iterator[Batch]:
    num_workers = -(-source.options.dataloader_num_workers // dist.world_size)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _Samples(source, seed),  # type: ignore[arg-type]  # what it has is all that DataLoader uses of a Dataset
        batch_sampler=(np.stack(pair, axis=1).tolist() for pair in drawn),
        num_workers=num_workers,
        collate_fn=functools.partial(_collated, source.name),
        worker_init_fn=ignore_stop_signals,
        pin_memory=dist.device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # iter(loader) otherwise draws from the global generator
    )
    with held_stop_signals():
        batches: Iterator[Batch] = iter(loader)
    if not num_workers:
        batches = _on_one_thread(batches)
    else:
        # An error leaves the loader open: its workers are not ended by anyone else.
        atexit.unregister(kill_workers)
        atexit.register(kill_workers)
        ignore_ended_children()
    try:
        for batch in batches:
            yield _on_device(batch, dist.device)
    except UserError as error:  # a worker's comes with its traceback, as text
        raise SampleError(str(error).rpartition(f"{UserError.__name__}: ")[2].rstrip()) from None
    except (ConnectionError, EOFError) as error:  # a worker that was killed while it handed over a batch
        raise RuntimeError(f"datasets.{source.name}: a DataLoader worker exited unexpectedly ({error})") from error


def _on_one_thread(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Fetch them as a loader worker does: what a data set computes with torch has the same bits in both."""
    while True:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            batch = next(batches, None)
        finally:
            torch.set_num_threads(threads)
        if batch is None:
            return
        yield batch


def _on_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
