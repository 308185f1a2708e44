"""options/schema.json is current, knows every option, and agrees with the parser about the shipped option files."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from data.select_dataset import DATASETS
from data.transforms import TRANSFORMS
from models.loss import LOSSES
from models.optimizer import define_optimizer
from models.select_network import define_G
from tables import TABLES
from tests.schema_check import mistakes
from utils.utils_error import UserError
from utils.utils_option import json_schema, parse, validate
from utils.utils_option_file import read_option_file
from utils.utils_option_models import Options

FOLDER = Path(__file__).parent.parent / "options"
SHIPPED = sorted(
    path for path in FOLDER.glob("*") if path.suffix in (".json", ".yaml", ".yml") and "schema" not in path.name
)
FER = FOLDER / "fer.json"


def test_the_schema_file_is_current() -> None:
    written = (FOLDER / "schema.json").read_text(encoding="utf-8")
    assert written == json.dumps(json_schema(TABLES), indent=2) + "\n", "run `make schema`"


def test_the_schema_file_has_every_option_and_every_name() -> None:
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    sections: dict[str, type[BaseModel]] = {"": Options}
    while sections:
        name, section = sections.popitem()
        properties = (schema["$defs"][name] if name else schema)["properties"]
        assert set(section.model_fields) <= set(properties)
        sections |= {
            each.__name__: each for field in section.model_fields.values() for each in _models(field.annotation)
        }
    names = {name for table in TABLES.values() for name in table}
    assert names <= set(re.findall(r'"(\w+)"', json.dumps(schema)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_option_file_is_valid_and_builds(path: Path) -> None:
    assert mistakes(read_option_file(path), json_schema(TABLES)) == []
    opt = parse(path, tables=TABLES)
    net = define_G(opt.netG)
    define_optimizer(net, opt.train)
    LOSSES.build(opt.train.G_lossfn_type, opt.train.G_lossfn_args)
    for dataset in opt.datasets.values():
        assert dataset.dataset_type in DATASETS
        for transform in dataset.transforms:
            TRANSFORMS.build(transform.type, transform.arguments, num_classes=7)


def test_the_default_classifies_48x48_grey_faces() -> None:
    net = define_G(parse(FER, tables=TABLES).netG)
    assert net(torch.zeros(2, 1, 48, 48)).shape == (2, 7)


def test_shipped_files_name_the_schema() -> None:
    assert SHIPPED
    for path in SHIPPED:
        assert "schema.json" in path.read_text(encoding="utf-8"), f"{path.name}: editors find no schema"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.G_optimizer_lr", "0.1"),
        ("train.G_optimzer_lr", 0.1),
        ("train.G_scheduler_type", "Cosine"),
        ("train.G_lossfn_args", {"smoothing": 0.1}),
        ("netG.net_type", "resnet"),
        ("netG.width", [8]),
        ("datasets.train.transforms", [{"type": "mixup", "beta": 1}]),
        ("datasets.train.fallback", {"dataset_type": "synthetic_faces", "num_train": 3}),
        ("datasets.validation", {"split": "PublicTest"}),
        ("val.metrics", ["acc"]),
        ("val.best_mode", "largest"),
    ],
)
def test_the_schema_refuses_a_mistake_that_the_parser_refuses(key: str, value: Any) -> None:
    options = copy.deepcopy(read_option_file(FER))
    section = options
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    section[last] = value
    with pytest.raises(UserError):
        validate(options, tables=TABLES)
    assert mistakes(options, json_schema(TABLES))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The option sections in a type such as dict[str, DatasetOptions] or FallbackOptions | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models(part)]
