"""Options: every mistake at once in plain words, the rules between keys, and files that load again to equal options."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import ValidationError

from utils.utils_error import UserError
from utils.utils_option import Options, changes, json_schema, parse, save, to_dict, validate
from utils.utils_option_kair import KAIR_KEYS
from utils.utils_table import Table

MISSING = object()


class Faces:
    """Faces in a file."""

    final_split = "PrivateTest"

    def __init__(
        self, dataroot: str, split: Literal["Training", "PublicTest"] = "Training", size: int = 48
    ) -> None: ...


def network(widths: tuple[int, ...] = (8, 16), dropout: float = 0.0) -> None:
    """A network."""


def drawn(folder: str, seed: int = 0) -> None: ...


def flip(probability: float = 0.5) -> None: ...


def cross_entropy(label_smoothing: float = 0.0) -> None: ...


def anything(**others: Any) -> None: ...


TABLES = {
    "model": Table("model", {"plain": anything}),
    "network": Table("network", {"fer_resnet": network, "fer_vgg": network}),
    "dataset": Table("data set", {"faces": Faces}, supplied={"dataroot"}),
    "fallback": Table("synthetic source", {"drawn": drawn}, supplied={"folder"}),
    "transform": Table("transform", {"flip": flip}),
    "loss": Table("loss", {"cross_entropy": cross_entropy}),
    "optimizer": Table("optimizer", {"adam": anything, "sgd": anything}),
    "schedule": Table("schedule", dict.fromkeys(["MultiStepLR", "CosineAnnealingWarmRestarts"], anything)),
    "metric": Table("metric", {"accuracy": anything}),
}


def good() -> dict[str, Any]:
    return {
        "task": "fer [1] grüße",
        "path": {"root": "experiments"},
        "datasets": {
            "train": {
                "dataset_type": "faces",
                "dataroot": "faces.csv",
                "split": "Training",
                "fallback": {"dataset_type": "drawn", "seed": 3},
                "dataloader_batch_size": 128,
                "transforms": [{"type": "flip", "probability": 1}],
            },
            "test": {"split": "PublicTest"},
        },
        "netG": {"net_type": "fer_resnet", "widths": [4, 8]},
        "train": {
            "G_lossfn_type": "cross_entropy",
            "G_lossfn_args": {"label_smoothing": 0.1},
            "G_optimizer_lr": 5e-4,
            "G_scheduler_milestones": [10, 20],
            "total_epochs": 3,
        },
        "val": {"metrics": ["accuracy"], "best_metric": "accuracy"},
    }


def with_values(**values: Any) -> dict[str, Any]:
    """The good options with train__G_optimizer_lr=... in place; MISSING removes a key."""
    options = good()
    for path, value in values.items():
        *sections, last = path.split("__")
        target: Any = options
        for section in sections:
            target = target[int(section)] if isinstance(target, list) else target.setdefault(section, {})
        if value is MISSING:
            del target[last]
        else:
            target[last] = value
    return options


def mistakes(**values: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        validate(with_values(**values), "fer.json", TABLES)
    headline, *lines = str(caught.value).splitlines()
    assert headline == f"fer.json: {len(lines)} mistake{'s' * (len(lines) != 1)}"
    return lines


# the values of good options


def test_values_defaults_and_arguments() -> None:
    opt = validate(good(), tables=TABLES)
    assert (opt.task, opt.model, opt.path.root, opt.path.pretrained_netG) == (
        "fer [1] grüße",
        "plain",
        "experiments",
        None,
    )
    assert opt.netG.net_type == "fer_resnet"
    assert opt.netG.arguments == {"widths": [4, 8]}
    assert opt.datasets["train"].arguments == {"split": "Training"}
    assert opt.datasets["train"].transforms[0].arguments == {"probability": 1}
    assert opt.train.G_optimizer_betas == (0.9, 0.999)
    assert opt.train.G_scheduler_milestones == (10, 20)
    assert (opt.train.checkpoint_print, opt.train.checkpoint_save, opt.train.checkpoint_test) == (200, 5000, 5000)
    assert (opt.train.E_decay, opt.train.max_to_keep, opt.train.total_iter) == (0.999, 5, None)
    assert (opt.log.tensorboard, opt.log.progress_bar, opt.resume.accept_changes) == (True, "auto", False)
    assert opt.notice == ""


def test_a_test_data_set_inherits_from_train() -> None:
    options = with_values(datasets__test_b={"dataroot": None, "split": "PublicTest"})
    opt = validate(options, tables=TABLES)
    test, test_b = opt.datasets["test"], opt.datasets["test_b"]
    assert (test.dataset_type, test.dataroot, test.dataloader_batch_size) == ("faces", "faces.csv", 256)
    assert test.fallback == opt.datasets["train"].fallback
    assert test.transforms == ()
    assert test.arguments == {"split": "PublicTest"}
    assert (test_b.dataset_type, test_b.dataroot) == ("faces", None)


def test_values_that_kair_writes_differently() -> None:
    opt = validate(with_values(train__G_optimizer_clipgrad=0, train__G_scheduler_periods=[500]), tables=TABLES)
    assert opt.train.G_optimizer_clipgrad is None
    assert opt.train.G_scheduler_periods == 500


def test_empty_sections_and_the_schema_key_of_an_editor() -> None:
    opt = validate({"$schema": "./schema.json", "log": None, "path": None} | with_values(), tables=TABLES)
    assert opt == validate(good(), tables=TABLES)


def test_whole_numbers_are_numbers() -> None:
    lr = validate(with_values(train__G_optimizer_lr=1)).train.G_optimizer_lr
    assert (lr, type(lr)) == (1.0, float)


def test_options_are_frozen() -> None:
    opt = validate(good())
    with pytest.raises(ValidationError, match="frozen"):
        opt.task = "other"
    with pytest.raises(ValidationError, match="frozen"):
        opt.train.total_iter = 5
    with pytest.raises(ValidationError, match="frozen"):
        opt.netG.widths = [1]  # type: ignore[attr-defined]


def test_the_input_is_left_alone() -> None:
    options = with_values(gpu_ids=[0], datasets__train__phase="train")
    before = json.dumps(options)
    validate(options)
    assert json.dumps(options) == before


# mistakes


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("train__E_decay", 1.5, "train.E_decay: 1.5 is not allowed: must be less than 1"),
        ("train__E_decay", -1, "train.E_decay: -1 is not allowed: must be at least 0"),
        ("train__G_optimizer_lr", 0, "train.G_optimizer_lr: 0 is not allowed: must be greater than 0"),
        (
            "train__G_optimizer_lr",
            "1e-3",
            'train.G_optimizer_lr: "1e-3" is not allowed: must be a number; write it without quotes',
        ),
        ("train__G_optimizer_lr", "0,1", 'train.G_optimizer_lr: "0,1" is not allowed: must be a number'),
        (
            "train__compile",
            "true",
            'train.compile: "true" is not allowed: must be true or false; write it without quotes',
        ),
        ("total_epochs", 5, 'total_epochs: unknown key; did you mean "train.total_epochs"?'),
        ("val__checkpoint_test", 5, 'val.checkpoint_test: unknown key; did you mean "train.checkpoint_test"?'),
        ("train__metrics", ["accuracy"], 'train.metrics: unknown key; did you mean "val.metrics"?'),
        ("train__G_optimizer_lr", True, "train.G_optimizer_lr: true is not allowed: must be a number"),
        ("train__G_optimizer_lr", float("nan"), "train.G_optimizer_lr: NaN is not allowed: must be a finite number"),
        ("train__G_optimizer_lr", MISSING, "train.G_optimizer_lr: missing; learning rate, per update"),
        ("train__G_optimizer_betas", [0.9], "train.G_optimizer_betas: [0.9] is not allowed: must be a list of 2"),
        ("train__G_optimizer_betas", [0.9, 1], "train.G_optimizer_betas.1: 1 is not allowed: must be less than 1"),
        ("train__G_optimizer_betas", 0.9, "train.G_optimizer_betas: 0.9 is not allowed: must be a list"),
        ("train__G_scheduler_gamma", 1.1, "train.G_scheduler_gamma: 1.1 is not allowed: must be at most 1"),
        ("train__total_iter", "3", 'train.total_iter: "3" is not allowed: must be a whole number or null'),
        (
            "train__total_iter",
            1e5,
            "train.total_iter: 100000.0 is not allowed: must be a whole number or null; "
            "write it without point and exponent",
        ),
        ("train__total_iter", True, "train.total_iter: true is not allowed: must be a whole number or null"),
        ("train__manual_seed", 2**63, f"train.manual_seed: {2**63} is not allowed: must be at most "),
        ("train__checkpoint_save", 0, 'train.checkpoint_save: 0 is not allowed: must be at least 1 or "epoch"'),
        (
            "train__checkpoint_test",
            "epok",
            'train.checkpoint_test: "epok" is not allowed: must be a whole number or "epoch"',
        ),
        ("train__checkpoint_sav", 5, 'train.checkpoint_sav: unknown key; did you mean "checkpoint_save"?'),
        ("train__g_optimizer_LR", 5, 'train.g_optimizer_LR: unknown key; did you mean "G_optimizer_lr"?'),
        ("train__amp", "fp16", 'train.amp: "fp16" is not allowed: must be "auto" or "bf16" or null'),
        ("train__compile", "on", 'train.compile: "on" is not allowed: must be true or false'),
        ("train", [], "train: [] is not allowed: must be a section {...}"),
        ("trian", {}, 'trian: unknown key; did you mean "train"?'),
        ("val__best_mode", "least", 'val.best_mode: "least" is not allowed: must be "max" or "min"'),
        ("log__progress_bar", 1, 'log.progress_bar: 1 is not allowed: must be true or false or "auto"'),
        ("model", "plane", 'model: "plane" is not a model; did you mean "plain"? known: plain'),
        ("netG__net_type", "fer_resnt", 'netG.net_type: "fer_resnt" is not a network; did you mean "fer_resnet"?'),
        ("netG__net_type", 5, "netG.net_type: 5 is not allowed: must be text"),
        ("netG__width", [1], 'netG.width: unknown key; did you mean "widths"?'),
        ("netG__widths", ["4"], 'netG.widths.0: "4" is not allowed: must be a whole number'),
        ("train__G_lossfn_type", "ce", 'train.G_lossfn_type: "ce" is not a loss; known: cross_entropy'),
        (
            "train__G_lossfn_args__smoothing",
            1,
            'train.G_lossfn_args.smoothing: unknown key; did you mean "label_smoothing"?',
        ),
        ("train__G_optimizer_type", "adan", 'train.G_optimizer_type: "adan" is not an optimizer; did you mean "adam"?'),
        (
            "train__G_scheduler_type",
            "MultiStep",
            'train.G_scheduler_type: "MultiStep" is not a schedule; did you mean "MultiStepLR"?',
        ),
        (
            "datasets__train__transforms",
            [{"type": "flip", "probabilty": 1}],
            'datasets.train.transforms.0.probabilty: unknown key; did you mean "probability"?',
        ),
        (
            "datasets__train__transforms",
            [{"type": "flap"}],
            'datasets.train.transforms.0.type: "flap" is not a transform',
        ),
        (
            "datasets__train__transforms",
            [{"typ": "flip"}],
            'datasets.train.transforms.0.type: missing; misspelt as "typ"; name',
        ),
        ("datasets__train__fallback__sed", 1, 'datasets.train.fallback.sed: unknown key; did you mean "seed"?'),
        (
            "datasets__train__dataloader_batch_siz",
            1,
            'datasets.train.dataloader_batch_siz: unknown key; did you mean "dataloader_batch_size"?',
        ),
        ("datasets__train__size", "48", 'datasets.train.size: "48" is not allowed: must be a whole number'),
        (
            "datasets__train__dataloader_batch_size",
            MISSING,
            "datasets.train.dataloader_batch_size: missing; samples per iteration",
        ),
        ("datasets__tst", {"split": "PublicTest"}, 'datasets.tst: unknown data set; did you mean "test"?'),
        (
            "datasets__val",
            {"split": "PublicTest"},
            'datasets.val: unknown data set; known: "train", "test" and "test_<name>"',
        ),
        ("task", "", 'task: "" is not allowed: must be text that is not empty'),
        ("task", "\ud800", "options: a text holds half of a surrogate pair"),
        *[("task", task, f"task: {json.dumps(task)} is not allowed") for task in (".", "..", "a/b", "a ", "/a")],
    ],
)
def test_each_mistake_has_its_line(path: str, value: object, line: str) -> None:
    (only,) = mistakes(**{path: value})
    assert only.startswith(line)


def test_all_mistakes_at_once_whatever_section_they_are_in() -> None:
    lines = mistakes(
        speed=1,
        task=5,
        datasets__test__split="PrivateTest",
        datasets__train__resident="maybe",
        netG__net_type="resnet",
        train__E_decay=2,
        train__G_lossfn_args__label_smothing=0.1,
        train__total_epochs=MISSING,
        val__metrics=["acuracy"],
    )
    assert [line.partition(":")[0] for line in lines] == [
        "speed",
        "task",
        "datasets.train.resident",
        "datasets.test.split",
        "datasets.test.split",
        "netG.net_type",
        "train.E_decay",
        "train.total_epochs",
        "train.G_lossfn_args.label_smothing",
        "val.best_metric",
        "val.metrics.0",
    ]


def test_a_mistake_that_is_inherited_is_reported_once() -> None:
    (line,) = mistakes(datasets__train__fallback={"dataset_type": "drown"})
    assert line.startswith("datasets.train.fallback.dataset_type")


def test_sections_of_the_wrong_shape_are_mistakes_not_crashes() -> None:
    for key in ("path", "datasets", "netG", "train", "val", "log", "resume"):
        for value in ("text", 3, [1], [{}], True):
            assert any(line.startswith(f"{key}: ") for line in mistakes(**{key: value}))
    for value in ("text", 3, [], None):
        assert mistakes(datasets__train=value) != []
        assert mistakes(datasets__test=value) != []
    assert mistakes(datasets__train__transforms=5, datasets__train__fallback=5, val__metrics=5) != []


def test_without_a_table_names_and_arguments_are_not_checked() -> None:
    opt = validate(with_values(netG__net_type="mine", netG__depth=3), tables={})
    assert opt.netG.arguments == {"widths": [4, 8], "depth": 3}


# the rules between keys


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"train__G_scheduler_milestones": [3, 2]}, "train.G_scheduler_milestones: [3, 2] must ascend strictly"),
        (
            {"train__G_scheduler_milestones": [2, 2]},
            "train.G_scheduler_milestones: [2, 2] must ascend strictly; use [2]",
        ),
        (
            {"train__G_scheduler_eta_min": 0.1},
            "train.G_scheduler_eta_min: 0.1 is not allowed: must be at most G_optimizer_lr, 0.0005",
        ),
        (
            {"train__G_scheduler_type": "CosineAnnealingWarmRestarts"},
            "train.G_scheduler_periods: missing; CosineAnnealingWarmRestarts needs",
        ),
        ({"train__G_scheduler_periods": [1, 2]}, "train.G_scheduler_periods: [1, 2] is not allowed: must be one"),
        ({"train__total_epochs": MISSING}, "train.total_epochs: missing; give total_iter or total_epochs"),
        ({"train__max_to_keep": 1}, "train.max_to_keep: 1 is not allowed: a set that turns out damaged"),
        ({"val__best_metric": MISSING}, "val.best_metric: missing; datasets.test selects the best model"),
        (
            {"val__best_metric": "acc"},
            'val.best_metric: "acc" is not measured: must be one of "accuracy", "loss"; or add it to val.metrics',
        ),
        ({"val__best_metric": "loss"}, 'val.best_mode: "max" would keep the worst model'),
        (
            {"train__early_stop_patience": 3, "datasets__test": MISSING},
            "train.early_stop_patience: counts tests without improvement; add datasets.test, or remove it",
        ),
        ({"datasets__train": MISSING, "datasets__test__dataset_type": "faces"}, "datasets.train: missing"),
        (
            {"datasets__test__split": "Training"},
            "datasets.test: the very samples of datasets.train; train and test must be disjoint",
        ),
        ({"datasets__test": {}}, "datasets.test: the very samples of datasets.train"),  # by the default of split
    ],
)
def test_rules_between_keys(values: dict[str, Any], line: str) -> None:
    (only,) = mistakes(**values)
    assert only.startswith(line)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"path": {"pretrained_netT": "best_model.pth"}}, 'path.pretrained_netT: model "plain" has no teacher'),
        ({"path": {"pretrained_netE": "5_E.pth"}, "train__E_decay": 0}, "path.pretrained_netE: with train.E_decay 0"),
    ],
)
def test_a_file_that_nothing_would_read_is_a_mistake(values: dict[str, Any], line: str) -> None:
    (only,) = mistakes(**values)
    assert only.startswith(line)
    assert validate(with_values(**{**values, "path": {}}), tables=TABLES)


@pytest.mark.parametrize("where", ["train", "test", "test_last", "train__fallback"])
@pytest.mark.parametrize("split", ["PrivateTest", "privatetest", ["Training", "PrivateTest"]])
def test_the_final_test_split_is_never_touched(where: str, split: object) -> None:
    options = with_values(**{f"datasets__{where}__split": split})
    with pytest.raises(UserError, match=r"--split PrivateTest") as caught:
        validate(options, tables=TABLES)
    assert "must never influence training" in str(caught.value)


def test_a_data_set_that_keeps_no_split_for_the_end_has_none_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Faces, "final_split")
    with pytest.raises(UserError) as caught:
        validate(with_values(datasets__test__split="PrivateTest"), tables=TABLES)
    assert "must never influence training" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"datasets__test": MISSING, "val": MISSING},
        {"datasets__test": MISSING, "datasets__test_b": {"split": "PublicTest"}, "val": MISSING},
        {"datasets__test": {"dataroot": "other.csv"}},
        {"val": {"best_metric": "loss", "best_mode": "min"}},
        {"train__total_epochs": MISSING, "train__total_iter": 5},
        {"train__max_to_keep": 0},
        {"train__E_decay": 0},
        {"train__checkpoint_save": "epoch", "train__G_scheduler_eta_min": 5e-4},
        {"train__G_scheduler_type": "CosineAnnealingWarmRestarts", "train__G_scheduler_periods": 2},
    ],
)
def test_what_the_rules_allow(values: dict[str, Any]) -> None:
    opt = validate(with_values(**values), tables=TABLES)
    assert validate(to_dict(opt), tables=TABLES) == opt


# KAIR's own keys


def test_keys_of_kair_are_dropped_with_one_notice() -> None:
    options = with_values(
        gpu_ids=[0, 1],
        dist=True,
        scale=None,
        path__models=None,
        datasets__train__dataloader_shuffle=True,
        datasets__test__phase="test",
        netG__init_type="orthogonal",
        train__G_regularizer_orthstep=None,
    )
    opt = validate(options, tables=TABLES)
    assert opt == validate(good(), tables=TABLES)
    assert opt.notice.startswith("option keys of KAIR that have no effect here: gpu_ids (use CUDA_VISIBLE_DEVICES, or ")
    for path in ("dist", "scale", "path.models", "datasets.train.dataloader_shuffle", "datasets.test.phase"):
        assert f"; {path} (" in opt.notice
    assert "\n" not in opt.notice


def test_every_key_of_kair_is_accepted_and_none_is_ours() -> None:
    for path in KAIR_KEYS:
        opt = validate(with_values(**{path.replace(".*.", ".train.").replace(".", "__"): 1}), tables=TABLES)
        assert opt.notice.count("(") == 1
    assert not KAIR_KEYS.keys() & {path for path, _ in _fields(Options)}


# files


@pytest.mark.parametrize("name", ["options.json", "options.yaml", "options.yml"])
def test_a_saved_file_loads_again_to_equal_options(tmp_path: Path, name: str) -> None:
    opt = validate(with_values(gpu_ids=[0], train__manual_seed=2**63 - 1, netG__dropout=1e-30), tables=TABLES)
    save(opt, tmp_path / name)
    again = parse(tmp_path / name, tables=TABLES)
    assert again == opt
    assert again != parse(tmp_path / name, ["train.total_iter=7"], TABLES)
    save(again, tmp_path / f"again_{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again_{name}").read_bytes()


def test_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(good()))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(good()))
    assert parse(tmp_path / "a.json", tables=TABLES) == parse(tmp_path / "a.yaml", tables=TABLES)


def test_overrides_are_validated_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(good()))
    opt = parse(path, ["train.G_optimizer_lr=1e-5", "netG.widths=[1, 2]", "train.checkpoint_save=epoch"], TABLES)
    assert (opt.train.G_optimizer_lr, opt.netG.arguments, opt.train.checkpoint_save) == (
        1e-5,
        {"widths": [1, 2]},
        "epoch",
    )
    with pytest.raises(UserError, match=r'trian: unknown key; did you mean "train"') as caught:
        parse(path, ["trian.total_iter=5", "train.total_iter=x"], TABLES)
    assert str(caught.value).startswith(f"{path}: 2 mistakes\n")


def test_changes_name_each_leaf_that_differs() -> None:
    old = to_dict(validate(good()))
    new = to_dict(
        validate(
            with_values(
                train__G_optimizer_lr=1e-3,
                netG__widths=[4],
                netG__dropout=0.5,
                datasets__train__transforms=[{"type": "flip", "probability": 0}, {"type": "x"}],
            )
        )
    )
    assert changes(old, old) == []
    assert changes(old, new) == [
        "datasets.train.transforms.0.probability: 1 -> 0",
        'datasets.train.transforms.1.type: absent -> "x"',
        "netG.dropout: absent -> 0.5",
        "netG.widths: [4, 8] -> [4]",
        "train.G_optimizer_lr: 0.0005 -> 0.001",
    ]
    assert changes(new, old)[2] == "netG.dropout: 0.5 -> absent"


# the schema


def _fields(model: Any) -> list[tuple[str, Any]]:
    return list(model.model_fields.items())


def test_the_schema_describes_every_field() -> None:
    schema = json.loads(json.dumps(json_schema(TABLES)))
    sections = {"Options": schema} | schema["$defs"]
    assert len(sections) >= 10
    for name, section in sections.items():
        for key, field in section["properties"].items():
            assert field.get("description"), f"{name}.{key} has no description"
    for key, field in Options.model_fields.items():
        assert schema["properties"][key]["description"] == field.description
    train = sections["TrainOptions"]
    assert train["additionalProperties"] is False
    assert train["properties"]["E_decay"]["default"] == 0.999


def test_the_schema_knows_names_and_arguments() -> None:
    schema = json_schema(TABLES)
    definitions = schema["$defs"]
    assert schema["properties"]["model"]["enum"] == ["plain"]
    assert definitions["TrainOptions"]["properties"]["G_optimizer_type"]["enum"] == ["adam", "sgd"]
    assert definitions["ValOptions"]["properties"]["metrics"]["items"]["enum"] == ["accuracy"]
    net = definitions["NetOptions"]
    assert net["unevaluatedProperties"] is False
    assert net["allOf"][0]["if"]["properties"]["net_type"] == {"const": "fer_resnet"}
    assert net["allOf"][0]["then"]["properties"]["widths"]["default"] == [8, 16]
    assert net["allOf"][0]["then"]["description"] == "A network."
    assert definitions["DatasetOptions"]["required"] == ["dataset_type", "dataloader_batch_size"]
    assert "dataroot" not in definitions["DatasetOptions"]["allOf"][0]["then"]["properties"]
    assert schema["properties"]["datasets"]["patternProperties"] == {"^test": {"$ref": "#/$defs/TestDatasetOptions"}}
    assert schema["properties"]["gpu_ids"]["deprecated"] is True


def test_every_reference_of_the_schema_resolves() -> None:
    schema = json_schema({})
    text = json.dumps(schema)
    assert '"allOf": []' not in text, "JSON Schema wants one at least"
    names = {part.partition('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert names <= schema["$defs"].keys()


def test_types_and_defaults_without_json_words_do_not_stop_the_schema() -> None:
    def odd(norm: Callable[[], int] = int, root: Any = object) -> None: ...

    schema = json_schema({"network": Table("network", {"odd": odd})})
    assert schema["$defs"]["NetOptions"]["allOf"][0]["then"]["properties"].keys() == {"norm", "root"}


def test_options_are_read_without_torch() -> None:
    code = "import sys, utils.utils_option; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
