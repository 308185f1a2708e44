"""metrics.csv over many launches, and the log of one."""

import csv
import io
import logging
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import messages
from utils.utils_file import PROJECT_FOLDER
from utils.utils_logger import RunLog, duration, print_block, start_console
from utils.utils_metrics_csv import MetricsFile, read_metrics
from utils.utils_tensorboard import TensorBoard

FIXED = ["iter", "epoch", "split", "lr", "G_loss", "images_per_s"]
CLASSES = ("cat", "dog")


def row(iteration: int, **values: Any) -> dict[str, Any]:
    return {"iter": iteration, "epoch": 0, "split": "train", "lr": 0.1, **values}


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def header(path: Path) -> list[str]:
    return path.read_text().splitlines()[0].split(",")


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_rows_are_appended_over_launches(metrics: Path) -> None:
    MetricsFile(metrics).append(row(1, G_loss=2.0))
    again = MetricsFile(metrics)
    again.append(row(2, G_loss=1.5))
    again.append(row(3, G_loss=1.0))
    assert header(metrics) == FIXED
    assert [(each["iter"], each["G_loss"]) for each in read(metrics)] == [("1", "2.0"), ("2", "1.5"), ("3", "1.0")]


def test_nothing_is_written_before_the_first_row(metrics: Path) -> None:
    MetricsFile(metrics)
    assert not metrics.exists()


def test_a_row_is_in_the_file_when_append_returns(metrics: Path) -> None:
    file = MetricsFile(metrics)
    for number in range(1, 4):
        file.append(row(number))
        assert len(read(metrics)) == number
        assert metrics.read_bytes().endswith(b"\n")


def test_a_later_row_of_the_same_iteration_is_kept_beside_the_earlier_one(metrics: Path) -> None:
    MetricsFile(metrics).append(row(1, G_loss=2.0))
    MetricsFile(metrics).append(row(1, G_loss=1.0))
    assert [each["G_loss"] for each in read(metrics)] == ["2.0", "1.0"]  # readers take the last


def test_a_new_metric_adds_a_column_to_all_rows(metrics: Path) -> None:
    file = MetricsFile(metrics)
    file.append(row(1, G_loss=2.0))
    file.append(row(2, accuracy=0.5, recall_cat=0.25))
    MetricsFile(metrics).append(row(3, G_loss=1.0, macro_f1=0.75))
    assert header(metrics) == [*FIXED, "accuracy", "recall_cat", "macro_f1"]
    assert [each["accuracy"] for each in read(metrics)] == ["", "0.5", ""]
    assert [each["macro_f1"] for each in read(metrics)] == ["", "", "0.75"]
    assert [each["G_loss"] for each in read(metrics)] == ["2.0", "", "1.0"]


@pytest.mark.parametrize("num_lost", [2, 5, 20])
def test_a_torn_last_line_is_dropped_and_the_file_goes_on(metrics: Path, num_lost: int) -> None:
    file = MetricsFile(metrics)
    file.append(row(1, G_loss=2.0))
    file.append(row(2, G_loss=1.23456789))
    metrics.write_bytes(metrics.read_bytes()[:-num_lost])
    again = MetricsFile(metrics)
    assert [each["iter"] for each in read(metrics)] == ["1"]
    again.append(row(3, G_loss=1.0))
    assert [(each["iter"], each["G_loss"]) for each in read(metrics)] == [("1", "2.0"), ("3", "1.0")]


@pytest.mark.parametrize("content", ["", "iter,epo", "\n"])
def test_a_torn_header_is_repaired(metrics: Path, content: str) -> None:
    metrics.write_text(content)
    MetricsFile(metrics).append(row(1, G_loss=2.0))
    assert header(metrics) == FIXED
    assert [each["iter"] for each in read(metrics)] == ["1"]


def test_what_a_spreadsheet_saves_keeps_its_rows(metrics: Path) -> None:
    MetricsFile(metrics).append(row(1, G_loss=2.0, recall_a=0.5))
    text = metrics.read_text().replace("recall_a", "recall_\xe9")
    metrics.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode("latin-1"))
    MetricsFile(metrics).append(row(2, G_loss=1.0))
    assert [(each["iter"], each["G_loss"]) for each in read(metrics)] == [("1", "2.0"), ("2", "1.0")]
    assert header(metrics) == [*FIXED, "recall_\xe9"]


def test_a_file_in_our_own_form_is_not_written_again(metrics: Path) -> None:
    MetricsFile(metrics).append(row(1, G_loss=2.0, accuracy=0.5))
    metrics.write_text(metrics.read_text() + '1,0,train,0.1,2.0,,0.5\n2,0,note,,,,"good, yes"\n')
    before = metrics.stat()
    MetricsFile(metrics)
    assert (metrics.stat().st_ino, metrics.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def semicolons(text: str) -> bytes:
    return text.replace(",", ";").replace(".", ",").replace("\n", "\r\n").encode()


def tabs(text: str) -> bytes:
    return text.replace(",", "\t").replace(".", ",").encode()


def quoted_commas(text: str) -> bytes:
    return re.sub(r"(\d+)\.(\d+)", r'"\1,\2"', text).encode()


def carriage_returns(text: str) -> bytes:
    return text.replace("\n", "\r").encode()


def no_last_end(text: str) -> bytes:
    return text.replace("\n", "\r\n").removesuffix("\r\n").encode()


FORMS = (semicolons, tabs, quoted_commas, carriage_returns, no_last_end)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_running", [False, True])
def test_a_run_goes_on_with_what_a_spreadsheet_saved(
    metrics: Path, logged: pytest.LogCaptureFixture, form: Callable[[str], bytes], is_running: bool
) -> None:
    file, straight = MetricsFile(metrics), MetricsFile(metrics.with_name("straight.csv"))
    rows = [row(20, G_loss=0.3264, images_per_s="7867.0"), row(40, lr=1e-05, G_loss=0.25, accuracy=0.5)]
    for each in rows:
        file.append(each)
        straight.append(each)
    metrics.write_bytes(form(metrics.read_text()))
    os.utime(metrics, (0, 0))  # else the clock of the file system may not have moved on
    if not is_running:
        assert read_metrics(metrics) == read_metrics(metrics.with_name("straight.csv"))
        file = MetricsFile(metrics)
    file.append(row(60, G_loss=0.125))
    straight.append(row(60, G_loss=0.125))
    assert metrics.read_bytes() == metrics.with_name("straight.csv").read_bytes()
    assert messages(logged.records, logging.WARNING) == ""


def test_commas_that_group_thousands_are_no_decimal_commas(metrics: Path) -> None:
    metrics.write_text(",".join(FIXED) + '\n20,0,train,0.1,2.5,"7,867"\n')
    MetricsFile(metrics).append(row(40, G_loss=1.0))
    assert [each["images_per_s"] for each in read(metrics)] == ["7,867", ""]


def test_what_somebody_added_keeps_its_place(metrics: Path) -> None:
    content = "iter,epoch,split,notes,lr,G_loss\n20,0,train,looks good,0.1,2.0,0.75\nmy note\n"
    metrics.write_text(content)
    MetricsFile(metrics).append(row(40, G_loss=1.0, accuracy=0.5))
    with open(metrics, newline="") as file:
        assert list(csv.reader(file)) == [
            ["iter", "epoch", "split", "notes", "lr", "G_loss", "", "accuracy"],
            ["20", "0", "train", "looks good", "0.1", "2.0", "0.75", ""],
            ["my note", "", "", "", "", "", "", ""],
            ["40", "0", "train", "", "0.1", "1.0", "", "0.5"],
        ]


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 a workbook\n\x00\xff",
        b"20,0,train,0.1,2.0,50.0\n",
        b"iter|epoch|split|lr\n20|0|train|0.1\n",
        b'iter,epoch,split,lr\n20,0,train,"0.1\n40,0,train,0.1\n',
        "iter\tepoch\tsplit\n20\t0\ttrain\n".encode("utf-16"),
        b"no line at all",
    ],
)
def test_what_cannot_be_read_is_set_aside(metrics: Path, logged: pytest.LogCaptureFixture, content: bytes) -> None:
    for number in (1, 2):
        metrics.write_bytes(content)
        MetricsFile(metrics).append(row(60, G_loss=1.0))
        assert [each["iter"] for each in read(metrics)] == ["60"]
        (said,) = [record.getMessage() for record in logged.records if record.levelno == logging.WARNING]
        assert str(metrics) in said
        assert f"metrics.unread_{number}.csv" in said
        logged.clear()
    assert [path.read_bytes() for path in metrics.parent.glob("metrics.unread_*.csv")] == [content, content]


def test_numbers_survive_exactly(metrics: Path) -> None:
    value = 0.1 + 0.2
    MetricsFile(metrics).append(row(1, G_loss=value))
    MetricsFile(metrics).append(row(2, accuracy=1 / 3))
    first, second = read(metrics)
    assert float(first["G_loss"]) == value
    assert float(second["accuracy"]) == 1 / 3


@pytest.fixture
def log(tmp_path: Path, logged: pytest.LogCaptureFixture) -> Iterator[RunLog]:
    assert logged is not None
    log = RunLog(tmp_path, tensorboard=False, progress_bar=False)
    yield log
    log.close()


def test_training_and_tests_become_rows(tmp_path: Path, log: RunLog) -> None:
    log.start(0, 10)
    log.training(2, 0, 0.1, {"G_loss": 1.5, "grad_norm": 0.5}, batch_size=8)
    log.test("test", 2, 0, 0.1, {"loss": 1.25, "accuracy": 0.5, "recall_per_class": [0.25, 0.75]}, CLASSES, 0.1)
    log.test("test_private", 2, 0, 0.1, {"accuracy": 0.4}, CLASSES, 0.1)
    train, test, private = read(tmp_path / "metrics.csv")
    assert (train["iter"], train["epoch"], train["split"], train["lr"]) == ("2", "0", "train", "0.1")
    assert (train["G_loss"], train["grad_norm"]) == ("1.5", "0.5")
    assert float(train["images_per_s"]) > 0
    assert (test["split"], test["G_loss"], test["accuracy"]) == ("test", "1.25", "0.5")
    assert (test["recall_cat"], test["recall_dog"], test["images_per_s"]) == ("0.25", "0.75", "")
    assert (private["split"], private["accuracy"]) == ("test_private", "0.4")


def test_a_matrix_gives_no_column(tmp_path: Path, log: RunLog) -> None:
    log.start(0, 10)
    log.test("test", 2, 0, 0.1, {"accuracy": 0.5, "confusion_matrix": [[1.0, 0.0], [2.0, 3.0]]}, CLASSES, 0.1)
    assert header(tmp_path / "metrics.csv") == [*FIXED, "accuracy"]


def test_train_log_says_what_the_console_says(tmp_path: Path, log: RunLog) -> None:
    log.start(0, 1000)
    log.training(200, 3, 0.05, {"G_loss": 1.5}, batch_size=8)
    log.test("test", 200, 3, 0.05, {"accuracy": 0.5}, CLASSES, 2.0)
    training, test = (tmp_path / "train.log").read_text().splitlines()
    for text in ("epoch:  3", "200", "lr:5.000e-02", "G_loss: 1.5000e+00", "images/s", "left"):
        assert text in training
    for text in ("epoch:  3", "200", "test: accuracy 0.5000", "2.0 s"):
        assert text in test


def test_train_log_is_appended_and_closed(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("longhaul")
    for number in range(2):
        log = RunLog(tmp_path, tensorboard=False, progress_bar=False)
        logger.info("launch %d", number)
        log.close()
    logger.info("after")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["launch 0", "launch 1"]
    assert "after" in messages(logged.records)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = RunLog(None, tensorboard=True, progress_bar=True)
    log.start(0, 10)
    log.step()
    log.training(2, 0, 0.1, {"G_loss": 1.5}, batch_size=8)
    log.test("test", 2, 0, 0.1, {"accuracy": 0.5, "confusion_matrix": [[1.0], [1.0]]}, CLASSES, 0.1)
    log.image("train/augmented", None, 2)
    assert not log.wants_images
    log.close()
    assert not list(tmp_path.iterdir())


def test_time_left_counts_the_iterations_of_this_launch(
    log: RunLog, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    now = iter([100.0, 110.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    log.start(1000, 1200)
    log.training(1010, 0, 0.1, {}, batch_size=8)  # 10 iterations in 10 s, 190 to go
    said = messages(logged.records)
    assert "0:03:10 left" in said
    assert "8 images/s" in said


def test_an_error_of_another_thread_is_not_tensorboard_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    board = TensorBoard(tmp_path, purge_step=1)
    board.add("scalar", "loss", 1.0, 1)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert [type(each.exc_value) for each in seen] == [OSError]
    board.close()
    assert "TensorBoard" not in messages(logged.records)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_block_leaves_out_what_is_empty_and_shouts_about_synthetic_data(logged: pytest.LogCaptureFixture) -> None:
    print_block("Longhaul", [("start", "fresh"), ("resume", ""), ("PSNR", "27.1"), ("SYNTHETIC", "generated faces")])
    said = messages(logged.records)
    assert "  PSNR              27.1" in said
    assert "Longhaul" in said
    assert "fresh" in said
    assert "resume" not in said
    assert "SYNTHETIC DATA: generated faces" in messages(logged.records, logging.WARNING)


@pytest.mark.parametrize(("is_main", "shown"), [(True, {"info", "warning", "error"}), (False, {"error"})])
def test_only_rank_0_talks(is_main: bool, shown: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    start_console(is_main)
    logger = logging.getLogger("longhaul")
    for level in ("info", "warning", "error"):
        getattr(logger, level)("this is %s", level)
    out, err = capsys.readouterr()
    assert {level for level in ("info", "warning", "error") if f"this is {level}" in out + err} == shown
    assert "error" not in out


def test_a_console_without_all_letters_gets_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    start_console(is_main=True)
    logging.getLogger("longhaul").info("t\xe2che")
    assert raw.getvalue().endswith(b"t\\xe2che\n")


def test_without_a_console_warnings_are_still_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    start_console(is_main=True)
    logging.getLogger("longhaul").info("said to nobody")
    logging.getLogger("longhaul").warning("said on stderr")
    assert capsys.readouterr().err.count("said") == 1
    sys.stdout.close()


def test_no_file_takes_the_place_of_a_closed_console(tmp_path: Path) -> None:
    code = (
        "import os; from utils.utils_logger import start_console; start_console(True); model = open(r'%s', 'w'); "
        "print('a'); os.write(1, b'b'); os.write(2, b'c')"
    ) % (tmp_path / "model")
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, cwd=PROJECT_FOLDER, timeout=60, check=False).returncode == 0
    assert (tmp_path / "model").read_bytes() == b""


def test_tensorboard_gets_scalars_and_rates(tmp_path: Path, logged: pytest.LogCaptureFixture) -> None:
    assert logged is not None
    log = RunLog(tmp_path, tensorboard=True, progress_bar=False)
    log.start(0, 10)
    assert log.wants_images
    log.training(2, 0, 0.125, {"G_loss": 1.5}, batch_size=8)
    log.test("test", 2, 0, 0.125, {"accuracy": 0.5, "confusion_matrix": [[1.0, 0.0], [2.0, 3.0]]}, CLASSES, 0.1)
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = events.Tags()
    values = {tag: events.Scalars(tag)[0].value for tag in tags["scalars"]}
    assert math.isclose(values["train/lr"], 0.125)
    assert math.isclose(values["train/G_loss"], 1.5)
    assert math.isclose(values["test/accuracy"], 0.5)
    assert any("confusion_matrix" in tag for tag in tags["images"])
