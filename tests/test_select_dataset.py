"""From the option file to data sets and loaders."""

import errno
import itertools
import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import select_dataset
from data.dataset_fer2013 import Fer2013
from data.loaders import TestLoader, define_test_loaders, define_train_loader, without_random
from data.select_dataset import SYNTHETIC_SOURCES, DataSource, define_dataset, define_datasets, synthetic_notice
from data.train_stream import TrainStream
from data.transforms import Batch
from tests.evaluate_on_ranks import RandomImages
from tests.fer2013_files import random_faces, row_of, write_csv
from tests.helpers import ALL_TRANSFORMS, NORMALIZE, ONE_RANK, messages, tiny_csv, validated
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_file import PROJECT_FOLDER
from utils.utils_option import DatasetOptions
from utils.utils_table import Table

SEED, NUM_SAMPLES, BATCH_SIZE = 4, 11, 4
FEW_FACES = {"dataset_type": "synthetic_faces", "num_training": 12, "num_public_test": 5, "num_private_test": 2}
MakeOptions = Callable[..., dict[str, Any]]


class Streaming:
    """The samples of RandomImages one by one, as from a disk."""

    class_names = RandomImages.class_names

    def __init__(self, dataroot: str = "", size: int = NUM_SAMPLES) -> None:
        self._images = RandomImages(size)
        self.fingerprint = f"{dataroot} {size}"

    @staticmethod
    def is_available(dataroot: str) -> bool:
        return dataroot != "absent"

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._images[index]


class Empty(Streaming):
    def __init__(self, dataroot: str) -> None:
        super().__init__(dataroot, 0)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Table:
    """Data sets that stand in the table as a user's would."""
    table = Table("data set", {**select_dataset.DATASETS, "streaming": Streaming, "empty": Empty}, {"dataroot"})
    monkeypatch.setattr(select_dataset, "DATASETS", table)
    return table


def options(**given: Any) -> DatasetOptions:
    mapping = {"dataset_type": "x", "dataloader_batch_size": BATCH_SIZE, "transforms": ALL_TRANSFORMS, **given}
    return DatasetOptions.model_validate_json(json.dumps(mapping))


def source(dataset: Any = None, **given: Any) -> DataSource:
    return DataSource("train", dataset or RandomImages(NUM_SAMPLES), options(**given), None)


def train_batches(
    each: DataSource, num: int = 6, start_iter: int = 0, dist: Dist = ONE_RANK, num_micro_batches: int = 1
) -> list[tuple[int, list[Batch]]]:
    stream = TrainStream(NUM_SAMPLES, BATCH_SIZE, SEED, dist.rank, dist.world_size)
    loader = define_train_loader(each, stream, dist, SEED, start_iter, num_micro_batches)
    return list(itertools.islice(loader, num))


def flat(batches: list[tuple[int, list[Batch]]]) -> list[Batch]:
    return [batch for _, parts in batches for batch in parts]


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a["input"], b["input"]) and torch.equal(a["target"], b["target"]) and [*a["name"]] == [*b["name"]]
        for a, b in zip(first, second, strict=True)
    )


# Opening data sets.


def test_real_data_is_used_and_no_fallback_drawn(tiny_options: MakeOptions, session_cache: Path) -> None:
    opt = validated(tiny_options(datasets__train__fallback=FEW_FACES))
    before = sorted(session_cache.rglob("*"))
    sources = define_datasets(opt, ONE_RANK)
    assert {name: len(each.dataset) for name, each in sources.items()} == {"train": 20, "test": 9}
    assert synthetic_notice(sources.values()) is None
    assert sorted(session_cache.rglob("*")) == before


def test_fallback_is_used_and_named_when_the_data_is_absent(tiny_options: MakeOptions, tmp_path: Path) -> None:
    absent = str(tmp_path / "nowhere.csv")
    opt = validated(tiny_options(datasets__train__dataroot=absent, datasets__train__fallback=FEW_FACES))
    sources = define_datasets(opt, ONE_RANK)
    assert {name: len(each.dataset) for name, each in sources.items()} == {"train": 12, "test": 5}
    for each in sources.values():
        assert each.synthetic is not None
        assert "synthetic_faces" in each.synthetic
        assert absent in each.synthetic
    notice = synthetic_notice(sources.values())
    assert notice is not None
    assert "synthetic_faces" in notice
    assert absent in notice
    assert sources["train"].class_names[3] == "happy"


def test_a_fallback_that_cannot_be_kept_says_where_it_could_be(
    tiny_options: MakeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGHAUL_CACHE", str(tmp_path / "file" / "cache"))
    opt = validated(tiny_options(datasets__train__dataroot=None, datasets__train__fallback=FEW_FACES))
    with pytest.raises(UserError, match=r"datasets\.train\.fallback: .*LONGHAUL_CACHE to a folder"):
        define_dataset("train", opt.datasets["train"])


def test_data_that_may_not_be_read_are_named(tiny_options: MakeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = validated(tiny_options())
    csv = opt.datasets["train"].dataroot

    def refuse(_dataroot: str) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", csv)

    monkeypatch.setattr(Fer2013, "is_available", refuse)
    with pytest.raises(UserError, match=rf"datasets\.train: .*Permission denied: '{csv}'; mend its permissions"):
        define_dataset("train", opt.datasets["train"])


def test_absent_data_without_fallback_is_an_error(tiny_options: MakeOptions, tmp_path: Path) -> None:
    opt = validated(tiny_options(datasets__train__dataroot=str(tmp_path / "nowhere.csv")))
    with pytest.raises(UserError, match=r"datasets\.train\.dataroot: .*nowhere\.csv.* no fallback"):
        define_datasets(opt, ONE_RANK)


@pytest.mark.usefixtures("tables")
def test_no_dataroot_at_all() -> None:
    with pytest.raises(UserError, match=r"datasets\.test\.dataroot"):
        define_dataset("test", options(dataset_type="streaming"))


@pytest.mark.usefixtures("tables")
def test_an_empty_data_set_is_an_error() -> None:
    with pytest.raises(UserError, match=r"datasets\.test: .* holds no samples"):
        define_dataset("test", options(dataset_type="empty", dataroot="here"))


def test_equal_content_under_two_names_is_refused(tiny_options: MakeOptions, tmp_path: Path) -> None:
    copy = tiny_csv(tmp_path / "copy")
    opt = validated(tiny_options(datasets__test={"dataroot": copy, "split": "Training"}))
    with pytest.raises(UserError, match=r"datasets\.test holds the same samples as datasets\.train"):
        define_datasets(opt, ONE_RANK)
    other = tiny_csv(tmp_path / "other", seed=1)
    define_datasets(validated(tiny_options(datasets__test={"dataroot": other, "split": "Training"})), ONE_RANK)


def test_real_and_generated_data_are_not_mixed(tiny_options: MakeOptions, tmp_path: Path) -> None:
    absent = {"dataroot": str(tmp_path / "absent.csv"), "split": "PublicTest", "fallback": FEW_FACES}
    opt = validated(tiny_options(datasets__test=absent))
    with pytest.raises(UserError, match=r"datasets\.test and datasets\.train: one is real, the other generated"):
        define_datasets(opt, ONE_RANK)


@pytest.mark.parametrize(
    ("tested_on", "is_said"), [([NORMALIZE], False), ([], True), ([{**NORMALIZE, "std": 1}], True)]
)
def test_other_inputs_than_those_trained_on_are_said(
    tiny_options: MakeOptions, logged: pytest.LogCaptureFixture, tested_on: list[dict[str, Any]], is_said: bool
) -> None:
    opt = validated(tiny_options(datasets__test={"split": "PublicTest", "transforms": tested_on}))
    define_test_loaders(define_datasets(opt, ONE_RANK), ONE_RANK)
    assert ("tested on other inputs than it learns from" in messages(logged.records, logging.WARNING)) == is_said


def test_inputs_that_are_in_both_splits_are_counted(
    tiny_options: MakeOptions, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    faces = random_faces(12, seed=1)
    rows = [row_of(faces[i], i % 7, "Training") for i in range(8)]
    rows += [row_of(faces[i], i % 7, "PublicTest") for i in (2, 5, 8, 9, 10)]
    csv = write_csv(tmp_path / "shared.csv", rows)
    define_datasets(validated(tiny_options(datasets__train__dataroot=csv)), ONE_RANK)
    assert "datasets.test: 2 of its 5 inputs also occur in datasets.train" in messages(logged.records, logging.WARNING)


def test_disjoint_splits_pass_in_silence(tiny_options: MakeOptions, logged: pytest.LogCaptureFixture) -> None:
    define_datasets(validated(tiny_options()), ONE_RANK)
    assert "also occur" not in messages(logged.records)


def test_the_synthetic_sources_have_arguments_that_can_be_given() -> None:
    for name in SYNTHETIC_SOURCES:
        assert "folder" not in SYNTHETIC_SOURCES.arguments(name).model_fields


# Training.


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_resident_and_streamed_batches_are_bit_equal(num_workers: int, num_micro_batches: int) -> None:
    resident = train_batches(source(), num_micro_batches=num_micro_batches)
    streamed = train_batches(
        source(Streaming(), dataloader_num_workers=num_workers), num_micro_batches=num_micro_batches
    )
    assert equal(flat(streamed), flat(resident))
    assert not equal(flat(streamed)[1:], flat(resident)[:-1]), "the comparison would not notice"


def test_resident_false_streams_a_data_set_that_could_be_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = train_batches(source())

    def fail(_self: RandomImages) -> None:
        raise AssertionError("it was asked for all its samples")

    monkeypatch.setattr(RandomImages, "resident", fail)
    assert equal(flat(train_batches(source(resident=False))), flat(resident))


def test_resident_true_of_a_streaming_data_set_is_refused() -> None:
    with pytest.raises(UserError, match=r"datasets\.train\.resident"):
        train_batches(source(Streaming(), resident=True))


@pytest.mark.parametrize("start_iter", [1, 2, 5, 40])
@pytest.mark.parametrize("dataset", [RandomImages, Streaming])
def test_a_start_in_the_middle_gives_the_suffix(start_iter: int, dataset: Callable[..., Any]) -> None:
    each = source(dataset(size=NUM_SAMPLES))
    straight = train_batches(each, start_iter + 3)
    resumed = train_batches(each, 3, start_iter)
    assert [current_iter for current_iter, _ in resumed] == [start_iter + 1, start_iter + 2, start_iter + 3]
    assert equal(flat(resumed), flat(straight[start_iter:]))


def test_ranks_together_draw_what_one_rank_draws() -> None:
    alone = train_batches(source())
    ranks = [train_batches(source(), dist=Dist(rank=rank, world_size=2)) for rank in (0, 1)]
    for (_, whole), (_, first), (_, second) in zip(alone, *ranks, strict=True):
        assert torch.equal(torch.cat([first[0]["input"], second[0]["input"]]), whole[0]["input"])
        assert torch.equal(torch.cat([first[0]["target"], second[0]["target"]]), whole[0]["target"])
        assert [*first[0]["name"], *second[0]["name"]] == list(whole[0]["name"])


def test_micro_batches_together_are_the_batch() -> None:
    whole, parts = train_batches(source()), train_batches(source(), num_micro_batches=2)
    for (_, [batch]), (_, micro_batches) in zip(whole, parts, strict=True):
        assert len(micro_batches) == 2
        assert torch.equal(torch.cat([each["input"] for each in micro_batches]), batch["input"])


def test_samples_and_names_belong_together() -> None:
    images = RandomImages(NUM_SAMPLES)
    each = source(images, transforms=[])
    seen = []
    for batch in flat(train_batches(each, 11)):
        for image, target, name in zip(batch["input"], batch["target"], batch["name"], strict=True):
            number = int(name.split()[1])
            assert torch.equal(image, images[number]["input"].float() / 255)
            assert int(target) == int(images[number]["target"])
            seen.append(number)
    assert sorted(seen) == sorted(list(range(NUM_SAMPLES)) * 4)


def test_a_sample_is_augmented_anew_in_each_epoch() -> None:
    each = source(transforms=[{"type": "random_affine", "rotation": 20}])
    seen: dict[str, set[bytes]] = {}
    for batch in flat(train_batches(each, 11)):
        for image, name in zip(batch["input"], batch["name"], strict=True):
            seen.setdefault(name, set()).add(image.numpy().tobytes())
    assert {len(variants) for variants in seen.values()} == {4}


def global_state() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("given", [{}, {"resident": False, "dataloader_num_workers": 1}])
def test_loaders_leave_the_global_generators_alone(given: dict[str, Any]) -> None:
    """But for random transforms, of which one may draw from them: they are seeded for each batch."""
    torch.rand(())  # what the test before has seeded is no state that seeding could lead to
    before, plain = global_state(), source(transforms=[NORMALIZE], **given)
    train_batches(plain, 3)
    list(TestLoader(plain, ONE_RANK))
    assert global_state() == before
    train_batches(source(**given), 3)
    assert global_state() != before, "the comparison would not notice"


def test_global_generators_do_not_change_what_is_drawn() -> None:
    first = flat(train_batches(source()))
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert equal(flat(train_batches(source())), first)


# Testing.


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("dataset", [RandomImages, Streaming])
def test_every_test_sample_is_drawn_once_by_one_rank(world_size: int, dataset: Callable[..., Any]) -> None:
    drawn: list[str] = []
    num_rounds = set()
    for rank in range(world_size):
        each = source(dataset(size=NUM_SAMPLES), transforms=[NORMALIZE])
        loader = TestLoader(each, Dist(rank=rank, world_size=world_size))
        rounds = list(loader)
        num_rounds.add(len(rounds))
        assert len(rounds) == loader.num_rounds
        for batch in filter(None, rounds):
            assert list(batch["name"]) == [f"image {number}" for number in batch["index"]]
            drawn += batch["name"]
    assert len(num_rounds) == 1, "ranks that talk between rounds would fall out of step"
    assert sorted(drawn) == sorted(f"image {number}" for number in range(NUM_SAMPLES))


def test_a_test_loader_gives_the_same_every_time() -> None:
    each = source(transforms=[NORMALIZE])
    loader = TestLoader(each, ONE_RANK)
    first, again = [batch for batch in loader if batch], [batch for batch in loader if batch]
    assert equal(first, again)
    streamed = TestLoader(source(Streaming(), transforms=[NORMALIZE], dataloader_num_workers=1), ONE_RANK)
    assert equal([batch for batch in streamed if batch], first)
    images = torch.cat([batch["input"] for batch in first])
    expected = (RandomImages(NUM_SAMPLES).resident()["input"].float() / 255 - 0.5) / 0.25
    assert torch.allclose(images, expected, atol=1e-6)


@pytest.mark.parametrize("number", range(4))
def test_a_random_transform_in_a_test_is_refused(number: int) -> None:
    transforms = [NORMALIZE, ALL_TRANSFORMS[number]]
    with pytest.raises(UserError, match=r"datasets\.train\.transforms\.1: .* is random"):
        TestLoader(source(transforms=transforms), ONE_RANK)


@pytest.mark.parametrize("named", ["brightness_contrast", "colour_jitter", "random_erasing"])
def test_what_cuts_off_at_0_and_1_may_not_follow_normalize(named: str) -> None:
    """A brighter or darker image of 0 to 1 stays one; of a normalised image most would be cut off."""
    stream = TrainStream(NUM_SAMPLES, 4, seed=0)
    for transforms, is_refused in (([{"type": named}, NORMALIZE], False),
                                   ([NORMALIZE, {"type": named}], named != "random_erasing")):  # fmt: skip
        each = source(transforms=transforms)
        if is_refused:
            with pytest.raises(UserError, match=rf"datasets\.train\.transforms\.1: {named} is .* before normalize"):
                define_train_loader(each, stream, ONE_RANK, 0, 0)
        else:
            define_train_loader(each, stream, ONE_RANK, 0, 0)


def test_test_loaders_begin_with_the_one_that_selects() -> None:
    each = source(transforms=[])
    assert list(define_test_loaders({"train": each, "test_b": each, "test": each}, ONE_RANK)) == ["test", "test_b"]


def test_what_inference_needs_are_the_transforms_that_are_not_random() -> None:
    assert [each.model_dump() for each in without_random(source().options).transforms] == [NORMALIZE]


def test_worker_processes_end_with_their_loader() -> None:
    """The fixture that looks for what a test leaves behind fails this one otherwise."""
    stream = TrainStream(NUM_SAMPLES, BATCH_SIZE, SEED)
    streaming = source(Streaming(), dataloader_num_workers=1)
    loader: Iterator[Any] = define_train_loader(streaming, stream, ONE_RANK, SEED, 0)
    next(loader)
    del loader


def test_a_trainer_that_fails_does_not_wait_for_its_workers() -> None:
    """They ignore the SIGTERM with which Python ends its children: without help it would hang in its exit."""
    code = (
        "from tests.test_select_dataset import *\n"
        "stream = TrainStream(NUM_SAMPLES, BATCH_SIZE, SEED)\n"
        "loader = define_train_loader(source(Streaming(), dataloader_num_workers=2), stream, ONE_RANK, SEED, 0)\n"
        "next(loader)\n"
        "raise RuntimeError('any')\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_FOLDER, stderr=subprocess.PIPE, text=True)
    try:
        _, said = trainer.communicate(timeout=60)
    finally:
        trainer.kill()
    assert trainer.returncode == 1
    assert said.endswith("RuntimeError: any\n")
