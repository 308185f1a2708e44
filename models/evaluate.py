"""One test of the whole data set on all ranks, exact for sizes that do not divide."""

from collections.abc import Callable, Iterable, Sequence

import torch

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
    loss_sum, num_samples = torch.zeros((), dtype=torch.float64, device=model.device), 0
    with KeptBuffers(model.tested_net):  # a test that is cut off is made again from its beginning
        for number, batch in enumerate(loader):
            if should_stop():
                return None
            if batch is None:
                continue
            # A test that a resume repeats must draw the same numbers as one that follows an update.
            seed_global_generators(seed_of(0, "test", number, model.dist.rank))
            output = predict(batch) if predict else model.test(batch)
            loss_sum += model.test_loss(output).double() * len(output)
            num_samples += len(output)
            for metric in built.values():
                metric.update(output, model.target)
            if observe:
                observe(batch, output, model.target)
    loss, count = model.dist.sum(torch.stack([loss_sum, loss_sum.new_tensor(num_samples)])).tolist()
    result: dict[str, MetricValue] = {"loss": loss / count}
    for name, metric in built.items():
        result[name] = metric.compute(model.dist.sum).double().tolist()  # a count is a number like any other
    return result


def build_metrics(metrics: Sequence[str], num_classes: int | None, device: torch.device) -> dict[str, Metric]:
    """The named metrics, on this device and with no sample yet."""
    return {name: METRICS.build(name, {}, num_classes=num_classes).to(device) for name in metrics}
