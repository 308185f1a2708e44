"""Option files as plain mappings: JSON with comments, YAML with YAML-1.2 numbers, and --set on top of either."""

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from utils.utils_error import UserError
from utils.utils_option_yaml import WHOLE_NUMBERS, load_yaml, plain_scalar

COMMENT_OR_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/|/\*', re.DOTALL)
NUMBER_OR_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|-?[\w.+-]+')
COMMA_OR_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|(?<=[^\s\[{,:])(\s*),(?=\s*[}\]])')

_ESCAPE = "a \\ in a text is written \\\\; paths may have / instead"
_JSON_MISTAKES = {  # how json's messages begin, and the same for people
    "Invalid control character": 'this text has no closing "',
    "Unterminated string": 'this text has no closing "',
    "Invalid \\": _ESCAPE,
    "Expecting ',' delimiter": "a comma is missing before this, or a bracket is not closed before it",
    "Expecting ':' delimiter": "a colon is missing before this",
    "Expecting property name": "a key must stand here, in double quotes",
    "Expecting value": 'a value must stand here: a number, "text", true, false, null, [...] or {...}',
    "Extra data": "the options end before this; is there a closing bracket too many?",
}
_YAML_MISTAKES = {  # a part of PyYAML's messages, and the same for people
    "'\\t'": "a tab; YAML is indented with spaces",
    "mapping values are not allowed": "no colon may stand here; in this line or the one before, is the "
    "indentation different, a space missing after a colon, or a text with a colon not in quotes?",
    "expected '<document start>'": "a line before this has no key; write `key: value`, with a space after the colon",
    "expected <block end>": "this line is indented differently from its neighbours, or belongs to nothing before it",
    "could not find expected ':'": "a colon and a space are missing after a key; write `key: value`",
    "expected ',' or": "a comma is missing before this, or a bracket is not closed before it",
    "unknown escape character": _ESCAPE + ", or stand in single quotes",
}


class _NumberError(ValueError):
    """A number that is not allowed: its text in the file, and the reason."""


def read_option_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a .json, .yaml or .yml file; what is wrong with its text is a UserError at file:line:column."""
    path = Path(path)
    readers = {".json": _parse_json, ".yaml": _parse_yaml, ".yml": _parse_yaml}
    if (reader := readers.get(path.suffix.lower())) is None:
        raise UserError(f"{path}: an option file ends in {', '.join(readers)}")
    text = _read_text(path)
    try:
        options = reader(text, str(path))
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    if not isinstance(options, dict):
        found = "nothing" if options is None else f"a {type(options).__name__}"
        raise UserError(f"{path}: must hold a mapping of option keys, but holds {found}")
    return options


def apply_overrides(options: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `options` with each KEY.PATH=VALUE of --set applied in turn; values are typed as in YAML."""
    options = copy.deepcopy(options)
    mistakes = []
    for override in overrides:
        try:
            _apply(options, override)
        except UserError as mistake:
            mistakes.append(f"--set {override}: {mistake}")
        except RecursionError:
            mistakes.append(f"--set {override[:60]}...: nested too deeply")
    if mistakes:
        raise UserError("\n".join(mistakes))
    return options


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such option file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not an option file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{path}: is empty")
    return text


def _refuse(source: str, text: str, position: int, reason: str) -> NoReturn:
    """Raise at file:line:column, with the line and a mark below the column."""
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1)
    shown = text.split("\n")[line - 1].rstrip("\r").replace("\t", " ")
    raise UserError(f"{source}:{line}:{column + 1}: {reason}\n    {shown}\n    {' ' * column}^")


def _plainly(message: str, mistakes: Mapping[str, str]) -> str:
    """A parser's message in plain words, or as it is where it is not known."""
    known = (words for part, words in mistakes.items() if part in message)
    return next(known, message[:1].lower() + message[1:])


def _parse_json(text: str, source: str) -> Any:
    cleaned = _without_comments(text, source)
    if not cleaned.strip():
        return None  # as YAML says it
    duplicates: list[tuple[dict[str, Any], str]] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                duplicates.append((result, key))
            result[key] = value
        return result

    try:
        options = json.loads(
            cleaned, object_pairs_hook=mapping, parse_constant=_refuse_constant, parse_float=_finite_float,
            parse_int=_whole_number,
        )  # fmt: skip
    except json.JSONDecodeError as error:
        if error.pos >= len(content := cleaned.rstrip()):
            _refuse(source, text, len(content), "the file ends here, and a bracket is not closed")
        if text[error.pos] == "#":
            _refuse(source, text, error.pos, "a comment in JSON begins with //")
        _refuse(source, text, error.pos, _plainly(error.msg, _JSON_MISTAKES))
    except _NumberError as error:
        number, reason = error.args
        found = next(each for each in NUMBER_OR_STRING.finditer(cleaned) if each.group().startswith(number))
        _refuse(source, text, found.start(), reason)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if twice := _paths_of(options, {id(section): key for section, key in duplicates}):
        raise UserError(f"{source}: given twice in the same section: {', '.join(twice)}")
    return options


def _without_comments(text: str, source: str) -> str:
    """Blanks for comments and trailing commas, so that every position still refers to the user's file."""

    def blank(match: re.Match[str]) -> str:
        token = match.group()
        if token == "/*":
            _refuse(source, text, match.start(), "this comment has no closing */")
        return token if token.startswith('"') else re.sub(r"[^\n]", " ", token)

    def blank_comma(match: re.Match[str]) -> str:
        return match.group() if match.group(1) is None else match.group(1) + " "

    return COMMA_OR_STRING.sub(blank_comma, COMMENT_OR_STRING.sub(blank, text))


def _refuse_constant(name: str) -> NoReturn:
    raise _NumberError(name, f"{name} is not allowed; give a finite number or null")


def _finite_float(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise _NumberError(digits, f"{digits} is not allowed; it is too large for a number")
    return number


def _whole_number(digits: str) -> int:
    if (number := int(digits)) not in WHOLE_NUMBERS:
        raise _NumberError(digits, f"{digits} is not allowed; it is too large for a whole number")
    return number


def _paths_of(value: Any, marked: dict[int, str], path: str = "") -> list[str]:
    """The dotted paths of the marked keys; `marked` maps the id of a mapping to one of its keys."""
    if isinstance(value, dict):
        here = [f"{path}{marked[id(value)]}"] if id(value) in marked else []
        return here + [found for key, item in value.items() for found in _paths_of(item, marked, f"{path}{key}.")]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _paths_of(item, marked, f"{path}{index}.")]
    return []


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = "; ".join(part for part in (error.context, error.problem) if part)
        is_json = "; a JSON file with comments ends in .json" * text.lstrip().startswith(("{", "//"))
        _refuse(source, text, mark.index if mark else 0, _plainly(reason, _YAML_MISTAKES) + is_json)
    except yaml.reader.ReaderError as error:
        _refuse(source, text, error.position, f"the character {text[error.position]!r} is not allowed in YAML")
    except KeyError as error:  # !!bool abc
        raise UserError(f"{source}: {error} is not of the kind that its tag says") from None
    except OverflowError:  # "\\UFFFFFFFF"
        raise UserError(f"{source}: there is no character after \\U0010FFFF") from None
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _apply(options: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals:
        raise UserError("has no '='; give KEY.PATH=VALUE")
    if not all(parts):
        raise UserError("an empty part in the key; give KEY.PATH=VALUE")
    *sections, last = parts
    value = _parse_value(text.strip())
    current: Any = options
    for depth, part in enumerate(sections):
        key = _key(current, part, parts[:depth])
        if isinstance(current, dict) and current.get(part) is None:
            current[part] = {}
        current = current[key]
    current[_key(current, last, sections)] = value


def _key(container: Any, part: str, path: list[str]) -> Any:
    """`part` as a key of a mapping, or as an index of a list that has it."""
    where = ".".join(path)
    if isinstance(container, dict):
        return part
    if not isinstance(container, list):
        raise UserError(f"{where} is {json.dumps(container)}, not a section")
    if not part.isdecimal() or int(part) >= len(container):
        allowed = f"0 to {len(container) - 1}" if container else "nothing, it is empty"
        raise UserError(f"{where} is a list; {part} is not an index into it: must be {allowed}")
    return int(part)


def _parse_value(text: str) -> Any:
    """A list, mapping or quoted text as in YAML; anything else is one plain scalar, whatever signs it contains."""
    if text[:1] in ("[", "{", '"', "'"):
        try:
            return _parse_yaml(text, "VALUE")
        except UserError as mistake:
            raise UserError(f"{mistake}\n    if it is plain text, quote it: KEY.PATH='\"...\"'") from None
    try:
        return plain_scalar(text)
    except (yaml.MarkedYAMLError, ValueError) as error:
        raise UserError(getattr(error, "problem", None) or str(error)) from None
