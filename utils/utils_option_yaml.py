"""YAML with the scalars of YAML 1.2: 5e-4 is a number, 010 is ten, `on`, `yes` and dates are text."""

import json
import math
import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
CORE_SCALARS = {  # tag -> (pattern, the characters it can start with)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
WHOLE_NUMBERS = range(-(2**63), 2**63)  # torch takes no others
KEPT = (None, *(TAG + name for name in ("null", "bool", "str", "seq", "map")))  # None: refuses any other tag


class OptionLoader(yaml.SafeLoader):
    """SafeLoader with these scalars only; keys are text, no key twice, no infinity."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Checks the keys here because merge keys are expanded later, into the same node."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag == TAG + "merge":
                continue
            if key.tag != TAG + "str":
                raise yaml.MarkedYAMLError(problem="a key must be text; quote it", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f'"{key.value}" is given twice', problem_mark=key.start_mark)
            seen.add(key.value)
        return node

    def core_int(self, node: yaml.ScalarNode) -> int:
        digits = self.construct_scalar(node)
        number = int(digits, 0) if digits[:2] in ("0o", "0x") else int(digits)
        if number not in WHOLE_NUMBERS:
            problem = f"{node.value} is not allowed; it is too large for a whole number"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return number

    def core_float(self, node: yaml.ScalarNode) -> float:
        number = float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            problem = f"{node.value} is not allowed; give a finite number or null"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return number


OptionLoader.yaml_implicit_resolvers = {}
OptionLoader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in KEPT}
for _name, (_pattern, _first) in CORE_SCALARS.items():
    OptionLoader.add_implicit_resolver(TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
OptionLoader.add_constructor(TAG + "int", OptionLoader.core_int)
OptionLoader.add_constructor(TAG + "float", OptionLoader.core_float)


def load_yaml(text: str) -> Any:
    """The JSON values in a YAML text; yaml.YAMLError or ValueError if it has none."""
    # by way of JSON: anchors become copies, and a value that contains itself is found
    return json.loads(json.dumps(yaml.load(text, OptionLoader)))


def plain_scalar(text: str) -> Any:
    """`text` as one unquoted YAML scalar, whatever signs it contains."""
    for name, (pattern, _) in CORE_SCALARS.items():
        if name != "merge" and re.fullmatch(pattern, text):
            return load_yaml(text)
    return text
