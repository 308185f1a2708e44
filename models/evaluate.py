"""One test of the whole data set on all ranks, exact for sizes that do not divide."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn as nn

from models.buffers import KeptBuffers
from models.model_plain import Batch, ModelPlain
from utils.utils_metric_sums import Metric
from utils.utils_metrics import METRICS, MetricValue
from utils.utils_seed import seed_global_generators, seed_of


def evaluate(
    model: ModelPlain,
    loader: Iterable[Batch | None],
    metrics: Sequence[str],
    num_classes: int | None = None,
    should_stop: Callable[[], int] = lambda: 0,
    observe: Callable[[Batch, torch.Tensor, torch.Tensor], None] | None = None,
    predict: Callable[[Batch], torch.Tensor] | None = None,
) -> dict[str, MetricValue] | None:
    """Loss and metrics of the tested network, the same on every rank; None if asked to stop. Collective.

    Every rank makes the same number of rounds (None where its share has ended) and asks `should_stop` in each.
    `observe` is given each batch of this rank, its output and its target. `predict` stands in for `model.test`. The
    network's buffers stay as they were.
    """
    model.sync_buffers()
    built = build_metrics(metrics, num_classes, model.device)
    loss_sum, num_losses = torch.zeros(2, dtype=torch.float64, device=model.device)
    with KeptBuffers(model.tested_net):  # a test that is cut off is made again from its beginning
        for number, batch in enumerate(loader):
            if should_stop():
                return None
            if batch is None:
                continue
            # A test that a resume repeats must draw the same numbers as one that follows an update.
            seed_global_generators(seed_of(0, "test", number, model.dist.rank))
            output = predict(batch) if predict else model.test(batch)
            num = _num_losses(model.lossfn, output, model.target)
            loss_sum += (model.test_loss(output).double() * num).where(num > 0, 0)  # the mean of no losses is NaN
            num_losses += num
            for metric in built.values():
                metric.update(output, model.target)
            if observe:
                observe(batch, output, model.target)
    loss, count = model.dist.sum(torch.stack([loss_sum, num_losses])).tolist()
    result: dict[str, MetricValue] = {"loss": loss / count if count else math.nan}
    for name, metric in built.items():
        result[name] = metric.compute(model.dist.sum).double().tolist()  # a count is a number like any other
    return result


def build_metrics(metrics: Sequence[str], num_classes: int | None, device: torch.device) -> dict[str, Metric]:
    """The named metrics, on this device and with no sample yet."""
    return {name: METRICS.build(name, {}, num_classes=num_classes).to(device) for name in metrics}


def _num_losses(lossfn: nn.Module, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How many losses that of a batch is the mean of, up to a factor that all batches share."""
    ignored = getattr(lossfn, "ignore_index", None)  # as torch's cross entropy calls it
    if ignored is None or target.is_floating_point():
        return output.new_full((), len(output), dtype=torch.float64)  # torch.tensor would wait for a GPU
    return (target != ignored).sum()
