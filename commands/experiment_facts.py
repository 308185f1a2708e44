"""Everything that a report shows of one experiment, gathered from its folder and, if asked, from its model."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.trained_model import TrainedModel, load_trained_model
from commands.verify import measure
from utils.utils_curves import Panel, curve_panels, panel_figure, signs
from utils.utils_dist import Dist, process_group
from utils.utils_error import UserError
from utils.utils_history import History, read_history, saved_options
from utils.utils_logger import duration
from utils.utils_metrics import with_unit
from utils.utils_option import leaves
from utils.utils_report import heat_picture, inline_svg, picture_uri
from views.occlusion import occlusion_map
from views.pictures import rows_to_show
from views.test_outputs import TestOutputs, why_no_samples
from views.view_base import Sample, View

Table = list[list[str]]

_MOST_ROWS_OF_A_MATRIX = 101  # of more, `verify` writes a CSV, and nobody reads the page


@dataclasses.dataclass
class ExperimentFacts:
    """What the template shows; texts are ready to be read, `problems` say what is missing or wrong.

    headline: the best metric. options: every leaf by its dotted key. results: the numbers that a comparison lists.
    rows: a line for each class or joint. samples: by title and row. commands: to reproduce and to verify. The first row
    of a table is its heading.
    """

    folder: Path
    name: str
    state: str
    synthetic: str | None
    headline: dict[str, str]
    summary: dict[str, str]
    results: dict[str, str]
    options: dict[str, str]
    panels: list[Panel]
    curves: list[Any]
    signs: list[str]
    rows: Table = dataclasses.field(default_factory=list)
    matrix: Table = dataclasses.field(default_factory=list)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = dataclasses.field(default_factory=dict)
    attention: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    launches: Table = dataclasses.field(default_factory=list)
    sets: Table = dataclasses.field(default_factory=list)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    commands: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


def read_experiment(folder: Path, name: str, args: argparse.Namespace) -> ExperimentFacts:
    """Gather everything; what is missing or wrong becomes a problem of the page, not an error.

    name: what the page calls it. args: opt, set, recorded and num_samples of the command line.
    """
    history, problems = read_history(folder), []
    try:
        trained = load_trained_model(folder, args.opt, args.set)
    except UserError as error:
        trained = None
        problems.append(str(error).removeprefix(f"{folder}: "))
    launched_with = _launch_options(folder)
    options = launched_with[-1] if launched_with else {}
    view = trained.view() if trained else View()
    best_iter = trained.iteration if trained and trained.path.name == "best_model.pth" else None
    panels = curve_panels(history, view.class_names or view.joint_names)
    marks = history.interruptions
    facts = ExperimentFacts(
        folder=folder,
        name=name,
        state=_state(history),
        synthetic=None,
        headline={},
        summary=_summary(history, options),
        results={},
        options={key: text for key, text in leaves(options) if key != "$schema"},
        panels=panels,
        curves=[inline_svg(panel_figure(panel, marks, best_iter), panel.title) for panel in panels],
        signs=signs(marks, best_iter),
        launches=_launches(history),
        sets=_sets(history),
        environment=_environment(history),
        commands=_commands(folder, history, launched_with, trained),
        problems=problems,
    )
    if trained:
        _add_model(facts, trained, args)
    return facts


def _add_model(facts: ExperimentFacts, trained: TrainedModel, args: argparse.Namespace) -> None:
    """Add the results that were recorded, or those that are measured now, with samples and attention."""
    view, result = trained.view(), trained.recorded
    facts.synthetic = trained.synthetic
    facts.summary[trained.path.stem.replace("_", " ")] = f"iteration {trained.iteration:,}"
    facts.summary["network"] = trained.opt.netG.net_type
    facts.summary["file"] = f"{trained.path.stat().st_size / 1e6:.2f} MB"
    if not args.recorded:
        try:
            result = _measure(facts, trained, args.num_samples)
        except UserError as error:
            facts.problems.append(f"the model was not run: {error}")
    numbers = {name: with_unit(name, value) for name, value in result.items() if isinstance(value, float)}
    beside = ("parameters", "file", "iterations", "time")
    facts.results = {**numbers, **{name: facts.summary[name] for name in beside if name in facts.summary}}
    if (best := trained.opt.val.best_metric) in numbers:
        facts.headline[best] = numbers[best]
    if rows := view.rows(result):
        facts.rows = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    table = next(iter(view.tables(result).values()), [])
    facts.matrix = table if len(table) <= _MOST_ROWS_OF_A_MATRIX else []


def _measure(facts: ExperimentFacts, trained: TrainedModel, num_samples: int) -> Mapping[str, Any]:
    """Run the model on its test data; add samples, attention, and what differs from the record."""
    outputs = TestOutputs()
    with process_group(trained.opt.train.num_threads) as dist:
        measured = measure(trained, trained.load(dist), dist, observe=outputs.add)
        found, view = measured.found, measured.view
        facts.summary["data"] = f"{found['num_samples']:,} samples of {found['data']}"
        facts.summary["parameters"] = f"{found['num_parameters']:,}"
        facts.summary["speed"] = f"{found['images_per_s']:,.0f} images/s on {dist.device.type}"
        facts.synthetic = measured.source.synthetic or facts.synthetic
        facts.problems += [f"cannot be right: {doubt}" for doubt in found["doubts"]]
        if found["differing"]:
            facts.problems.append(f"does not measure as recorded: {', '.join(found['differing'])}")
        elif found["recorded"]:
            facts.summary["verified"] = "measures as recorded"
        if not why_no_samples(view, measured.source.dataset):
            chosen = {
                kind: rows_to_show(outputs.choose(view, measured.source.dataset, num_samples, kind == "wrong"))
                for kind in ("right", "wrong")
            }
            facts.samples = {view.sample_titles[kind]: _cards(view, rows) for kind, rows in chosen.items()}
            first = [samples[0] for samples in chosen["right"].values() if samples]
            try:
                facts.attention = _attention(view, trained, first, dist)
            except UserError as error:
                facts.problems.append(f"where attention lies is not shown: {error}")
    return measured.result


def _cards(view: View, rows: Mapping[str, Sequence[Sample]]) -> dict[str, list[dict[str, Any]]]:
    cards = {row: [view.card(sample) for sample in samples] for row, samples in rows.items()}
    return {
        row: [{"picture": picture_uri(card.picture), "card": card} for card in in_row] for row, in_row in cards.items()
    }


def _attention(view: View, trained: TrainedModel, samples: Sequence[Sample], dist: Dist) -> list[dict[str, Any]]:
    predict = trained.predictor(dist)
    shown = []
    for sample in samples:
        heat, worst = occlusion_map(predict, view.agreement, sample.input)
        picture = picture_uri(heat_picture(sample.image, heat))
        shown.append({"picture": picture, "card": view.card(sample), "covered": view.headline(worst)})
    return shown


def differing(options: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose texts are not the same in all of them."""
    names = sorted({name for each in options for name in each})
    return [name for name in names if len({each.get(name) for each in options}) > 1]


def _launch_options(folder: Path) -> list[dict[str, Any]]:
    """The options of each launch, oldest first, as far as they can be read: somebody may have edited them."""
    found = []
    for path in saved_options(folder):
        with contextlib.suppress(ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return [content for content in found if isinstance(content, dict)]


def _state(history: History) -> str:
    words = {
        "DONE": "done",
        "PREEMPTED": "stopped; launch again to go on",
        "FAILED": "failed",
        "RUNNING": "running, or killed",
    }
    return words.get(history.state or "", "unknown: status.json does not say it")


def _summary(history: History, options: Mapping[str, Any]) -> dict[str, str]:
    last = max((series[-1][0] for columns in history.series.values() for series in columns.values()), default=0)
    train = options.get("train")
    # With total_epochs too, whichever ends first, and only the data know which.
    total = train.get("total_iter") if isinstance(train, dict) and train.get("total_epochs") is None else None
    summary = {"iterations": f"{last:,}" + (f" of {total:,}" if isinstance(total, int) else "")}
    if history.launches:
        resumes = len(history.interruptions)
        summary["launches"] = f"{len(history.launches)}, resumed {resumes} {'time' if resumes == 1 else 'times'}"
        summary["time"] = duration(sum(_seconds(launch) for launch in history.launches))
    return summary


def _seconds(launch: Mapping[str, Any]) -> float:
    try:
        start, end = (datetime.datetime.fromisoformat(launch[key]) for key in ("launched", "ended"))
        return (end - start).total_seconds()
    except (KeyError, ValueError, TypeError):  # people write other times, also with a time zone
        return 0.0


def _launches(history: History) -> Table:
    if not history.launches:
        return []
    heading = ["launched", "last heard of", "from iteration", "saved up to", "ended", "ranks", "device", "torch"]
    words = {"RUNNING": "killed", "PREEMPTED": "stopped", "FAILED": "failed", "DONE": "done"}
    rows = []
    for number, launch in enumerate(history.launches, 1):
        machine = launch.get("machine", {})
        end = words.get(launch["state"], launch["state"])
        if number == len(history.launches) and launch["state"] == "RUNNING":
            end = "running, or killed"
        rows.append([
            *(launch.get("launched", ""), launch.get("ended", ""), f"{launch['from_iter']:,}"),
            *(f"{launch['to_iter']:,}", end, *(str(machine.get(key, "")) for key in ("ranks", "device", "torch"))),
        ])  # fmt: skip
    return [heading, *rows]


def _sets(history: History) -> Table:
    if not history.manifests:
        return []
    rows = []
    for iteration, manifest in history.manifests.items():
        size = sum(record.bytes for record in manifest.files.values()) / 1e6
        hashes = ", ".join(f"{part} {record.sha256[:12]}" for part, record in manifest.files.items())
        rows.append([f"{iteration:,}", str(manifest.epoch), manifest.reason, manifest.saved_at,
                     f"{size:.2f} MB", hashes])  # fmt: skip
    return [["iteration", "epoch", "reason", "saved", "size", "SHA-256 (first 12 digits)"], *rows]


def _environment(history: History) -> dict[str, str]:
    machine = history.launches[-1].get("machine", {}) if history.launches else {}
    return {key: str(value) for key, value in machine.items()}


def _commands(
    folder: Path, history: History, launched_with: Sequence[Mapping[str, Any]], trained: TrainedModel | None
) -> dict[str, list[str]]:
    """Shell lines: the run under another name, of the same bits if all launches were alike, and its model's check."""
    first = next(iter(saved_options(folder)), None)
    place = shlex.quote(str(folder))
    commands = {"verify": [f"python main_test.py verify {place}"] if trained else []}
    if first is None:
        return commands
    machine = history.launches[0].get("machine", {}) if history.launches else {}
    manifest = next(iter(history.manifests.values()), None)
    ranks, threads = machine.get("ranks", 1), machine.get("threads per rank")
    launcher = "python" if ranks == 1 else f"torchrun --nproc_per_node={ranks}"
    again = {"task": shlex.quote(f"{folder.resolve().name}_again"), "train.num_threads": threads}
    again["train.manual_seed"] = manifest.stream.get("seed") if manifest else None
    changes = "".join(f" --set {key}={value}" for key, value in again.items() if value is not None)
    line = f"{launcher} main_train.py -opt {shlex.quote(str(first))}{changes}"
    checkout = [f"git checkout {machine['commit']}"] if machine.get("commit") else []
    later = [launch.get("machine", {}) for launch in history.launches[1:]]
    decisive = {key: value for key, value in machine.items() if key != "commit"}
    others = [key for key, value in decisive.items() if any(each.get(key, value) != value for each in later)]
    warnings = [f"# Not bit for bit: later launches had other {', '.join(others)}"] if others else []
    if changed := differing([dict(leaves(options)) for options in launched_with]):
        warnings.append(f"# The first launch; later ones had other {', '.join(changed)}")
    return {"reproduce": [*checkout, line, *warnings], **commands}


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
