"""The documents keep their word: tables, commands and links are real, and all that README.md adds trains together."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import data.select_dataset
import data.transforms
import main_test
import main_train
import models.learning_rate
import models.loss
import models.optimizer
import models.select_model
import models.select_network
import utils.utils_metrics
from tables import TABLES as OPTION_TABLES
from tests.helpers import changed, tiny_option_mapping, write_options
from tests.options_page import OPTIONS_PAGE, options_page
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_option import parse
from utils.utils_signal import StopRequest
from utils.utils_table import Table

PROJECT = Path(__file__).parent.parent
TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
ALL_TEXT = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
COMMANDS = re.findall(r"^ {4,}(\S.*main_(?:train|test)\.py.*)$", ALL_TEXT, re.MULTILINE)
EXAMPLES = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TABLES: dict[str, Table] = {
    "NETWORKS": models.select_network.NETWORKS,
    "DATASETS": data.select_dataset.DATASETS,
    "LOSSES": models.loss.LOSSES,
    "METRICS": utils.utils_metrics.METRICS,
    "TRANSFORMS": data.transforms.TRANSFORMS,
    "OPTIMIZERS": models.optimizer.OPTIMIZERS,
    "SCHEDULES": models.learning_rate.SCHEDULES,
    "MODELS": models.select_model.MODELS,
}


def test_the_options_page_is_current() -> None:
    assert OPTIONS_PAGE.read_text(encoding="utf-8") == options_page(), "run `make schema`"


def test_the_options_page_has_every_key() -> None:
    schema = json.loads((PROJECT / "options" / "schema.json").read_text(encoding="utf-8"))
    sections = [schema, *schema["$defs"].values()]
    keys = {key for each in sections for key, value in each["properties"].items() if not value.get("deprecated")}
    keys -= {"$schema", *(key for key, value in schema["properties"].items() if "$ref" in value), "datasets"}
    assert keys <= set(re.findall(r"[\w]+", " ".join(re.findall(r"^\| `([^`]+)`", options_page(), re.MULTILINE))))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_document_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    script = next(word for word in words if word.endswith(".py"))
    assert (PROJECT / script).is_file()
    if script == "main_train.py":
        monkeypatch.setattr(sys, "argv", words[words.index(script) :])
        args = main_train.parse_arguments()
        parse(PROJECT / args.opt, args.set, OPTION_TABLES)
    else:
        monkeypatch.setattr(sys, "argv", words[words.index(script) :])
        main_test.parse_arguments()


def test_what_stands_beside_another_trainers_flag_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    section = (PROJECT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    here = [row.split(" | ", 1)[1] for row in re.findall(r"^\| (.* \| .*) \|$", section, re.MULTILINE)]
    values = {"F": "x.csv", "N": "4", "X": "0.1", "D": "folder", "C": "x.csv"}
    settings = re.findall(r"`--set ([\w.]+)=([A-Z])`", " ".join(here))
    assert len(settings) == 8
    opt = parse(PROJECT / "options" / "fer.json", [f"{key}={values[value]}" for key, value in settings])
    assert (opt.train.total_epochs, opt.train.G_lossfn_args["label_smoothing"]) == (4, 0.1)
    commands = re.findall(r"`(main_test\.py [^`]+)`", " ".join(here))
    assert len(commands) >= 5
    for command in commands:
        monkeypatch.setattr(sys, "argv", command.replace("--num_samples N", "--num_samples 3").split())
        main_test.parse_arguments()


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_targets_of_a_document_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target:
            file, _, heading = target.partition("#")
            linked = document.parent / file if file else document
            assert linked.exists(), target
            assert not heading or heading in _headings(linked), target
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z]+)", text, re.MULTILINE)) <= targets


def _headings(document: Path) -> set[str]:
    """What GitHub makes of the headings of a document, to link to."""
    lines = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_what_the_readme_adds_trains_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _register_examples(monkeypatch)
    option_file = write_options(_options_with_examples(tmp_path), tmp_path / "added.json")
    with pytest.raises(UserError, match='split: "tset" is not allowed'):
        parse(option_file, ["datasets.test.split=tset"], OPTION_TABLES)
    opt = parse(option_file, tables=OPTION_TABLES)
    dist = Dist()
    with StopRequest(dist) as stop:
        assert main_train.train(opt, dist, stop, option_file, dry_run=False) == 0
    folder = tmp_path / "added"
    assert (folder / "models" / "final_model.pth").exists()
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows if row["split"] == "train"] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert all(0 <= float(row["top2_accuracy"]) <= 1 for row in rows if row["split"] == "test")


@pytest.mark.parametrize("channels", [1, 5])
def test_the_option_file_of_the_readme_trains_what_it_adds(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of five channels are no pictures, and train without any in TensorBoard."""
    _register_examples(monkeypatch)
    _write_arrays(tmp_path / "mine.npz", num_train=64, channels=channels)
    (written,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    option_file = tmp_path / "mine.yaml"
    option_file.write_text(written.replace("mine.npz", str(tmp_path / "mine.npz")), encoding="utf-8")
    changes = [f"path.root={tmp_path}", "train.total_epochs=2", "train.checkpoint_print=1"]
    opt = parse(option_file, [*changes, f"netG.num_pixels={64 * channels}"], OPTION_TABLES)
    dist = Dist()
    with StopRequest(dist) as stop:
        assert main_train.train(opt, dist, stop, option_file, dry_run=False) == 0
    assert (tmp_path / "mine" / "models" / "best_model.pth").exists()


def _register_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each example as if it stood in its file, and add its line to its table."""
    defined: dict[str, Any] = {}
    for path, code in EXAMPLES:
        name = path.removesuffix(".py").replace("/", ".")
        module = sys.modules.get(name, ModuleType(name))
        namespace = {**vars(module), "__name__": name}
        exec(compile(code, path, "exec"), namespace)
        new = re.findall(r"^(?:class|def) (\w+)", code, re.MULTILINE)
        assert not set(new) & set(vars(module)), f"{path} has {new} already"
        defined |= {name: namespace[name] for name in new}
    lines = re.findall(r'One\s+line\s+in\s+`([A-Z]+)`[^`]*`"(\w+)": (\w+)`', TEXT)
    assert {table for table, _, _ in lines} == TABLES.keys()
    assert {name for _, _, name in lines} == defined.keys()
    for table, key, name in lines:
        monkeypatch.setattr(TABLES[table], "_entries", {**TABLES[table]._entries, key: defined[name]})


def _write_arrays(path: Path, num_train: int, channels: int = 1) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{name}": values
        for split, num in (("train", num_train), ("test", 5))
        for name, values in (
            ("images", rng.integers(0, 256, (num, channels, 8, 8), dtype=np.uint8)),
            ("labels", np.arange(num, dtype=np.int64) % 3),
        )
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _options_with_examples(folder: Path) -> dict[str, Any]:
    _write_arrays(folder / "arrays.npz", num_train=12)
    train = {"dataset_type": "array_file", "dataroot": str(folder / "arrays.npz"), "split": "train"}
    train |= {"dataloader_batch_size": 4, "transforms": [{"type": "random_gamma", "strength": 0.3}]}
    return changed(
        tiny_option_mapping(folder, csv="unused"),
        task="added",
        model="mirror",
        datasets={"train": train, "test": {"split": "test"}},
        netG={"net_type": "mlp", "num_pixels": 64, "hidden": 8, "num_classes": 3},
        train={
            "G_lossfn_type": "focal",
            "G_lossfn_args": {"gamma": 1.5},
            "G_optimizer_type": "rmsprop",
            "G_optimizer_lr": 0.1,
            "G_scheduler_type": "Linear",
            "total_iter": 4,
            "checkpoint_print": 1,
            "checkpoint_test": 2,
            "num_threads": 1,
        },
        val={"metrics": ["accuracy", "top2_accuracy"], "best_metric": "top2_accuracy"},
    )
