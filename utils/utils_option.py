"""Option files: parse, check everything at once, save, compare."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from utils.utils_checkpoint_names import find_last_checkpoint
from utils.utils_error import UserError
from utils.utils_file import atomic_write
from utils.utils_option_file import apply_overrides, read_option_file
from utils.utils_option_kair import without_kair_keys
from utils.utils_option_mistakes import explain, nearest
from utils.utils_option_models import (
    DatasetOptions,
    FallbackOptions,
    NetOptions,
    Options,
    TrainOptions,
    ValOptions,
)
from utils.utils_option_schema import json_schema
from utils.utils_table import Table

__all__ = [
    "DatasetOptions",
    "FallbackOptions",
    "NetOptions",
    "Options",
    "TrainOptions",
    "changes",
    "find_last_checkpoint",
    "json_schema",
    "leaves",
    "parse",
    "save",
    "to_dict",
    "validate",
    "with_total_iter",
]

SECTIONS = tuple(Options.model_fields)
INHERITED = ("dataset_type", "dataroot", "fallback")


class Named(NamedTuple):
    """A name from a table at the path `where`, with the arguments at the path `prefix` and the other keys there."""

    kind: str
    where: str
    name: Any
    arguments: Any = None
    prefix: str = ""
    beside: Sequence[str] = ()


def parse(path: str | Path, overrides: Sequence[str] = (), tables: Mapping[str, Table] | None = None) -> Options:
    """The options in a JSON or YAML file with --set `overrides`, or a UserError that lists every mistake.

    tables: the names and arguments to check, by kind: model, network, dataset, fallback, transform, loss, optimizer,
    schedule, metric; a kind that is not given is not checked.
    """
    return validate(apply_overrides(read_option_file(path), overrides), str(path), tables)


def validate(raw: Mapping[str, Any], source: str = "options", tables: Mapping[str, Table] | None = None) -> Options:
    """The options in a mapping of JSON values, such as `to_dict` gives; `source` names them in the UserError."""
    given, notice = without_kair_keys({key: value for key, value in raw.items() if key != "$schema"})
    options, inherited = _inherit(_without_null_sections(given))
    tables = tables or {}
    parsed = None
    mistakes = []
    try:
        parsed = Options.model_validate_json(json.dumps(options))
    except ValidationError as error:
        mistakes = explain(error, options, Options)
    mistakes += [*_section_mistakes(options), *_dataset_mistakes(options, tables)]
    mistakes += [*_best_mode_mistakes(options, tables), *_table_mistakes(options, tables)]
    # a mistake in what a test data set inherits is reported where the user wrote it: in datasets.train
    mistakes = [line for line in dict.fromkeys(mistakes) if not line.startswith(inherited)]
    if mistakes or parsed is None:
        raise UserError("\n".join([_headline(source, len(mistakes)), *sorted(mistakes, key=_section_order)]))
    parsed._notice = notice
    return parsed


def to_dict(opt: Options) -> dict[str, Any]:
    """The options as JSON values, every default explicit; `validate` gives equal options again."""
    return opt.model_dump(mode="json")


def save(opt: Options, path: str | Path) -> None:
    """Write the options as JSON, whole or not at all; `parse` gives equal options again."""
    with atomic_write(Path(path), "w") as file:
        file.write(json.dumps(to_dict(opt), indent=2, ensure_ascii=False) + "\n")


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'train.G_optimizer_lr: 0.001 -> 0.0005' for each leaf that differs, sorted; 'absent' if on one side only."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        f"{path}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, JSON text) of everything that is not a section; a list without sections is one leaf."""
    if isinstance(value, Mapping) and value:
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        yield path, json.dumps(value, ensure_ascii=False)
        return
    for key, item in items:
        yield from leaves(item, f"{path}.{key}" if path else str(key))


def _headline(source: str, count: int) -> str:
    return f"{source}: {count} mistake{'' if count == 1 else 's'}"


def _section_order(line: str) -> int:
    section = line.partition(":")[0].partition(".")[0]
    return SECTIONS.index(section) if section in SECTIONS else -1


def _mapping(value: Any, key: str) -> dict[str, Any]:
    """The section `key` of a value that may be anything; empty if there is none."""
    section = value.get(key) if isinstance(value, dict) else None
    return section if isinstance(section, dict) else {}


def _entry(tables: Mapping[str, Table], kind: str, name: Any) -> object:
    """What the table of a kind has under a name that may be anything; None if nothing."""
    table = tables.get(kind)
    return table[name] if table and isinstance(name, str) and name in table else None


def _without_null_sections(options: dict[str, Any]) -> dict[str, Any]:
    """A section without keys is null in YAML."""
    sections = Options.model_fields.keys() - {"task", "model"}
    return {key: {} if value is None and key in sections else value for key, value in options.items()}


def _inherit(options: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Test data sets get what they do not give from datasets.train; also the beginnings of lines about that."""
    datasets, train = _mapping(options, "datasets"), _mapping(_mapping(options, "datasets"), "train")
    complete, inherited = dict(datasets), []
    for phase, dataset in datasets.items():
        if phase != "train" and isinstance(dataset, dict):
            taken = {key: train[key] for key in INHERITED if key in train and key not in dataset}
            complete[phase] = taken | dataset
            inherited += [f"datasets.{phase}.{key}{end}" for key in taken for end in (":", ".")]
    return (options | {"datasets": complete} if datasets else options), tuple(inherited)


def _section_mistakes(options: dict[str, Any]) -> Iterator[str]:
    """What two sections say about each other."""
    datasets, train, val, path = (_mapping(options, key) for key in ("datasets", "train", "val", "path"))
    if "test" in datasets and val.get("best_metric") is None:
        yield 'val.best_metric: missing; datasets.test selects the best model: give one of val.metrics, or "loss"'
    if train.get("early_stop_patience") is not None and "test" not in datasets:
        yield "train.early_stop_patience: counts tests without improvement; add datasets.test, or remove it"
    if path.get("pretrained_netT") and options.get("model", "plain") == "plain":
        yield 'path.pretrained_netT: model "plain" has no teacher; use "distill", or remove it'
    if path.get("pretrained_netE") and train.get("E_decay") == 0:
        yield "path.pretrained_netE: with train.E_decay 0 there is no netE; remove it, or give a decay"


def _best_mode_mistakes(options: dict[str, Any], tables: Mapping[str, Table]) -> Iterator[str]:
    val = _mapping(options, "val")
    name, mode = val.get("best_metric"), val.get("best_mode", ValOptions.model_fields["best_mode"].default)
    better = getattr(_entry(tables, "metric", name), "best_mode", mode)
    if mode in ("max", "min") and mode != better:
        yield f'val.best_mode: "{mode}" would keep the worst model, because best_metric is "{name}"; use "{better}"'


def _dataset_mistakes(options: dict[str, Any], tables: Mapping[str, Table]) -> Iterator[str]:
    if not isinstance(options.get("datasets"), dict):
        return
    datasets = options["datasets"]
    train = _mapping(datasets, "train")
    if "train" not in datasets:
        yield "datasets.train: missing; the data that netG learns from"
    elif train and "dataloader_batch_size" not in train:
        field = DatasetOptions.model_fields["dataloader_batch_size"]
        yield f"datasets.train.dataloader_batch_size: missing; {field.description}"
    for phase, dataset in datasets.items():
        if phase != "train" and not phase.startswith("test"):
            near = nearest(phase, ["train", "test"]) or ";"
            yield f'datasets.{phase}: unknown data set{near} known: "train", "test" and "test_<name>"'
        if not isinstance(dataset, dict):
            continue
        for where, section in ((phase, dataset), (f"{phase}.fallback", _mapping(dataset, "fallback"))):
            if (final := _final_split(dataset, tables)) and final.lower() in str(section.get("split", "")).lower():
                yield (
                    f"datasets.{where}.split: {final} is the final test split and must never influence training or "
                    "the choice of the best model; measure it once, at the end, with "
                    f"`python main_test.py verify <best_model.pth> --split {final}`"
                )
        if phase != "train" and train and _samples(dataset, tables) == _samples(train, tables):
            yield (
                f"datasets.{phase}: the very samples of datasets.train; train and test must be disjoint: "
                "give it another dataroot or split"
            )


def _final_split(dataset: dict[str, Any], tables: Mapping[str, Table]) -> str:
    """The split that a data set keeps for the end; "" if it names none."""
    return getattr(_entry(tables, "dataset", dataset.get("dataset_type")), "final_split", "")


def _samples(dataset: dict[str, Any], tables: Mapping[str, Table]) -> dict[str, Any]:
    """What decides which samples a data set has: its type, its root and its arguments, defaults included."""
    own = DatasetOptions.model_fields.keys() - {"dataset_type", "dataroot"}
    is_known = _entry(tables, "dataset", dataset.get("dataset_type")) is not None
    fields = tables["dataset"].arguments(dataset["dataset_type"]).model_fields if is_known else {}
    defaults = {key: field.default for key, field in fields.items() if not field.is_required()}
    return {"dataroot": None} | defaults | {key: value for key, value in dataset.items() if key not in own}


def _table_mistakes(options: dict[str, Any], tables: Mapping[str, Table]) -> Iterator[str]:
    reported = set()
    for kind, where, name, arguments, prefix, beside in _named(options):
        if kind not in tables or not isinstance(name, str) or (kind, name) in reported:
            continue  # pydantic reports a name that is not text
        if (unknown := tables[kind].unknown(where, name)) is not None:
            reported.add((kind, name))
            yield unknown
        elif isinstance(arguments, dict):
            yield from tables[kind].mistakes(where, name, arguments, prefix, beside)


def _named(options: dict[str, Any]) -> Iterator[Named]:
    """Everything in the options that a table knows by name."""
    train = _mapping(options, "train")
    yield Named("model", "model", options.get("model", Options.model_fields["model"].default))
    for kind, key in (("optimizer", "G_optimizer_type"), ("schedule", "G_scheduler_type")):
        yield Named(kind, f"train.{key}", train.get(key, TrainOptions.model_fields[key].default))
    loss_arguments = train.get("G_lossfn_args", {})
    yield Named("loss", "train.G_lossfn_type", train.get("G_lossfn_type"), loss_arguments, "train.G_lossfn_args")
    yield _chosen("network", "netG", "net_type", _mapping(options, "netG"), ())
    for phase, dataset in _mapping(options, "datasets").items():
        where = f"datasets.{phase}"
        yield _chosen("dataset", where, "dataset_type", dataset, tuple(DatasetOptions.model_fields))
        yield _chosen("fallback", f"{where}.fallback", "dataset_type", _mapping(dataset, "fallback"), ())
        transforms = dataset.get("transforms") if isinstance(dataset, dict) else None
        for index, transform in enumerate(transforms if isinstance(transforms, list) else ()):
            yield _chosen("transform", f"{where}.transforms.{index}", "type", transform, ())
    metrics = _mapping(options, "val").get("metrics")
    for index, metric in enumerate(metrics if isinstance(metrics, list) else ()):
        yield Named("metric", f"val.metrics.{index}", metric)


def _chosen(kind: str, prefix: str, key: str, section: Any, beside: Sequence[str]) -> Named:
    """The choice that a section names under `key`; every key that is not the section's own is an argument."""
    section = section if isinstance(section, dict) else {}
    own = {key, *beside}
    arguments = {name: value for name, value in section.items() if name not in own}
    return Named(kind, f"{prefix}.{key}", section.get(key), arguments, prefix, sorted(own))


def with_total_iter(opt: Options, num_iters: Callable[[int], int]) -> Options:
    """The options with total_iter as a number: total_iter or total_epochs, whichever ends first.

    num_iters: the iterations of so many epochs, which only the data set knows.
    """
    train = opt.train
    ends = [train.total_iter] if train.total_iter is not None else []
    ends += [num_iters(train.total_epochs)] if train.total_epochs is not None else []
    return opt.model_copy(update={"train": train.model_copy(update={"total_iter": min(ends)})})
