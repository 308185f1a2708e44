"""The scripts behind docs/fer2013.md: the table of runs, and where the time of an iteration goes."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import fer2013_runs, iteration_profile, repeated_inputs
from benchmarks.augmented_faces import AugmentedFaces
from tests.helpers import tiny_csv, tiny_option_mapping, write_options
from tests.trained_models import trained
from utils.utils_error import UserError
from utils.utils_option import DatasetOptions

__all__ = ["trained"]  # a fixture


def test_a_line_tells_what_was_trained_and_where_it_ended(trained: Path) -> None:
    cells = dict(zip(fer2013_runs.HEADING, fer2013_runs.line(trained.parent), strict=True))
    with open(trained.parent / "metrics.csv", newline="") as file:
        tests = [row for row in csv.DictReader(file) if row["split"] == "test"]
    accuracies = [100 * float(row["accuracy"]) for row in tests]
    assert cells["best"].startswith(f"{max(accuracies):.2f} %")
    assert cells["last"] == f"{accuracies[-1]:.2f} %"
    assert cells["network"] == "fer_resnet 8-8, depths 1-1"
    assert cells["G file"] == f"{(trained / '60_G.pth').stat().st_size / 1e6:.2f} MB"
    assert "adamw 0.03" in cells["training"]
    assert (cells["batches"], cells["seed"]) == ("8", "0")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=tmp_path.name):
        fer2013_runs.line(tmp_path)


def test_the_profile_covers_the_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny_option_mapping(tmp_path, tiny_csv(tmp_path))
    options["train"] |= {"total_iter": 100}
    option_file = write_options(options, tmp_path / "tiny.json")
    monkeypatch.setattr(sys, "argv", ["iteration_profile", "-opt", str(option_file), "--iterations", "4"])
    iteration_profile.main()
    parts, operators = capsys.readouterr().out.split("| operators |")
    shares = dict(re.findall(r"^\| (.+?) \| ([\d.]+) % \|$", parts, re.MULTILINE))
    assert list(shares) == list(iteration_profile.PARTS)
    whole = sum(float(share) for part, share in shares.items() if not part.startswith("of which"))
    assert 80 < whole < 100.1
    inside = sum(float(share) for part, share in shares.items() if part.startswith("of which"))
    assert inside < float(shares["forward, backward, clipping, optimizer"])
    assert sum(map(float, re.findall(r"([\d.]+) % \|$", operators, re.MULTILINE))) == pytest.approx(100, abs=0.1)


def test_repeated_inputs_are_told_from_the_others(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training data are replaced by a third of the test's own faces."""
    options = json.loads(sorted((trained.parent / "options").glob("*.json"))[-1].read_text())
    with open(options["datasets"]["test"]["dataroot"], newline="") as file:
        header, *rows = csv.reader(file)
    public = [row for row in rows if row[header.index("Usage")] == "PublicTest"]
    known = [[each if each != "PublicTest" else "Training" for each in row] for row in public[::3]]
    with open(tmp_path / "fer2013.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *known])
    change = f"datasets.train.dataroot={tmp_path / 'fer2013.csv'}"
    repeated, right = repeated_inputs.repeated_and_right(trained.parent, [change])
    assert repeated.tolist() == [number % 3 == 0 for number in range(len(public))]
    monkeypatch.setattr(sys, "argv", ["repeated_inputs", str(trained.parent), "--set", change])
    repeated_inputs.main()
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    of_each = [right, right[repeated], right[~repeated]]
    assert cells[1:] == [f"{100 * float(each.double().mean()):.2f} % of {len(each)}" for each in of_each]
    best = torch.load(trained / "best_model.pth", weights_only=True)
    assert float(right.double().mean()) == pytest.approx(best["metrics"]["accuracy"])


def test_repeated_inputs_of_streamed_data_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_inputs, "input_digests", lambda _dataset: [])
    with pytest.raises(UserError, match="only inputs of resident data sets can be compared"):
        repeated_inputs.repeated_and_right(trained.parent, [])


def test_faces_augmented_one_by_one_take_the_defaults_of_the_transforms(tmp_path: Path) -> None:
    def faces(*transforms: dict[str, object]) -> AugmentedFaces:
        given = {"dataset_type": "fer2013", "dataroot": tiny_csv(tmp_path), "split": "Training"}
        return AugmentedFaces(DatasetOptions.model_validate_json(json.dumps({**given, "transforms": transforms})))

    plain, _ = faces()[0]
    for name in ("random_affine", "brightness_contrast"):
        assert faces({"type": name})[0][0].shape == plain.shape
    erased, _ = faces({"type": "random_erasing", "probability": 1.0})[0]
    changed = (erased != plain).any(dim=0)
    assert 0.015 < changed.double().mean() < 0.21, "the default area, rounded to whole pixels"
