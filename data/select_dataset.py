"""From the option file to open data sets: the DATASETS table, and what stands in for missing data."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.utils.data

from data.dataset_fer2013 import Fer2013
from data.dataset_freihand import FreiHand
from data.synthetic_faces import write_synthetic_faces
from data.synthetic_hands import write_synthetic_hands
from data.transforms import TRANSFORMS, Batch
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_file import cache_folder, project_path
from utils.utils_option import DatasetOptions, Options
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
    """Index -> raw sample {"input", "target", "name"}. Built from `dataroot` and its own arguments.

    `fingerprint` identifies the content. `is_available(dataroot)` tells whether there are data, where more than that
    file or folder must be there. A data set that fits in memory also has `resident() -> {"input": (N, ...), "target":
    (N, ...)}` and `name(i)`; one for classification has `class_names`, one for poses `joint_names`, in its class:
    infer and export have no data. A `final_split` is refused by the trainer and left to main_test. `view` names the
    entry of VIEWS that shows it; one with `class_names` needs it where a target is not one class id. `input_shape` (C,
    H, W), or a function of the arguments that returns it, says what a network is shown of its images where there are
    no data. `camera(i)` draws poses. `decoder`, a text, names what makes samples of its files each time they are read,
    and the version. `sample_keys` tells the samples of one dataroot apart, so that none is both trained on and tested.
    `netG_arguments` names arguments of a network that must have these values; num_classes follows from `class_names`.
    """

    fingerprint: str

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
    def title(self) -> str:
        """What is drawn from, for people: "fer2013 PublicTest"."""
        return f"{self.options.dataset_type} {self.options.arguments.get('split') or self.name}"

    @property
    def mark(self) -> str:
        """What the title of a picture adds if its samples are generated."""
        return ", SYNTHETIC" if self.synthetic else ""

    @property
    def synthetic_source(self) -> str | None:
        """The name of the synthetic source in use, or None."""
        return self.options.fallback.dataset_type if self.synthetic and self.options.fallback else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their ids; empty where targets are no classes."""
        return tuple(map(str, getattr(self.dataset, "class_names", ())))  # NumPy's could not be saved

    @property
    def fingerprint(self) -> str:
        """What identifies the samples."""
        return str(self.dataset.fingerprint)

    @property
    def identity(self) -> str:
        """What tells it from other samples, and from generated ones."""
        return f"{self.fingerprint}, {len(self.dataset)} samples, {self.synthetic_source}"

    @property
    def num_classes(self) -> int | None:
        """None where targets are no classes."""
        return len(self.class_names) or None

    @property
    def netG_arguments(self) -> dict[str, Any]:
        """The values that these arguments must have in a network that has them."""
        classes = {"num_classes": self.num_classes} if self.class_names else {}
        return {**classes, **getattr(self.dataset, "netG_arguments", {})}

    @property
    def record(self) -> dict[str, str]:
        """What decides the bits of its samples beside the files; an exact resume needs it equal."""
        decoder = getattr(self.dataset, "decoder", None)
        return {} if decoder is None else {"decoder": str(decoder)}

    @property
    def value_names(self) -> tuple[str, ...]:
        """What the values of a metric with many stand for: classes or joints; empty if neither has names."""
        return self.class_names or tuple(getattr(self.dataset, "joint_names", ()))


def define_dataset(name: str, options: DatasetOptions) -> DataSource:
    """Open the data set `datasets.<name>`, or generate its fallback when the data is absent.

    UserError for data that are missing without a fallback, cannot be read, or are not of the form of a Dataset.
    """
    try:
        return _define_dataset(name, options)
    except OSError as error:
        raise UserError(f"datasets.{name}: {error}; mend its permissions, or give another path") from error


def _define_dataset(name: str, options: DatasetOptions) -> DataSource:
    dataset_class = DATASETS[options.dataset_type]
    arguments = options.arguments
    dataroot = None if options.dataroot is None else str(project_path(options.dataroot))
    synthetic = None
    is_available = getattr(dataset_class, "is_available", os.path.exists)
    if dataroot is None or not is_available(dataroot):
        missing = (
            "no dataroot is given" if dataroot is None else f"there is no {options.dataset_type} data at {dataroot}"
        )
        if options.fallback is None:
            raise UserError(
                f"datasets.{name}.dataroot: {missing}, and no fallback is named; "
                "give the path of the data, or a synthetic source under fallback"
            )
        try:
            generated = SYNTHETIC_SOURCES.build(
                options.fallback.dataset_type, options.fallback.arguments, folder=cache_folder()
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder
            raise UserError(
                f"datasets.{name}.fallback: the generated samples cannot be kept ({error}); "
                "set the environment variable LONGHAUL_CACHE to a folder that can be written"
            ) from error
        synthetic = f"{options.fallback.dataset_type}, because {missing}"
        dataroot = str(generated)
    dataset = DATASETS.build(options.dataset_type, arguments, dataroot=dataroot)
    if len(dataset) == 0:
        raise UserError(f"datasets.{name}: {dataroot} holds no samples")
    source = DataSource(name, dataset, options, synthetic)
    _check(source)
    return source


def define_datasets(opt: Options, dist: Dist) -> dict[str, DataSource]:
    """Open every data set of the option file; one rank of each machine goes first and fills the caches. Collective."""

    def define_all() -> dict[str, DataSource]:
        sources = {name: define_dataset(name, options) for name, options in opt.datasets.items()}
        for name, source in sources.items():
            if name != "train" and source.fingerprint == sources["train"].fingerprint:
                raise UserError(f"datasets.{name} holds the same samples as datasets.train; test on others")
            if name != "train" and (shared := _shared_keys(source, sources["train"])):
                raise UserError(
                    f"datasets.{name}: {len(shared):,} of its samples are also in datasets.train, such as "
                    f"{min(shared)}; test on others"
                )
            if bool(source.synthetic) != bool(sources["train"].synthetic):
                raise UserError(
                    f"datasets.{name} and datasets.train: one is real, the other generated; "
                    "correct the dataroot that is wrong"
                )
        return sources

    sources = dist.main_first(define_all)
    dist.same_on_machines(lambda: {f"datasets.{name}": source.identity for name, source in sources.items()})
    if dist.is_main:
        _warn_of_shared_samples(sources)
    return sources


def synthetic_notice(sources: Iterable[DataSource]) -> str | None:
    """What to tell people when any data set is generated; None when all data is real."""
    notices = sorted({source.synthetic for source in sources if source.synthetic})
    return "; ".join(notices) or None


def _check(source: DataSource) -> None:
    """UserError for what a data set of somebody's own may get wrong and nobody would notice before it hurts."""
    dataset, who = source.dataset, f"datasets.{source.name}: {source.options.dataset_type}"
    if not isinstance(fingerprint := getattr(dataset, "fingerprint", None), str):
        raise UserError(f"{who} has the fingerprint {fingerprint!r}; it must be a text that identifies its samples")
    _check_sample(source, who)
    if not isinstance(dataset, ResidentDataset):
        return
    tensors = dataset.resident()
    if missing := {"input", "target"} - tensors.keys():
        raise UserError(f"{who}: resident() has no {min(missing)!r}; it must give 'input' and 'target'")
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor) or len(value) != len(dataset):
            found = f"{len(value)} rows" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise UserError(f"{who}: resident()[{key!r}] is {found}; it must be a tensor of {len(dataset)} rows")
    classes = tensors["target"]
    if source.num_classes and classes.ndim == 1 and not classes.is_floating_point():
        least, most = classes.min().item(), classes.max().item()
        if least < 0 or most >= source.num_classes:
            raise UserError(f"{who} has targets from {least} to {most}, and {source.num_classes} classes are 0 to "
                            f"{source.num_classes - 1}")  # fmt: skip


def _check_sample(source: DataSource, who: str) -> None:
    """UserError for samples of another form, and for targets that the view of classes could not show."""
    sample: object = source.dataset[0]
    if not isinstance(sample, Mapping) or not sample.keys() >= {"input", "target"}:
        found = f"a dict of {sorted(sample)}" if isinstance(sample, Mapping) else f"a {type(sample).__name__}"
        raise UserError(f'{who} gives {found} for a sample; it must give {{"input": ..., "target": ..., "name": ...}}')
    for key, value in sample.items():
        is_data = key in ("input", "target")
        if not _makes_batch(value, is_data):
            allowed = "a tensor, an array or a number" + ("" if is_data else ", or a text")
            raise UserError(f"{who}: the {key} of a sample is a {type(value).__name__}; it must be {allowed}")
    if not source.class_names or hasattr(source.dataset, "view"):
        return
    if shape := tuple(np.shape(sample["target"])):
        raise UserError(
            f"{who} has class_names and targets of the shape {shape}, and would be shown as one class a sample; make "
            'them class ids without a dimension, or give the data set a view: "plain", or one of your own in VIEWS '
            "(views/select_view.py)"
        )


def _makes_batch(value: Any, is_data: bool) -> bool:
    """Whether a batch can hold such values; is_data: as one tensor."""
    try:
        batch: object = torch.utils.data.default_collate([value])
    except TypeError:
        return False
    return isinstance(batch, torch.Tensor) or not is_data


def _shared_keys(one: DataSource, other: DataSource) -> frozenset[str]:
    if (one.options.dataset_type, one.options.dataroot) != (other.options.dataset_type, other.options.dataroot):
        return frozenset()
    none: frozenset[str] = frozenset()
    return getattr(one.dataset, "sample_keys", none) & getattr(other.dataset, "sample_keys", none)


def _warn_of_shared_samples(sources: Mapping[str, DataSource]) -> None:
    """Say how many test inputs stand byte for byte in the training data too: their results are too good."""
    tested = {name: list(input_digests(sources[name].dataset)) for name in sorted(sources.keys() - {"train"})}
    known = {digest for digests in tested.values() for digest in digests}
    if known:  # what is remembered is as large as the tests, not as the training data
        known.intersection_update(input_digests(sources["train"].dataset))
    for name, digests in tested.items():
        if shared := sum(digest in known for digest in digests):
            logger.warning(
                "datasets.%s: %d of its %d inputs also occur in datasets.train, byte for byte.",
                name, shared, len(digests),
            )  # fmt: skip


def input_digests(dataset: Dataset) -> Iterator[bytes]:
    """A hash of each input; of none where samples are not resident and would have to be decoded for it."""
    if isinstance(dataset, ResidentDataset):
        inputs = dataset.resident()["input"].cpu()
        for row in inputs.reshape(len(inputs), -1).contiguous().view(torch.uint8).numpy():
            yield hashlib.blake2b(row.data, digest_size=16).digest()
