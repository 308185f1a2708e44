"""Runs to record, and the relaunch that each must survive: what it finds is whole, and what was saved."""

import collections
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.disk_after_power_loss import read_tree
from tests.helpers import ONE_RANK, tiny_option_mapping, validated
from utils.checkpoint_manager import CheckpointManager
from utils.utils_checkpoint import CheckpointFolder, Manifest
from utils.utils_checkpoint_names import PARTS, list_manifests, set_file_name
from utils.utils_experiment import Experiment
from utils.utils_option import Options
from utils.utils_progress import Progress
from utils.utils_state_file import load_state, write_model

Ages = Mapping[str, int]  # kind of save -> how new the one is that is found, or must be; 0 for none


@functools.cache
def state(age: int) -> dict[str, Any]:
    """A small state that belongs to this age alone."""
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(age))
    return {"age": age, "net": collections.OrderedDict(weight=weight, running_mean=weight[0] + 1)}


@functools.cache
def states(age: int) -> dict[str, Any]:
    """The three parts of a set; E and the optimizer have tensors of their own."""
    moments = {"step": torch.tensor(float(age)), "exp_avg": state(age + 2000)["net"]["weight"]}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]}
    return {"G": state(age)["net"], "E": state(age + 1000)["net"], "optimizerG": optimizer}


def same(first: Any, second: Any) -> bool:
    """Equal values, tensors bit for bit, all the way down."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    return bool(first == second)


@functools.cache
def options(root: Path) -> Options:
    mapping = tiny_option_mapping(root, "no.csv")
    mapping["train"]["max_to_keep"] = 2
    return validated(mapping)


class Run:
    """An experiment in a fresh folder: sets, of which two are kept, and better and better models."""

    iterations: Sequence[int] = (4, 8, 12, 16)
    kair_iteration = 0  # that of files which came without a manifest

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found_before: Ages = {}

    def experiment(self) -> Experiment:
        return Experiment(options(self.folder), ONE_RANK, Path("power.json"))

    def prepare(self) -> None:
        """What is there, and durable, before the record begins."""

    def run(self) -> None:
        """What is recorded."""
        self.launch(self.iterations)

    def launch(self, iterations: Iterable[int]) -> None:
        """One launch: resume, then for each iteration a better model, a set, and a row in the log."""
        with self.experiment() as experiment:
            experiment.find_resume_point(PARTS)
            experiment.save_options()
            experiment.log.start(0, 100)
            for iteration in iterations:
                experiment.save_model("best_model.pth", state(iteration))
                progress = Progress(0.5, iteration, 0, iteration)
                manifest = Manifest(
                    iteration=iteration, epoch=0, reason="periodic", progress=progress, stream={"seed": 0},
                    machine={"ranks": 1},
                )  # fmt: skip
                experiment.save_set(states(iteration), manifest)
                assert not experiment.save_failed
                experiment.log.training(iteration, 0, 0.1, {"G_loss": 1.0}, 8)
            experiment.finish("DONE")

    def resume(self) -> Ages:
        """What a relaunch finds; AssertionError, or any other, if that is not whole and what was saved."""
        with self.experiment() as experiment:
            claimed = self._claimed(experiment.folder / "status.json")
            point = experiment.find_resume_point(PARTS)
            experiment.changes()
        best = self._best(experiment.models / "best_model.pth")
        for manifest in list_manifests(experiment.models).values():
            CheckpointFolder(experiment.models).verify(manifest)
        if point is None:
            assert not claimed, f"status.json claims {claimed}"
            return {"set": 0, "best": best}
        assert point.manifest or point.iteration == self.kair_iteration, "the files are taken for KAIR's"
        assert point.files.keys() == set(PARTS)
        for part, path in point.files.items():
            assert same(load_state(path), states(point.iteration)[part]), f"{path.name} is not what was saved"
        best_iter = point.manifest.progress.best_iter if point.manifest else 0
        assert best_iter <= best, f"the set knows a model of {best_iter}, best_model.pth is of {best}"
        assert claimed <= point.iteration, f"status.json claims {claimed}"
        return {"set": point.iteration, "best": best}

    def _claimed(self, status: Path) -> int:
        return json.loads(status.read_text())["last_committed_iter"] if status.exists() else 0

    def _best(self, path: Path) -> int:
        if not path.exists():
            return 0
        best = load_state(path)
        assert same(best, state(best["age"])), f"{path.name} is not what was saved"
        return int(best["age"])


class Relaunch(Run):
    """A relaunch where the newest set has rotted and a still newer one was cut off; both go to quarantine."""

    iterations = (12, 14, 18)

    def prepare(self) -> None:
        self.launch([4, 8, 12])
        models = self.experiment().models
        for part in PARTS:
            write_model(models / set_file_name(16, part), states(16)[part])
        rotten = bytearray((models / "12_E.pth").read_bytes())
        rotten[len(rotten) // 2] ^= 1
        (models / "12_E.pth").write_bytes(rotten)
        self.found_before = {"set": 8, "best": 12}
        self._set_aside = {path.read_bytes() for path in models.glob("1[26]_*")}

    def resume(self) -> Ages:
        found = super().resume()
        left = {content for path, content in read_tree(self.folder).items() if "/models/" in f"/{path}"}
        assert self._set_aside <= left, "a file in quarantine is lost"
        return found

    def _claimed(self, status: Path) -> int:  # at first it claims the set that has rotted since
        return 0 if json.loads(status.read_text())["last_committed_iter"] == 12 else super()._claimed(status)


class FolderOfKair(Run):
    """The first launch in a folder of KAIR's, whose sets have no manifests."""

    iterations = (5004, 5008, 5012)
    kair_iteration = 5000

    def prepare(self) -> None:
        models = self.experiment().models
        models.mkdir(parents=True)
        for part in PARTS:
            write_model(models / set_file_name(5000, part), states(5000)[part])
        self.found_before = {"set": 5000}


class Manager(Run):
    """A loop of one's own: epochs, of which two are kept, the best, and an interrupt checkpoint that is loaded."""

    def run(self) -> None:
        age = 0
        manager = CheckpointManager(self.folder / "runs" / "checkpoint", max_to_keep=2)
        for epoch in (0, 1, 2, 2, 3):
            age += 1
            manager.save_best_model(state(age), float(age))
            manager.save_epoch_checkpoint(state(age), epoch)
            if epoch == 2:
                manager.save_interrupt_checkpoint(state(age := age + 1))
                manager.load_latest_checkpoint()

    def resume(self) -> Ages:
        manager = CheckpointManager(self.folder / "runs" / "checkpoint", max_to_keep=2)
        found = {"best": manager.load_best_model(), "latest": manager.load_latest_checkpoint()}
        for kind, loaded in found.items():
            if loaded is not None:
                loaded.pop("metric", None)
                assert same(loaded, state(loaded["age"])), f"{kind} is not what was saved"
        return {kind: loaded["age"] if loaded else 0 for kind, loaded in found.items()}


SCENARIOS = {"experiment": Run, "relaunch": Relaunch, "folder of KAIR's": FolderOfKair, "CheckpointManager": Manager}
