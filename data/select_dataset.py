"""From the option file to data sets and loaders: the DATASETS table and everything that feeds ModelPlain."""

import atexit
import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.utils.data

from data.dataset_fer2013 import Fer2013
from data.dataset_freihand import FreiHand
from data.synthetic_faces import write_synthetic_faces
from data.synthetic_hands import write_synthetic_hands
from data.train_stream import Indices, TrainStream
from data.transforms import TRANSFORMS, Batch, Pipeline, Transform
from data.upload import upload
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_file import cache_folder, project_path
from utils.utils_option import DatasetOptions, Options
from utils.utils_seed import seed_of
from utils.utils_signal import held_stop_signals, ignore_ended_children, ignore_stop_signals, kill_workers
from utils.utils_table import Table

logger = logging.getLogger("longhaul")

DATASETS = Table("data set", {"fer2013": Fer2013, "freihand": FreiHand}, supplied={"dataroot"})
SYNTHETIC_SOURCES = Table(
    "synthetic source",
    {"synthetic_faces": write_synthetic_faces, "synthetic_hands": write_synthetic_hands},
    supplied={"folder"},
)

DATA_TABLES = {"dataset": DATASETS, "fallback": SYNTHETIC_SOURCES, "transform": TRANSFORMS}


class Dataset(Protocol):
    """Index -> raw sample {"input", "target", "name"}; no randomness. Built from `dataroot` and its own arguments.

    `fingerprint` identifies the content. A data set that fits in memory also has `resident() -> {"input": (N, ...),
    "target": (N, ...)}` and `name(i)`; one for classification has `class_names`, one for poses `joint_names`. A
    `final_split` is refused by the trainer and left to main_test. `view` names the entry of VIEWS that shows it.
    """

    fingerprint: str

    @staticmethod
    def is_available(dataroot: str) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...


@runtime_checkable
class ResidentDataset(Protocol):
    """A data set that can hand over all its samples as tensors."""

    def resident(self) -> dict[str, torch.Tensor]: ...

    def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class DataSource:
    """One opened data set; `synthetic` says in words that generated samples stand in for missing data."""

    name: str
    dataset: Dataset
    options: DatasetOptions
    synthetic: str | None

    @property
    def synthetic_source(self) -> str | None:
        """The name of the synthetic source in use, or None."""
        return self.options.fallback.dataset_type if self.synthetic and self.options.fallback else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their ids; empty where targets are no classes."""
        return tuple(getattr(self.dataset, "class_names", ()))

    @property
    def value_names(self) -> tuple[str, ...]:
        """What the values of a metric with many stand for: classes or joints; empty if neither has names."""
        return self.class_names or tuple(getattr(self.dataset, "joint_names", ()))


def define_dataset(name: str, options: DatasetOptions) -> DataSource:
    """Open the data set `datasets.<name>`, or generate its fallback when the data is absent."""
    dataset_class = DATASETS[options.dataset_type]
    arguments = options.arguments
    dataroot = None if options.dataroot is None else str(project_path(options.dataroot))
    synthetic = None
    if dataroot is None or not dataset_class.is_available(dataroot):  # type: ignore[attr-defined]
        missing = (
            "no dataroot is given" if dataroot is None else f"there is no {options.dataset_type} data at {dataroot}"
        )
        if options.fallback is None:
            raise UserError(
                f"datasets.{name}.dataroot: {missing}, and no fallback is named; "
                "give the path of the data, or a synthetic source under fallback"
            )
        generated = SYNTHETIC_SOURCES.build(
            options.fallback.dataset_type, options.fallback.arguments, folder=cache_folder()
        )
        synthetic = f"{options.fallback.dataset_type}, because {missing}"
        dataroot = str(generated)
    dataset = DATASETS.build(options.dataset_type, arguments, dataroot=dataroot)
    if len(dataset) == 0:
        raise UserError(f"datasets.{name}: {dataroot} holds no samples")
    return DataSource(name, dataset, options, synthetic)


def define_datasets(opt: Options, dist: Dist) -> dict[str, DataSource]:
    """Open every data set of the option file; one rank of each machine goes first and fills the caches. Collective."""

    def define_all() -> dict[str, DataSource]:
        sources = {name: define_dataset(name, options) for name, options in opt.datasets.items()}
        for name, source in sources.items():
            if name != "train" and source.dataset.fingerprint == sources["train"].dataset.fingerprint:
                raise UserError(f"datasets.{name} holds the same samples as datasets.train; test on others")
            if bool(source.synthetic) != bool(sources["train"].synthetic):
                raise UserError(
                    f"datasets.{name} and datasets.train: one is real, the other generated; "
                    "correct the dataroot that is wrong"
                )
        return sources

    sources = dist.main_first(define_all)
    if dist.is_main:
        _warn_of_shared_samples(sources)
    return sources


def define_train_loader(
    source: DataSource, stream: TrainStream, dist: Dist, seed: int, start_iter: int, num_micro_batches: int = 1
) -> Iterator[tuple[int, list[Batch]]]:
    """Endless (current_iter, micro-batches) from iteration `start_iter` + 1 on; this rank's share, on its device."""
    transforms = _transforms(source.name, source.options, source.class_names)
    pipeline = Pipeline(transforms, seed_of(seed, "transforms"))
    iterations = itertools.count(start_iter + 1)
    parts = (
        part
        for current_iter in itertools.count(start_iter + 1)
        for part in stream.positions(current_iter).reshape(num_micro_batches, -1)
    )
    positions, drawn = itertools.tee(parts)
    raw = _fetch(source, (stream.samples(part) for part in drawn), dist)
    batches = (pipeline(batch, part) for part, batch in zip(positions, raw, strict=True))
    return ((current_iter, list(itertools.islice(batches, num_micro_batches))) for current_iter in iterations)


class TestLoader:
    """One pass over this rank's unpadded share of a test data set: samples rank, rank + world_size, ...

    "index" of a batch has the numbers of its samples.

    Every rank makes `num_rounds` rounds; a rank whose share is shorter gets None in the last one, so that code which
    talks between rounds stays in step.
    """

    __test__ = False  # not a pytest class

    def __init__(self, source: DataSource, dist: Dist) -> None:
        self.source = source
        self._dist = dist
        self._pipeline = define_test_pipeline(source.name, source.options, source.class_names)
        self._samples = np.arange(dist.rank, len(source.dataset), dist.world_size, dtype=np.int64)
        self._batch_size = max(1, (source.options.dataloader_batch_size or 1) // dist.world_size)
        longest = -(-len(source.dataset) // dist.world_size)
        self.num_rounds = -(-longest // self._batch_size)

    def __iter__(self) -> Iterator[Batch | None]:
        starts = range(0, len(self._samples), self._batch_size)
        drawn = [self._samples[start : start + self._batch_size] for start in starts]
        for samples, batch in zip(drawn, _fetch(self.source, drawn, self._dist), strict=True):
            yield {**self._pipeline(batch, samples), "index": samples}
        yield from [None] * (self.num_rounds - len(drawn))


def define_test_loaders(sources: Mapping[str, DataSource], dist: Dist) -> dict[str, TestLoader]:
    """A loader for each test data set, "test" (which selects the best model) first."""
    return {name: TestLoader(sources[name], dist) for name in sorted(sources) if name != "train"}


def define_test_pipeline(name: str, options: DatasetOptions, class_names: Sequence[str]) -> Pipeline:
    """What the inputs of a test pass through, without anything random."""
    return Pipeline(_transforms(name, options, class_names, allow_random=False), seed=0)


def input_transforms(source: DataSource) -> list[dict[str, Any]]:
    """The deterministic transforms that a network's input needs, as the option file spells them."""
    return [each.model_dump() for each in source.options.transforms if not TRANSFORMS[each.type].is_random]  # type: ignore[attr-defined]


def _warn_of_shared_samples(sources: Mapping[str, DataSource]) -> None:
    """Say how many test inputs stand byte for byte in the training data too: their results are too good."""
    tested = {name: list(_input_digests(sources[name].dataset)) for name in sorted(sources.keys() - {"train"})}
    known = {digest for digests in tested.values() for digest in digests}
    if known:  # what is remembered is as large as the tests, not as the training data
        known.intersection_update(_input_digests(sources["train"].dataset))
    for name, digests in tested.items():
        if shared := sum(digest in known for digest in digests):
            logger.warning(
                "datasets.%s: %d of its %d inputs also occur in datasets.train, byte for byte.",
                name, shared, len(digests),
            )  # fmt: skip


def _input_digests(dataset: Dataset) -> Iterator[bytes]:
    """A hash of each input; of none where samples are not resident and would have to be decoded for it."""
    if isinstance(dataset, ResidentDataset):
        for row in dataset.resident()["input"].flatten(1).numpy():
            yield hashlib.blake2b(row.data, digest_size=16).digest()


def _transforms(
    name: str, options: DatasetOptions, class_names: Sequence[str], allow_random: bool = True
) -> list[Transform]:
    built = []
    for number, each in enumerate(options.transforms):
        transform = TRANSFORMS.build(each.type, each.arguments, num_classes=len(class_names) or None)
        if transform.is_random and not allow_random:
            raise UserError(
                f"datasets.{name}.transforms.{number}: {each.type} is random, and a test must give the same result "
                "every time; remove it"
            )
        built.append(transform)
    return built


def _fetch(source: DataSource, drawn: Iterable[Indices], dist: Dist) -> Iterator[Batch]:
    """Raw batches of the drawn samples, on the device."""
    if source.options.resident is not False and isinstance(source.dataset, ResidentDataset):
        return _fetch_resident(source.dataset, drawn, dist.device)
    if source.options.resident is True:
        raise UserError(
            f"datasets.{source.name}.resident: {source.options.dataset_type} streams from disk and cannot be "
            'resident; use "auto" or false'
        )
    return _fetch_streamed(source, drawn, dist)


def _fetch_resident(dataset: ResidentDataset, drawn: Iterable[Indices], device: torch.device) -> Iterator[Batch]:
    tensors = {key: value.to(device) for key, value in dataset.resident().items()}
    for samples in drawn:
        index = upload(samples, device)
        batch: Batch = {key: value.index_select(0, index) for key, value in tensors.items()}
        batch["name"] = [dataset.name(int(sample)) for sample in samples]
        yield batch


def _fetch_streamed(source: DataSource, drawn: Iterable[Indices], dist: Dist) -> Iterator[Batch]:
    num_workers = -(-source.options.dataloader_num_workers // dist.world_size)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        source.dataset,  # type: ignore[arg-type]  # our protocol is all that DataLoader uses of a Dataset
        batch_sampler=(samples.tolist() for samples in drawn),
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=dist.device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # iter(loader) otherwise draws from the global generator
    )
    with held_stop_signals():
        batches = iter(loader)
    if num_workers:
        # An error leaves the loader open: its workers are not ended by anyone else.
        atexit.unregister(kill_workers)
        atexit.register(kill_workers)
        ignore_ended_children()
    try:
        for batch in batches:
            yield {
                key: value.to(dist.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
    except UserError as error:  # a worker's comes with its traceback, as text
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].rstrip()) from None
    except (ConnectionError, EOFError) as error:  # a worker that was killed while it handed over a batch
        raise RuntimeError(f"datasets.{source.name}: a DataLoader worker exited unexpectedly ({error})") from error


def synthetic_notice(sources: Iterable[DataSource]) -> str | None:
    """What to tell people when any data set is generated; None when all data is real."""
    notices = sorted({source.synthetic for source in sources if source.synthetic})
    return "; ".join(notices) or None
