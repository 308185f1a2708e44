"""The sections of an option file as frozen, strict models; build them with utils_option.parse, which checks more.

Strict: "1" is not a number, true is not 1, 1.0 is not a whole number; a whole number is accepted where any number is.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError(f"{text!r} is not allowed: no file and no name has a NUL character in it")
    return text


Count = Annotated[int, Field(ge=1, le=10**12)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Every = Count | Literal["epoch"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A section whose keys are all known."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Choice(Section):
    """A section that names a thing of a table; its other keys are arguments of that thing's constructor."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor arguments: every key that is not a field of the section."""
        return dict(self.model_extra or {})


class PathOptions(Section):
    root: Text = Field(default="experiments", description="folder of the experiments; a run writes to <root>/<task>")
    pretrained_netG: Text | None = Field(default=None, description="weights file that initialises netG of a fresh run")
    pretrained_netE: Text | None = Field(default=None, description="weights file that initialises netE of a fresh run")
    pretrained_netT: Text | list[Text] | None = Field(
        default=None,
        description="best_model.pth of the teacher of model distill, or a list of several; needed for training only",
    )


class FallbackOptions(Choice):
    dataset_type: Text = Field(description="name of the synthetic source")


class TransformOptions(Choice):
    type: Text = Field(description="name of the transform")


class DatasetOptions(Choice):
    dataset_type: Text = Field(description="name of the data set; a test data set inherits it from datasets.train")
    dataroot: Text | None = Field(
        default=None, description="file or folder of the data; a test data set inherits it from datasets.train"
    )
    fallback: FallbackOptions | None = Field(
        default=None,
        description="synthetic source used, loudly, when dataroot is absent; a test data set inherits it",
    )
    dataloader_batch_size: Count = Field(
        default=256,
        description="samples per iteration, summed over all ranks and accumulation steps; required for train",
    )
    dataloader_num_workers: int = Field(
        default=0, ge=0, description="loader processes, total over all ranks; used by data that streams"
    )
    resident: bool | Literal["auto"] = Field(
        default="auto", description='keep the decoded data set on the device; "auto": where the data set can do so'
    )
    transforms: tuple[TransformOptions, ...] = Field(
        default=(), description="batched transforms, applied in this order on the device"
    )


class NetOptions(Choice):
    net_type: Text = Field(description="name of the network; the other keys of netG are its constructor arguments")


class TrainOptions(Section):
    G_lossfn_type: Text = Field(description="name of the loss")
    G_lossfn_weight: float = Field(default=1.0, gt=0, description="factor of the loss")
    G_lossfn_args: dict[str, Any] = Field(default={}, description="constructor arguments of the loss")
    distill_weight: float = Field(
        default=0.5, ge=0, le=1, description="share of the teacher in the loss; model distill only"
    )
    distill_temperature: float = Field(
        default=1.0, gt=0, description="what the logits of both are divided by; model distill only"
    )

    G_optimizer_type: Text = Field(default="adam", description="name of the optimizer")
    G_optimizer_lr: float = Field(gt=0, description="learning rate, per update")
    G_optimizer_betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="decay rates of the Adam moments")
    G_optimizer_momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd and muon")
    G_optimizer_nesterov: bool = Field(default=True, description="Nesterov momentum; sgd and muon")
    G_optimizer_wd: float = Field(default=0.0, ge=0, description="weight decay; norms and biases have none")
    G_optimizer_clipgrad: float | None = Field(
        default=None, ge=0, description="largest norm of netG's gradient; null or 0: no clipping"
    )
    G_optimizer_reuse: bool = Field(default=True, description="restore the optimizer's state when a run resumes")

    G_scheduler_type: Text = Field(default="MultiStepLR", description="name of the learning rate schedule")
    G_scheduler_milestones: tuple[Count, ...] = Field(
        default=(), description="iterations after which MultiStepLR multiplies the rate by gamma, ascending"
    )
    G_scheduler_gamma: float = Field(default=0.5, gt=0, le=1, description="factor of the rate at each milestone")
    G_scheduler_periods: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        validate_default=True,
        description="iterations of the first cycle of CosineAnnealingWarmRestarts",
    )
    G_scheduler_restart_weights: Count = Field(
        default=1, description="factor by which each cycle of CosineAnnealingWarmRestarts outlasts the one before it"
    )
    G_scheduler_eta_min: float = Field(
        default=0.0, ge=0, description="rate at the end of a cosine; absolute, at most G_optimizer_lr"
    )
    G_scheduler_warmup_iter: int = Field(default=0, ge=0, description="iterations of linear warm-up; 0: none")

    E_decay: float = Field(default=0.999, ge=0, lt=1, description="decay of the moving average netE; 0: no netE")
    G_param_strict: bool = Field(default=True, description="every tensor of netG must be in a weights file, no other")
    E_param_strict: bool = Field(default=True, description="every tensor of netE must be in a weights file, no other")

    total_iter: Count | None = Field(
        default=None, description="iterations to train; with total_epochs, whichever ends first"
    )
    total_epochs: Count | None = Field(
        default=None,
        validate_default=True,
        description="epochs to train; with total_iter, whichever ends first; one of the two is required",
    )
    nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="what a loss or gradient of NaN or infinity does: stop the run or skip the step"
    )
    nonfinite_max_skips: Count = Field(
        default=10, description="steps in a row that may be skipped before the run stops all the same"
    )

    checkpoint_print: Every = Field(default=200, description='iterations between two log lines, or "epoch"')
    checkpoint_save: Every = Field(default=5000, description='iterations between two checkpoints, or "epoch"')
    checkpoint_test: Every = Field(default=5000, description='iterations between two tests, or "epoch"')
    max_to_keep: int = Field(default=5, ge=0, description="newest checkpoint sets to keep, at least 2; 0: all")
    save_failure: Literal["continue", "stop"] = Field(
        default="continue", description="what a checkpoint that cannot be written does: train on or stop the run"
    )
    best_model_optimizer: bool = Field(
        default=False, description="keep the optimizer's state in best_model.pth too, for tools that expect it there"
    )
    early_stop_patience: Count | None = Field(
        default=None, description="stop after this many tests without improvement; null: never"
    )

    manual_seed: int | None = Field(
        default=None, ge=0, le=2**63 - 1, description="seed of all randomness; null: drawn once and logged"
    )
    amp: Literal["auto", "bf16"] | None = Field(
        default=None,
        description="precision of forward and backward; null: float32; auto: bf16 where the device is faster in it",
    )
    compile: bool = Field(default=False, description="compile netG with torch.compile")
    channels_last: bool = Field(default=False, description="store images and filters channels last")
    G_accumulation_steps: Count = Field(default=1, description="forward and backward passes per update, on each rank")
    num_threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="CPU threads per rank; null: cores / ranks here"
    )

    @field_validator("G_optimizer_clipgrad")
    @classmethod
    def zero_is_no_clipping(cls, norm: float | None) -> float | None:
        return norm or None  # KAIR's 0 means no clipping

    @field_validator("G_scheduler_milestones")
    @classmethod
    def milestones_ascend(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"{list(milestones)} must ascend strictly; use {sorted(set(milestones))}")
        return milestones

    @field_validator("G_scheduler_periods", mode="before")
    @classmethod
    def one_period(cls, periods: Any) -> Any:
        if not isinstance(periods, list):
            return periods
        if len(periods) != 1:
            raise ValueError(
                f"{periods} is not allowed: must be one whole number, the first cycle in iterations; "
                "each later one is G_scheduler_restart_weights times as long"
            )
        return periods[0]  # KAIR writes a list

    @field_validator("G_scheduler_periods")
    @classmethod
    def restarts_need_a_period(cls, periods: int | None, info: ValidationInfo) -> int | None:
        if periods is None and info.data.get("G_scheduler_type") == "CosineAnnealingWarmRestarts":
            raise ValueError("missing; CosineAnnealingWarmRestarts needs the iterations of its first cycle")
        return periods

    @field_validator("G_scheduler_eta_min")
    @classmethod
    def eta_min_below_lr(cls, eta_min: float, info: ValidationInfo) -> float:
        lr = info.data.get("G_optimizer_lr")
        if lr is not None and eta_min > lr:
            raise ValueError(f"{eta_min} is not allowed: must be at most G_optimizer_lr, {lr}; it is an absolute rate")
        return eta_min

    @field_validator("total_epochs")
    @classmethod
    def has_an_end(cls, epochs: int | None, info: ValidationInfo) -> int | None:
        if epochs is None and info.data.get("total_iter", "refused above") is None:
            raise ValueError("missing; give total_iter or total_epochs, or both: whichever ends first")
        return epochs

    @field_validator("max_to_keep")
    @classmethod
    def keeps_a_predecessor(cls, kept: int) -> int:
        if kept == 1:
            raise ValueError(
                "1 is not allowed: a set that turns out damaged needs a predecessor to fall back to; "
                "use 2 or more, or 0 to keep all"
            )
        return kept


class ValOptions(Section):
    metrics: tuple[Text, ...] = Field(default=(), description="names of the metrics that every test reports")
    best_metric: Text | None = Field(
        default=None,
        description='what selects the best model on datasets.test, which requires it: one of metrics, or "loss"',
    )
    best_mode: Literal["max", "min"] = Field(
        default="max", validate_default=True, description="whether the best value is the largest or the smallest"
    )
    save_img: bool = Field(
        default=True,
        description="draw curves, result and samples of each best model to images/, in at most 2 % of the time",
    )

    @field_validator("best_metric")
    @classmethod
    def best_is_measured(cls, best: str | None, info: ValidationInfo) -> str | None:
        metrics = info.data.get("metrics")
        if best not in (None, "loss") and metrics is not None and best not in metrics:
            allowed = ", ".join(f'"{name}"' for name in (*metrics, "loss"))
            raise ValueError(f'"{best}" is not measured: must be one of {allowed}; or add it to val.metrics')
        return best

    @field_validator("best_mode")
    @classmethod
    def least_loss_is_best(cls, mode: str, info: ValidationInfo) -> str:
        if mode == "max" and info.data.get("best_metric") == "loss":
            raise ValueError('"max" would keep the worst model, because best_metric is "loss"; use "min"')
        return mode


class LogOptions(Section):
    tensorboard: bool = Field(default=True, description="write TensorBoard events to tb/")
    progress_bar: bool | Literal["auto"] = Field(
        default="auto", description='show a progress bar; "auto": on a terminal only'
    )


class ResumeOptions(Section):
    accept_changes: bool = Field(
        default=False, description="resume although the seed, the batch size or the data have changed"
    )


class Options(Section):
    """A whole option file; `notice` says which of KAIR's keys in it have no effect here ("" if none)."""

    task: Text = Field(description="name of the run, and of its folder in path.root")
    model: Text = Field(default="plain", description="name of the model class")
    path: PathOptions = Field(default=PathOptions(), description="where files are")
    datasets: dict[str, DatasetOptions] = Field(
        description='the data: "train", "test" (selects the best model) and any "test*" (reported only)'
    )
    netG: NetOptions = Field(description="the network and its constructor arguments")
    train: TrainOptions = Field(description="loss, optimizer, schedule, length, checkpoints")
    val: ValOptions = Field(default=ValOptions(), description="what a test measures")
    log: LogOptions = Field(default=LogOptions(), description="what a run shows besides train.log and metrics.csv")
    resume: ResumeOptions = Field(default=ResumeOptions(), description="what a relaunch may change")

    _notice: str = PrivateAttr(default="")

    @property
    def notice(self) -> str:
        return self._notice

    def __eq__(self, other: object) -> bool:
        """Equal values; the notice is about the file they came from."""
        return isinstance(other, Options) and self.model_dump() == other.model_dump()

    @field_validator("task")
    @classmethod
    def task_names_a_folder(cls, task: str) -> str:
        if task in (".", "..") or any(letter in "/\\" or ord(letter) < 32 for letter in task) or task != task.strip():
            raise ValueError(
                f'"{task}" is not allowed: it names a folder, so no slash, backslash or control character, '
                'no space at its ends, and neither "." nor ".."'
            )
        return task
