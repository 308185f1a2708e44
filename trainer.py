"""Trainer: one launch of a run, where model and data meet: resume, batches, log, test, save, finish."""

import dataclasses
import itertools
import logging
import secrets
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from data.loaders import define_test_loaders, define_train_loader, without_random
from data.select_dataset import DataSource, synthetic_notice
from data.train_stream import TrainStream
from models.evaluate import evaluate, probe
from models.learning_rate import learning_rate
from models.loss_meter import NonFiniteLossError
from models.model_plain import Batch, enabled_parts
from models.portable_model import pack_model, train_record
from models.select_model import define_model
from models.select_network import check_fits_data
from utils.utils_dist import Dist, leave_process_group
from utils.utils_error import UserError
from utils.utils_experiment import Experiment, machine_record
from utils.utils_image import image_grid, is_picture
from utils.utils_logger import print_block
from utils.utils_metrics import MetricValue, check_best_metric, spoken, with_unit
from utils.utils_option import Options, with_total_iter
from utils.utils_progress import Progress
from utils.utils_resume import resume_guarantee
from utils.utils_signal import SAVE_FAILED, StopRequest
from utils.utils_state_file import load_state
from views.pictures import BestModelPictures
from views.select_view import define_view
from views.test_outputs import TestOutputs

logger = logging.getLogger("longhaul")


class Trainer:
    """Everything that the loop in main_train needs besides the step itself. All methods are collective."""

    def __init__(
        self, opt: Options, dist: Dist, stop: StopRequest, experiment: Experiment, sources: Mapping[str, DataSource]
    ) -> None:
        check_best_metric(opt.val.best_metric)
        self._dist, self._stop, self._experiment, self._sources = dist, stop, experiment, sources
        self._synthetic = synthetic_notice(sources.values())
        self._resume = experiment.find_resume_point(enabled_parts(opt.train))
        manifest = self._resume.manifest if self._resume else None
        self.start_iter = self._resume.iteration if self._resume else 0
        saved = self.progress = Progress(**manifest.progress) if manifest else Progress()
        if "test" in sources:
            judge = f"{opt.val.best_mode} {opt.val.best_metric} of {sources['test'].dataset.fingerprint}"
            self.progress = saved.now_judged_by(judge)
        self._is_judged_anew = self.progress.best_iter != saved.best_iter
        self._seed = self._choose_seed(opt)
        train = sources["train"]
        for source in sources.values():
            root_joint_idx = getattr(source.dataset, "root_joint_idx", None)
            check_fits_data(opt.netG, source.class_names, root_joint_idx)
        self.stream = TrainStream(
            len(train.dataset), opt.datasets["train"].dataloader_batch_size, self._seed, dist.rank, dist.world_size
        )
        self.opt = with_total_iter(opt, self.stream.num_iters)
        self.total_iter: int = self.opt.train.total_iter or 0
        self.model = define_model(self.opt, dist, self._seed)
        self._loader = define_train_loader(
            train, self.stream, dist, self._seed, self.start_iter, opt.train.G_accumulation_steps
        )
        self._test_loaders = define_test_loaders(sources, dist)
        self._stream_record = {
            "seed": self._seed,
            "batch_size": self.stream.batch_size,
            "num_samples": self.stream.num_samples,
            "dataset": train.dataset.fingerprint,
            "synthetic": train.synthetic_source,
        }
        self._machine_record = {**machine_record(self.opt, dist), **self.model.record()}
        self.model.check_classes(train.class_names)
        self._pictures = self._define_pictures() if dist.is_main and opt.val.save_img else None
        self._augmented: torch.Tensor | None = None
        self._result: dict[str, MetricValue] = {}
        self._saved_iter, self._tested_iter = self.start_iter, -1
        # An earlier launch ended the run and wrote everything.
        self._was_finished = not self._has_work and self._final_model_iter() == self.start_iter

    @property
    def is_out_of_patience(self) -> bool:
        """Whether so many tests brought no improvement that early stopping ends the run."""
        patience = self.opt.train.early_stop_patience
        return patience is not None and self.progress.num_tests_without_improvement >= patience

    def is_due(self, every: int | str, current_iter: int) -> bool:
        """Whether something done every so many iterations, or every "epoch", is due; at the end everything is."""
        if current_iter == self.total_iter:
            return True
        return self.stream.ends_epoch(current_iter) if every == "epoch" else current_iter % int(every) == 0

    def resume(self) -> None:
        """Load the resume point, or initialise a fresh run, and say where it stands."""
        accept = self.opt.resume.accept_changes
        guarantee = resume_guarantee(self._resume, self._stream_record, self._machine_record, accept)
        if self._has_work:
            first = _, micro_batches = next(self._loader)
            self._loader = itertools.chain([first], self._loader)  # only looked at here: it is trained on in its turn
            self._dist.together(lambda: self.model.probe(micro_batches[0]))
            self.model.rebuild_buckets(micro_batches)
            self._dist.together(self._probe_tests)
        self.model.load(self._resume)
        self.model.num_skipped_in_a_row = self.progress.num_skipped_in_a_row
        self.model.losses.sum, self.model.losses.count = self.progress.loss_sum, self.progress.num_losses
        self.model.update_learning_rate(max(self.start_iter, 1))
        self._print_start_block(guarantee)
        if self._resume and self._has_work:
            self._set_stale_best_aside(guarantee)
        self._warn_of_other_counts()
        self._experiment.save_options()
        log = self._experiment.log
        log.start(self.start_iter, self.total_iter)
        if log.wants_images and self._has_work and is_picture(micro_batches[0]["input"][0]):
            self._augmented = image_grid(micro_batches[0]["input"][:32])

    def batches(self) -> Iterator[tuple[int, list[Batch]]]:
        """(current_iter, micro-batches) of every iteration left, after the test that a stop may have cut off."""
        is_pending = self.start_iter > self.progress.last_test_iter and not self._was_finished
        if is_pending and self.is_due(self.opt.train.checkpoint_test, self.start_iter):
            self.test(self.start_iter)
        if self._has_work and not self._stop.signal_number:
            yield from itertools.islice(self._loader, self.total_iter - self.start_iter)

    def log_training(self, current_iter: int) -> None:
        """Log the means since the last call, and once a few samples as netG saw them; raises NonFiniteLossError."""
        means = self.model.current_log(current_iter)
        if self._augmented is not None:
            self._experiment.log.image("train/augmented", self._augmented, self.start_iter)
            self._augmented = None
        epoch, lr = self.stream.epoch(current_iter), self.model.current_learning_rate()
        self._experiment.log.training(current_iter, epoch, lr, means, self.stream.batch_size)

    def test(self, current_iter: int) -> None:
        """Test on every test data set; then "test" may give a new best model."""
        self.model.losses.collect(current_iter)
        results: dict[str, dict[str, MetricValue]] = {}
        shown: TestOutputs | None = None
        for name, loader in self._test_loaders.items():
            start = time.perf_counter()
            outputs = TestOutputs() if self._pictures and name == "test" else None
            result = evaluate(
                self.model, loader, self.opt.val.metrics, self._sources[name].num_classes, self._stop.agreed,
                outputs.add if outputs else None,
            )  # fmt: skip
            if result is None:
                logger.info("The test was cut off; the next launch begins with it.")
                return
            epoch, lr = self.stream.epoch(current_iter), self.model.current_learning_rate()
            seconds = time.perf_counter() - start
            values = self._sources[name].value_names
            self._experiment.log.test(name, current_iter, epoch, lr, result, values, seconds)
            results[name] = result
            shown = outputs or shown
        self._tested_iter = current_iter
        if "test" in results:
            is_best = self._judge(current_iter, results["test"], self.model.losses.take_mean())
            if self._pictures and shown:
                title = f"iteration {current_iter:,}, epoch {self.stream.epoch(current_iter)}"
                self._pictures.tested(current_iter, title, results["test"], shown, is_best)
        self.progress = dataclasses.replace(
            self.progress, last_test_iter=max(current_iter, self.progress.last_test_iter)
        )

    def save(self, current_iter: int, reason: str) -> None:
        """Commit a checkpoint set in the background, unless this iteration has one."""
        if current_iter == self._saved_iter:
            return
        self._saved_iter = current_iter
        reason = "final" if current_iter == self.total_iter and reason == "periodic" else reason
        progress = dataclasses.replace(
            self.progress, num_skipped_in_a_row=self.model.num_skipped_in_a_row,
            loss_sum=self.model.losses.sum, num_losses=self.model.losses.count,
        )  # fmt: skip
        self._experiment.save_set(
            current_iter, self.stream.epoch(current_iter), reason, progress, self.model.state(),
            self._stream_record, self._machine_record,
        )  # fmt: skip

    def finish(self, current_iter: int) -> int:
        """Save what is left to save, say how it ended, and return the exit status."""
        if not self._was_finished and self._tested_iter != current_iter and not self._stop.signal_number:
            self.test(current_iter)  # an earlier launch tested, but was killed before it wrote final_model.pth
        if self._stop.signal_number:
            return self._finish_interrupted(current_iter)
        if self._was_finished:
            logger.info("Nothing is left to do: the run ended at iteration %s.", f"{current_iter:,}")
        else:
            self.save(current_iter, "final")
            self._experiment.save_model("final_model.pth", self._pack_model(current_iter))
            if self._pictures:
                self._pictures.finish(self.progress.best_iter)
        self._experiment.finish("DONE")
        self._print_summary(current_iter)
        if self._experiment.save_failed:
            logger.error("The end of the run could not be saved, see above; launch again to make up for it.")
            return 1
        return 0

    @property
    def _has_work(self) -> bool:
        return self.start_iter < self.total_iter and not self.is_out_of_patience

    def _set_stale_best_aside(self, guarantee: str) -> None:
        """Set best_model.pth aside if no test to come can be compared with it; the best is chosen anew. Collective."""
        if self._is_judged_anew:
            reason = "was the best by another metric or on other test data"
        elif self._dist.on_main(lambda: self._is_best_overwritten(guarantee)):
            reason = "is of an iteration that comes again with other weights"
            self.progress = self.progress.judged_anew()
        else:
            return
        logger.warning("The best model is chosen anew from here.")
        self._experiment.set_aside_model("best_model.pth", reason)

    def _is_best_overwritten(self, guarantee: str) -> bool:
        """Whether a launch that this one does not repeat bit for bit saved a best model after the set resumed from."""
        iteration = self._model_iter("best_model.pth")
        is_exact = guarantee.startswith("EXACT") and not self._experiment.option_changes()
        return iteration is not None and iteration > self.start_iter and not is_exact

    def _warn_of_other_counts(self) -> None:
        """The iterations behind are not recounted when a batch or the data has another size."""
        now = self._stream_record
        saved = self._resume.manifest.stream if self._resume and self._resume.manifest else now
        sizes = ("batch_size", "num_samples")
        if self.opt.train.total_epochs is not None and any(saved[key] != now[key] for key in sizes):
            logger.warning(
                "The %s iterations behind drew %s of %s samples each, and %s of %s from here on. total_epochs counts "
                "them as if they had been alike: the run ends at iteration %s; train.total_iter sets another end.",
                f"{self.start_iter:,}", *(f"{each[key]:,}" for each in (saved, now) for key in sizes),
                f"{self.total_iter:,}",
            )  # fmt: skip
        if self.start_iter > self.total_iter:
            logger.warning(
                "The run has %s iterations behind it, more than the %s that the options ask for.",
                f"{self.start_iter:,}", f"{self.total_iter:,}",
            )  # fmt: skip

    def _probe_tests(self) -> None:
        """Look at every test before hours of training lead to the first one."""
        for name, loader in self._test_loaders.items():
            try:
                if (batch := loader.first(2)) is not None:
                    probe(self.model, batch, self.opt.val.metrics, self._sources[name].num_classes)
            except UserError as error:
                raise type(error)(f"datasets.{name}: {error}") from error

    def _final_model_iter(self) -> int | None:
        return self._dist.on_main(lambda: self._model_iter("final_model.pth"))

    def _model_iter(self, name: str) -> int | None:
        try:
            return int(load_state(self._experiment.models / name)["iter"])
        except (UserError, KeyError, TypeError):
            return None  # none yet, or not ours

    def _finish_interrupted(self, current_iter: int) -> int:
        try:
            self.model.losses.collect(current_iter)  # the set needs those of all ranks, which stopped here together
        except (RuntimeError, NonFiniteLossError) as error:
            logger.warning("The mean training loss of the next test will miss some iterations: %s", error)
        # The peers may be gone any moment: from here on rank 0 needs nobody.
        leave_process_group()
        self.save(current_iter, "interrupt")
        number = self._stop.signal_number
        is_signal = number != SAVE_FAILED
        self._experiment.finish("PREEMPTED" if is_signal else "FAILED")
        if self._pictures:
            self._pictures.draw()
        reason = signal.Signals(number).name if is_signal else 'a save that failed (train.save_failure is "stop")'
        committed = self._experiment.last_committed_iter
        if self._dist.is_main and committed != current_iter:  # the other ranks save nothing
            logger.error(
                "Stopped by %s, and iteration %s could not be saved; the newest good set is that of iteration %s.",
                reason, f"{current_iter:,}", f"{committed:,}",
            )  # fmt: skip
            return 1
        after = f", {self._stop.seconds_since_signal:.1f} s after the signal" if is_signal else " at a second attempt"
        logger.info(
            "Stopped by %s and saved at iteration %s%s. Launch the same command again to go on.",
            reason, f"{current_iter:,}", after,
        )  # fmt: skip
        return 128 + number if is_signal and not self._experiment.save_failed else 1

    def _judge(self, current_iter: int, result: dict[str, MetricValue], train_loss: float | None) -> bool:
        """Move the progress by a test on "test", and save the model if it is the best so far; returns whether it is.

        train_loss: the mean since the test before.
        """
        self._result = result
        self._log_test(current_iter, result, train_loss)
        name = self.opt.val.best_metric
        if name is None or current_iter <= self.progress.last_test_iter:
            return False
        value = result[name]
        assert isinstance(value, float), "checked with the options"
        self.progress = self.progress.after_test(current_iter, value, self.opt.val.best_mode)
        if not self.progress.is_best(current_iter):
            return False
        path = self._experiment.models / "best_model.pth"
        logger.info("  Saved best model (%s=%s) to %s", name, with_unit(name, value), path)
        beside = train_record(self.model, result, train_loss)
        self._experiment.save_model(path.name, {**self._pack_model(current_iter), **beside})
        return True

    def _log_test(self, current_iter: int, result: Mapping[str, MetricValue], train_loss: float | None) -> None:
        losses = "-" if train_loss is None else f"{train_loss:.4f}"
        logger.info(
            "Epoch %d: Train Loss = %s, Test Loss = %.4f, LR = %.2e",
            self.stream.epoch(current_iter), losses, result["loss"], self.model.current_learning_rate(),
        )  # fmt: skip
        numbers = {name: value for name, value in result.items() if isinstance(value, float) and name != "loss"}
        if numbers:
            shown = (f"{spoken(name)}: {with_unit(name, value)}" for name, value in numbers.items())
            logger.info("  %s", ", ".join(shown))

    def _define_pictures(self) -> BestModelPictures | None:
        if "test" not in self._sources or self._experiment.is_dry_run:
            return None
        source = self._sources["test"]
        view = define_view(source.dataset, source.class_names)
        return BestModelPictures(self._experiment.folder, view, source.dataset, self._experiment.log.figure)

    def _pack_model(self, current_iter: int) -> dict[str, Any]:
        shown = self._sources.get("test", self._sources["train"])
        transforms = [each.model_dump() for each in without_random(shown.options).transforms]
        return pack_model(
            self.model, current_iter, self.stream.epoch(current_iter), self._result, shown.class_names,
            shown.dataset[0]["input"].shape, transforms, self._synthetic,
            shown.dataset.fingerprint if shown.name == "test" else None,
        )  # fmt: skip

    def _choose_seed(self, opt: Options) -> int:
        """The option file's seed, else the one that the run began with, else a random one; the same on every rank."""
        if opt.train.manual_seed is not None:
            return opt.train.manual_seed
        if self._resume and self._resume.manifest:
            return int(self._resume.manifest.stream["seed"])
        return self._dist.on_main(lambda: secrets.randbits(31))

    def _print_start_block(self, guarantee: str) -> None:
        opt, train = self.opt, self.opt.train
        files = ", ".join(path.name for path in self._resume.files.values()) if self._resume else ""
        start = f"resumed from iteration {self.start_iter:,}: {files}" if self._resume else "fresh, iteration 0"
        if self._experiment.is_dry_run:
            start = "a dry run: nothing is loaded, trained or written"
        elif not self._resume and opt.path.pretrained_netG:
            start += f", initialised from {opt.path.pretrained_netG}"
        num_batches = self.stream.num_samples / self.stream.batch_size
        next_iter = min(self.start_iter + 1, self.total_iter)
        position = int(self.stream.positions(next_iter)[0]) if self._dist.is_main else 0
        lines = {
            "experiment": str(self._experiment.folder),
            "start": start,
            "resume": guarantee,
            "next": f"iteration {next_iter:,} of {self.total_iter:,}, epoch {self.stream.epoch(next_iter)}, "
            f"position {position:,}, learning rate {learning_rate(next_iter, train):.3e}"
            if self._has_work
            else "",
            "data": ", ".join(f"{name} {len(source.dataset):,}" for name, source in self._sources.items())
            + f" samples; batch {self.stream.batch_size}, {num_batches:.1f} an epoch",
            "SYNTHETIC": self._synthetic or "",
            "network": f"{opt.netG.net_type}, {sum(p.numel() for p in self.model.netG.parameters()):,} parameters; "
            + ("netE is tested" if self.model.netE is not None else "netG is tested"),
            "machine": ", ".join(f"{key} {value}" for key, value in self._machine_record.items()),
            "seed": str(self._seed),
        }
        changed = self._experiment.option_changes() if self._resume and self._dist.is_main else []
        print_block("Longhaul", [*lines.items(), *(("changed", change) for change in changed)])

    def _print_summary(self, current_iter: int) -> None:
        name, models = self.opt.val.best_metric, self._experiment.models
        lines = {"iterations": f"{current_iter:,} of {self.total_iter:,}, epoch {self.stream.epoch(current_iter)}"}
        if self.is_out_of_patience:
            lines["stopped"] = f"early: {self.progress.num_tests_without_improvement} tests without improvement"
        if name is not None and self.progress.best_value is not None:
            epoch = self.stream.epoch(self.progress.best_iter)
            best = f"{spoken(name)} = {with_unit(name, self.progress.best_value)}"
            logger.info("Best model: Epoch %d, %s", epoch, best)
        if self._result:
            shown = ", ".join(f"{key} {value:.4f}" for key, value in self._result.items() if isinstance(value, float))
            lines["final"] = shown
        files = [name for name in ("best_model.pth", "final_model.pth") if (models / name).exists()]
        lines["files"] = f"{models}: {', '.join(files)}"
        if "test" in self._sources and files:
            lines["verify with"] = f"python main_test.py verify {shlex.quote(str(models / files[0]))}"
        lines["SYNTHETIC"] = self._synthetic or ""
        print_block("Done", lines.items())
