"""The moving average of fer_resnet (options/fer.json) in each step: CPU time of one update, one thread.

    python -m benchmarks.moving_average [--rounds 15]

The limit is one lerp of two buffers that hold all parameters and statistics. The mark was set as 120 us on a machine
where that took 74. KAIR's style averages parameters alone, so that its batch norm statistics stay those of the first
iteration.
"""

import copy
import sys
import time
from collections.abc import Callable

import torch
import torch.nn as nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.measure import Mark, Row, interleave, main
from models.model_plain import ModelPlain
from tables import TABLES
from utils import utils_option
from utils.utils_dist import Dist
from utils.utils_file import PROJECT_FOLDER

OPTION_FILE = PROJECT_FOLDER / "options" / "fer.json"
DECAY = 0.999
NUM_UPDATES = 200


def update_us(update: Callable[[], None]) -> Callable[[], float]:
    """Measures microseconds of CPU time of an update, the mean of NUM_UPDATES."""

    def measured() -> float:
        start = time.process_time()
        for _ in range(NUM_UPDATES):
            update()
        return (time.process_time() - start) / NUM_UPDATES * 1e6

    return measured


def flat_lerp(net: nn.Module) -> Callable[[], None]:
    """One lerp over as many numbers as the network has."""
    tensors = [each for each in (*net.parameters(), *net.buffers()) if each.is_floating_point()]
    weights = torch.cat([each.detach().flatten() for each in tensors])
    average = weights.clone()

    def update() -> None:
        average.lerp_(weights, 1 - DECAY)

    return update


def kair_style(net: nn.Module) -> Callable[[], None]:
    """Two operations a parameter, in Python."""
    average = copy.deepcopy(net)

    @torch.no_grad()
    def update() -> None:
        means, weights = dict(average.named_parameters()), dict(net.named_parameters())
        for name, mean in means.items():
            mean.mul_(DECAY).add_(weights[name], alpha=1 - DECAY)

    return update


def averaged_model(net: nn.Module) -> Callable[[], None]:
    """torch's own, buffers included."""
    average_of = get_ema_multi_avg_fn(DECAY)  # type: ignore[no-untyped-call]
    average = AveragedModel(net, multi_avg_fn=average_of, use_buffers=True)
    return lambda: average.update_parameters(net)


def longhaul(model: ModelPlain) -> Callable[[], None]:
    """ModelPlain's, buffers included."""
    assert model.netE is not None, "E_decay is 0: nothing would be averaged, and every mark met"
    return lambda: model.update_E(10**6)


def measure(rounds: int) -> list[Row]:
    """All contenders average one network."""
    torch.set_num_threads(1)
    changes = ["train.channels_last=false", "train.total_iter=1"]
    model = ModelPlain(utils_option.parse(OPTION_FILE, changes, TABLES), Dist(), seed=0)
    net = model.netG
    contenders = {
        "flat lerp": update_us(flat_lerp(net)),
        "Longhaul": update_us(longhaul(model)),
        "KAIR style": update_us(kair_style(net)),
        "AveragedModel": update_us(averaged_model(net)),
    }
    interleave(contenders, 1)  # first calls allocate
    samples = interleave(contenders, rounds)
    marks = (Mark(1.62, "flat lerp"), Mark(1.0, "KAIR style"), Mark(1.0, "AveragedModel"))
    count = sum(each.numel() for each in net.parameters())
    return [Row(f"the moving average of {count / 1000:.0f}k parameters, a step", "us", "Longhaul", samples, marks)]


if __name__ == "__main__":
    sys.exit(main(measure, __doc__, rounds=15))
