#!/usr/bin/env python3
"""Check a trained model, use it, show it, and take it elsewhere.

    python main_test.py verify experiments/fer
    python main_test.py infer experiments/fer --input photo.jpg
    python main_test.py samples experiments/fer --wrong
    python main_test.py report experiments/fer
    python main_test.py export experiments/fer --with_preprocessing
    python main_test.py verify --help

MODEL is a best_model.pth or final_model.pth, an <iter>_G.pth or <iter>_E.pth with the options of its experiment, or the
folder of an experiment (its best model). Exit status: 0 all is well; 1 something is not; 2 the file, the options or the
data are wrong; 130 stopped by Ctrl-C.
"""

import argparse
import logging
import sys
from pathlib import Path

from commands import export, infer, report, samples, verify
from utils.utils_error import UserError
from utils.utils_logger import start_console
from utils.utils_memory import keep_freed_memory

logger = logging.getLogger("longhaul")

COMMANDS = {"verify": verify, "infer": infer, "samples": samples, "report": report, "export": export}

_GIVEN = {"MODEL": "file of a model, or folder of an experiment", "EXPERIMENT": "folder of an experiment"}


def parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.SUMMARY, description=module.__doc__, epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=raw,
        )  # fmt: skip
        metavar = getattr(module, "METAVAR", "MODEL")
        command.add_argument("model", type=Path, metavar=metavar, help=_GIVEN[metavar])
        command.add_argument(
            "-opt", "--opt", type=Path, metavar="FILE", help="take the options from this file, not from the model's"
        )
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one option; may be repeated"
        )
        module.add_arguments(command)
    return parser.parse_args()


def main() -> int:
    """Run the command line; returns the exit status."""
    args = parse_arguments()
    keep_freed_memory()
    start_console(is_main=True)
    try:
        return COMMANDS[args.command].run(args)
    except UserError as error:
        logger.error("%s", error)
        return 2
    except KeyboardInterrupt:
        logger.error("Stopped by Ctrl-C; nothing was finished.")
        return 130
    except OSError as error:  # it names the file
        logger.error("%s; choose another --output, --csv or --json, or mend the file's permissions.", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
