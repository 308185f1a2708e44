"""Trainer: one launch of a run, where model and data meet: resume, batches, log, save, finish."""

import dataclasses
import itertools
import logging
import secrets
import shlex
import signal
from collections.abc import Iterator, Mapping

import torch

from data.loaders import define_train_loader
from data.select_dataset import DataSource, synthetic_notice
from data.train_stream import TrainStream
from models.learning_rate import learning_rate
from models.model_plain import Batch, enabled_parts
from models.probe import probe_training
from models.select_model import define_model
from models.select_network import check_fits_data
from tester import Tester
from utils.utils_checkpoint import Manifest
from utils.utils_device import device_name, precision_name, trains_faster_in_bf16
from utils.utils_dist import Dist, leave_process_group
from utils.utils_error import UserError
from utils.utils_experiment import Experiment, machine_record
from utils.utils_file import code_record
from utils.utils_image import image_grid, is_picture
from utils.utils_logger import print_block
from utils.utils_metrics import spoken, with_unit
from utils.utils_option import Options, with_total_iter
from utils.utils_progress import Progress
from utils.utils_resume import check_stream, resume_guarantee
from utils.utils_signal import SAVE_FAILED, StopRequest

logger = logging.getLogger("longhaul")


class Trainer:
    """Everything that the loop in main_train needs besides the step itself. All methods are collective."""

    def __init__(
        self, opt: Options, dist: Dist, stop: StopRequest, experiment: Experiment, sources: Mapping[str, DataSource]
    ) -> None:
        self._dist, self._stop, self._experiment, self._sources = dist, stop, experiment, sources
        self._synthetic = synthetic_notice(sources.values())
        self._resume = experiment.find_resume_point(enabled_parts(opt.train))
        self._manifest = self._resume.manifest if self._resume else None
        self.start_iter = self._resume.iteration if self._resume else 0
        self._saved = self._manifest.progress if self._manifest else Progress()
        self._seed = self._choose_seed(opt)
        train = sources["train"]
        for source in sources.values():
            check_fits_data(opt.netG, source.title, source.netG_arguments)
        self.stream = TrainStream(
            len(train.dataset), opt.datasets["train"].dataloader_batch_size, self._seed, dist.rank, dist.world_size
        )
        self.opt = with_total_iter(opt, self.stream.num_iters)
        assert self.opt.train.total_iter is not None, "resolved above"
        self.total_iter = self.opt.train.total_iter
        self.model = define_model(self.opt, dist, self._seed)
        self._loader = define_train_loader(
            train, self.stream, dist, self._seed, self.start_iter, opt.train.G_accumulation_steps
        )
        code = code_record()
        dist.same_on_machines(lambda: {"code": str(code["code"]), **self.model.record()})
        self._machine_record = {**machine_record(self.opt, dist), **train.record, **self.model.record()}
        self.tests = Tester(
            self.model, stop, experiment, sources, self.stream, self._saved, {**self._machine_record, **code}
        )
        self._stream_record = {
            "seed": self._seed,
            "batch_size": self.stream.batch_size,
            "num_samples": self.stream.num_samples,
            "dataset": train.fingerprint,
            "synthetic": train.synthetic_source,
        }
        self.model.check_classes(train.class_names)
        self._augmented: torch.Tensor | None = None
        self._saved_iter = self.start_iter
        # An earlier launch ended the run and wrote everything.
        self._was_finished = (
            not self._has_work
            and not self.tests.has_lost_best
            and experiment.model_iter("final_model.pth") == self.start_iter
        )

    def is_due(self, every: int | str, current_iter: int) -> bool:
        """Whether something done every so many iterations, or every "epoch", is due; at the end everything is."""
        if current_iter == self.total_iter:
            return True
        return self.stream.ends_epoch(current_iter) if every == "epoch" else current_iter % int(every) == 0

    def resume(self) -> None:
        """Load the resume point, or initialise a fresh run, and say where it stands."""
        if not self.opt.resume.accept_changes:
            self._check_still_real()
            check_stream(self._manifest, self._stream_record)
        if self._has_work:
            self._probe()
        afresh = self.model.load(self._resume)
        guarantee = resume_guarantee(self._resume, self._stream_record, self._machine_record, afresh)
        if self._has_work:
            self._experiment.rehearse_save(self.model.state(), self._manifest_of(self.start_iter, "periodic"))
        self.model.num_skipped_in_a_row = self._saved.num_skipped_in_a_row
        self.model.losses.sum, self.model.losses.count = self._saved.loss_sum, self._saved.num_losses
        self.model.update_learning_rate(max(self.start_iter, 1))
        self._print_start_block(guarantee)
        if not self._was_finished and not self.tests.is_out_of_patience:
            self._set_stale_models_aside(is_exact=self._has_work and guarantee.startswith("EXACT"))
        self._warn_of_other_counts()
        if self.total_iter <= (warm := self.opt.train.G_scheduler_warmup_iter) and self._has_work:
            logger.warning(
                "train.G_scheduler_warmup_iter: the learning rate climbs for %s iterations, and the run ends after %s: "
                "it never reaches train.G_optimizer_lr.", f"{warm:,}", f"{self.total_iter:,}",
            )  # fmt: skip
        if self.opt.train.amp == "bf16" and trains_faster_in_bf16(self._dist.device) is False:
            name = device_name(self._dist.device)
            logger.warning('train.amp: bf16 trains more slowly than float32 on %s; "auto" takes the faster.', name)
        self._experiment.save_options()  # after what compares with those of the launch before
        self._experiment.log.start(self.start_iter, self.total_iter)

    def batches(self) -> Iterator[tuple[int, list[Batch]]]:
        """(current_iter, micro-batches) of every iteration left, after the test that a stop may have cut off."""
        is_pending = self.start_iter > self.tests.progress.last_test_iter and not self._was_finished
        # A set that was saved before its test ran, maybe with another checkpoint_test, does not know how good it is.
        if is_pending and (
            self.is_due(self.opt.train.checkpoint_test, self.start_iter)
            or self._experiment.model_iter("best_model.pth") == self.start_iter
        ):
            self.tests.run(self.start_iter)
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

    def save(self, current_iter: int, reason: str) -> None:
        """Commit a checkpoint set in the background, unless this iteration has one."""
        if current_iter == self._saved_iter:
            return
        self._saved_iter = current_iter
        is_last = current_iter == self.total_iter or self.tests.is_out_of_patience
        reason = "final" if is_last and reason == "periodic" else reason
        self._experiment.save_set(self.model.state(), self._manifest_of(current_iter, reason))

    def finish(self, current_iter: int) -> int:
        """Save what is left to save, say how it ended, and return the exit status."""
        if not self._was_finished and self.tests.last_iter != current_iter and not self._stop.signal_number:
            self.tests.run(current_iter)  # an earlier launch tested, but was killed before it wrote final_model.pth
        if self._stop.signal_number:
            return self._finish_interrupted(current_iter)
        if self._was_finished:
            logger.info("Nothing is left to do: the run ended at iteration %s.", f"{current_iter:,}")
        else:
            self.save(current_iter, "final")
            self._experiment.save_model("final_model.pth", self.tests.packed_model(current_iter))
            self.tests.draw_pictures(at_the_end=True)
        self._experiment.finish("DONE")
        self._print_summary(current_iter)
        if self._experiment.save_failed:
            logger.error("The end of the run could not be saved, see above; launch again to make up for it.")
            return 1
        return 0

    @property
    def _has_work(self) -> bool:
        return self.start_iter < self.total_iter and not self.tests.is_out_of_patience

    def _manifest_of(self, current_iter: int, reason: str) -> Manifest:
        progress = dataclasses.replace(
            self.tests.progress, num_skipped_in_a_row=self.model.num_skipped_in_a_row,
            loss_sum=self.model.losses.sum, num_losses=self.model.losses.count,
        )  # fmt: skip
        return Manifest(
            iteration=current_iter, epoch=self.stream.epoch(current_iter), reason=reason, progress=progress,
            stream=self._stream_record, machine=self._machine_record,
        )  # fmt: skip

    def _probe(self) -> None:
        """Look at a batch, the network, the loss and every test before hours of training lead to them."""
        first = _, micro_batches = next(self._loader)
        self._loader = itertools.chain([first], self._loader)  # it is trained on in its turn
        self._dist.together(lambda: probe_training(self.model, micro_batches[0]))
        self.model.rebuild_buckets(self._first_micro_batches)
        self._dist.together(self.tests.probe)
        if self._experiment.log.wants_images and is_picture(micro_batches[0]["input"][0]):
            self._augmented = image_grid(micro_batches[0]["input"][:32])

    def _first_micro_batches(self) -> list[Batch]:
        """Those of iteration 1, wherever this launch begins."""
        train = self._sources["train"]
        # One batch is wanted: no copy of the whole data set on the device, and no workers.
        streamed = train.options.model_copy(update={"resident": False, "dataloader_num_workers": 0})
        source = dataclasses.replace(train, options=streamed)
        num_micro_batches = self.opt.train.G_accumulation_steps
        _, micro_batches = next(define_train_loader(source, self.stream, self._dist, self._seed, 0, num_micro_batches))
        return micro_batches

    def _check_still_real(self) -> None:
        """UserError for a run on real samples that would go on with generated ones, because its data are missing."""
        if self._manifest and self._manifest.stream.get("synthetic") is None and self._synthetic:
            raise UserError(
                f"The run learned from real samples until iteration {self.start_iter}, and would go on with "
                f"{self._synthetic}. Bring the data back, or name their place in datasets.train.dataroot"
            )

    def _set_stale_models_aside(self, is_exact: bool) -> None:
        if self._resume:
            self.tests.set_stale_best_aside(self.start_iter, is_exact)
        # Killed when the set of that iteration is committed, the run would look finished to the next launch.
        if self._experiment.model_iter("final_model.pth") > self.start_iter:
            self._experiment.set_aside_model("final_model.pth", "is of a later iteration than this launch begins at")

    def _warn_of_other_counts(self) -> None:
        """The iterations behind are not recounted when a batch or the data has another size."""
        now = self._stream_record
        saved = self._manifest.stream if self._manifest else now
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

    def _finish_interrupted(self, current_iter: int) -> int:
        try:
            self.model.losses.collect(current_iter)  # the set needs those of all ranks, which stopped here together
        except RuntimeError as error:
            logger.warning("The mean training loss of the next test will miss some iterations: %s", error)
        # The peers may be gone any moment: from here on rank 0 needs nobody.
        leave_process_group()
        self.save(current_iter, "interrupt")
        number = self._stop.signal_number
        is_signal = number != SAVE_FAILED
        self._experiment.finish("PREEMPTED" if is_signal else "FAILED")
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
        self.tests.draw_pictures()  # last: a machine that is taken away may not wait for them
        return 128 + number if is_signal and not self._experiment.save_failed else 1

    def _choose_seed(self, opt: Options) -> int:
        """The option file's seed, else the one that the run began with, else a random one; the same on every rank."""
        if opt.train.manual_seed is not None:
            return opt.train.manual_seed
        if self._manifest:
            return int(self._manifest.stream["seed"])
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
        next_iter = self.start_iter + 1
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
            "network": f"{opt.netG.net_type}, {_size(self.model.netG)}; "
            + ("netE is tested" if self.model.netE is not None else "netG is tested"),
            "machine": ", ".join(f"{key} {value}" for key, value in self._machine_record.items() if key != "amp"),
            "precision": precision_name(self._machine_record["amp"], self._dist.device)
            + (", the faster one here" if train.amp == "auto" else ""),
            "seed": str(self._seed),
        }
        changed = self._experiment.changes() if self._resume and self._dist.is_main else []
        print_block("Longhaul", [*lines.items(), *(("changed", change) for change in changed)])

    def _print_summary(self, current_iter: int) -> None:
        name, models = self.opt.val.best_metric, self._experiment.models
        lines = {"iterations": f"{current_iter:,} of {self.total_iter:,}, epoch {self.stream.epoch(current_iter)}"}
        progress, result = self.tests.progress, self.tests.result
        if self.tests.is_out_of_patience:
            lines["stopped"] = f"early: {progress.num_tests_without_improvement} tests without improvement"
        if name is not None and progress.best_value is not None:
            best = f"{spoken(name)} = {with_unit(name, progress.best_value)}"
            logger.info("Best model: Epoch %d, %s", self.stream.epoch(progress.best_iter), best)
        if result:
            lines["final"] = ", ".join(
                f"{key} {value:.4f}" for key, value in result.items() if isinstance(value, float)
            )
        files = [name for name in ("best_model.pth", "final_model.pth") if (models / name).exists()]
        lines["files"] = f"{models}: {', '.join(files)}"
        if "test" in self._sources and files:
            lines["verify with"] = f"python main_test.py verify {shlex.quote(str(models / files[0]))}"
        lines["SYNTHETIC"] = self._synthetic or ""
        print_block("Done", lines.items())


def _size(net: torch.nn.Module) -> str:
    sizes = [(each.numel(), each.requires_grad) for each in net.parameters()]
    num_frozen = sum(size for size, is_trained in sizes if not is_trained)
    return f"{sum(size for size, _ in sizes):,} parameters" + f", {num_frozen:,} of them frozen" * bool(num_frozen)
