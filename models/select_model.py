"""MODELS: one line a model."""

from models.learning_rate import SCHEDULES
from models.loss import LOSSES
from models.model_distill import ModelDistill
from models.model_plain import ModelPlain
from models.optimizer import OPTIMIZERS
from models.select_network import NETWORKS
from utils.utils_dist import Dist
from utils.utils_option import Options
from utils.utils_table import Table

MODELS = Table("model", {"plain": ModelPlain, "distill": ModelDistill}, supplied={"opt", "dist", "seed"})

MODEL_TABLES = {
    "model": MODELS,
    "network": NETWORKS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}


def define_model(opt: Options, dist: Dist, seed: int) -> ModelPlain:
    """The model that the option file names, with its networks initialised from `seed`."""
    model: ModelPlain = MODELS[opt.model](opt, dist, seed)
    return model
