"""One test of the whole data set on all ranks, exact for sizes that do not divide."""

from collections.abc import Callable, Iterable, Sequence

import torch

from models.model_plain import Batch, ModelPlain
from utils.utils_error import UserError
from utils.utils_metric_sums import Metric
from utils.utils_metrics import METRICS, MetricValue


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
    `observe` is given each batch of this rank, its output and its target. `predict` stands in for `model.test`.
    """
    model.sync_buffers()
    built = _build(metrics, num_classes, model.device)
    loss_sum, num_samples = torch.zeros((), dtype=torch.float64, device=model.device), 0
    for batch in loader:
        if should_stop():
            return None
        if batch is None:
            continue
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
        value = metric.compute(model.dist.sum)
        result[name] = value.item() if value.ndim == 0 else value.tolist()
    return result


def probe(model: ModelPlain, batch: Batch, metrics: Sequence[str], num_classes: int | None = None) -> None:
    """Send a few samples of a test through network, loss and metrics; UserError if they do not fit each other."""
    try:
        output = model.test(batch)
        model.test_loss(output)
        for name, metric in _build(metrics, num_classes, model.device).items():
            metric.update(output, model.target)
            if metric.compute().ndim and name == model.opt.val.best_metric:
                raise UserError(f"val.best_metric: {name} has many values, and the best model needs a single number")
    except (UserError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(
            f"its samples do not fit netG ({model.opt.netG.net_type}), {model.opt.train.G_lossfn_type} or val.metrics: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _build(metrics: Sequence[str], num_classes: int | None, device: torch.device) -> dict[str, Metric]:
    return {name: METRICS.build(name, {}, num_classes=num_classes).to(device) for name in metrics}
