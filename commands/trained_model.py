"""What main_test.py is given: a self-contained model, a network of a checkpoint set, or an experiment folder."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.loaders import define_test_pipeline, without_random
from data.select_dataset import DATASETS, DataSource, define_dataset
from data.transforms import Pipeline
from models.model_base import load_network
from models.model_plain import ModelPlain, without_targets
from models.select_model import define_model
from tables import TABLES
from utils import utils_option
from utils.utils_checkpoint import CheckpointFolder, DamagedError
from utils.utils_checkpoint_names import list_parts, manifest_name
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_file import project_path
from utils.utils_history import saved_options
from utils.utils_metrics import MetricValue
from utils.utils_metrics_csv import logged_test
from utils.utils_option import DatasetOptions, Options
from utils.utils_option_file import apply_overrides
from utils.utils_state_file import load_state
from views.select_view import define_view, stated
from views.view_base import View

_SELF_CONTAINED = {"model_state_dict", "netG", "options", "iter", "epoch"}
_PART_NAME = re.compile(r"(\d+)_(G|E)\.pth")


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """One file with weights, and the options that it is used with.

    class_names: empty where targets are no classes. input_shape: (C, H, W) of the raw images that the network was
    trained on, input_dtype: their type; None if nothing says it. recorded: the metrics that its run measured on
    `recorded_split` of datasets.test; empty if it measured none. synthetic: what stood in for missing data, in words.
    is_of_real_data: whether the file says that it learned from real samples. experiment: the folder of its run; None
    for a file that was taken out of it. fingerprint: of the data that `recorded` was measured on, device: that it was
    measured with; None if the file does not say. option_file: what the options are from, None if from the file itself.
    weights: of the same moment as all this, because a run that goes on replaces its best model.
    """

    path: Path
    opt: Options
    iteration: int
    epoch: int | None
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int] | None
    recorded: Mapping[str, MetricValue]
    recorded_split: str | None
    synthetic: str | None
    is_of_real_data: bool
    experiment: Path | None
    fingerprint: str | None = None
    device: str | None = None
    input_dtype: str | None = None
    option_file: Path | None = None
    weights: Any = dataclasses.field(default=None, repr=False)

    def load(self, dist: Dist) -> ModelPlain:
        """The model with these weights in its tested network; UserError if they do not fit the options.

        Nothing is compiled: tests use the bare network, and only the machine of the run may have a compiler.
        """
        train = self.opt.train.model_copy(update={"compile": False})
        model = define_model(self.opt.model_copy(update={"train": train}), dist, seed=0)
        load_network(model.tested_net, self.path, True, prefer_ema=model.netE is not None, content=self.weights)
        return model

    def reads(self) -> list[Path]:
        """The files and folders that it is made of or tested on; no output may take their place."""
        roots = [project_path(each.dataroot) for each in self.opt.datasets.values() if each.dataroot]
        options = self.experiment and self.experiment / "options", self.option_file
        return [self.path, *roots, *filter(None, options)]

    def pictures(self, name: str) -> Path:
        """The folder for pictures where none is named: images/<name> of its experiment, without one <name> here."""
        return (self.experiment / "images" if self.experiment else Path()) / name

    def view(self) -> View:
        """What is shown of its task."""
        return define_view(DATASETS[self.opt.datasets["train"].dataset_type], self.class_names)

    def preprocessing(self) -> Pipeline:
        """What raw inputs pass through before the network."""
        name, options = self._input_options()
        return define_test_pipeline(name, options, self.class_names)

    def input_transforms(self) -> list[dict[str, Any]]:
        """What an input needs after uint8 to [0, 1], as the options spell it."""
        return [each.model_dump() for each in self._input_options()[1].transforms]

    def predictor(self, dist: Dist) -> Callable[[torch.Tensor], torch.Tensor]:
        """Raw inputs (B, ...) -> what the tested network says of them, float32 on its device.

        UserError where that is not finite (the largest of NaN would be the first class), and from a model that takes
        more of a sample than its input.
        """
        model, pipeline = self.load(dist), self.preprocessing()

        def predict(images: torch.Tensor) -> torch.Tensor:
            batch = pipeline(without_targets(images.to(dist.device)), np.arange(len(images)))
            try:
                output = model.test(batch)
            except KeyError as error:
                raise UserError(
                    f"{self.path}: model: {self.opt.model} asks for {error} of a sample, and only its input is known "
                    "here; main_test.py verify and main_test.py samples show it whole samples"
                ) from error
            if not output.isfinite().all():
                raise UserError(f"{self.path}: its outputs are not finite; take another file of the run")
            if self.class_names and output.shape[1:2] != (len(self.class_names),):
                raise UserError(
                    f"{self.path}: it has {len(self.class_names)} class_names, and for each input an output of shape "
                    f"{tuple(output.shape[1:])}; take another file of the run"
                )
            return output

        return predict

    def test_source(self, split: str | None, is_judged: bool = True) -> DataSource:
        """datasets.test of the options, or another split of it.

        is_judged: how good the model is on them matters; what real samples taught is not judged by generated ones.
        """
        if "test" not in self.opt.datasets:
            raise UserError(
                f"{self.path}: its options have no datasets.test; add one with --set datasets.test.dataroot=..."
            )
        tested = self.opt.datasets["test"]
        if split is not None:
            tested = tested.model_copy(update={"split": split})
        source = define_dataset("test", tested)
        if is_judged and source.synthetic and self.is_of_real_data:
            raise UserError(
                f"{self.path} learned from real samples, and would be tested on {source.synthetic}. Bring the data "
                "back, or name their place with --set datasets.test.dataroot=..."
            )
        return source

    def _input_options(self) -> tuple[str, DatasetOptions]:
        """datasets.test, or datasets.train without its random transforms, and its name."""
        if "test" in self.opt.datasets:
            return "test", self.opt.datasets["test"]
        return "train", without_random(self.opt.datasets["train"])


def load_trained_model(path: Path, option_file: Path | None, overrides: list[str]) -> TrainedModel:
    """Find the file, check that it is whole, and read it; of a set, everything but its weights.

    option_file: options instead of those that the file or its experiment holds.
    """
    file = _model_file(path)
    if not file.is_file():
        raise UserError(
            f"{file}: no such file or folder; give a model, or the folder <path.root>/<task> of a run (has it been "
            "trained? python main_train.py -opt ...)"
        )
    content = load_state(file)
    folder = file.absolute().parent
    experiment = folder.parent if folder.name == "models" and (folder.parent / "options").is_dir() else None
    if isinstance(content, Mapping) and content.keys() >= _SELF_CONTAINED:
        try:
            return _self_contained(file, content, experiment, option_file, overrides)
        except UserError:
            raise
        except (AttributeError, TypeError, ValueError) as error:  # somebody has edited it
            raise UserError(f"{file}: not as a run writes it: {error}; take another file of the run") from error
    if match := _PART_NAME.fullmatch(file.name):
        return _part_of_a_set(file, int(match[1]), match[2], experiment, option_file, overrides)
    raise UserError(
        f"{file}: not a self-contained model; give best_model.pth, final_model.pth, <iter>_G.pth, <iter>_E.pth or the "
        "folder of an experiment"
    )


def _model_file(path: Path) -> Path:
    """The file itself, or the best model of an experiment (the final one where no test has chosen a best)."""
    if not path.is_dir():
        return path
    models = path / "models" if (path / "models").is_dir() else path
    found = [models / name for name in ("best_model.pth", "final_model.pth") if (models / name).is_file()]
    if not found:
        networks = {**list_parts(models, "G"), **list_parts(models, "E")}
        hint = (
            f"the newest network of its checkpoint sets is {networks[max(networks)]}"
            if networks
            else "is it the folder of an experiment, and has that saved anything yet?"
        )
        raise UserError(f"{path}: holds no best_model.pth and no final_model.pth; {hint}")
    return found[0]


def _self_contained(
    file: Path, content: Mapping[str, Any], experiment: Path | None, option_file: Path | None, overrides: list[str]
) -> TrainedModel:
    options = content["options"] if option_file is None else utils_option.to_dict(utils_option.parse(option_file))
    opt = _validated({**options, "netG": content["netG"]}, overrides, file)
    recorded_split = content["options"].get("datasets", {}).get("test", {}).get("split")
    metrics, classes = content.get("metrics") or {}, tuple(content.get("class_names") or ())
    raw_input = content.get("input", {})
    return TrainedModel(
        file, opt, iteration=int(content["iter"]), epoch=content["epoch"], class_names=classes,
        input_shape=raw_input.get("shape") or _input_shape(opt), input_dtype=raw_input.get("dtype"),
        recorded=metrics, recorded_split=recorded_split, synthetic=content.get("synthetic"),
        is_of_real_data=content.get("synthetic", "") is None, experiment=experiment,
        fingerprint=content.get("fingerprint"), device=_tested_on(content.get("machine", {}), content.get("device")),
        option_file=option_file, weights=content["model_state_dict"],
    )  # fmt: skip


def _part_of_a_set(
    file: Path, iteration: int, part: str, experiment: Path | None, option_file: Path | None, overrides: list[str]
) -> TrainedModel:
    option_file = option_file or _newest_options(file, experiment)
    opt = _validated(utils_option.to_dict(utils_option.parse(option_file)), overrides, file)
    epoch, fingerprint, device, is_of_real_data = None, None, None, False
    tested = "E" if opt.train.E_decay > 0 else "G"
    if (path := file.with_name(manifest_name(iteration))).is_file():
        try:
            manifest = CheckpointFolder(file.parent).verify(path)
        except DamagedError as error:
            raise UserError(f"{file}: its checkpoint set is damaged: {error}; take another set") from error
        epoch, fingerprint = manifest.epoch, manifest.progress.judged_on or None
        device = _tested_on(manifest.machine, manifest.machine.get("device"))
        is_of_real_data = manifest.stream.get("synthetic", "") is None
        tested = "E" if "E" in manifest.files else "G"  # the options may have changed since
    recorded: Mapping[str, MetricValue] = {}
    if experiment and part == tested:
        recorded = logged_test(experiment / "metrics.csv", iteration)
    split = opt.datasets["test"].arguments.get("split") if "test" in opt.datasets else None
    return TrainedModel(
        file, opt, iteration=iteration, epoch=epoch, class_names=tuple(_class_of_data(opt, "class_names") or ()),
        input_shape=_input_shape(opt), recorded=recorded, recorded_split=split, synthetic=None,
        is_of_real_data=is_of_real_data, experiment=experiment, fingerprint=fingerprint, device=device,
        option_file=option_file,
    )  # fmt: skip


def _tested_on(machine: Mapping[str, Any], device: str | None) -> str | None:
    """What a run was tested on; several GPUs are no single one: for a batch of another size cuDNN has other kernels."""
    return f"{machine['ranks']} x {device}" if "NCCL" in machine else device


def _class_of_data(opt: Options, attribute: str) -> Any:
    """What the class of the training data says for itself, without any data; None if only an open one knows."""
    return stated(DATASETS[opt.datasets["train"].dataset_type], attribute)


def _input_shape(opt: Options) -> tuple[int, int, int] | None:
    """(C, H, W) of the raw images, if the class of the data knows it without any."""
    shape = _class_of_data(opt, "input_shape")
    found: tuple[int, int, int] | None = shape(**opt.datasets["train"].arguments) if callable(shape) else shape
    return found


def _newest_options(file: Path, experiment: Path | None) -> Path:
    saved = saved_options(experiment) if experiment else []
    if not saved:
        raise UserError(f"{file}: holds weights alone, and there are no options of its experiment; add -opt FILE")
    return saved[-1]


def _validated(options: Mapping[str, Any], overrides: list[str], file: Path) -> Options:
    return utils_option.validate(apply_overrides(dict(options), overrides), str(file), TABLES)
