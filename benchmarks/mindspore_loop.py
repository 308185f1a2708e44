"""`python -m benchmarks.mindspore_loop BATCH_SIZE NUM_ITERS`: the network of options/fer.json in MindSpore.

A staged batch, float32, graph mode with one compiled step. Runs in an environment of its own that has MindSpore and not torch
(`pip install mindspore`), so it imports nothing of the project but the pacer.
"""

import sys

import mindspore as ms
import mindspore.nn as nn
import numpy as np

from benchmarks.contender import Pacer


class ResidualBlock(nn.Cell):
    """models/network_blocks.py in MindSpore."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.SequentialCell(
            _conv(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels), nn.ReLU(),
            _conv(out_channels, out_channels, 3, 1), nn.BatchNorm2d(out_channels),
        )  # fmt: skip
        self.shortcut = nn.SequentialCell()
        self.is_identity = stride == 1 and in_channels == out_channels
        if not self.is_identity:
            self.shortcut = nn.SequentialCell(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        shortcut = x if self.is_identity else self.shortcut(x)
        return ms.ops.relu(self.body(x) + shortcut)


class FerResNet(nn.Cell):
    """models/network_fer_resnet.py with its defaults, in MindSpore."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.SequentialCell(
            _conv(1, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), ResidualBlock(32, 32, 1), ResidualBlock(32, 32, 1),
            ResidualBlock(32, 64, 2), ResidualBlock(64, 128, 2),
        )  # fmt: skip
        self.dropout, self.head = nn.Dropout(p=0.2), nn.Dense(128, 7)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.head(self.dropout(self.body(x).mean((2, 3))))


def _conv(in_channels: int, out_channels: int, size: int, stride: int) -> nn.Cell:
    return nn.Conv2d(in_channels, out_channels, size, stride, pad_mode="pad", padding=size // 2, has_bias=False)


def main() -> None:
    batch_size, num_iters = map(int, sys.argv[1:])
    tick = Pacer(num_iters)
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    ms.runtime.set_cpu_affinity(False)
    rng = np.random.default_rng(0)
    images = ms.Tensor(rng.random((batch_size, 1, 48, 48), dtype=np.float32))
    targets = ms.Tensor(rng.integers(0, 7, batch_size).astype(np.int32))
    net = FerResNet()
    optimizer = nn.SGD(net.trainable_params(), learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    step = nn.TrainOneStepCell(nn.WithLossCell(net, nn.CrossEntropyLoss()), optimizer)
    step.set_train()
    while True:
        step(images, targets).asnumpy()
        tick()


if __name__ == "__main__":
    main()
