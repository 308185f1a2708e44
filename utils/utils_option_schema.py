"""The JSON schema of an option file, for editors: keys, their meaning and default, names and their arguments."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import CoreSchema

from utils.utils_option_kair import KAIR_KEYS
from utils.utils_option_models import Options
from utils.utils_table import Table

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Lenient(GenerateJsonSchema):
    """Constructor arguments may have types and defaults that JSON has no word for: anything goes there."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        """Never: an editor would show "G Optimizer Lr" above the description."""
        return False

    def handle_invalid_for_json_schema(self, schema: CoreSchema, error_info: str) -> JsonSchemaValue:  # noqa: ARG002
        return {}


def json_schema(tables: Mapping[str, Table]) -> Schema:
    """The schema (draft 2020-12) with the names and arguments in `tables`, keyed as for utils_option.parse."""
    schema = Options.model_json_schema(schema_generator=_Lenient)
    definitions = schema["$defs"]
    schema = {"$schema": DIALECT, "title": "Longhaul option file"} | schema
    schema["properties"] = {"$schema": {"type": "string", "description": "this schema"}} | schema["properties"]
    train = definitions["TrainOptions"]["properties"]
    _name(schema["properties"], "model", tables.get("model"))
    _name(train, "G_optimizer_type", tables.get("optimizer"))
    _name(train, "G_scheduler_type", tables.get("schedule"))
    _name(train, "G_lossfn_type", tables.get("loss"))
    _name({"metrics": definitions["ValOptions"]["properties"]["metrics"]["items"]}, "metrics", tables.get("metric"))
    _loss_arguments(definitions, tables.get("loss"))
    _datasets(schema, definitions)
    _choice(definitions, "NetOptions", "net_type", tables.get("network"))
    _choice(definitions, "TransformOptions", "type", tables.get("transform"))
    _choice(definitions, "FallbackOptions", "dataset_type", tables.get("fallback"))
    for name in ("DatasetOptions", "TestDatasetOptions"):
        _choice(definitions, name, "dataset_type", tables.get("dataset"))
    _kair_keys(schema, definitions)
    return schema


def _name(properties: Schema, key: str, table: Table | None) -> None:
    if table is not None:
        properties[key]["enum"] = list(table)


def _datasets(schema: Schema, definitions: Schema) -> None:
    """datasets.train, and test* as a variant that inherits from it."""
    definitions["TestDatasetOptions"] = test = copy.deepcopy(definitions["DatasetOptions"])
    test |= {"title": "TestDatasetOptions", "required": []}
    definitions["DatasetOptions"]["required"] = ["dataset_type", "dataloader_batch_size"]
    schema["properties"]["datasets"] |= {
        "properties": {"train": {"$ref": "#/$defs/DatasetOptions"}},
        "patternProperties": {"^test": {"$ref": "#/$defs/TestDatasetOptions"}},
        "required": ["train"],
        "additionalProperties": False,
    }


def _choice(definitions: Schema, section: str, key: str, table: Table | None) -> None:
    """The names of a section's table and, for each name, its constructor arguments and no other key."""
    if table is None:
        return
    schema = definitions[section]
    _name(schema["properties"], key, table)
    del schema["additionalProperties"]
    branches = [
        {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": _arguments(definitions, table, name)}
        for name in table
    ]
    if key not in schema["required"]:  # inherited: the arguments of any
        each = [_arguments(definitions, table, name).get("properties", {}) for name in table]
        inherited = {argument: _any_of([a[argument] for a in each if argument in a]) for a in each for argument in a}
        branches.append({"if": {"not": {"required": [key]}}, "then": {"properties": inherited}})
    schema |= {"allOf": branches, "unevaluatedProperties": False}


def _any_of(schemas: list[Schema]) -> Schema:
    """What any of these allows; several names may mean different things by one argument."""
    different = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def _loss_arguments(definitions: Schema, table: Table | None) -> None:
    if table is None:
        return
    definitions["TrainOptions"]["allOf"] = [
        {
            "if": {"properties": {"G_lossfn_type": {"const": name}}, "required": ["G_lossfn_type"]},
            "then": {"properties": {"G_lossfn_args": _arguments(definitions, table, name, closed=True)}},
        }
        for name in table
    ]


def _arguments(definitions: Schema, table: Table, name: str, closed: bool = False) -> Schema:
    """The arguments of one entry; `closed`: no other keys stand beside them."""
    schema = table.arguments(name).model_json_schema(schema_generator=_Lenient)
    definitions |= schema.pop("$defs", {})
    takes_any = schema.pop("additionalProperties", False) is not False
    if takes_any or closed:
        schema["additionalProperties"] = takes_any
    if documentation := inspect.getdoc(table[name]):
        schema["description"] = documentation.splitlines()[0]
    return {key: value for key, value in schema.items() if key not in ("title", "type")}


def _kair_keys(schema: Schema, definitions: Schema) -> None:
    """KAIR's keys of no effect: accepted, struck out."""
    sections = {
        "": [schema],
        "path": [definitions["PathOptions"]],
        "datasets": [definitions["DatasetOptions"], definitions["TestDatasetOptions"]],
        "netG": [definitions["NetOptions"]],
        "train": [definitions["TrainOptions"]],
    }
    for path, replacement in KAIR_KEYS.items():
        section, _, key = path.rpartition(".")
        for target in sections[section.partition(".")[0]]:
            target["properties"][key] = {"deprecated": True, "description": f"no effect here: {replacement}"}
