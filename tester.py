"""Tester: the tests of one launch, where model, test data, best model and pictures meet."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from data.loaders import define_test_loaders, without_random
from data.select_dataset import DataSource, synthetic_notice
from data.train_stream import TrainStream
from models.evaluate import evaluate
from models.model_plain import ModelPlain
from models.portable_model import pack_model, train_record
from models.probe import probe_test
from utils.utils_error import UserError
from utils.utils_experiment import Experiment
from utils.utils_metrics import MetricValue, spoken, with_unit
from utils.utils_option import Options, to_dict
from utils.utils_progress import Progress
from utils.utils_signal import StopRequest
from views.pictures import BestModelPictures
from views.select_view import define_view
from views.test_outputs import TestOutputs

logger = logging.getLogger("longhaul")


class Tester:
    """Tests on every datasets.test*; the one called "test" selects the best model. All methods are collective.

    progress: best value and patience so far. has_lost_best: the best model so far could not be saved, or was removed.
    last_iter: the last test of this launch, -1 before the first. result: of that test on "test".
    """

    def __init__(
        self, model: ModelPlain, stop: StopRequest, experiment: Experiment, sources: Mapping[str, DataSource],
        stream: TrainStream, saved: Progress, machine: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._model, self._opt, self._dist = model, model.opt, model.dist
        self._stop, self._experiment, self._sources, self._stream = stop, experiment, sources, stream
        self._machine = machine
        self._loaders = define_test_loaders(sources, model.dist)
        self.progress = saved
        if "test" in sources:
            judge = f"{model.opt.val.best_mode} {_best_metric(model.opt)} of {sources['test'].fingerprint}"
            self.progress = saved.now_judged_by(judge)
        self._is_judged_anew = self.progress.best_iter != saved.best_iter
        # One of a later iteration comes again, or is set aside.
        self.has_lost_best = self.progress.best_iter > experiment.model_iter("best_model.pth")
        if self.has_lost_best:
            lost = f"{self.progress.best_iter:,}"
            logger.warning(
                "best_model.pth of iteration %s is not there: the best model is chosen anew from here.", lost
            )
            experiment.set_aside_model("best_model.pth", "was the best before")
            self._choose_anew()
        elif model.dist.on_main(self._was_chosen_anew):
            self._choose_anew()
        self._pictures = self._define_pictures()
        self.result: dict[str, MetricValue] = {}
        self.last_iter = -1
        self._has_warned_of_nan = False

    @property
    def is_out_of_patience(self) -> bool:
        """Whether so many tests brought no improvement that early stopping ends the run."""
        patience = self._opt.train.early_stop_patience
        return patience is not None and self.progress.num_tests_without_improvement >= patience

    def probe(self) -> None:
        """Look at every test before hours of training lead to the first one."""
        for name, loader in self._loaders.items():
            try:
                if (batch := loader.first(8)) is not None:
                    probe_test(self._model, batch, self._opt.val.metrics, self._sources[name].num_classes)
            except UserError as error:
                where = f"datasets.{name}: "
                raise UserError(where + str(error).removeprefix(where)) from error

    def set_stale_best_aside(self, start_iter: int, is_exact: bool) -> None:
        """Set best_model.pth aside if no test to come can be compared with it; the best is chosen anew.

        is_exact: whether this launch repeats bit for bit what came after the set of `start_iter`, in the launch that
        saved that. The best model may be of another launch, with other options or on another machine; then it is lost,
        and so is the one that it replaced.
        """

        def is_replaced() -> bool:
            best = self._experiment.model("best_model.pth")
            comes_again = is_exact and (best.get("options"), best.get("machine")) == (to_dict(self._opt), self._machine)
            return bool(best["iter"] > start_iter and not comes_again)

        if self._is_judged_anew:
            reason = "was the best by another metric or loss, or on other test data"
        elif self._dist.on_main(is_replaced):
            reason = "is of an iteration that comes again with other weights, or not at all"
        else:
            return
        self._choose_anew()
        logger.warning("The best model is chosen anew from here.")
        self._experiment.set_aside_model("best_model.pth", reason)

    def run(self, current_iter: int) -> None:
        """Test on every test data set; then "test" may give a new best model. Raises NonFiniteLossError."""
        began = time.perf_counter()
        self._model.losses.collect(current_iter)
        results: dict[str, dict[str, MetricValue]] = {}
        shown = TestOutputs() if self._pictures else None
        for name, loader in self._loaders.items():
            start = time.perf_counter()
            result = evaluate(
                self._model, loader, self._opt.val.metrics, self._sources[name].num_classes, self._stop.agreed,
                shown.add if shown and name == "test" else None,
            )  # fmt: skip
            if result is None:
                logger.info("The test was cut off; the next launch begins with it.")
                return
            epoch, lr = self._stream.epoch(current_iter), self._model.current_learning_rate()
            seconds = time.perf_counter() - start
            values = self._sources[name].value_names
            self._experiment.log.test(name, current_iter, epoch, lr, result, values, seconds)
            results[name] = result
        self.last_iter = current_iter
        if "test" in results:
            is_best = self._judge(current_iter, results["test"], self._model.losses.take_mean())
            if self._pictures and shown:
                mark = self._sources["test"].mark
                title = f"iteration {current_iter:,}, epoch {self._stream.epoch(current_iter)}{mark}"
                self._pictures.tested(current_iter, title, results["test"], shown, is_best)
        self.progress = dataclasses.replace(
            self.progress, last_test_iter=max(current_iter, self.progress.last_test_iter)
        )
        self._experiment.log.pause(time.perf_counter() - began)

    def packed_model(self, current_iter: int) -> dict[str, Any]:
        """The content of a self-contained model file with the result of the last test."""
        shown = self._sources.get("test", self._sources["train"])
        transforms = [each.model_dump() for each in without_random(shown.options).transforms]
        return pack_model(
            self._model, current_iter=current_iter, epoch=self._stream.epoch(current_iter), metrics=self.result,
            class_names=shown.class_names, raw_input=shown.dataset[0]["input"], transforms=transforms,
            synthetic=synthetic_notice(self._sources.values()),
            fingerprint=shown.fingerprint if shown.name == "test" else None, machine=self._machine,
        )  # fmt: skip

    def draw_pictures(self, at_the_end: bool = False) -> None:
        """Draw the best model that has not been drawn yet; `at_the_end` also what shows the whole run."""
        if self._pictures and at_the_end:
            self._pictures.finish(self.progress.best_iter or None)
        elif self._pictures:
            self._pictures.draw()

    def _was_chosen_anew(self) -> bool:
        """Whether best_model.pth is no better than the best that the set knows: a launch since then had lost that."""
        model, val = self._experiment.model("best_model.pth"), self._opt.val
        value = model.get("metrics", {}).get(val.best_metric)
        if model["iter"] <= self.progress.best_iter or value is None:
            return False
        return self.progress.after_test(model["iter"], value, val.best_mode).best_iter != model["iter"]

    def _choose_anew(self) -> None:
        """Forget what was best; a test that is due where this launch begins is made again and counts."""
        self.progress = dataclasses.replace(self.progress.judged_anew(), last_test_iter=0)

    def _judge(self, current_iter: int, result: dict[str, MetricValue], train_loss: float | None) -> bool:
        """Move the progress by a test on "test", and save the model if it is the best so far; returns whether it is.

        train_loss: the mean since the test before.
        """
        self.result = result
        self._log_test(current_iter, result, train_loss)
        name = self._opt.val.best_metric
        if name is None or current_iter <= self.progress.last_test_iter:
            return False
        value = result[name]
        assert isinstance(value, float), "probed before training"
        if math.isnan(value) and not self._has_warned_of_nan:
            self._has_warned_of_nan = True
            logger.warning("val.best_metric: %s is not a number in this test, which cannot be the best.", name)
        self.progress = self.progress.after_test(current_iter, value, self._opt.val.best_mode)
        if self.progress.best_iter != current_iter:
            return False
        content = {**self.packed_model(current_iter), **train_record(self._model, result, train_loss)}
        self._experiment.save_model("best_model.pth", content, f"best model ({name}={with_unit(name, value)})")
        return True

    def _log_test(self, current_iter: int, result: Mapping[str, MetricValue], train_loss: float | None) -> None:
        losses = "-" if train_loss is None else f"{train_loss:.4f}"
        logger.info(
            "Epoch %d: Train Loss = %s, Test Loss = %.4f, LR = %.2e",
            self._stream.epoch(current_iter), losses, result["loss"], self._model.current_learning_rate(),
        )  # fmt: skip
        numbers = {name: value for name, value in result.items() if isinstance(value, float) and name != "loss"}
        if numbers:
            shown = (f"{spoken(name)}: {with_unit(name, value)}" for name, value in numbers.items())
            logger.info("  %s", ", ".join(shown))

    def _define_pictures(self) -> BestModelPictures | None:
        if "test" not in self._sources:
            return None
        source = self._sources["test"]
        view = define_view(source.dataset, source.class_names)  # on all ranks, so that all refuse a wrong name
        if not (self._dist.is_main and self._opt.val.save_img) or self._experiment.is_dry_run:
            return None
        return BestModelPictures(self._experiment.folder, view, source.dataset, self._experiment.log.figure)


def _best_metric(opt: Options) -> str | None:
    """What selects the best model; values of another loss compare with it as little as those of another metric."""
    if opt.val.best_metric != "loss":
        return opt.val.best_metric
    train = opt.train
    return f"loss ({train.G_lossfn_weight} {train.G_lossfn_type} {json.dumps(train.G_lossfn_args, sort_keys=True)})"
