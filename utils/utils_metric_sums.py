"""Metric: what a test computes, as a function of sums that batches and ranks add to."""

from collections.abc import Callable, Sequence

import torch

from utils.utils_error import UserError

Shape = tuple[int, ...]
IGNORED = -100  # the class id that torch's cross entropy leaves out


class Metric:
    """A value of some sums over all samples of a test.

    shapes: of the sums, float64. of_batch: output and target -> what they add to each. value: the sums -> the metric.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        of_batch: Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor | int]],
        value: Callable[..., torch.Tensor],
    ) -> None:
        self._sums = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self._of_batch, self._value = of_batch, value

    def to(self, device: torch.device) -> "Metric":
        """Keep the sums on `device`."""
        self._sums = [each.to(device) for each in self._sums]
        return self

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch."""
        for each, part in zip(self._sums, self._of_batch(output, target), strict=True):
            each += part

    def compute(self, over_ranks: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums) -> torch.Tensor:
        """The value over the samples of all ranks, whose sums `over_ranks` adds up, or of this rank alone."""
        return self._value(*(over_ranks(each.clone()) for each in self._sums))


def sample_mean(of_samples: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], shape: Shape = ()) -> Metric:
    """The mean over the samples of `of_samples`, which gives (B, *shape); NaN without any sample."""

    def of_batch(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, int]:
        values = of_samples(output, target)
        if not values.ndim or values.shape[1:] != shape:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise UserError(
                f"val.metrics: a mean over samples is of values [{wanted}], and a metric gives "
                f"{list(values.shape)}; it must give one value a sample, or name the `shape` of one to sample_mean"
            )
        return values.sum(dim=0, dtype=torch.float64), len(values)

    return Metric([shape, ()], of_batch, torch.div)


def of_confusion(num_classes: int, value: Callable[[torch.Tensor], torch.Tensor]) -> Metric:
    """A function of the counts (num_classes, num_classes), float64, true class by predicted class.

    Of samples, logits (B, K) and classes (B,), or of pixels, logits (B, K, H, W) and classes (B, H, W). Where the class
    is IGNORED, nothing is counted.
    """

    def of_batch(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor]:
        if output.shape[1] != num_classes:
            raise UserError(
                f"netG answers with {output.shape[1]} logits, and the data has {num_classes} classes; "
                "give it one output for each class"
            )
        predicted = output.argmax(dim=1)
        if predicted.shape != target.shape:  # they might be broadcast
            raise UserError(
                f"val.metrics: a metric of classes needs one class id for each of {list(predicted.shape)}, and the "
                f"target is {list(target.shape)}; leave it out, or add one of your own to METRICS"
            )
        target = target.long()  # bytes would wrap
        is_counted = target != IGNORED
        pairs = target.where(is_counted, 0) * num_classes + predicted
        counts = torch.zeros(num_classes**2, dtype=torch.float64, device=output.device)
        counts.index_add_(0, pairs.flatten(), is_counted.double().flatten())  # bincount would wait for a GPU
        return (counts.view(num_classes, num_classes),)

    return Metric([(num_classes, num_classes)], of_batch, value)
