"""What pydantic finds wrong with options, in plain words: path, value, what is allowed, the nearest known key."""

import difflib
import inspect
import json
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Path = tuple[int | str, ...]

ALLOWED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "string_type": lambda _: "text",
    "string_too_short": lambda _: "text that is not empty",
    "bool_type": lambda _: "true or false",
    "list_type": lambda _: "a list",
    "tuple_type": lambda _: "a list",
    "dict_type": lambda _: "a section {...}",
    "model_type": lambda _: "a section {...}",
    "none_required": lambda _: "null",
    "literal_error": lambda limit: str(limit["expected"]).replace("'", '"'),
    "greater_than": lambda limit: f"greater than {limit['gt']:g}",
    "greater_than_equal": lambda limit: f"at least {limit['ge']:g}",
    "less_than": lambda limit: f"less than {limit['lt']:g}",
    "less_than_equal": lambda limit: f"at most {limit['le']:g}",
    "multiple_of": lambda limit: f"a multiple of {limit['multiple_of']}",
    "too_short": lambda limit: f"a list of at least {limit['min_length']}",
    "too_long": lambda limit: f"a list of at most {limit['max_length']}",
    "callable_type": lambda _: "a function, which an option file cannot give",
}


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def shown(value: object) -> str:
    """A value as the user writes it, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 70 else text[:67] + "..."


def dotted(*parts: int | str) -> str:
    return ".".join(str(part) for part in parts if part != "")


def nearest(name: str, known: Collection[str], words: str = '; did you mean "{}"?') -> str:
    """The `words` about the known name that is near, or "" if none is."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return words.format(by_lower[close[0]]) if close else ""


def explain(
    error: ValidationError, given: Any, model: type[BaseModel], prefix: str = "", also: Collection[str] = ()
) -> list[str]:
    """One line per mistake that `model` found in `given`; `also`: further keys that stand beside those of `model`."""
    groups: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        groups.setdefault(_real_path(detail, given), []).append(detail)
    # of a union's branches, the one that got further into the value is the one the user meant
    furthest = [path for path in groups if not any(path == other[: len(path)] for other in groups if other != path)]
    return [
        f"{dotted(prefix, *path) or 'options'}: {_sentence(path, groups[path], given, model, also)}"
        for path in furthest
    ]


def _sentence(
    path: Path, details: Sequence[ErrorDetails], given: Any, model: type[BaseModel], also: Collection[str]
) -> str:
    kind, value = details[0]["type"], details[0]["input"]
    if kind == "json_invalid":  # JSON that we wrote: only depth and half a character can be wrong with it
        if "recursion" in str(details[0]["ctx"]["error"]):
            return "nested too deeply"
        return "a text holds half of a surrogate pair (\\ud800 to \\udfff); write the character itself"
    field = _field_at(model, path)
    if kind == "extra_forbidden":
        known = [*_known_keys(model, path[:-1]), *also]
        few = f"known: {', '.join(known)}" if known else "none is known here: remove it"
        listed = few if len(known) <= 15 else "options/schema.json has the known ones"
        return "unknown key" + (_elsewhere(model, path) or nearest(str(path[-1]), known) or f"; {listed}")
    if kind == "missing" and not isinstance(value, list):
        misspelt = [key for key in _value_at(given, path[:-1]) if key not in _known_keys(model, path[:-1])]
        meaning = f"; {field.description}" if field and field.description else ""
        return "missing" + nearest(str(path[-1]), misspelt, '; misspelt as "{}"') + meaning
    if kind == "missing":  # an element of a list of fixed length
        return f"{shown(value)} is not allowed: must be a list of {int(details[-1]['loc'][-1]) + 1}"
    if kind == "value_error":
        return str(details[0]["ctx"]["error"])
    allowed = list(dict.fromkeys(_allowed(detail) for detail in details))
    if field is not None and type(None) in get_args(field.annotation):
        allowed.append("null")
    return f"{shown(value)} is not allowed: must be {' or '.join(allowed)}{_how_to_write(value, details)}"


def _how_to_write(value: Any, details: Sequence[ErrorDetails]) -> str:
    """What else to say of a value that is the right one in another form; "" of any other."""
    kinds = {detail["type"] for detail in details}
    if isinstance(value, float) and "int_type" in kinds:
        return "; write it without point and exponent"
    is_number = isinstance(value, str) and _NUMBER.fullmatch(value) and kinds & {"int_type", "float_type"}
    return "; write it without quotes" if is_number or (value in ("true", "false") and "bool_type" in kinds) else ""


def _elsewhere(model: type[BaseModel], path: Path) -> str:
    """The words about another section that has such a key, or "" if none has."""
    sections = {name: _bare(field.annotation) for name, field in model.model_fields.items()}
    has = [name for name, section in sections.items() if _is_model(section) and path[-1] in section.model_fields]
    return f'; did you mean "{has[0]}.{path[-1]}"?' if has else ""


def _allowed(detail: ErrorDetails) -> str:
    if phrase := ALLOWED.get(detail["type"]):
        return phrase(detail.get("ctx", {}))
    return detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _real_path(detail: ErrorDetails, given: Any) -> Path:
    """The location without the branch names that pydantic adds inside a union."""
    path: list[int | str] = []
    for depth, part in enumerate(detail["loc"], start=1):
        is_key = isinstance(given, dict) and part in given
        is_index = isinstance(given, list) and isinstance(part, int) and part < len(given)
        if is_key or is_index:
            given = given[part]
            path.append(part)
        elif isinstance(given, dict) and depth == len(detail["loc"]) and detail["type"] in ("missing", "value_error"):
            path.append(part)
    return tuple(path)


def _value_at(given: Any, path: Path) -> Any:
    for part in path:
        given = given[part]
    return given


def _known_keys(model: type[BaseModel], path: Path) -> list[str]:
    section = _section_at(model, path)
    return [field.alias or name for name, field in section.model_fields.items()] if section else []


def _field_at(model: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field that `path` names inside `model`, if it names one."""
    owner = _section_at(model, path[:-1])
    if owner is None or not path:
        return None
    return next((field for name, field in owner.model_fields.items() if path[-1] in (field.alias, name)), None)


def _section_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    current: Any = model
    for part in path:
        if not _is_model(current):
            arguments = get_args(current)  # of dict[str, X] or tuple[X, ...]
            current = _bare(arguments[1] if get_origin(current) is dict else arguments[0]) if arguments else None
        elif part in current.model_fields:
            current = _bare(current.model_fields[part].annotation)
        else:
            return None
    return current if _is_model(current) else None


def _is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def _bare(annotation: Any) -> Any:
    """X of X | None; any other annotation as it is."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    options = [option for option in get_args(annotation) if option is not type(None)]
    return options[0] if len(options) == 1 else annotation
