"""Table: names and constructor arguments are checked against signatures, in plain words."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from utils.utils_error import UserError
from utils.utils_table import Table


class Net:
    def __init__(self, widths: tuple[int, ...] = (8, 16), dropout: float = 0.0, num_classes: int = 7) -> None:
        self.given = {"widths": widths, "dropout": dropout, "num_classes": num_classes}


def wide(size: int, mode: Literal["a", "b"] | None = None, **others: Any) -> dict[str, Any]:
    return {"size": size, "mode": mode, **others}


def odd(copy: bool, _hidden: int = 1, tensor: "ForTypeCheckersOnly" = None) -> tuple[Any, ...]:  # noqa: F821
    return copy, _hidden, tensor


@pytest.fixture
def networks() -> Table:
    return Table("network", {"fer_resnet": Net, "fer_vgg": Net, "wide": wide}, supplied={"num_classes"})


def test_it_is_a_mapping_of_its_entries(networks: Table) -> None:
    assert list(networks) == ["fer_resnet", "fer_vgg", "wide"]
    assert networks["fer_resnet"] is Net
    assert len(networks) == 3


def test_a_wrong_name_brings_the_nearest_and_all_known(networks: Table) -> None:
    (line,) = networks.mistakes("netG.net_type", "fer_resnt", {"widths": "unread"})
    assert line == (
        'netG.net_type: "fer_resnt" is not a network; did you mean "fer_resnet"? known: fer_resnet, fer_vgg, wide'
    )
    assert networks.unknown("model", 5) == "model: 5 is not a network; known: fer_resnet, fer_vgg, wide"
    assert Table("optimizer", {}).unknown("x", "y") is not None
    assert "an optimizer" in str(Table("optimizer", {"adam": Net}).unknown("x", "sdg"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"width": [1]}, 'netG.width: unknown key; did you mean "widths"?'),
        ({"zzz": 1}, "netG.zzz: unknown key; known: widths, dropout"),
        ({"widths": 8}, "netG.widths: 8 is not allowed: must be a list"),
        ({"widths": [1, "2"]}, 'netG.widths.1: "2" is not allowed: must be a whole number'),
        ({"widths": [1, 2.5]}, "netG.widths.1: 2.5 is not allowed: must be a whole number"),
        ({"dropout": True}, "netG.dropout: true is not allowed: must be a number"),
        ({"dropout": "0.1"}, 'netG.dropout: "0.1" is not allowed: must be a number'),
        ({"num_classes": 3}, "netG.num_classes: the trainer gives this argument to every network; remove it"),
    ],
)
def test_a_wrong_argument_is_refused(networks: Table, arguments: dict[str, Any], line: str) -> None:
    (mistake,) = networks.mistakes("netG.net_type", "fer_resnet", arguments)
    assert mistake.startswith(line)


def test_all_wrong_arguments_at_once_under_their_own_prefix(networks: Table) -> None:
    lines = networks.mistakes("train.G_lossfn_type", "fer_vgg", {"dropout": "x", "widhts": 1}, "train.G_lossfn_args")
    assert [line.partition(":")[0] for line in lines] == ["train.G_lossfn_args.dropout", "train.G_lossfn_args.widhts"]


def test_keys_that_stand_beside_the_arguments_are_suggested(networks: Table) -> None:
    (line,) = networks.mistakes("d.t", "fer_vgg", {"dataroto": 1}, also=["dataroot"])
    assert line == 'd.dataroto: unknown key; did you mean "dataroot"?'


def test_a_missing_argument_is_named(networks: Table) -> None:
    assert networks.mistakes("netG.net_type", "wide", {}) == ["netG.size: missing; wide needs it"]


def test_a_choice_of_literals_is_spelled_out(networks: Table) -> None:
    (line,) = networks.mistakes("netG.net_type", "wide", {"size": 1, "mode": "c"})
    assert line == 'netG.mode: "c" is not allowed: must be "a" or "b" or null'


def test_of_a_union_the_branch_that_fits_best_is_explained() -> None:
    def normalize(mean: float | list[float]) -> None: ...

    table = Table("transform", {"normalize": normalize})
    assert table.mistakes("t.type", "normalize", {"mean": [1, "2"]}) == [
        't.mean.1: "2" is not allowed: must be a number; write it without quotes'
    ]
    assert table.mistakes("t.type", "normalize", {"mean": "2"}) == [
        't.mean: "2" is not allowed: must be a number or a list; write it without quotes'
    ]


def test_keyword_arguments_allow_any_key(networks: Table) -> None:
    assert networks.mistakes("netG.net_type", "wide", {"size": 1, "more": [1]}) == []
    assert networks.build("wide", {"size": 1, "more": [1]}) == {"size": 1, "mode": None, "more": [1]}


def test_build_converts_and_adds_what_the_entry_takes(networks: Table) -> None:
    net = networks.build("fer_resnet", {"widths": [1, 2], "dropout": 1}, num_classes=9, device="cpu")
    assert net.given == {"widths": (1, 2), "dropout": 1.0, "num_classes": 9}
    assert type(net.given["dropout"]) is float


def test_build_leaves_defaults_to_the_entry(networks: Table) -> None:
    assert networks.build("fer_resnet", {}).given == {"widths": (8, 16), "dropout": 0.0, "num_classes": 7}


def test_build_refuses_what_mistakes_refuses(networks: Table) -> None:
    with pytest.raises(UserError, match="widths: 3 is not allowed"):
        networks.build("fer_resnet", {"widths": 3})
    with pytest.raises(UserError, match="not a network"):
        networks.build("resnet", {})


def test_names_that_pydantic_keeps_and_types_it_cannot_read() -> None:
    table = Table("thing", {"odd": odd})
    assert table.build("odd", {"copy": True, "_hidden": 4, "tensor": "any"}) == (True, 4, "any")
    (line,) = table.mistakes("x.type", "odd", {"copy": 1, "tensor": None})
    assert line == "x.copy: 1 is not allowed: must be true or false"


def test_an_unreadable_type_accepts_anything() -> None:
    class Tensor: ...

    def weighted(weight: Tensor | None = None) -> object:
        return weight

    assert Table("loss", {"weighted": weighted}).build("weighted", {"weight": [1.0, 2.0]}) == [1.0, 2.0]


def test_a_function_cannot_come_from_a_file() -> None:
    def with_norm(norm: Callable[[], int] = int) -> None: ...

    (line,) = Table("network", {"n": with_norm}).mistakes("netG.net_type", "n", {"norm": "int"})
    assert "which an option file cannot give" in line


def test_partials_dataclasses_and_sequences() -> None:
    @dataclasses.dataclass
    class Step:
        sizes: Sequence[int]
        scale: float = 1.0

    table = Table("step", {"partial": functools.partial(wide, mode="b"), "class": Step})
    assert table.build("partial", {"size": 2}) == {"size": 2, "mode": "b"}
    assert table.build("class", {"sizes": [1, 2], "scale": 3}) == Step([1, 2], 3.0)
    assert table.mistakes("type", "class", {"sizes": "12"}) != []


def test_the_arguments_model_is_strict_made_once_and_keeps_defaults(networks: Table) -> None:
    model = networks.arguments("fer_resnet")
    assert model is networks.arguments("fer_resnet")
    assert model.model_fields["widths"].default == (8, 16)
    assert "num_classes" not in model.model_fields
    with pytest.raises(ValidationError):
        model.model_validate_json('{"dropout": "0"}')
