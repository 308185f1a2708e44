"""docs/options.md, made from the schema: `python -m tests.options_page --write` brings it up to date.

Without --write it is printed. tests/test_readme.py fails while the file holds anything else.
"""

import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tables import TABLES
from utils.utils_option import json_schema

OPTIONS_PAGE = Path(__file__).parent.parent / "docs" / "options.md"
INTRODUCTION = """\
# Options

`make schema` writes this file from the option classes; do not edit it. The README says how
[an option file is written](../README.md#options), [options/fer.json](../options/fer.json) is one with comments.
Whole numbers other than seeds go up to 10^12."""
DATASETS = "datasets.train, datasets.test, datasets.test_&lt;name&gt;"
# the table, where an option file names its entries, and the section of the schema that holds their arguments
NAMED = (
    ("network", "netG.net_type", "NetOptions"),
    ("dataset", "datasets.train.dataset_type", "DatasetOptions"),
    ("fallback", "datasets.train.fallback.dataset_type", "FallbackOptions"),
    ("transform", "datasets.train.transforms", "TransformOptions"),
    ("loss", "train.G_lossfn_type", "TrainOptions"),
    ("optimizer", "train.G_optimizer_type", ""),
    ("schedule", "train.G_scheduler_type", ""),
    ("metric", "val.metrics", ""),
    ("model", "model", ""),
)

Schema = dict[str, Any]


def options_page() -> str:
    """Every key of an option file with what it allows, its default and its meaning; then every name."""
    schema = json_schema(TABLES)
    names = "## Names\n\nWith the arguments that stand beside them (those of a loss: in `G_lossfn_args`)."
    return "\n\n".join([INTRODUCTION, *_sections(schema), names, *_names(schema)]) + "\n"


def _sections(schema: Schema) -> Iterator[str]:
    top = {key: value for key, value in schema["properties"].items() if key != "$schema"}
    sections = {key: _reference(value) for key, value in top.items()} | {"datasets": "DatasetOptions"}
    leaves = {key: value for key, value in top.items() if not sections[key]}
    yield _option_table("Top level", _rows(schema, {"properties": leaves, "required": schema["required"]}))
    for key, name in sections.items():
        if name:
            title = DATASETS if key == "datasets" else key
            yield _option_table(title, _rows(schema, schema["$defs"][name]), top[key]["description"])


def _option_table(title: str, rows: Iterable[tuple[str, ...]], meaning: str = "") -> str:
    lead = f"{_escaped(meaning[0].upper() + meaning[1:])}.\n\n" if meaning else ""
    return f"## {title}\n\n{lead}" + _table(("key", "allowed", "default", "meaning"), rows)


def _rows(schema: Schema, section: Schema, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """A row a key, and after a list or a choice of sections the rows of their keys."""
    for key, value in section["properties"].items():
        if value.get("deprecated"):
            continue
        default = _default(schema, prefix + key, value, key in section.get("required", []))
        yield f"`{prefix}{key}`", _allowed(value), default, _escaped(value["description"])
        parts = [(f"{key}.0.", value.get("items", {})), *((f"{key}.", each) for each in value.get("anyOf", []))]
        for deeper, part in parts:
            if name := _reference(part):
                yield from _rows(schema, schema["$defs"][name], prefix + deeper)


def _names(schema: Schema) -> Iterator[str]:
    for kind, where, section in NAMED:
        branches = schema["$defs"][section]["allOf"] if section else []
        arguments = dict(map(_named_arguments, branches))
        head = ("name", "arguments", "meaning") if arguments else ("name", "meaning")
        rows = []
        for name, entry in TABLES[kind].items():
            shown = ", ".join(_argument(*each) for each in arguments.get(name, {}).items())
            meaning = (inspect.getdoc(entry) or "").partition("\n\n")[0].replace("\n", " ")
            rows.append((f"`{name}`", *([shown] if arguments else []), _escaped(meaning)))
        yield f"### {where}\n\n" + _table(head, rows)


def _named_arguments(branch: Schema) -> tuple[str, Schema]:
    """The name that a branch of the schema is about, and its arguments."""
    (name,) = (each["const"] for each in branch["if"]["properties"].values())
    then = branch["then"].get("properties", {}).get("G_lossfn_args", branch["then"])
    return name, then.get("properties", {})


def _argument(name: str, schema: Schema) -> str:
    return f"`{name} = {json.dumps(schema['default'])}`" if "default" in schema else f"`{name}`: {_allowed(schema)}"


def _reference(schema: Schema) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _allowed(schema: Schema) -> str:
    """The values that a part of the schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    if "enum" in schema:
        is_table = any(list(table) == schema["enum"] for table in TABLES.values())
        return "a name, see below" if is_table else " or ".join(map(_code, schema["enum"]))
    if "const" in schema:
        return _code(schema["const"])
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_allowed(schema['prefixItems'][0])}"
    if "items" in schema:
        return f"list: {_allowed(schema['items'])}"
    words = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}
    kind = schema.get("type", "section").replace("object", "section")
    return f"{words.get(kind, kind)} {_bounds(schema)}".strip()


def _bounds(schema: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[limit]:g}" for limit, sign in signs.items() if limit in schema]
    return ", ".join(bounds).replace(", ≤ 1e+12", "").replace(f"≤ {2**63 - 1:g}", "< 2^63")


def _default(schema: Schema, key: str, value: Schema, required: bool) -> str:
    in_test = schema["$defs"]["TestDatasetOptions"]["properties"].get(key)
    if required and in_test:
        return f"required; test: {_code(in_test['default']) if 'default' in in_test else 'that of train'}"
    return "required" if required else _code(value["default"])


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _escaped(text: str) -> str:
    for letter, escaped in (("<", "&lt;"), ("|", "\\|"), ("*", "\\*")):
        text = text.replace(letter, escaped)
    return text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        OPTIONS_PAGE.write_text(options_page(), encoding="utf-8")
    else:
        print(options_page(), end="")
