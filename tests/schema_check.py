"""A validator for the part of JSON Schema that options/schema.json uses; any other keyword fails the test."""

import re
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

NOTES = {"$schema", "$defs", "title", "description", "default", "deprecated"}
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": int | float,
    "null": type(None),
}
RULES: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, kind: isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)),
    "enum": lambda value, allowed: value in allowed,
    "const": lambda value, allowed: value == allowed,
    "required": lambda value, keys: not isinstance(value, dict) or value.keys() >= set(keys),
    "minimum": lambda value, limit: not isinstance(value, int | float) or value >= limit,
    "maximum": lambda value, limit: not isinstance(value, int | float) or value <= limit,
    "exclusiveMinimum": lambda value, limit: not isinstance(value, int | float) or value > limit,
    "exclusiveMaximum": lambda value, limit: not isinstance(value, int | float) or value < limit,
    "minItems": lambda value, limit: not isinstance(value, list) or len(value) >= limit,
    "maxItems": lambda value, limit: not isinstance(value, list) or len(value) <= limit,
    "minLength": lambda value, limit: not isinstance(value, str) or len(value) >= limit,
}
APPLIED = {"$ref", "anyOf", "allOf", "not", "items", "prefixItems", "properties", "patternProperties"}
CLOSED = {"additionalProperties", "unevaluatedProperties"}


def mistakes(value: Any, root: Schema) -> list[str]:
    """What the schema says against `value`; empty if it is valid."""
    return _check(value, root, root, "options")[0]


def _check(value: Any, schema: Schema, root: Schema, path: str) -> tuple[list[str], set[str]]:
    """The mistakes in a value, and the keys of it that the schema knows."""
    assert schema.keys() <= NOTES | RULES.keys() | APPLIED | CLOSED, f"cannot check {schema.keys()}"
    found = [f"{path}: {rule}" for rule, holds in RULES.items() if rule in schema and not holds(value, schema[rule])]
    known: set[str] = set()

    def apply(part: Any, other: Schema, where: str) -> None:
        more, keys = _check(part, other, root, where)
        found.extend(more)
        if where == path:
            known.update(keys)

    if "$ref" in schema:
        apply(value, root["$defs"][schema["$ref"].rpartition("/")[2]], path)
    for branch in schema.get("allOf", ()):
        if not _check(value, branch["if"], root, path)[0]:
            apply(value, branch["then"], path)
    if "anyOf" in schema and all(_check(value, each, root, path)[0] for each in schema["anyOf"]):
        found.append(f"{path}: anyOf")
    if "not" in schema and not _check(value, schema["not"], root, path)[0]:
        found.append(f"{path}: not")
    for index, item in enumerate(value if isinstance(value, list) else ()):
        first = schema.get("prefixItems", [])
        apply(item, first[index] if index < len(first) else schema.get("items", {}), f"{path}.{index}")
    for key, item in value.items() if isinstance(value, dict) else ():
        for other in _about(key, schema):
            known.add(key)
            apply(item, other, f"{path}.{key}")
    if isinstance(value, dict) and any(schema.get(closed) is False for closed in CLOSED):
        found += [f"{path}.{key}: unknown" for key in value.keys() - known]
    return found, known


def _about(key: str, schema: Schema) -> list[Schema]:
    named = {name: each for name, each in schema.get("properties", {}).items() if name == key}
    patterns = {name: each for name, each in schema.get("patternProperties", {}).items() if re.search(name, key)}
    return [*named.values(), *patterns.values()]
