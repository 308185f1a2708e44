#!/usr/bin/env python3
"""Train the network of one option file; launch the same command again to resume.

    python main_train.py -opt options/fer.json
    torchrun --nproc_per_node=4 main_train.py -opt options/fer.json
    python main_train.py -opt options/fer.json --set train.G_optimizer_lr=5e-4 --set train.total_epochs=10
    python main_train.py -opt options/fer.json --dry_run

Exit status: 0 trained to the end, or nothing left to do; 2 the options or the data are wrong; 128+n stopped by signal
n after saving; 1 anything else.
"""

import argparse
import json
import logging
from pathlib import Path

from data.select_dataset import define_datasets
from models.loss_meter import NonFiniteLossError
from tables import TABLES
from trainer import Trainer
from utils import utils_option as option
from utils.utils_dist import Dist, end_process, is_first_of_machine, is_lost_rank, launched_rank, process_group
from utils.utils_error import SampleError, UserError
from utils.utils_experiment import Experiment
from utils.utils_logger import start_console
from utils.utils_memory import keep_freed_memory
from utils.utils_option import Options
from utils.utils_signal import StopRequest

logger = logging.getLogger("longhaul")


def train(opt: Options, dist: Dist, stop: StopRequest, option_file: Path, dry_run: bool) -> int:
    """Train until the last iteration, a signal or lost patience; returns the exit status. Collective."""
    with Experiment(opt, dist, option_file, dry_run, stop.save_failed) as experiment:
        sources = define_datasets(opt, dist)
        trainer = Trainer(opt, dist, stop, experiment, sources)
        trainer.resume()
        if dry_run:
            return 0
        model = trainer.model
        current_iter = trainer.start_iter
        for current_iter, micro_batches in trainer.batches():
            model.update_learning_rate(current_iter)
            model.optimize_parameters(micro_batches, current_iter)
            model.update_E(current_iter)
            experiment.log.step()
            if trainer.is_due(opt.train.checkpoint_print, current_iter):
                trainer.log_training(current_iter)
            if trainer.is_due(opt.train.checkpoint_test, current_iter):
                trainer.tests.run(current_iter)
            if trainer.is_due(opt.train.checkpoint_save, current_iter):
                model.losses.collect(current_iter)  # a loss that is not finite must not reach a file
                trainer.save(current_iter, "periodic")
            if stop.agreed() or trainer.tests.is_out_of_patience:
                break
        return trainer.finish(current_iter)


def parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", "--opt", type=Path, metavar="FILE", help="JSON or YAML option file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change one option; may be repeated"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="validate, build, print the plan of a fresh run; train nothing, write nothing but caches",
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of option files and exit")
    args = parser.parse_args()
    if args.opt is None and not args.schema:
        parser.error("-opt FILE is missing, for example: -opt options/fer.json")
    return args


def main() -> int:
    """Run the command line; returns the exit status."""
    args = parse_arguments()
    if args.schema:
        print(json.dumps(option.json_schema(TABLES), indent=2))
        return 0
    keep_freed_memory()
    start_console(is_main=launched_rank() == 0)
    try:
        opt = option.parse(args.opt, args.set, TABLES)
        if opt.notice:
            logger.warning(opt.notice)
        with process_group(opt.train.num_threads) as dist, StopRequest(dist) as stop:
            return train(opt, dist, stop, args.opt, args.dry_run)
    except UserError as error:
        if is_first_of_machine() or isinstance(error, SampleError):
            logger.error("%s", error)
        return 2
    except NonFiniteLossError as error:
        logger.error(
            "Stopped: %s. Lower the learning rate, clip the gradient, or skip such steps (train.nonfinite), "
            "and launch again.", error,
        )  # fmt: skip
        return 1
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        logger.error(
            "Rank %d stopped: another rank has ended or cannot be reached (%s). Look at what it said, then "
            "launch the same command again; torchrun does so by itself with --max-restarts.",
            launched_rank(), str(error).splitlines()[0],
        )  # fmt: skip
        return 1


if __name__ == "__main__":
    end_process(main())
