"""report: one HTML page of an experiment, or of several side by side; it opens from disk and needs no network."""

import argparse
import datetime
import logging
from pathlib import Path
from typing import Any

from commands.experiment_facts import ExperimentFacts, differing, read_experiment
from commands.outputs import check_output, write_output
from utils.utils_curves import Panel, panel_figure
from utils.utils_error import UserError, check_at_least_one
from utils.utils_report import inline_svg, render_page

logger = logging.getLogger("longhaul")

METAVAR = "EXPERIMENT"
SUMMARY = "one HTML page of an experiment, or of several side by side"
EXAMPLES = """
    python main_test.py report experiments/fer
    python main_test.py report experiments/fer experiments/fer_real --output compared.html
    python main_test.py report experiments/fer --recorded
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("others", nargs="*", type=Path, metavar="EXPERIMENT", help="more experiments to compare with")
    parser.add_argument(
        "--output", type=Path, metavar="FILE",
        help="file to write (default: report.html in the folder of the experiment; of several, here)",
    )  # fmt: skip
    parser.add_argument(
        "--recorded", action="store_true", help="show what the run has recorded, and do not run the model"
    )
    parser.add_argument("--num_samples", type=int, default=3, metavar="N", help="samples of each class (default: 3)")


def run(args: argparse.Namespace) -> int:
    """Write the page; exit status 0, or 1 if a model could not be shown or does not measure as recorded."""
    check_at_least_one("--num_samples", args.num_samples)
    folders = [args.model, *args.others]
    for folder in folders:
        if not (folder / "options").is_dir():
            raise UserError(f"{folder}: not the folder of an experiment: it has no options/")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("an experiment is named twice; name each one once")
    output = args.output or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    check_output("--output", output, [folder / "options" for folder in folders])
    names = _distinct_names(folders)
    found = [read_experiment(folder, name, args) for folder, name in zip(folders, names, strict=True)]
    facts = {"experiments": found, "comparison": _comparison(found), "written": f"{datetime.datetime.now():%F %H:%M}"}
    page = render_page("report.html.jinja", facts)
    write_output(output, page)
    for each in found:
        for problem in each.problems:
            logger.warning("%s: %s", each.folder, problem)
    logger.info("%s, %.1f MB; open it in a browser.", output, len(page.encode()) / 1e6)
    return 1 if any(each.problems for each in found) else 0


def _comparison(found: list[ExperimentFacts]) -> dict[str, Any] | None:
    """Results and differing options side by side, and curves of what all of them measured; None for one experiment."""
    if len(found) == 1:
        return None
    names = [each.name for each in found]
    results = list(dict.fromkeys(name for each in found for name in each.results))
    options = [each.options for each in found]
    panels: dict[str, Panel] = {}
    for each in found:
        for panel in each.panels:
            if (series := panel.lines.get("test")) is not None:
                known = panels.setdefault(panel.title, Panel(panel.title, panel.unit, {}))
                panels[panel.title] = Panel(panel.title, panel.unit, {**known.lines, each.name: series})
    return {
        "results": [["", *names]] + [[name, *(each.results.get(name, "") for each in found)] for name in results],
        "options": [["option", *names]]
        + [[name, *(each.options.get(name, "absent") for each in found)] for name in differing(options)],
        "curves": [inline_svg(panel_figure(panel), panel.title) for panel in panels.values() if len(panel.lines) > 1],
    }


def _distinct_names(folders: list[Path]) -> list[str]:
    """The last part of each path, or as many more as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("the folders differ")
