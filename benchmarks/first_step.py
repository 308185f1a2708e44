"""`python -m benchmarks.first_step WHO [ARGUMENTS]`: a contender of benchmarks.launch, from nothing to its first step.

Each function imports what it needs by itself and ends the process in the moment its first update is done; all train the
network of options/fer.json on 64 faces with one thread.
"""

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

BATCH_SIZE, RATE = 64, 0.05
PARTS = ("G", "E", "optimizerG")


def end() -> NoReturn:
    """End the process without the interpreter's teardown, which nobody waits for."""
    sys.stdout.flush()
    os._exit(0)


def make_net() -> "torch.nn.Module":
    """The network of options/fer.json."""
    from models.network_fer_resnet import FerResNet

    return FerResNet(stem_stride=2, widths=(32, 64, 128), depths=(2, 1, 1), dropout=0.1, pool="weighted")


def make_data() -> "torch.utils.data.TensorDataset":
    """Random faces, already in memory."""
    import torch.utils.data

    return torch.utils.data.TensorDataset(torch.rand(512, 1, 48, 48), torch.randint(0, 7, (512,)))


def make_optimizer(net: "torch.nn.Module") -> "torch.optim.Optimizer":
    """SGD with the rates of options/fer.json, as torch's documentation writes it."""
    import torch

    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)


def bare() -> None:
    """What nobody can do without: torch, the network, an optimizer, one step on one staged batch."""
    import torch

    torch.set_num_threads(1)
    net = make_net()
    optimizer = make_optimizer(net)
    images, targets = make_data()[:BATCH_SIZE]
    torch.nn.CrossEntropyLoss()(net(images), targets).backward()
    optimizer.step()


def bare_without_optimizer() -> None:
    """The same with the update written by hand: torch.optim imports torch._dynamo when it is first used."""
    import torch

    torch.set_num_threads(1)
    net = make_net()
    images, targets = make_data()[:BATCH_SIZE]
    torch.nn.CrossEntropyLoss()(net(images), targets).backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.sub_(RATE * parameter.grad)


def kair_style(folder: str, resume: str = "") -> None:
    """A DataLoader, an average and a scheduler; with `resume`, three files are loaded unchecked, or else written."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    files = {part: Path(folder) / f"1000_{part}.pth" for part in PARTS}
    netG = make_net()
    netE = copy.deepcopy(netG).eval()
    optimizer = make_optimizer(netG)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1000, 2000])
    owners: dict[str, Any] = {"G": netG, "E": netE, "optimizerG": optimizer}
    if resume and files["G"].exists():
        for part, owner in owners.items():
            owner.load_state_dict(torch.load(files[part], weights_only=True))
    images, targets = next(iter(DataLoader(make_data(), BATCH_SIZE, shuffle=True, drop_last=True)))
    scheduler.step()
    optimizer.zero_grad()
    torch.nn.CrossEntropyLoss()(netG(images), targets).backward()
    optimizer.step()
    if resume and not files["G"].exists():
        for part, owner in owners.items():
            torch.save(owner.state_dict(), files[part])


def accelerate() -> None:
    """Hugging Face Accelerate around the same script."""
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    net = make_net()
    loader = DataLoader(make_data(), BATCH_SIZE, shuffle=True, drop_last=True)
    net, optimizer, loader = accelerator.prepare(net, make_optimizer(net), loader)
    images, targets = next(iter(loader))
    accelerator.backward(torch.nn.functional.cross_entropy(net(images), targets))
    optimizer.step()


def lightning(folder: str) -> None:
    """A LightningModule and its Trainer."""
    import lightning as L
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)

    class FaceClassifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def training_step(self, batch: list[torch.Tensor], _batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_optimizer(self.net)

        def on_train_batch_end(self, *_: Any) -> None:
            end()

    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=1000, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(FaceClassifier(), DataLoader(make_data(), BATCH_SIZE, shuffle=True, drop_last=True))


def longhaul(first_iter: str, *arguments: str) -> None:
    """main_train.py itself, ended after its first update; with "--stop", after its third by a SIGTERM, which saves.

    first_iter: the iteration of that update; another one was not resumed, or not fresh.
    """
    import signal

    import main_train
    from models.model_plain import ModelPlain

    update = ModelPlain.optimize_parameters
    given = [each for each in arguments if each != "--stop"]

    def watched(self: ModelPlain, micro_batches: Any, current_iter: int) -> None:
        update(self, micro_batches, current_iter)
        if "--stop" not in arguments:
            assert current_iter == int(first_iter), f"the first update was that of iteration {current_iter}"
            end()
        if current_iter == 3:
            signal.raise_signal(signal.SIGTERM)

    ModelPlain.optimize_parameters = watched  # type: ignore[method-assign]
    sys.argv = ["main_train.py", *given]
    status = main_train.main()
    assert status == 128 + signal.SIGTERM, status


if __name__ == "__main__":
    contenders: list[Callable[..., None]] = [
        bare, bare_without_optimizer, kair_style, accelerate, lightning, longhaul,
    ]  # fmt: skip
    {each.__name__: each for each in contenders}[sys.argv[1]](*sys.argv[2:])
    end()
