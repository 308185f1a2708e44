"""Metrics against scikit-learn, and the evaluation on several ranks against one."""

import json
import math
import multiprocessing
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as oracle

import main_train
import views.pictures
from models.evaluate import evaluate
from models.probe import probe_test, probe_training
from tables import TABLES
from tests import evaluate_on_ranks
from tests.evaluate_on_ranks import METRIC_NAMES, NUM_CLASSES, SIZES
from tests.helpers import free_port, write_options
from utils.utils_curves import Panel, curves_figure
from utils.utils_error import UserError
from utils.utils_metric_sums import Metric, sample_mean
from utils.utils_metrics import METRICS
from utils.utils_option import validate
from utils.utils_pose import POSE_METRICS
from utils.utils_table import Table

CLASSES = list(range(NUM_CLASSES))
RNG = np.random.default_rng(0)


def labels(num: int, *choice: int) -> NDArray[np.int64]:
    return RNG.choice(choice or CLASSES, num)


DATA = {
    "random": (labels(200), labels(200)),
    "mostly right": (truth := labels(300), np.where(RNG.random(300) < 0.8, truth, labels(300))),
    "perfect": (truth, truth),
    "all wrong": (truth, (truth + 1) % NUM_CLASSES),
    "one class only": (labels(20, 3), labels(20, 3)),
    "one true class, many predicted": (labels(40, 3), labels(40)),
    "many true classes, one predicted": (labels(40), labels(40, 2)),
    "class 0 is absent from the truth": (labels(90, 1, 2, 3, 4, 5, 6), labels(90)),
    "class 6 is never predicted": (labels(90), labels(90, 0, 1, 2, 3, 4, 5)),
    "classes 1 and 5 are nowhere": (labels(90, 0, 2, 3, 4, 6), labels(90, 0, 2, 3, 4, 6)),
    "truth and prediction share no class": (labels(50, 0, 1), labels(50, 5, 6)),
    "one sample, right": (np.array([4]), np.array([4])),
    "one sample, wrong": (np.array([4]), np.array([0])),
    "imbalanced": (np.r_[np.zeros(195, int), labels(5)], np.zeros(200, int)),
}


def expected(name: str, truth: NDArray[Any], found: NDArray[Any]) -> Any:
    if name == "accuracy":
        return oracle.accuracy_score(truth, found)
    if name == "balanced_accuracy":  # sklearn's balanced_accuracy_score, without its warning about absent classes
        present = np.unique(truth)
        return oracle.recall_score(truth, found, labels=present, average="macro", zero_division=0)
    if name == "macro_f1":
        return oracle.f1_score(truth, found, average="macro", zero_division=0)
    if name == "recall_per_class":
        return oracle.recall_score(truth, found, labels=CLASSES, average=None, zero_division=0)
    return oracle.confusion_matrix(truth, found, labels=CLASSES)


def logits_for(found: NDArray[Any]) -> torch.Tensor:
    """Random logits whose largest is that of the wanted class."""
    logits = np.random.default_rng(1).normal(size=(len(found), NUM_CLASSES))
    logits[np.arange(len(found)), found] = logits.max(axis=1) + 0.1
    return torch.from_numpy(logits).float()


def computed(name: str, truth: NDArray[Any], found: NDArray[Any], num_updates: int) -> Any:
    metric = METRICS.build(name, {}, num_classes=NUM_CLASSES)
    logits, target = logits_for(found), torch.from_numpy(truth)
    for part in np.array_split(np.arange(len(truth)), num_updates):
        if len(part):
            metric.update(logits[part], target[part])
    return metric.compute().numpy()


@pytest.mark.parametrize("name", METRIC_NAMES)
@pytest.mark.parametrize("case", DATA)
def test_classification_metrics_are_those_of_sklearn(case: str, name: str) -> None:
    truth, found = DATA[case]
    wanted = expected(name, truth, found)
    for num_updates in (1, 3):
        assert computed(name, truth, found, num_updates) == pytest.approx(wanted, abs=1e-6)


def test_the_cases_tell_known_wrong_variants_apart() -> None:
    """Weighted or micro averages, a transposed matrix, or a class too many would differ on some case."""
    truth, found = DATA["mostly right"][0], DATA["many true classes, one predicted"][1]
    truth = truth[: len(found)]
    macro = computed("macro_f1", truth, found, 1)
    assert macro != pytest.approx(oracle.f1_score(truth, found, average="micro"), abs=1e-3)
    assert macro != pytest.approx(oracle.f1_score(truth, found, average="weighted", zero_division=0), abs=1e-3)
    matrix = computed("confusion_matrix", truth, found, 1)
    assert not np.array_equal(matrix, matrix.T)


@pytest.mark.parametrize("shape", [(50,), (50, 3), (17, 2, 5, 4)])
@pytest.mark.parametrize("num_updates", [1, 3])
def test_regression_metrics_are_those_of_sklearn(shape: tuple[int, ...], num_updates: int) -> None:
    output, target = RNG.normal(size=shape), RNG.normal(size=shape)
    wanted = {
        "mae": oracle.mean_absolute_error(target.ravel(), output.ravel()),
        "mse": oracle.mean_squared_error(target.ravel(), output.ravel()),
    }
    for name, value in wanted.items():
        metric = METRICS.build(name, {})
        for part in np.array_split(np.arange(len(output)), num_updates):
            metric.update(torch.from_numpy(output[part]), torch.from_numpy(target[part]))
        assert metric.compute().item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_calibration_error_and_confidence_are_those_of_their_definitions(sharpness: float) -> None:
    logits = sharpness * RNG.normal(size=(400, NUM_CLASSES))
    target = labels(400)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == target
    bins = np.ceil(confidence * 15)
    gaps = [abs(right[bins == i].mean() - confidence[bins == i].mean()) * (bins == i).mean() for i in np.unique(bins)]
    for name, wanted in {"calibration_error": sum(gaps), "confidence": confidence.mean()}.items():
        metric = METRICS.build(name, {}, num_classes=NUM_CLASSES)
        for part in np.array_split(np.arange(400), 3):
            metric.update(torch.from_numpy(logits[part]).float(), torch.from_numpy(target[part]))
        assert metric.compute().item() == pytest.approx(wanted, abs=1e-5), name


def test_calibration_leaves_out_samples_that_the_loss_leaves_out() -> None:
    logits, target = torch.randn(90, NUM_CLASSES), torch.from_numpy(labels(90))
    is_known = torch.arange(90) % 3 != 1
    marked = target.where(is_known, torch.nn.CrossEntropyLoss().ignore_index)
    whole, known = (METRICS.build("calibration_error", {}, num_classes=NUM_CLASSES) for _ in range(2))
    whole.update(logits, marked)
    known.update(logits[is_known], target[is_known])
    assert whole.compute().item() == pytest.approx(known.compute().item())


def test_every_metric_is_tested() -> None:
    assert set(METRICS) == {*METRIC_NAMES, *POSE_METRICS, "calibration_error", "confidence", "mae", "mse"}


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_a_classification_metric_needs_classes(name: str) -> None:
    with pytest.raises(UserError, match=r"val\.metrics: .* names its classes"):
        METRICS.build(name, {}, num_classes=None)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_more_logits_than_classes_are_refused(name: str) -> None:
    """Row and column of the confusion matrix would run into each other, and a wrong class count as right."""
    metric = METRICS.build(name, {}, num_classes=7)
    with pytest.raises(UserError, match=r"netG answers with 10 logits, and the data has 7 classes"):
        metric.update(torch.eye(10)[[8]], torch.tensor([0]))


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_each_pixel_of_a_segmentation_counts(name: str) -> None:
    truth, found = (each[:192].reshape(4, 6, 8) for each in DATA["random"])
    metric = METRICS.build(name, {}, num_classes=NUM_CLASSES)
    logits = logits_for(found.ravel()).reshape(4, 6, 8, NUM_CLASSES).movedim(-1, 1)
    for part in (slice(0, 3), slice(3, 4)):
        metric.update(logits[part], torch.from_numpy(truth[part]))
    assert metric.compute().numpy() == pytest.approx(expected(name, truth.ravel(), found.ravel()), abs=1e-6)


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_pixels_that_the_loss_leaves_out_do_not_count(name: str) -> None:
    truth, found = (each[:192].reshape(4, 6, 8) for each in DATA["random"])
    left = np.arange(192).reshape(4, 6, 8) % 3 == 1
    metric = METRICS.build(name, {}, num_classes=NUM_CLASSES)
    logits = logits_for(found.ravel()).reshape(4, 6, 8, NUM_CLASSES).movedim(-1, 1)
    metric.update(logits, torch.from_numpy(np.where(left, torch.nn.CrossEntropyLoss().ignore_index, truth)))
    assert metric.compute().numpy() == pytest.approx(expected(name, truth[~left], found[~left]), abs=1e-6)


@pytest.mark.parametrize("name", ["confidence", "calibration_error"])
def test_a_metric_of_one_class_a_sample_is_named_where_there_is_one_a_pixel(name: str) -> None:
    metric = METRICS.build(name, {}, num_classes=3)
    with pytest.raises(UserError, match=rf"val.metrics: {name} is of logits \(B, K\), not of \[2, 3, 4, 4\]; leave"):
        metric.update(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", METRIC_NAMES)
def test_several_labels_of_a_sample_are_no_class(name: str) -> None:
    """As many samples as classes would be broadcast, and counted as other classes."""
    metric = METRICS.build(name, {}, num_classes=3)
    with pytest.raises(UserError, match=r"one class id for each of \[3\], and the target is \[3, 3\]"):
        metric.update(torch.eye(3), torch.eye(3))


# Evaluation.


@pytest.fixture(scope="module")
def on_one_rank() -> dict[str, Any]:
    return {str(size): evaluate_on_ranks.result(size) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_by_hand(on_one_rank: dict[str, Any], size: int) -> None:
    """The whole data set in one batch, through sklearn."""
    model, source = evaluate_on_ranks.model(), evaluate_on_ranks.source(size)
    resident = source.dataset.resident()  # type: ignore[attr-defined]
    with torch.no_grad():
        output = model.tested_net.eval()(resident["input"].float() / 255)
    truth, found = resident["target"].numpy(), output.argmax(dim=1).numpy()
    result = on_one_rank[str(size)]
    assert set(result) == {"loss", *METRIC_NAMES}
    assert result["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(output, resident["target"]).item(), rel=1e-5
    )
    for name in METRIC_NAMES:
        assert np.array(result[name]) == pytest.approx(expected(name, truth, found), abs=1e-6), name


def test_counts_keep_their_precision() -> None:
    metric = METRICS.build("accuracy", {}, num_classes=2)
    metric.update(torch.tensor([[1.0, 0.0]] * 5), torch.tensor([0, 0, 0, 1, 1]))
    assert metric.compute().item() == 0.6


def test_a_best_metric_of_many_values_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the project's own metrics the options know it; one that a user has added shows it when it is computed."""
    metrics = Table("metric", {**METRICS, "precision_per_class": METRICS["recall_per_class"]}, supplied={"num_classes"})
    monkeypatch.setattr("models.evaluate.METRICS", metrics)
    batch = {"input": torch.rand(2, 1, 48, 48), "target": torch.tensor([0, 1]), "name": ["a", "b"]}
    model = evaluate_on_ranks.model()
    names = ["accuracy", "precision_per_class"]
    probe_test(model, batch, names, NUM_CLASSES)
    val = model.opt.val.model_copy(update={"best_metric": "precision_per_class"})
    monkeypatch.setattr(model, "opt", model.opt.model_copy(update={"val": val}))
    with pytest.raises(UserError, match=r"val\.best_metric: precision_per_class has many values"):
        probe_test(model, batch, names, NUM_CLASSES)


@pytest.mark.parametrize(
    ("name", "mode", "better"), [("mpjpe", None, "min"), ("mae", "max", "min"), ("accuracy", "min", "max")]
)
def test_a_mode_that_would_keep_the_worst_model_is_refused(
    tiny_options: Callable[..., dict[str, Any]], name: str, mode: str | None, better: str
) -> None:
    val = {"metrics": [name, "confidence"], "best_metric": name, **({"best_mode": mode} if mode else {})}
    refused = f'val\\.best_mode: "{mode or "max"}" would keep the worst model, .*"{name}"; use "{better}"'
    with pytest.raises(UserError, match=refused):
        validate(tiny_options(val=val), tables=TABLES)
    validate(tiny_options(val={**val, "best_mode": better}), tables=TABLES)
    # Neither end is known to be the better one.
    for mode in ("max", "min"):
        validate(tiny_options(val={**val, "best_metric": "confidence", "best_mode": mode}), tables=TABLES)


@pytest.mark.parametrize(
    ("values", "warnings"), [((math.nan, math.nan, math.nan), 1), ((0.5, math.nan, math.nan), 1), ((0.5, 0.6, 0.4), 0)]
)
def test_a_best_metric_that_is_no_number_is_said_once(
    tiny_options: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], values: tuple[float, ...], warnings: int,
) -> None:  # fmt: skip
    """And no sign in the curves stands for a best model that there is not."""
    marked: list[int | None] = []

    def figure(panels: Sequence[Panel], title: str, _interruptions: Any, best_iter: int | None) -> Any:
        marked.append(best_iter)
        return curves_figure(panels, title)

    monkeypatch.setattr(views.pictures, "curves_figure", figure)
    given = iter([0.0, *values])  # before training it is asked for once

    def metric() -> Metric:
        value = next(given)
        return sample_mean(lambda _output, target: torch.full((len(target),), value))

    monkeypatch.setattr(METRICS, "_entries", {**METRICS._entries, "accuracy": metric})
    options = write_options(tiny_options(train__checkpoint_test=2, val__save_img=True), tmp_path / "tiny.json")
    monkeypatch.setattr(sys, "argv", ["main_train.py", "-opt", str(options)])
    assert main_train.main() == 0
    assert (marked[-1] is None) == math.isnan(values[0])
    said = "val.best_metric: accuracy is not a number in this test, which cannot be the best."
    assert capsys.readouterr().err.count(said) == warnings
    assert (tmp_path / "experiments/tiny/models/best_model.pth").exists() == (not math.isnan(values[0]))


@pytest.mark.parametrize("error", [UserError("give one weight a joint"), torch.OutOfMemoryError("2 GiB are missing")])
def test_a_probe_does_not_blame_the_options_for_what_is_known_better(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Failing(torch.nn.Module):
        def forward(self, *_tensors: torch.Tensor) -> torch.Tensor:
            raise error

    batch = {"input": torch.rand(2, 1, 48, 48), "target": torch.tensor([0, 1]), "name": ["a", "b"]}
    model = evaluate_on_ranks.model()
    monkeypatch.setattr(model, "lossfn", Failing())
    for look in (lambda: probe_training(model, batch), lambda: probe_test(model, batch, METRIC_NAMES, NUM_CLASSES)):
        with pytest.raises(type(error)) as caught:
            look()
        assert caught.value is error


@pytest.mark.parametrize(
    ("found", "shape", "wanted"),
    [
        (torch.tensor(0.5), (), "[B]"),
        (torch.zeros(4, 3), (), "[B]"),
        (torch.zeros(4, 1), (), "[B]"),
        (torch.zeros(4), (21,), "[B, 21]"),
    ],
)
def test_a_mean_over_samples_is_of_one_value_each(found: torch.Tensor, shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"of values {wanted}, and a metric gives {list(found.shape)}; it")):
        sample_mean(lambda _output, _target: found, shape).update(torch.zeros(4, 3), torch.zeros(4))


def test_the_test_loss_is_that_of_all_samples_at_once_whichever_have_no_class() -> None:
    """The first batch has fewer than the second, the third has none."""
    model = evaluate_on_ranks.model()
    target = torch.tensor([0, -100, -100, -100, 1, 2, 3, 4, -100, -100, -100, -100])
    images = torch.rand(12, 1, 16, 16)
    batches = [{"input": images[i : i + 4], "target": target[i : i + 4]} for i in (0, 4, 8)]
    result = evaluate(model, batches, ["accuracy"], NUM_CLASSES)
    assert result is not None
    logits = model.test({"input": images, "target": target})
    assert result["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item())
    unknown = evaluate(model, batches[2:], ["accuracy"], NUM_CLASSES)
    assert unknown is not None
    assert math.isnan(cast(float, unknown["loss"]))


def test_evaluation_can_be_cut_off() -> None:
    asked = iter([0, 0, 15])
    loader, model = evaluate_on_ranks.loader(evaluate_on_ranks.source(13)), evaluate_on_ranks.model()
    assert evaluate(model, loader, ["accuracy"], NUM_CLASSES, lambda: next(asked)) is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_on_several_ranks_is_that_on_one(
    tmp_path: Path, on_one_rank: dict[str, Any], world_size: int
) -> None:
    """Sizes that do not divide; a single sample leaves the other ranks without any."""
    port = free_port()
    context = multiprocessing.get_context("fork")  # torch is imported already, and importing it takes seconds
    ranks = [
        context.Process(target=evaluate_on_ranks.run_rank, args=(rank, world_size, port, tmp_path))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * world_size
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world_size)]
    assert all(result == results[0] for result in results), "the ranks disagree"
    for size, wanted in on_one_rank.items():
        for name, value in wanted.items():
            assert np.array(results[0][size][name]) == pytest.approx(np.array(value), abs=1e-6), (size, name)
    losses = [result["loss"] for result in on_one_rank.values()]
    assert len({round(loss, 4) for loss in losses}) == len(losses), "the sizes could not be told apart"
