"""FreiHAND from its official layout: which image belongs to which joints, splits by hand, units, refusals."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from data import dataset_freihand
from data.dataset_freihand import JOINT_NAMES, VERSIONS, FreiHand
from data.loaders import TestLoader, define_train_loader
from data.select_dataset import DATASETS, DataSource, ResidentDataset, define_datasets
from data.train_stream import TrainStream
from tests.fer2013_files import claiming
from tests.freihand_files import SIDE, annotations, tone, write_freihand, write_image
from tests.helpers import ONE_RANK, messages, net_options, validated
from utils.utils_error import UserError
from utils.utils_file import PROJECT_FOLDER, sha256_of
from utils.utils_option import DatasetOptions, to_dict

NUM, NUM_EVALUATION = 20, 3


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_freihand(tmp_path_factory.mktemp("freihand"), NUM, NUM_EVALUATION)


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(written, tmp_path / "copy", ignore=shutil.ignore_patterns("*.cache.txt")))


def open_all(root: Path, split: Any = "train", **given: Any) -> FreiHand:
    return FreiHand(str(root), split, **given)


def samples_of(dataset: FreiHand) -> set[int]:
    """The hands in a split, from the numbers in its file names."""
    return {int(Path(dataset.name(i)).stem) % NUM for i in range(len(dataset))}


def refusal(root: Path, split: Any = "train", **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_all(root, split, **given)
    return str(caught.value)


# What a sample is.


def test_a_sample_has_the_picture_and_the_joints_of_its_hand(written: Path) -> None:
    dataset, xyz = open_all(written, size=SIDE), np.array(annotations(NUM, seed=8)["xyz"])
    assert len(dataset) == 4 * 18
    for index in range(len(dataset)):
        sample = dataset[index]
        file = int(Path(str(sample["name"])).stem)
        hand = file % NUM
        assert isinstance(sample["input"], torch.Tensor)
        assert isinstance(sample["target"], torch.Tensor)
        assert (sample["input"].dtype, sample["input"].shape) == (torch.uint8, (3, SIDE, SIDE))
        means = sample["input"].float().mean(dim=(1, 2)).numpy()
        assert np.abs(means - tone(file)).max() < 4, "another picture, or red and blue are swapped"
        expected_mm = 1000 * (xyz[hand] - xyz[hand, 0])
        assert (sample["target"].dtype, sample["target"].shape) == (torch.float32, (21, 3))
        assert np.allclose(sample["target"].numpy(), expected_mm, atol=1e-3)
        assert not sample["target"][0].any()
        assert sample["name"] == dataset.name(index) == f"training/rgb/{file:08d}.jpg"


@pytest.mark.parametrize("root", [0, 9, 20])
def test_joints_are_relative_to_the_root_that_was_asked_for(written: Path, root: int) -> None:
    wrist, other = open_all(written)[5]["target"], open_all(written, root_joint_idx=root)[5]["target"]
    assert isinstance(wrist, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    assert not other[root].any()
    assert torch.allclose(other, wrist - wrist[root], atol=1e-4)


@pytest.mark.parametrize("size", [16, 64, 128, 224])
def test_images_have_the_size_that_was_asked_for(written: Path, size: int) -> None:
    image = open_all(written, size=size)[0]["input"]
    assert isinstance(image, torch.Tensor)
    assert image.shape == (3, size, size)


def test_an_image_is_shrunk_by_averaging(copy: Path) -> None:
    """Stripes of one pixel become grey; picking pixels would leave stripes."""
    stripes = np.zeros((SIDE, SIDE, 3), np.uint8)
    stripes[:, ::2] = 255
    cv2.imwrite(str(copy / "training/rgb/00000000.jpg"), stripes, [cv2.IMWRITE_JPEG_QUALITY, 100])
    image = open_all(copy, size=112)[0]["input"]
    assert isinstance(image, torch.Tensor)
    assert (image.float() - 127.5).abs().max() < 4


@pytest.mark.parametrize("root_joint_idx", [0, 9])
def test_the_camera_shows_where_joints_are_in_the_resized_image(written: Path, root_joint_idx: int) -> None:
    dataset, kept = open_all(written, "val", size=112, root_joint_idx=root_joint_idx), annotations(NUM, seed=8)
    for index in range(2):
        intrinsics, root = dataset.camera(index)
        target = dataset[index]["target"]
        assert isinstance(target, torch.Tensor)
        seen = (target.numpy() + root) @ intrinsics.T
        pixels = np.array(kept["xyz"][18 + index]) @ np.array(kept["K"][18 + index]).T
        assert np.allclose(seen[:, :2] / seen[:, 2:], 0.5 * pixels[:, :2] / pixels[:, 2:], atol=1e-3)


@pytest.mark.parametrize(("versions", "split"), [(["gs"], "train"), (["auto"], "train"), (["hom"], "val")])
def test_no_hand_is_trained_on_and_tested(written: Path, versions: list[str], split: str) -> None:
    """In another version it is the same hand."""
    train = {"dataset_type": "freihand", "dataroot": str(written), "split": "train", "versions": ["gs"],
             "dataloader_batch_size": 4}  # fmt: skip
    options = net_options().model_copy(update={"datasets": {
        "train": DatasetOptions(**train),
        "test": DatasetOptions(**{**train, "split": split, "versions": versions, "size": 64}),
    }})  # fmt: skip
    if split == "val":
        assert len(define_datasets(options, ONE_RANK)["test"].dataset) == 2
        return
    with pytest.raises(UserError, match=r"datasets\.test: 18 of its samples are also in datasets\.train, such as"):
        define_datasets(options, ONE_RANK)


def test_the_joints_have_names_in_the_official_order() -> None:
    assert len(JOINT_NAMES) == len(set(JOINT_NAMES)) == 21
    assert FreiHand.joint_names == JOINT_NAMES
    assert JOINT_NAMES[:6] == ("wrist", "thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip", "index_mcp")
    assert [JOINT_NAMES[i] for i in (8, 9, 13, 17, 20)] == [
        "index_tip", "middle_mcp", "ring_mcp", "little_mcp", "little_tip",
    ]  # fmt: skip


# Splits.


def test_no_hand_is_in_two_splits_in_any_version(written: Path) -> None:
    train, val = open_all(written), open_all(written, "val", versions=VERSIONS)
    assert (len(train), len(val)) == (72, 8)
    assert samples_of(train) | samples_of(val) == set(range(NUM))
    assert not samples_of(train) & samples_of(val)
    assert samples_of(val) == {18, 19}, "neighbours, which may show one hand from two sides, stay together"


def test_testing_uses_the_photographs_alone_unless_told(written: Path) -> None:
    assert [open_all(written, "val").name(i) for i in range(2)] == [
        "training/rgb/00000018.jpg", "training/rgb/00000019.jpg",
    ]  # fmt: skip
    composed = open_all(written, "val", versions=["auto", "hom"])
    files = [int(Path(composed.name(i)).stem) for i in range(len(composed))]
    assert files == [3 * NUM + 18, 3 * NUM + 19, NUM + 18, NUM + 19]


def test_evaluation_is_its_own_folder(written: Path) -> None:
    dataset = open_all(written, "evaluation", size=SIDE)
    assert [dataset.name(i) for i in range(len(dataset))] == [f"evaluation/rgb/{i:08d}.jpg" for i in range(3)]
    expected = np.array(annotations(3, seed=10)["xyz"][2])
    target = dataset[2]["target"]
    assert isinstance(target, torch.Tensor)
    assert np.allclose(target.numpy(), 1000 * (expected - expected[0]), atol=1e-3)


def test_evaluation_needs_no_training_data(copy: Path) -> None:
    for path in [*copy.glob("training*.json"), copy / "training"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert FreiHand.is_available(str(copy))
    assert len(open_all(copy, "evaluation")) == NUM_EVALUATION


@pytest.mark.parametrize("name", ["train", "test", "test_last"])
def test_the_trainer_leaves_the_evaluation_split_to_the_end(name: str) -> None:
    opt = net_options()
    options = {**to_dict(opt), "datasets": {"train": {"dataset_type": "freihand", "split": "train"}}}
    options["datasets"].setdefault(name, {})["split"] = "evaluation"
    with pytest.raises(UserError) as caught:
        validated(options)
    assert f"datasets.{name}.split: evaluation is the final test split" in str(caught.value)
    assert "--split evaluation" in str(caught.value)


# Identity.


def test_the_fingerprint_names_the_content_and_not_the_place(copy: Path, written: Path) -> None:
    assert open_all(copy).fingerprint == open_all(written).fingerprint
    others = [
        open_all(written, "val").fingerprint,
        open_all(written, versions=["gs"]).fingerprint,
        open_all(written, size=64).fingerprint,
        open_all(written, root_joint_idx=9).fingerprint,
        open_all(written, "evaluation").fingerprint,
    ]
    assert len({open_all(written).fingerprint, *others}) == 6


@pytest.mark.parametrize("kind", ["xyz", "K"])
def test_the_fingerprint_changes_with_an_annotation(copy: Path, kind: str) -> None:
    before = open_all(copy).fingerprint
    path = copy / f"training_{kind}.json"
    values = json.loads(path.read_text())
    values[3][1][2] += 1e-4
    path.write_text(json.dumps(values))
    assert open_all(copy).fingerprint != before


def test_the_fingerprint_changes_with_an_image(copy: Path) -> None:
    train, val = open_all(copy).fingerprint, open_all(copy, "val").fingerprint
    with open(copy / "training/rgb/00000001.jpg", "ab") as file:
        file.write(b"more")
    assert open_all(copy).fingerprint != train
    assert open_all(copy, "val").fingerprint == val, "it is no image of that split"


def test_the_fingerprint_changes_with_an_image_of_the_same_size_and_time(copy: Path) -> None:
    train, val = open_all(copy).fingerprint, open_all(copy, "val").fingerprint
    path = copy / "training/rgb/00000001.jpg"
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_all(copy).fingerprint != train
    assert open_all(copy, "val").fingerprint == val
    path.write_bytes(content)
    assert open_all(copy).fingerprint == train, "it is the content that counts, not the time"


def test_images_are_read_once_for_the_fingerprint_until_one_is_touched(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def recording(path: Path) -> str:
        read.append(path.suffix)
        return sha256_of(path)

    monkeypatch.setattr(dataset_freihand, "sha256_of", recording)
    first = open_all(copy).fingerprint
    assert read.count(".jpg") == 72
    assert open_all(copy).fingerprint == open_all(copy, versions=VERSIONS).fingerprint == first
    assert read.count(".jpg") == 72
    (copy / "training/rgb/00000001.jpg").touch()
    assert open_all(copy).fingerprint == first
    assert read.count(".jpg") == 144


def test_a_damaged_hash_of_the_images_is_made_again(copy: Path) -> None:
    first = open_all(copy, "val").fingerprint
    cache = copy / "training.val-gs.cache.txt"
    intact = cache.read_bytes()
    for damaged in (b"", b"\xff\xff", b"g" + intact[1:], intact[:-2] + b"g\n", intact.replace(b" ", b"")):
        cache.write_bytes(damaged)
        assert open_all(copy, "val").fingerprint == first
        assert cache.read_bytes() == intact


def test_where_the_hash_of_the_images_cannot_be_kept_it_is_made_each_time(
    copy: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LONGHAUL_CACHE", "/dev/null")
    (copy / "training.val-gs.cache.txt").mkdir()
    assert open_all(copy, "val").fingerprint == open_all(copy, "val").fingerprint
    assert messages(logged.records, logging.WARNING).count("going on without a cache") == 2


@pytest.mark.parametrize("name", ["training_xyz.json", "training", "evaluation", "evaluation_xyz.json"])
def test_a_folder_with_anything_of_freihand_is_not_replaced_by_generated_hands(tmp_path: Path, name: str) -> None:
    assert not FreiHand.is_available(str(tmp_path))
    assert not FreiHand.is_available(str(tmp_path / "nowhere"))
    (tmp_path / name).mkdir()
    assert FreiHand.is_available(str(tmp_path))


# Loaders.


def source(root: Path, split: Any, **given: Any) -> DataSource:
    mapping = {"dataset_type": "freihand", "dataloader_batch_size": 6, **given}
    dataset = DATASETS.build("freihand", {"split": split, "size": 32}, dataroot=str(root))
    return DataSource("train", dataset, DatasetOptions.model_validate_json(json.dumps(mapping)), None)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_streams_through_the_loaders(written: Path, num_workers: int) -> None:
    each = source(written, "train", dataloader_num_workers=num_workers)
    assert not isinstance(each.dataset, ResidentDataset)
    stream = TrainStream(len(each.dataset), 6, seed=1)
    loader = define_train_loader(each, stream, ONE_RANK, 1, 0)
    for current_iter in (1, 2, 3):
        number, [batch] = next(loader)
        assert number == current_iter
        assert (batch["input"].shape, batch["input"].dtype) == ((6, 3, 32, 32), torch.float32)
        assert batch["target"].shape == (6, 21, 3)
        for row, index in enumerate(stream.samples(stream.positions(current_iter))):
            kept = each.dataset[int(index)]
            assert torch.equal(batch["input"][row], kept["input"].float() / 255)
            assert torch.equal(batch["target"][row], kept["target"])
            assert batch["name"][row] == kept["name"]


def damage(root: Path) -> Path:
    path = root / "training/rgb/00000018.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return path


def test_a_damaged_image_stops_the_loader_with_its_name(copy: Path) -> None:
    path = damage(copy)
    with pytest.raises(UserError) as caught:
        list(TestLoader(source(copy, "val"), ONE_RANK))
    assert str(caught.value) == f"{path}: not an image, or damaged; unpack FreiHAND again"


def test_a_damaged_image_in_a_loader_process_gives_the_same_message(copy: Path) -> None:
    """In a process of its own, because a loader that fails leaves its workers to the exit."""
    path = damage(copy)
    code = (
        "import sys\n"
        "from tests.test_dataset_freihand import *\n"
        "try:\n"
        "    list(TestLoader(source(Path(sys.argv[1]), 'val', dataloader_num_workers=1), ONE_RANK))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(copy)], cwd=PROJECT_FOLDER, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == f"{path}: not an image, or damaged; unpack FreiHAND again\n"


# Refusals.


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"split": "Training"}, "split 'Training' is unknown; allowed are train, val, evaluation"),
        ({"size": 15}, "size 15 is not allowed; it must lie between 16 and 224"),
        ({"size": 225}, "size 225 is not allowed"),
        ({"root_joint_idx": 21}, "root_joint_idx 21 is not one of the joints 0 to 20"),
        ({"root_joint_idx": -1}, "root_joint_idx -1"),
        ({"versions": []}, r"versions [] is not allowed; name some of gs, hom, sample, auto"),
        ({"versions": ["gs", "gs"]}, "versions ['gs', 'gs']"),
        ({"versions": ["green"]}, "versions ['green']"),
        ({"split": "evaluation", "versions": ["hom"]}, 'the evaluation split has "gs" alone'),
    ],
)
def test_a_wrong_argument_is_named(written: Path, given: dict[str, Any], named: str) -> None:
    assert named in refusal(written, **{"split": "train", **given})


@pytest.mark.parametrize(
    ("name", "split", "remedy"),
    [
        ("training_xyz.json", "train", "must be the folder of FreiHAND v2"),
        ("training_K.json", "val", "must be the folder of FreiHAND v2"),
        ("evaluation_xyz.json", "evaluation", "published it after the images"),
    ],
)
def test_a_missing_annotation_file_is_named(copy: Path, name: str, split: str, remedy: str) -> None:
    (copy / name).unlink()
    message = refusal(copy, split)
    assert message.startswith(f"{copy / name}: no such file")
    assert remedy in message


def test_counts_that_do_not_fit_are_named(copy: Path) -> None:
    (copy / "training_K.json").write_text(json.dumps(annotations(NUM - 1)["K"]))
    assert f"{copy / 'training_K.json'}: 19 samples, but training_xyz.json has 20" in refusal(copy)


def spoil(values: Any, how: str) -> Any:
    if how == "joints":
        values[7] = values[7][:20]
    elif how == "coordinates":
        values[7][20] = values[7][20][:2]
    elif how == "nan":
        values[7][3][1] = float("nan")
    elif how == "infinite":
        values[7][3][1] = float("inf")
    elif how == "text":
        values[7][3][1] = "far"
    elif how == "null":
        values[7] = None
    return values


@pytest.mark.parametrize("how", ["joints", "coordinates", "nan", "infinite", "text", "null"])
def test_a_sample_without_21_joints_is_named(copy: Path, how: str) -> None:
    path = copy / "training_xyz.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()), how)))
    assert f"{path}: sample 7 is not 21 x 3 finite numbers" in refusal(copy)


def test_an_intrinsics_matrix_of_another_form_is_named(copy: Path) -> None:
    path = copy / "training_K.json"
    values = json.loads(path.read_text())
    values[4] = values[4][:2]
    path.write_text(json.dumps(values))
    assert f"{path}: sample 4 is not 3 x 3 finite numbers" in refusal(copy)


@pytest.mark.parametrize(("text", "named"), [("[[1, 2", "not whole JSON"), ("{}", "not a list"), ("[]", "not a list")])
def test_a_file_that_is_no_list_is_named(copy: Path, text: str, named: str) -> None:
    (copy / "training_xyz.json").write_text(text)
    assert re.search(f"training_xyz.json: is {named}", refusal(copy))


def test_one_hand_cannot_be_split(tmp_path: Path) -> None:
    assert "1 samples; train and val need at least one each" in refusal(write_freihand(tmp_path / "one", 1, 1))


def test_missing_images_are_named_and_counted(copy: Path) -> None:
    for file in (3, 25, 26):
        (copy / f"training/rgb/{file:08d}.jpg").unlink()
    message = refusal(copy)
    assert f"{copy / 'training/rgb/00000003.jpg'}: is missing (3 of 72 images are)" in message
    assert len(open_all(copy, "val")) == 2, "that split misses none"
    shutil.rmtree(copy / "training")
    assert f"{copy / 'training/rgb'}: the images cannot be listed" in refusal(copy)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture", "not an image, or damaged"),
        (claiming(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), 60_000, 60_000), "not an image"),
        (None, "No such file"),
    ],
)
def test_an_unreadable_image_is_named_with_the_reason(copy: Path, content: bytes | None, reason: str) -> None:
    dataset, path = open_all(copy), copy / "training/rgb/00000000.jpg"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        dataset[0]
    assert str(caught.value).startswith(f"{path}: {reason}")


@pytest.mark.parametrize(("width", "height"), [(320, 224), (224, 128), (640, 480)])
def test_an_image_of_another_size_is_refused(copy: Path, width: int, height: int) -> None:
    """Its joints would lie elsewhere."""
    dataset, path = open_all(copy), copy / "training/rgb/00000000.jpg"
    write_image(path, (9, 9, 9), width, height)
    with pytest.raises(UserError, match=rf"{path}: {width} x {height} pixels, .* 224 x 224"):
        dataset[0]
