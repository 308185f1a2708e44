"""Option files and --set: comments, numbers, duplicates, and positions that refer to the user's text."""

import json
from pathlib import Path
from typing import Any

import pytest

from utils.utils_error import UserError
from utils.utils_option_file import apply_overrides, read_option_file


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "options.json") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_option_file(path)
    return str(caught.value)


# JSON


def test_comments_go_and_strings_stay(write: Any) -> None:
    path = write(
        '{ // a comment, with "quotes" and /* this\n'
        '  "url": "http://host//path", /* two\n lines, // and this */ "glob": "a/*b*/c",\n'
        '  "quote": "say \\"// no comment\\" /*", "backslash": "C:\\\\", // "ghost": 1,\n'
        '  "list": [1, 2, /* three */],\n'
        "}"
    )
    assert read_option_file(path) == {
        "url": "http://host//path",
        "glob": "a/*b*/c",
        "quote": 'say "// no comment" /*',
        "backslash": "C:\\",
        "list": [1, 2],
    }


def test_a_comma_in_a_string_is_no_trailing_comma(write: Any) -> None:
    assert read_option_file(write('{"a": ",]", "b": [",", "x,}"]}')) == {"a": ",]", "b": [",", "x,}"]}


@pytest.mark.parametrize("text", ["\ufeff{}", "{}\n// end", "/**/{}", "{\r\n}\r\n"])
def test_byte_order_mark_and_surroundings(write: Any, text: str) -> None:
    assert read_option_file(write(text)) == {}


@pytest.mark.parametrize(
    ("text", "position", "line"),
    [
        ('{\n  // one\n  "a": 1\n  "b": 2\n}', "4:3", '  "b": 2\n      ^'),
        ('{ /* x\n y */ "a": , }', "2:12", ' y */ "a": , }'),
        ('{"a": [1, , 2]}', "1:11", '{"a": [1, , 2]}'),
        ('{"a": [,]}', "1:8", '{"a": [,]}'),
        ('{"a": 010}', "1:8", '{"a": 010}'),
        ("{'a': 1}", "1:2", "{'a': 1}"),
        ('{"a": "open\n}', "1:12", '{"a": "open'),
        ('{"a": 1}\n{}', "2:1", "{}"),
        ('\n  {"a": 1 /* open }', "2:11", '  {"a": 1 /* open }'),
    ],
)
def test_a_syntax_error_is_shown_where_the_user_made_it(write: Any, text: str, position: str, line: str) -> None:
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{path}:{position}: ")
    assert f"\n    {line}" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1 "b": 2}', ":1:9: a comma is missing before this, or a bracket is not closed before it"),
        ('{"a" 1}', ":1:6: a colon is missing before this"),
        ("{'a': 1}", ":1:2: a key must stand here, in double quotes"),
        ('{"a": True}', ':1:7: a value must stand here: a number, "text", true, false, null'),
        ('{"a": "C:\\data"}', ":1:10: a \\ in a text is written \\\\; paths may have / instead"),
        ('{"a": "C:\\users"}', ":1:11: a \\ in a text is written \\\\; paths may have / instead"),
        ('{"a": {"b": 1}\n\n', ":1:15: the file ends here, and a bracket is not closed"),
        ('{"a": 1}}', ":1:9: the options end before this; is there a closing bracket too many?"),
        ('{\n# a comment\n"a": 1}', ":2:1: a comment in JSON begins with //"),
        ('{"NaN": "NaN",\n "a": NaN}', ":2:7: NaN is not allowed; give a finite number or null"),
        ('{"a": [1, -1e999]}', ":1:11: -1e999 is not allowed; it is too large for a number"),
        ('{"a": [9223372036854775807, 9223372036854775808]}', ":1:29: 9223372036854775808 is not allowed; it is too"),
        ('{"NaNs": 1, "a": NaNs}', ":1:18: NaN is not allowed; give a finite number or null"),
        ('{"a": 1e999abc}', ":1:7: 1e999 is not allowed; it is too large for a number"),
    ],
)
def test_a_mistake_in_json_is_said_in_plain_words(write: Any, text: str, reason: str) -> None:
    path = write(text)
    assert refusal(path).startswith(f"{path}{reason}")


def test_an_open_comment_is_named(write: Any) -> None:
    assert "this comment has no closing */" in refusal(write('{ /* "a": 1 }'))


def test_duplicate_keys_are_named_by_path(write: Any) -> None:
    message = refusal(write('{"train": {"lr": 1, "lr": 2}, "list": [{"a": 1, "a": 1}], "b": 1}'))
    assert message.endswith("given twice in the same section: train.lr, list.0.a")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_only_finite_numbers(write: Any, number: str) -> None:
    assert f"{number} is not allowed" in refusal(write(f'{{"a": {number}}}'))


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1e-4", 1e-4),
        ("1.e-3", 1e-3),
        (".5", 0.5),
        ("-.5E+1", -5.0),
        ("1e3", 1000.0),
        ("+3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0xff", 255),
        ("007.5", 7.5),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0b1", "0b1"),
        ("e5", "e5"),
        (".", "."),
        ("-", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2020-01-02", "2020-01-02"),
        ("2020-01-02 03:04:05", "2020-01-02 03:04:05"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("a/path with [brackets]", "a/path with [brackets]"),
    ],
)
def test_yaml_scalars_are_those_of_yaml_12(write: Any, text: str, value: object) -> None:
    if text == "-":
        value = [None]  # a block list with one empty element
        text = "\n  -"
    read = read_option_file(write(f"a: {text}\n", "options.yaml"))["a"]
    assert read == value
    assert type(read) is type(value)


def test_yaml_anchors_and_merge_keys_become_copies(write: Any) -> None:
    path = write("a: &a {x: 1, y: 2}\nb: {c: &b {<<: *a, x: 3}}\nd: {<<: *b, z: 4}\ne: *a\n", "o.yml")
    options = read_option_file(path)
    assert options["b"]["c"] == {"x": 3, "y": 2}
    assert options["d"] == {"x": 3, "y": 2, "z": 4}
    assert options["e"] == options["a"]
    assert options["e"] is not options["a"]


@pytest.mark.parametrize(
    ("text", "position", "part"),
    [
        ("a: 1\nb:\n\tc: 2\n", "3:1", "a tab; YAML is indented with spaces"),
        ("a: 1\na: 2\n", "2:1", '"a" is given twice'),
        ("a: {b: 1, c: 2, b: 3}\n", "1:17", '"b" is given twice'),
        ("a: [1, 2\nb: 3\n", "2:2", "a comma is missing before this, or a bracket is not closed before it"),
        ("a:\n b: x\n  c: 1\n", "3:4", "in this line or the one before, is the indentation different"),
        ("a:\n  b: 1\n c: 2\n", "3:2", "this line is indented differently from its neighbours"),
        ("a:1\nb: 2\n", "2:2", "a space missing after a colon"),
        ("a:1\n\nb:\n  c: 2\n", "3:2", "a space missing after a colon"),
        ("a:1 # one\nb: 2\n", "2:1", "write `key: value`, with a space after the colon"),
        ('a: "C:\\data"\n', "1:8", "a \\ in a text is written \\\\"),
        ('{\n  // one\n  "a": 1\n}\n', "3:6", "a JSON file with comments ends in .json"),
        ("a: 1\n 1: 2\n", "2:", ""),
        ("1: 2\n", "1:1", "a key must be text; quote it"),
        ("a: .nan\n", "1:4", ".nan is not allowed"),
        ("a: -.inf\n", "1:4", "-.inf is not allowed"),
        ("a: 1e999\n", "1:4", "1e999 is not allowed"),
        ("a: [-9223372036854775808, 0xffffffffffffffff]\n", "1:27", "0xffffffffffffffff is not allowed; it is too"),
        ("a: !!python/object:os.system x\n", "1:4", "could not determine a constructor"),
        ("a: !!timestamp 2020-01-01\n", "1:4", "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "2:1", "expected a single document"),
        ("a: *b\n", "1:4", "undefined alias"),
        ("a: \x07\n", "1:4", "not allowed in YAML"),
        ("a: !!bool abc\n", "", "abc"),
        ('a: "\\UFFFFFFFF"\n', "", "character"),
    ],
)
def test_yaml_errors_say_where(write: Any, text: str, position: str, part: str) -> None:
    path = write(text, "options.yaml")
    message = refusal(path)
    assert message.startswith(f"{path}:{position}")
    assert part in message


def test_yaml_that_contains_itself(write: Any) -> None:
    assert "Circular" in refusal(write("a: &a [*a]\n", "o.yaml"))


def test_what_is_no_option_file(write: Any, tmp_path: Path) -> None:
    assert "no such option file" in refusal(tmp_path / "missing.json")
    (tmp_path / "folder.json").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.json")
    assert "an option file ends in .json, .yaml, .yml" in refusal(write("{}", "options.txt"))
    assert "is empty" in refusal(write(" \n", "a.json"))
    assert "but holds nothing" in refusal(write("# only a comment\n", "a.yaml"))
    assert "but holds nothing" in refusal(write("// only\n/* comments */\n", "a.json"))
    assert "but holds a list" in refusal(write("[1]", "a.json"))
    assert "is not UTF-8 text" in refusal(write("{}".encode("utf-16"), "a.json"))
    assert "nested too deeply" in refusal(write("[" * 100_000, "a.json"))


def test_json_and_yaml_read_alike(write: Any) -> None:
    options = {"task": "grüße [1]", "train": {"lr": 5e-4, "milestones": [1, 2], "none": None, "flag": True}}
    assert read_option_file(write(json.dumps(options), "a.JSON")) == options
    assert read_option_file(write(json.dumps(options, ensure_ascii=False), "a.yaml")) == options


# --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("5e-4", 5e-4),
        ("010", 10),
        ("true", True),
        ("on", "on"),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
        ('"3"', "3"),
        ("'a b'", "a b"),
        ("a/path", "a/path"),
        ("C:\\data", "C:\\data"),
        ("a=b", "a=b"),
        ("key: value", "key: value"),
        ("a #b", "a #b"),
        ("*star", "*star"),
        ("- dash", "- dash"),
    ],
)
def test_values_are_typed_as_in_yaml_and_plain_text_is_verbatim(text: str, value: object) -> None:
    assert apply_overrides({}, [f"train.x={text}"]) == {"train": {"x": value}}


def test_overrides_reach_lists_and_make_sections_and_spare_their_input() -> None:
    options: dict[str, Any] = {"datasets": {"train": {"transforms": [{"flip": 0}, {}], "fallback": None}}}
    before = json.dumps(options)
    changed = apply_overrides(
        options,
        ["datasets.train.transforms.0.flip=0.5", "datasets.train.fallback.dataset_type=s", "val.x.y=1", "val.x.y=2"],
    )
    assert changed == {
        "datasets": {"train": {"transforms": [{"flip": 0.5}, {}], "fallback": {"dataset_type": "s"}}},
        "val": {"x": {"y": 2}},
    }
    assert json.dumps(options) == before


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.lr", "has no '='"),
        ("train..lr=1", "an empty part"),
        ("=1", "an empty part"),
        ("list.2=1", "list is a list; 2 is not an index into it: must be 0 to 1"),
        ("list.-1=1", "-1 is not an index"),
        ("list.x.y=1", "x is not an index"),
        ("none.0=1", "none is a list; 0 is not an index into it: must be nothing, it is empty"),
        ("task.x=1", 'task is "fer", not a section'),
        ("task.x.y=1", 'task is "fer", not a section'),
        ("task=[fer", "quote it"),
        ("task=[a] b", "quote it"),
        ("train.lr=.inf", ".inf is not allowed"),
        (f"train.lr={'[' * 900}{']' * 900}", "nested too deeply"),
    ],
)
def test_a_wrong_override_is_refused(override: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides({"list": [1, 2], "none": [], "task": "fer"}, [override])
    assert str(caught.value).startswith(f"--set {override[:60]}")
    assert part in str(caught.value)


def test_all_wrong_overrides_at_once() -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides({}, ["a", "b=1", "c"])
    assert len(str(caught.value).splitlines()) == 2
