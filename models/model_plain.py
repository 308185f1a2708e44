"""ModelPlain: one network, one loss, one optimizer, and the network's moving average."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from models.buffers import FrozenParameters, KeptBuffers, SavedNames, UnsavedBuffers, fill_placeholders
from models.learning_rate import learning_rate
from models.loss import LOSSES
from models.loss_meter import LossMeter, NonFiniteLossError
from models.model_base import ModelBase, load_network
from models.moving_average import MovingAverage
from models.optimizer import define_optimizer, load_optimizer
from models.select_network import define_G
from utils.utils_checkpoint import ResumePoint
from utils.utils_dist import Dist
from utils.utils_error import UserError, listing
from utils.utils_file import project_path, sha256_of
from utils.utils_option import Options, TrainOptions
from utils.utils_seed import seed_global_generators, seed_of
from utils.utils_state_file import load_state

logger = logging.getLogger("longhaul")

Batch = dict[str, Any]


def copied(batch: Batch) -> Batch:
    """A batch for a forward pass that is not trained on: a network may change its input in place."""
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def without_targets(images: torch.Tensor) -> Batch:
    """A batch of images (B, ...) whose outputs are compared with nothing."""
    return {"input": images, "target": images.new_zeros(images.shape[0], dtype=torch.int64), "name": []}


def enabled_parts(train: TrainOptions) -> tuple[str, ...]:
    """The parts of a checkpoint set that a resume restores: G, E if there is an average, optimizerG if it is reused."""
    enabled = {"G": True, "E": train.E_decay > 0, "optimizerG": train.G_optimizer_reuse}
    return tuple(part for part, is_enabled in enabled.items() if is_enabled)


class ModelPlain(ModelBase):
    """KAIR's model for any network with one loss: classification, regression, restoration.

    A subclass overrides `feed_data` (what of a batch goes where), `netG_forward` (how the network is called) or
    `train_loss`, and is a line in MODELS. `self.target` is what the loss and the metrics compare the output with.
    """

    input: torch.Tensor
    target: torch.Tensor

    def __init__(self, opt: Options, dist: Dist, seed: int) -> None:
        super().__init__(opt, dist, seed)
        train = opt.train
        self.netG = self._first_net()
        # Built again, not copied: a network under torch.nn.utils.weight_norm cannot be.
        self.netE = self._first_net().eval().requires_grad_(False) if train.E_decay > 0 else None
        self.lossfn: nn.Module = LOSSES.build(train.G_lossfn_type, train.G_lossfn_args).to(self.device)
        if learned := [name for name, _ in self.lossfn.named_parameters()]:
            raise UserError(
                f"train.G_lossfn_type: {train.G_lossfn_type} has parameters ({listing(learned)}), which nobody trains "
                "or saves; put them into the network, or make them buffers"
            )
        self.optimizer = define_optimizer(self.netG, train)
        self._wrapped = self.wrap(self.netG)
        self._parameters = [parameter for parameter in self.netG.parameters() if parameter.requires_grad]
        self._unsaved = UnsavedBuffers(self.netG, self.lossfn)
        self._names = SavedNames(self.netG)
        self._frozen = FrozenParameters(self.netG)
        self._average = MovingAverage(self.netE, self.netG) if self.netE is not None else None
        self.num_skipped_in_a_row = 0
        """Steps that `train.nonfinite: "skip"` has left out since the last one that was taken."""
        self.losses = LossMeter(dist)
        self._norms: list[torch.Tensor] = []

    # What a user's model overrides.

    def feed_data(self, batch: Batch) -> None:
        """Take what the network needs from a batch that is already on the device."""
        self.input = batch["input"]
        if self.opt.train.channels_last and self.input.ndim == 4:
            self.input = self.input.contiguous(memory_format=torch.channels_last)
        self.target = batch["target"]

    def netG_forward(self, netG: nn.Module) -> torch.Tensor:
        """Call the given network (the wrapped netG in training, the bare netE or netG in a test)."""
        return netG(self.input)

    def train_loss(self, output: torch.Tensor) -> torch.Tensor:
        """What training minimises: the loss of a float32 output of netG, without G_lossfn_weight."""
        loss: torch.Tensor = self.lossfn(output, self.target)
        return loss

    def check_classes(self, class_names: Sequence[str]) -> None:
        """UserError if the model cannot learn the data's classes (empty: it has none); this one can."""

    def record(self) -> dict[str, Any]:
        """What else decides the bits of an update, such as a teacher's hash; a resume says if it has changed."""
        return {}

    # Training.

    def update_learning_rate(self, current_iter: int) -> None:
        """Set the rate of iteration `current_iter`; the update that follows uses it."""
        rate = learning_rate(current_iter, self.opt.train)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def optimize_parameters(self, micro_batches: Sequence[Batch], current_iter: int) -> None:
        """One update from the mean gradient of the micro-batches; see `train.nonfinite`. Collective.

        Raises NonFiniteLossError when more steps in a row than may be would be skipped.
        """
        seed_global_generators(seed_of(self.seed, "step", current_iter, self.dist.rank))
        may_skip = self.opt.train.nonfinite == "skip"
        buffers = KeptBuffers(self.netG) if may_skip else None
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate_gradients(micro_batches)
        if buffers and self._is_skipped(loss, current_iter):
            buffers.restore()
            return
        self.losses.add(loss)
        if clip := self.opt.train.G_optimizer_clipgrad:
            self._norms.append(nn.utils.clip_grad_norm_(self._parameters, clip, foreach=True))
        self.optimizer.step()

    def update_E(self, current_iter: int) -> None:
        """Move netE towards netG; a warm-up of the decay soon forgets the first weights."""
        if self._average is not None:
            self._average.update(min(self.opt.train.E_decay, (1 + current_iter) / (10 + current_iter)))

    def rebuild_buckets(self, first_micro_batches: Callable[[], Sequence[Batch]]) -> None:
        """One throw-away pass before the state is loaded. Collective.

        DDP reorders its gradient buckets after its first backward pass, and with three or more ranks sums in another
        order from then on. After this pass every iteration uses the final order, and so does one that is resumed, if
        the pass is that of the same iteration: a batch may decide whose gradient comes first. UserError if DDP would
        wait for gradients that never come.
        """
        if self.dist.world_size == 1:
            return
        before, micro_batches = self._versions(), first_micro_batches()
        seed_global_generators(seed_of(self.seed, "step", 1, self.dist.rank))
        with KeptBuffers(self.netG):
            self._accumulate_gradients(micro_batches)
        self.dist.together(self._check_all_are_used)
        if written := [name for name, version in self._versions().items() if version != before[name]]:
            logger.warning(
                "netG (%s) writes to %s in its forward pass: the weights of several ranks drift apart, only those of "
                "rank 0 are saved, and a resume is not exact.", self.opt.netG.net_type, listing(written),
            )  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)

    # Testing.

    @property
    def tested_net(self) -> nn.Module:
        """The network that tests and `best_model.pth` use: netE where there is one."""
        return self.netG if self.netE is None else self.netE

    def test(self, batch: Batch) -> torch.Tensor:
        """The output of the tested network in float32 and evaluation mode."""
        net = self.tested_net
        modes = [(module, module.training) for module in net.modules()]  # a user may have frozen some layers
        net.eval()
        with torch.no_grad():
            self.feed_data(batch)
            output = self.netG_forward(net)
        for module, was_training in modes:
            module.training = was_training
        return output.float()

    def test_loss(self, output: torch.Tensor) -> torch.Tensor:
        """`lossfn` of a test output, with its weight; training may minimise more, see `train_loss`."""
        return self.opt.train.G_lossfn_weight * self.lossfn(output, self.target)

    def sync_buffers(self) -> None:
        """Give every rank rank 0's buffers, as DDP does before a forward pass: all test one network. Collective."""
        self.dist.broadcast([buffer for net in (self.netG, self.netE) if net is not None for buffer in net.buffers()])

    # Logging.

    def current_learning_rate(self) -> float:
        """The rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def current_log(self, current_iter: int) -> dict[str, float]:
        """Means over the ranks and the iterations since the last call: G_loss, and grad_norm where it is clipped.

        Waits for the device, as do a test and a save, and nothing else. Raises NonFiniteLossError. Collective.
        """
        self.losses.collect(current_iter)
        mean = self.losses.take_logged()
        log = {} if mean is None else {"G_loss": mean}
        if self._norms:
            log["grad_norm"] = float(torch.stack(self._norms).mean())
        self._norms.clear()
        return log

    # State.

    def state(self) -> dict[str, Any]:
        """Everything that a resume needs and the iteration does not give, by part: G, E, optimizerG."""
        self._unsaved.warn_if_changed()
        self._names.warn_if_changed()
        self._frozen.warn_if_thawed()
        parts: dict[str, Any] = {"G": self.netG.state_dict()}
        if self.netE is not None:
            parts["E"] = self.netE.state_dict()
        parts["optimizerG"] = {**self.optimizer_state(), "type": type(self.optimizer).__name__}
        return parts

    def optimizer_state(self) -> dict[str, Any]:
        """The state dict in the order of the parameters, not of their first gradients: a resume restores it so."""
        optimizer = self.optimizer.state_dict()
        return {**optimizer, "state": dict(sorted(optimizer["state"].items()))}

    def load(self, resume: ResumePoint | None) -> list[str]:
        """Restore a resume point, or initialise a fresh run from path.pretrained_netG / _netE.

        Returns what of the state starts afresh, in words.
        """
        train, path = self.opt.train, self.opt.path
        if resume is not None:
            files = dict(resume.files)
        else:
            given = {"G": path.pretrained_netG, "E": path.pretrained_netE}
            files = {part: project_path(file) for part, file in given.items() if file}
        self.dist.same_on_machines(lambda: {f"{part} ({file.name})": _hash(file) for part, file in files.items()})
        for part, file in files.items():
            if resume is None and not file.exists():
                raise UserError(f"path.pretrained_net{part}: {file}: no such file; give a file of weights, or null")
        is_whole, afresh = {}, []
        advice = " To load what fits, set train.%s_param_strict to false."
        if resume is not None:
            advice += " To begin anew, give the run another task name."
        if "G" in files:
            is_whole["G"] = load_network(self.netG, files["G"], train.G_param_strict, advice=advice % "G")
        if self.netE is not None:
            if "E" in files:
                is_whole["E"] = load_network(
                    self.netE, files["E"], train.E_param_strict, prefer_ema=True, advice=advice % "E"
                )
            else:
                afresh.append("E starts afresh")
                state = self.netG.state_dict()
                fill_placeholders(self.netE, state)
                self.netE.load_state_dict(state)
                if resume is not None:
                    logger.warning("No E file at iteration %d: netE starts from netG.", resume.iteration)
        if "optimizerG" in files:
            is_whole["optimizerG"] = load_optimizer(self.optimizer, load_state(files["optimizerG"]), self.netG)
        elif resume is not None:
            afresh.append("optimizerG starts afresh")
            logger.warning("The optimizer's state is not restored: it starts afresh at iteration %d.", resume.iteration)
        return [f"not all of {part} is restored" for part, whole in is_whole.items() if not whole] + afresh

    def _first_net(self) -> nn.Module:
        """The network as a fresh run begins with it, the same at each call."""
        seed_global_generators(seed_of(self.seed, "init"))
        return self.to_device(define_G(self.opt.netG))

    def _accumulate_gradients(self, micro_batches: Sequence[Batch]) -> torch.Tensor:
        """Backward passes of all micro-batches, synchronised in the last one; returns the mean loss."""
        losses: list[torch.Tensor] = []
        for number, batch in enumerate(micro_batches, 1):
            is_last = number == len(micro_batches)
            with contextlib.nullcontext() if is_last else self.without_sync(self._wrapped):
                self.feed_data(batch)
                with self.autocast():
                    output = self.netG_forward(self._wrapped)
                loss = self.train_loss(output.float())
                # Even a factor of 1 would cost four small operations, two of them in the backward pass.
                if self.opt.train.G_lossfn_weight != 1:
                    loss = self.opt.train.G_lossfn_weight * loss
                if len(micro_batches) > 1:
                    loss = loss / len(micro_batches)
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return functools.reduce(torch.add, losses)

    def _versions(self) -> dict[str, tuple[int, int]]:
        """What tells whether somebody has written to a parameter, or given it other memory."""
        return {name: (each._version, each.data_ptr()) for name, each in self.netG.named_parameters()}

    def _check_all_are_used(self) -> None:
        unused = [name for name, each in self.netG.named_parameters() if each.requires_grad and each.grad is None]
        if unused:
            raise UserError(
                f"netG ({self.opt.netG.net_type}): {listing(unused)} took no part in the loss of the first batch, and "
                f"{self.dist.world_size} ranks can only train parameters that do in every batch; remove them from the "
                "network, freeze them with requires_grad_(False), or train on one rank"
            )

    def _is_skipped(self, loss: torch.Tensor, current_iter: int) -> bool:
        """Whether any rank's loss, or the gradient, is not finite; waits for the device. Collective."""
        norm = nn.utils.get_total_norm([each.grad for each in self._parameters if each.grad is not None], foreach=True)
        loss, norm = self.dist.sum(torch.stack([loss, norm.to(loss)]) / self.dist.world_size).tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            self.num_skipped_in_a_row = 0
            return False
        self.num_skipped_in_a_row += 1
        what = f"iteration {current_iter}: the loss is {loss}, the norm of the gradient {norm}"
        if self.num_skipped_in_a_row > self.opt.train.nonfinite_max_skips:
            skipped = self.opt.train.nonfinite_max_skips
            raise NonFiniteLossError(f"{what}; {skipped} steps in a row were skipped, train.nonfinite_max_skips")
        logger.warning("Skipped %s (%d in a row).", what, self.num_skipped_in_a_row)
        return True


def _hash(file: Path) -> str:
    return sha256_of(file) if file.is_file() else "missing"
