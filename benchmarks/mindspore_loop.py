"""fer_resnet and its step in MindSpore, for benchmarks.loops; imported only where MindSpore is installed."""

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from utils.utils_option import Options

# MindSpore hands oneDNN plain layouts, for which oneDNN has only its slow reference convolution where there is AVX-512,
# and a fast one for AVX2 (MindSpore 2.10; ONEDNN_VERBOSE=1 shows which is taken).
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

import mindspore as ms
import mindspore.nn as nn

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class ResidualBlock(nn.Cell):
    """models/network_blocks.py in MindSpore."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.SequentialCell(
            _conv(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels), nn.ReLU(),
            _conv(out_channels, out_channels, 3, 1), nn.BatchNorm2d(out_channels),
        )  # fmt: skip
        self.is_identity = stride == 1 and in_channels == out_channels
        if not self.is_identity:
            self.shortcut = nn.SequentialCell(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        shortcut = x if self.is_identity else self.shortcut(x)
        return ms.ops.relu(self.body(x) + shortcut)


class FerResNet(nn.Cell):
    """models/network_fer_resnet.py in MindSpore."""

    def __init__(
        self, stem_stride: int = 2, widths: Sequence[int] = (32, 64, 128), depths: Sequence[int] = (2, 1, 1),
        dropout: float = 0.0, pool: str = "mean", size: int = 48,
    ) -> None:  # fmt: skip
        super().__init__()
        layers = [_conv(1, widths[0], 3, stem_stride), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                layers.append(ResidualBlock(channels, width, 2 if stage and number == 0 else 1))
                channels = width
        self.body = nn.SequentialCell(*layers)
        side = size // stem_stride // 2 ** (len(widths) - 1)
        mean = ms.Tensor(np.full((channels, side, side), 1 / side**2, np.float32))
        self.weight = ms.Parameter(mean, requires_grad=pool == "weighted")
        self.dropout, self.head = nn.Dropout(p=dropout), nn.Dense(channels, 7)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.head(self.dropout((self.body(x) * self.weight).sum((2, 3))))


def fit(opt: Options, batches: Iterable[Arrays], tick: Callable[[], None]) -> None:
    """Train fer_resnet in float32: one compiled step, its fastest mode.

    batches: images (B, 1, 48, 48) and soft targets (B, 7).
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    net, train = FerResNet(**opt.netG.arguments), opt.train
    optimizer = nn.SGD(
        net.trainable_params(), learning_rate=train.G_optimizer_lr, momentum=train.G_optimizer_momentum,
        weight_decay=train.G_optimizer_wd, nesterov=train.G_optimizer_nesterov,
    )  # fmt: skip
    step = nn.TrainOneStepCell(nn.WithLossCell(net, nn.CrossEntropyLoss()), optimizer)
    step.set_train()
    for images, targets in batches:
        step(ms.Tensor(images), ms.Tensor(targets)).asnumpy()
        tick()


def _conv(in_channels: int, out_channels: int, size: int, stride: int) -> nn.Cell:
    return nn.Conv2d(in_channels, out_channels, size, stride, pad_mode="pad", padding=size // 2, has_bias=False)
