"""SCHEDULES: the learning rate as a pure function of the iteration, so that no scheduler has a state to lose."""

import bisect
import math

from utils.utils_error import UserError
from utils.utils_option import TrainOptions
from utils.utils_table import Table


def constant(_current_iter: int, _train: TrainOptions) -> float:
    """Factor 1 throughout."""
    return 1.0


def multi_step(current_iter: int, train: TrainOptions) -> float:
    """gamma ** (milestones passed): a milestone m changes the rate of every iteration after m."""
    return train.G_scheduler_gamma ** bisect.bisect_left(train.G_scheduler_milestones, current_iter)


def cosine(current_iter: int, train: TrainOptions) -> float:
    """Half a cosine from 1 in the first iteration after the warm-up to eta_min in the last one (total_iter)."""
    assert train.total_iter is not None, "resolve total_epochs first"
    warm = train.G_scheduler_warmup_iter
    return _half_cosine(current_iter - 1 - warm, train.total_iter - warm, train)


def cosine_restarts(current_iter: int, train: TrainOptions) -> float:
    """Half cosines (Loshchilov and Hutter, ICLR 2017), each from 1 to eta_min inclusive.

    The first takes G_scheduler_periods iterations, each next one G_scheduler_restart_weights times as many.
    """
    assert train.G_scheduler_periods is not None, "checked with the options"
    step, length = max(0, current_iter - 1 - train.G_scheduler_warmup_iter), train.G_scheduler_periods
    if train.G_scheduler_restart_weights == 1:
        step %= length  # in a long run the loop below would take longer than an iteration
    while step >= length:
        step -= length
        length *= train.G_scheduler_restart_weights
    return _half_cosine(step, length, train)


SCHEDULES = Table(
    "schedule",
    {
        "Constant": constant,
        "MultiStepLR": multi_step,
        "CosineAnnealing": cosine,
        "CosineAnnealingWarmRestarts": cosine_restarts,
    },
)


def learning_rate(current_iter: int, train: TrainOptions) -> float:
    """The rate of iteration `current_iter` (1-based); the first G_scheduler_warmup_iter iterations climb linearly.

    UserError for a schedule that gives no rate.
    """
    warm = train.G_scheduler_warmup_iter
    climbed = current_iter / (warm + 1) if current_iter <= warm else 1.0
    given = SCHEDULES[train.G_scheduler_type](max(current_iter, warm + 1), train)
    try:
        factor = float(given)  # NumPy's numbers would not be saved
    except (TypeError, ValueError):
        factor = math.nan
    if not 0 <= factor < math.inf:
        raise UserError(
            f"train.G_scheduler_type: {train.G_scheduler_type} gives the factor {given} in iteration {current_iter}; "
            "it must give a finite number, not below 0"
        )
    return train.G_optimizer_lr * climbed * factor


def _half_cosine(step: int, length: int, train: TrainOptions) -> float:
    """From 1 at step 0 to eta_min at step length - 1, and beyond; a cosine of one step stays at 1."""
    floor = train.G_scheduler_eta_min / train.G_optimizer_lr
    if length <= 1:
        return 1.0
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(step / (length - 1), 1.0))) / 2
