"""ModelPlain: the weights of a hand-written loop, bit for bit; the average; testing; logging; loading."""

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

from models.loss_meter import NonFiniteLossError
from models.model_base import load_network
from models.model_plain import ModelPlain, enabled_parts
from models.select_model import MODELS
from models.select_network import NETWORKS
from tests.helpers import ONE_RANK, class_batch, messages, net_options, same_tensors, validated
from utils.utils_checkpoint import ResumePoint
from utils.utils_dist import Dist
from utils.utils_error import UserError
from utils.utils_option import Options
from utils.utils_seed import seed_global_generators, seed_of
from utils.utils_table import Table

SEED, NUM_ITERS = 3, 6


def model_of(train: dict[str, Any] | None = None, **netG: Any) -> ModelPlain:
    return ModelPlain(net_options(train, **netG), ONE_RANK, SEED)


def train_on(model: ModelPlain, last: int = NUM_ITERS, first: int = 1, num_micro_batches: int = 1) -> ModelPlain:
    for current_iter in range(first, last + 1):
        model.update_learning_rate(current_iter)
        model.optimize_parameters(micro_batches_of(current_iter, num_micro_batches), current_iter)
        model.update_E(current_iter)
    return model


def micro_batches_of(current_iter: int, num_micro_batches: int = 1) -> list[dict[str, Any]]:
    batch = class_batch(current_iter)
    parts = zip(batch["input"].chunk(num_micro_batches), batch["target"].chunk(num_micro_batches), strict=True)
    return [{"input": images, "target": target, "name": []} for images, target in parts]


def hand_written(
    net: nn.Module,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    clip: float | None = None,
    num_micro_batches: int = 1,
    bf16: bool = False,
    channels_last: bool = False,
    decay: float = 0.0,
    label_smoothing: float = 0.0,
    last: int = NUM_ITERS,
) -> tuple[nn.Module, nn.Module]:
    """The loop that a user would write; returns the network and its average."""
    average = copy.deepcopy(net)
    optimizer = make_optimizer(net)
    lossfn = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    for current_iter in range(1, last + 1):
        seed_global_generators(seed_of(SEED, "step", current_iter, 0))  # what dropout draws from
        optimizer.zero_grad()
        for batch in micro_batches_of(current_iter, num_micro_batches):
            images = batch["input"]
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = net(images)
            (lossfn(output.float(), batch["target"]) / num_micro_batches).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        warm = min(decay, (1 + current_iter) / (10 + current_iter))
        with torch.no_grad():
            for averaged, parameter in zip(average.parameters(), net.parameters(), strict=True):
                averaged.lerp_(parameter, 1 - warm)
            for averaged, buffer in zip(average.buffers(), net.buffers(), strict=True):
                if buffer.is_floating_point():
                    averaged.lerp_(buffer, 1 - warm)
                else:
                    averaged.copy_(buffer)
    return net, average


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99), fused=True)


SGD = {"G_optimizer_type": "sgd", "G_optimizer_lr": 0.1}
ADAMW = {
    "G_optimizer_type": "adamw",
    "G_optimizer_lr": 0.01,
    "G_optimizer_betas": [0.9, 0.99],
    "G_optimizer_wd": 0.1,
}
EVERYTHING = {
    **ADAMW,
    "G_optimizer_clipgrad": 0.5,
    "amp": "bf16",
    "channels_last": True,
    "E_decay": 0.3,
    "G_lossfn_args": {"label_smoothing": 0.1},
}
ALL_BY_HAND = {
    "make_optimizer": adamw,
    "clip": 0.5,
    "num_micro_batches": 2,
    "bf16": True,
    "channels_last": True,
    "decay": 0.3,
    "label_smoothing": 0.1,
}

PARITY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": (SGD, {"make_optimizer": sgd}),
    "adamw with weight decay groups": (ADAMW, {"make_optimizer": adamw}),
    "clipping": ({**SGD, "G_optimizer_clipgrad": 0.3}, {"make_optimizer": sgd, "clip": 0.3}),
    "accumulation": ({**SGD, "G_accumulation_steps": 2}, {"make_optimizer": sgd, "num_micro_batches": 2}),
    "bf16": ({**SGD, "amp": "bf16"}, {"make_optimizer": sgd, "bf16": True}),
    "channels last": ({**SGD, "channels_last": True}, {"make_optimizer": sgd, "channels_last": True}),
    "average": ({**SGD, "E_decay": 0.3}, {"make_optimizer": sgd, "decay": 0.3}),
    "label smoothing": (
        {**SGD, "G_lossfn_args": {"label_smoothing": 0.1}},
        {"make_optimizer": sgd, "label_smoothing": 0.1},
    ),
    "everything": (EVERYTHING, ALL_BY_HAND),
}


def both(train: dict[str, Any], by_hand: dict[str, Any]) -> tuple[ModelPlain, nn.Module, nn.Module]:
    """Our model and the hand-written network and average, all trained from the same first weights."""
    model = model_of(train, dropout=0.2)
    net = copy.deepcopy(model.netG)
    train_on(model, num_micro_batches=by_hand.get("num_micro_batches", 1))
    return model, *hand_written(net, **by_hand)


@pytest.mark.parametrize("case", PARITY)
def test_parity_with_a_hand_written_loop(case: str) -> None:
    model, net, average = both(*PARITY[case])
    assert same_tensors(model.netG.state_dict(), net.state_dict())
    assert model.netG.training
    if model.netE is not None:
        assert same_tensors(model.netE.state_dict(), average.state_dict())
        assert not same_tensors(model.netE.state_dict(), model.netG.state_dict())


@pytest.mark.parametrize(
    "detail",
    [
        {"clip": 0.5001},
        {"num_micro_batches": 1},
        {"bf16": False},
        {"decay": 0.29},
        {"label_smoothing": 0.1001},
        {"make_optimizer": sgd},
        {"make_optimizer": lambda net: torch.optim.AdamW(net.parameters(), 0.01, (0.9, 0.99), weight_decay=0.1)},
        {"last": NUM_ITERS - 1},
    ],
)
def test_parity_would_notice_one_changed_detail(detail: dict[str, Any]) -> None:
    model = model_of(EVERYTHING, dropout=0.2)
    net, average = hand_written(copy.deepcopy(model.netG), **{**ALL_BY_HAND, **detail})
    train_on(model, num_micro_batches=2)
    assert model.netE is not None
    equal = (
        same_tensors(model.netG.state_dict(), net.state_dict()),
        same_tensors(model.netE.state_dict(), average.state_dict()),
    )
    assert equal != (True, True)


def test_fused_steps_are_close_to_the_textbook_ones() -> None:
    """The hand-written loops above use torch's fused kernels; the unfused ones differ in the last bits only."""
    model = train_on(model_of(ADAMW), 3)
    start = model_of(ADAMW).netG

    def plain(net: nn.Module) -> torch.optim.Optimizer:
        optimizer = adamw(net)
        return torch.optim.AdamW(
            [{key: group[key] for key in ("params", "weight_decay")} for group in optimizer.param_groups],
            lr=0.01,
            betas=(0.9, 0.99),
            foreach=False,
            fused=False,
        )

    net, _ = hand_written(start, plain, last=3)
    for ours, theirs in zip(model.netG.parameters(), net.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-4)


class WithoutNorm(nn.Module):
    """(B, C, 16, 16) -> (B, num_classes), without batch statistics."""

    def __init__(self, num_classes: int = 7, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class TwoInputs(nn.Module):
    """Logits of an image (B, 1, 16, 16) and a vector (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Linear(256, 7), nn.Linear(3, 7)

    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return self.image(image.flatten(1)) + self.vector(vector)


class Normalised(nn.Module):
    """Logits of images (B, 1, 16, 16), by weights of a length and a direction that are learned apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.weight_norm(nn.Linear(256, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


class InModule(nn.Module):
    """A network that keeps its layer under the name that DDP uses for its prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(256, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.flatten(1))


@pytest.fixture(autouse=True)
def networks_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that stand in the table as a user's would."""
    table = Table(
        "network",
        {
            **NETWORKS, "without_norm": WithoutNorm, "two_inputs": TwoInputs, "in_module": InModule,
            "centred": Centred, "normalised": Normalised,
        },
    )  # fmt: skip
    monkeypatch.setattr("models.select_network.NETWORKS", table)


class Centred(nn.Module):
    """Logits of what is left of an image after the mean of the images before, a new tensor each time."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 7)
        self.register_buffer("mean", torch.zeros(256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1) - self.mean)
        if self.training:
            self.mean = torch.lerp(self.mean, x.flatten(1).mean(0), 0.5)
        return logits


def plain_options(net_type: str, train: dict[str, Any] | None = None, **netG: Any) -> Options:
    options = net_options(train).model_dump(mode="json")
    return validated({**options, "netG": {"net_type": net_type, **netG}}, tables=False)


def plain_model(train: dict[str, Any] | None = None, **netG: Any) -> ModelPlain:
    return ModelPlain(plain_options("without_norm", train, **netG), ONE_RANK, SEED)


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_accumulation_is_the_full_batch(num_micro_batches: int) -> None:
    whole = train_on(plain_model())
    parts = train_on(plain_model(train={"G_accumulation_steps": num_micro_batches}), NUM_ITERS, 1, num_micro_batches)
    wrong = train_on(plain_model(train={"G_lossfn_weight": 1.02}))
    for ours, other, different in zip(
        parts.netG.parameters(), whole.netG.parameters(), wrong.netG.parameters(), strict=True
    ):
        assert torch.allclose(ours, other, atol=1e-6)
        assert not torch.allclose(different, other, atol=1e-6), "the comparison would not notice"


def test_logged_loss_of_accumulation_is_that_of_the_full_batch() -> None:
    whole, parts = plain_model(), plain_model(train={"G_accumulation_steps": 4})
    train_on(whole, 2), train_on(parts, 2, 1, 4)
    assert parts.current_log(2)["G_loss"] == pytest.approx(whole.current_log(2)["G_loss"], rel=1e-6)


# The average.


@pytest.mark.parametrize("decay", [0.05, 0.25, 0.999])
def test_average_by_its_formula(decay: float) -> None:
    model = plain_model(train={"E_decay": decay})
    assert model.netE is not None
    expected = {name: value.detach().double().numpy() for name, value in model.netG.named_parameters()}
    for current_iter in range(1, 9):
        train_on(model, current_iter, current_iter)
        kept = min(decay, (1 + current_iter) / (10 + current_iter))
        for name, value in model.netG.named_parameters():
            expected[name] = kept * expected[name] + (1 - kept) * value.detach().double().numpy()
    for name, value in model.netE.named_parameters():
        assert np.allclose(value.numpy(), expected[name], atol=1e-6), name
        assert not np.allclose(value.numpy(), dict(model.netG.named_parameters())[name].detach().numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_network_that_cannot_be_copied_is_averaged_too() -> None:
    model = ModelPlain(plain_options("normalised", {"E_decay": 0.9}), ONE_RANK, SEED)
    with pytest.raises(RuntimeError):
        copy.deepcopy(model.netG)
    assert model.netE is not None
    expected = {name: value.numpy().copy() for name, value in model.netG.state_dict().items()}
    for current_iter in range(1, 4):
        train_on(model, current_iter, current_iter)
        kept = (1 + current_iter) / (10 + current_iter)
        for name, value in model.netG.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value.numpy()
    for name, value in model.netE.state_dict().items():
        assert np.allclose(value.numpy(), expected[name], atol=1e-6), name
    batch = class_batch(9)
    net = Normalised()
    net.load_state_dict(model.netE.state_dict())
    assert torch.allclose(model.test(batch), net(batch["input"]), atol=1e-5)


def test_a_buffer_that_the_network_replaces_is_averaged_too() -> None:
    model = ModelPlain(plain_options("centred", {"E_decay": 0.9}), ONE_RANK, SEED)
    assert model.netE is not None
    expected = np.zeros(256)
    for current_iter in range(1, 7):
        train_on(model, current_iter, current_iter)
        kept = min(0.9, (1 + current_iter) / (10 + current_iter))
        expected = kept * expected + (1 - kept) * model.netG.get_buffer("mean").double().numpy()
    assert np.allclose(model.netE.get_buffer("mean").numpy(), expected, atol=1e-6)
    assert np.abs(expected).min() > 0.1


def test_a_buffer_that_the_network_replaces_forgets_a_skipped_step() -> None:
    def spoiled(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "input": batch["input"] * math.nan}

    skipping, straight = (
        ModelPlain(plain_options("centred", {"E_decay": 0.9, "nonfinite": "skip"}), ONE_RANK, SEED) for _ in range(2)
    )
    for model, batches in ((skipping, (class_batch(1), spoiled(class_batch(2)))), (straight, (class_batch(1),))):
        for current_iter, batch in enumerate(batches, 1):
            model.optimize_parameters([batch], current_iter)
    assert same_tensors(skipping.netG.state_dict(), straight.netG.state_dict())


def test_average_soon_forgets_the_first_weights() -> None:
    """Of the initial weights less than 1 % is left after 100 iterations, where a constant 0.999 keeps 90 %."""
    model = plain_model(train={"E_decay": 0.999, "total_iter": 100})
    assert model.netE is not None
    with torch.no_grad():
        for averaged, parameter in zip(model.netE.parameters(), model.netG.parameters(), strict=True):
            averaged.fill_(1.0)
            parameter.fill_(0.0)
    for current_iter in range(1, 101):
        model.update_E(current_iter)
    assert all(float(averaged.max()) < 0.01 for averaged in model.netE.parameters())


def test_batch_norm_statistics_are_averaged_like_weights_and_counters_copied() -> None:
    model = model_of({"E_decay": 0.9})
    assert model.netE is not None
    mean, expected = model.netG.get_buffer("stem.1.running_mean"), np.zeros(4)
    for current_iter in range(1, 7):
        train_on(model, current_iter, current_iter)
        kept = min(0.9, (1 + current_iter) / (10 + current_iter))
        expected = kept * expected + (1 - kept) * mean.double().numpy()
    averaged = model.netE.get_buffer("stem.1.running_mean").numpy()
    assert np.allclose(averaged, expected, atol=1e-6)
    assert not np.allclose(averaged, mean.numpy(), atol=1e-6)
    assert model.netE.get_buffer("stem.1.num_batches_tracked") == 6


def test_average_does_not_learn_and_is_absent_without_decay() -> None:
    model = model_of({"E_decay": 0.9})
    assert model.netE is not None
    assert not any(parameter.requires_grad for parameter in model.netE.parameters())
    assert not model.netE.training
    assert set(model.state()) == {"G", "E", "optimizerG"}
    without = train_on(model_of({"E_decay": 0.0}), 1)
    assert without.netE is None
    assert without.tested_net is without.netG
    assert set(without.state()) == {"G", "optimizerG"}


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ({"E_decay": 0.9}, ("G", "E", "optimizerG")),
        ({"E_decay": 0.0}, ("G", "optimizerG")),
        ({"E_decay": 0.9, "G_optimizer_reuse": False}, ("G", "E")),
        ({"E_decay": 0.0, "G_optimizer_reuse": False}, ("G",)),
    ],
)
def test_only_enabled_parts_count(train: dict[str, Any], parts: tuple[str, ...]) -> None:
    assert enabled_parts(net_options(train).train) == parts


# Testing.


def test_test_uses_the_average_in_evaluation_mode() -> None:
    model = train_on(model_of({"E_decay": 0.9}, dropout=0.5))
    assert model.netE is not None
    batch = class_batch(99)
    output = model.test(batch)
    with torch.no_grad():
        assert torch.equal(output, copy.deepcopy(model.netE).eval()(batch["input"]))
        assert not torch.allclose(output, copy.deepcopy(model.netG).eval()(batch["input"]), atol=1e-4)
    assert torch.equal(model.test(batch), output)
    assert not output.requires_grad
    assert torch.equal(model.target, batch["target"])
    expected = nn.functional.cross_entropy(output, batch["target"])
    assert model.test_loss(output).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_test_leaves_everything_as_it_was(decay: float) -> None:
    model = train_on(model_of({"E_decay": decay}, dropout=0.5))
    before = copy.deepcopy(model.state())
    modes = [module.training for module in (*model.netG.modules(), *model.tested_net.modules())]
    generator = torch.get_rng_state()
    model.test(class_batch(99))
    assert [module.training for module in (*model.netG.modules(), *model.tested_net.modules())] == modes
    assert same_tensors(model.state()["G"], before["G"])
    assert torch.equal(torch.get_rng_state(), generator)
    tested = train_on(model, 9, NUM_ITERS + 1).state()["G"]
    untested = train_on(model_of({"E_decay": decay}, dropout=0.5), 9).state()["G"]
    assert same_tensors(tested, untested), "a test changed the training"


def test_test_keeps_a_frozen_layer_in_evaluation_mode() -> None:
    """A user who fine-tunes puts batch norms in evaluation mode for good."""
    model = model_of()
    model.netG.stem[1].eval()
    model.test(class_batch(1))
    assert not model.netG.stem[1].training
    assert model.netG.head.training


def test_bf16_tests_give_float32() -> None:
    model = model_of({"amp": "bf16"})
    assert model.test(class_batch(1)).dtype == torch.float32


# What a user overrides.


class VectorModel(ModelPlain):
    """A user's model: two inputs."""

    def feed_data(self, batch: dict[str, Any]) -> None:
        self.input, self.vector, self.target = batch["input"], batch["vector"], batch["target"]

    def netG_forward(self, netG: nn.Module) -> torch.Tensor:
        return netG(self.input, self.vector)


def test_a_subclass_that_overrides_two_methods_trains() -> None:
    options = plain_options("two_inputs", {"E_decay": 0.5, "G_accumulation_steps": 2})
    table = Table("model", {**MODELS, "vector": VectorModel}, supplied={"opt", "dist", "seed"})
    model: VectorModel = table["vector"](options, ONE_RANK, SEED)
    by_hand = copy.deepcopy(model.netG)
    optimizer = sgd(by_hand)
    for current_iter in range(1, 30):
        batches = []
        for part in (0, 1):
            batch = class_batch(2 * (current_iter % 3) + part)
            batches.append({**batch, "vector": nn.functional.one_hot(batch["target"] % 3, 3).float()})
        model.update_learning_rate(current_iter)
        model.optimize_parameters(batches, current_iter)
        model.update_E(current_iter)
        optimizer.zero_grad()
        for batch in batches:
            output = by_hand(batch["input"], batch["vector"])
            (nn.functional.cross_entropy(output, batch["target"]) / 2).backward()
        optimizer.step()
        if current_iter == 1:
            first = model.current_log(1)["G_loss"]
    assert same_tensors(model.netG.state_dict(), by_hand.state_dict())
    assert model.current_log(29)["G_loss"] < first
    assert model.test(batches[0]).shape == (8, 7)


def test_regression_with_l1() -> None:
    model = plain_model(train={"G_lossfn_type": "l1", "E_decay": 0.5}, num_classes=3)
    by_hand = copy.deepcopy(model.netG)
    optimizer = sgd(by_hand)
    for current_iter in range(1, 6):
        batch = class_batch(current_iter)
        batch["target"] = batch["input"][:, 0, :3, 0]
        model.update_learning_rate(current_iter)
        model.optimize_parameters([batch], current_iter)
        optimizer.zero_grad()
        (by_hand(batch["input"]) - batch["target"]).abs().mean().backward()
        optimizer.step()
    assert same_tensors(model.netG.state_dict(), by_hand.state_dict())


def test_weight_of_the_loss() -> None:
    model, double = plain_model(), plain_model(train={"G_lossfn_weight": 2.0, "G_optimizer_lr": 0.05})
    train_on(model), train_on(double)
    logged, expected = double.current_log(NUM_ITERS)["G_loss"], 2 * model.current_log(NUM_ITERS)["G_loss"]
    assert logged == pytest.approx(expected, rel=1e-4)
    for ours, other in zip(double.netG.parameters(), model.netG.parameters(), strict=True):
        assert torch.allclose(ours, other, atol=1e-5)


def test_weight_of_the_loss_is_in_the_tests_loss_too() -> None:
    """Training and test loss stand in one column of metrics.csv."""
    model = plain_model(train={"G_lossfn_weight": 2.0})
    batch = class_batch(1)
    output = model.test(batch)
    expected = 2 * nn.functional.cross_entropy(output, batch["target"]).item()
    assert model.test_loss(output).item() == pytest.approx(expected, rel=1e-6)


# Randomness.


def test_dropout_differs_between_iterations_and_repeats_for_one() -> None:
    def gradient(model: ModelPlain, current_iter: int) -> torch.Tensor:
        model.optimize_parameters([class_batch(1)], current_iter)
        return model.netG.head.weight.grad.clone()

    def fresh() -> ModelPlain:
        return plain_model(dropout=0.5)

    first = gradient(fresh(), 5)
    torch.rand(17)
    assert torch.equal(gradient(fresh(), 5), first)
    assert not torch.equal(gradient(fresh(), 6), first)


def test_ranks_get_different_dropout() -> None:
    """Each rank draws its own masks: with equal ones, equal samples would have equal gradients."""

    def gradient(rank: int) -> torch.Tensor:
        model = ModelPlain(net_options(dropout=0.5), Dist(rank=rank), SEED)
        model.optimize_parameters([class_batch(1)], 1)
        return model.netG.get_parameter("head.weight").grad.clone()  # type: ignore[union-attr]

    assert torch.equal(gradient(1), gradient(1))
    assert not torch.allclose(gradient(0), gradient(1), atol=1e-6)


def test_micro_batches_get_different_dropout() -> None:
    """The same samples twice: with equal masks the gradient would be that of one of them."""
    once, twice = plain_model(dropout=0.5), plain_model(dropout=0.5)
    once.optimize_parameters([class_batch(1)], 1)
    twice.optimize_parameters([class_batch(1), class_batch(1)], 1)
    assert not torch.allclose(once.netG.head.weight.grad, twice.netG.head.weight.grad, atol=1e-6)


def test_first_weights_depend_on_the_seed_alone() -> None:
    opt = net_options()
    torch.rand(5)
    first = ModelPlain(opt, ONE_RANK, 0).netG.state_dict()
    torch.rand(7)
    assert same_tensors(ModelPlain(opt, ONE_RANK, 0).netG.state_dict(), first)
    assert not same_tensors(ModelPlain(opt, ONE_RANK, 1).netG.state_dict(), first)


# Logging.


def test_log_holds_the_means_since_the_last_one() -> None:
    model = plain_model(train={"G_optimizer_clipgrad": 1e9})
    by_hand = copy.deepcopy(model.netG)
    optimizer = sgd(by_hand)
    losses, norms = [], []
    for current_iter in range(1, 6):
        batch = class_batch(current_iter)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(by_hand(batch["input"]), batch["target"])
        loss.backward()
        gradients = [parameter.grad.double().numpy().ravel() for parameter in by_hand.parameters()]
        norms.append(np.linalg.norm(np.concatenate(gradients)))
        losses.append(loss.item())
        optimizer.step()
    for first, last in ((1, 2), (3, 5)):
        train_on(model, last, first)
        log = model.current_log(last)
        assert set(log) == {"G_loss", "grad_norm"}
        assert log["G_loss"] == pytest.approx(np.mean(losses[first - 1 : last]), rel=1e-5)
        assert log["grad_norm"] == pytest.approx(np.mean(norms[first - 1 : last]), rel=1e-5)
    assert model.current_log(5) == {}


def test_logged_norm_is_that_before_clipping() -> None:
    clipped, free = plain_model(train={"G_optimizer_clipgrad": 1e-3}), plain_model(train={"G_optimizer_clipgrad": 1e9})
    train_on(clipped, 1), train_on(free, 1)
    assert clipped.current_log(1)["grad_norm"] == pytest.approx(free.current_log(1)["grad_norm"], rel=1e-6)
    norm = torch.cat([parameter.grad.flatten() for parameter in clipped.netG.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_without_clipping_no_norm_is_logged() -> None:
    assert set(train_on(plain_model(), 2).current_log(2)) == {"G_loss"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("first_log", "bad_iter", "last"), [(0, 1, 3), (0, 3, 3), (2, 4, 7), (5, 6, 6)])
@pytest.mark.parametrize("collect", [ModelPlain.current_log, lambda model, last: model.losses.collect(last)])
def test_a_loss_that_is_not_finite_names_its_iteration(
    value: float, first_log: int, bad_iter: int, last: int, collect: Callable[[ModelPlain, int], object]
) -> None:
    model = plain_model()
    for current_iter in range(1, last + 1):
        batch = class_batch(current_iter)
        if current_iter == bad_iter:
            batch["input"] = torch.full_like(batch["input"], value)
        model.optimize_parameters([batch], current_iter)
        if current_iter == first_log:
            model.current_log(current_iter)
    with pytest.raises(NonFiniteLossError, match=rf"iteration {bad_iter} is (nan|inf)"):
        collect(model, last)


def test_checking_does_not_take_losses_from_the_log() -> None:
    model = train_on(plain_model(), 3)
    model.losses.collect(3)
    assert model.current_log(3) == train_on(plain_model(), 3).current_log(3)


# Loading.


@pytest.fixture
def trained() -> ModelPlain:
    return train_on(model_of({"E_decay": 0.5}), 3)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def load_pretrained(path: Path | None, path_E: Path | None = None, **train: Any) -> ModelPlain:
    opt = net_options({"E_decay": 0.5, **train})
    given = {"pretrained_netG": path and str(path), "pretrained_netE": path_E and str(path_E)}
    model = ModelPlain(opt.model_copy(update={"path": opt.path.model_copy(update=given)}), ONE_RANK, SEED + 1)
    model.load(None)
    return model


def with_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


WRAPPED: dict[str, Callable[[Any, Any], Any]] = {
    "flat": lambda state, _: state,
    "module. prefix": lambda state, _: with_prefix(state),
    "params": lambda state, _: {"params": state},
    "params_ema only": lambda state, _: {"params_ema": state},
    "params and params_ema": lambda state, other: {"params_ema": other, "params": state},
    "params with prefix": lambda state, _: {"params": with_prefix(state), "iter": 5},
    "our own model": lambda state, _: {"task": "x", "iter": 3, "model_state_dict": state, "metrics": {}},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_pretrained_netG_in_every_form(tmp_path: Path, trained: ModelPlain, form: str) -> None:
    state, other = trained.netG.state_dict(), {k: v + 1 for k, v in trained.netG.state_dict().items()}
    model = load_pretrained(saved(tmp_path / "net.pth", WRAPPED[form](state, other)))
    assert model.netE is not None
    assert same_tensors(model.netG.state_dict(), state)
    assert same_tensors(model.netE.state_dict(), state), "the average of a fresh run starts from netG"


def test_pretrained_netE_prefers_the_average(tmp_path: Path, trained: ModelPlain) -> None:
    assert trained.netE is not None
    G, E = trained.netG.state_dict(), trained.netE.state_dict()
    file = saved(tmp_path / "net.pth", {"params": G, "params_ema": E})
    model = load_pretrained(file, file)
    assert model.netE is not None
    assert same_tensors(model.netG.state_dict(), G)
    assert same_tensors(model.netE.state_dict(), E)


def test_of_several_state_dicts_the_one_that_fits_is_taken(tmp_path: Path, trained: ModelPlain) -> None:
    state = trained.netG.state_dict()
    file = saved(tmp_path / "net.pth", {"params": {"conv.weight": torch.zeros(3)}, "params_ema": state})
    assert same_tensors(load_pretrained(file).netG.state_dict(), state)


def test_names_and_not_the_order_decide(tmp_path: Path, trained: ModelPlain) -> None:
    state = trained.netG.state_dict()
    file = saved(tmp_path / "net.pth", dict(reversed(state.items())))
    assert same_tensors(load_pretrained(file).netG.state_dict(), state)


def test_a_network_with_a_layer_called_module(tmp_path: Path) -> None:
    """Its own names start with `module.`, so that prefix must not be cut off."""
    opt = plain_options("in_module")
    model = ModelPlain(opt, ONE_RANK, SEED)
    state = copy.deepcopy(model.netG.state_dict())
    for form in (state, with_prefix(state)):
        other = ModelPlain(opt, ONE_RANK, SEED + 1)
        file = saved(tmp_path / "net.pth", form)
        other.load(ResumePoint(5, {"G": file}, None))
        assert same_tensors(other.netG.state_dict(), state)


def test_a_strict_mistake_names_both_sides(tmp_path: Path, trained: ModelPlain) -> None:
    state = dict(trained.netG.state_dict())
    state["fc.weight"] = state.pop("head.weight")
    state["head.bias"] = torch.zeros(5)
    with pytest.raises(UserError) as caught:
        load_pretrained(saved(tmp_path / "1000_G.pth", state))
    message = str(caught.value)
    assert message.startswith("1000_G.pth has no 'head.weight'")
    assert "no use for 'fc.weight'" in message
    assert "'head.bias' has another shape ([5] in the file, [7] in netG)" in message
    assert "net_type" in message
    assert "G_param_strict" in message
    assert "task name" not in message
    with pytest.raises(UserError, match="To begin anew, give the run another task name"):
        load_pretrained(None).load(ResumePoint(1000, {"G": tmp_path / "1000_G.pth"}, None))


def test_loose_loading_goes_by_name_and_shape(
    tmp_path: Path, trained: ModelPlain, logged: pytest.LogCaptureFixture
) -> None:
    state = dict(trained.netG.state_dict())
    state["fc.weight"] = state.pop("head.weight")
    state["head.bias"] = torch.zeros(5)
    untouched = load_pretrained(None, G_param_strict=False).netG.state_dict()
    model = load_pretrained(saved(tmp_path / "net.pth", state), G_param_strict=False)
    for name, value in model.netG.state_dict().items():
        expected = untouched[name] if name.startswith("head.") else state[name]
        assert torch.equal(value, expected), name
    said = messages(logged.records, logging.WARNING)
    num = len(untouched)
    assert f"{num - 2} of {num} tensors were loaded" in said
    assert "'head.weight'" in said
    assert "'fc.weight'" in said
    assert "'head.bias'" in said


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "content", [{"conv.weight": torch.zeros(3, 3)}, {}, [torch.zeros(3)], {"iter": 5}, torch.zeros(3)]
)
def test_a_file_of_which_nothing_fits_is_an_error(tmp_path: Path, strict: bool, content: Any) -> None:
    with pytest.raises(UserError, match=r"net\.pth"):
        load_pretrained(saved(tmp_path / "net.pth", content), G_param_strict=strict)


class Counting(nn.Module):
    """A network that keeps what is no tensor in its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen: dict[str, int] = {"images": 0}

    def get_extra_state(self) -> dict[str, int]:
        return self.seen

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state


@pytest.mark.parametrize("strict", [True, False])
def test_the_extra_state_of_a_module_is_loaded(tmp_path: Path, strict: bool) -> None:
    first, second = nn.Sequential(Counting()), nn.Sequential(Counting())
    first[0].seen = {"images": 64}
    load_network(second, saved(tmp_path / "net.pth", first.state_dict()), strict)
    assert second[0].seen == {"images": 64}
    assert torch.equal(second[0].layer.weight, first[0].layer.weight)


def test_what_is_no_tensor_where_one_should_be_is_named(tmp_path: Path) -> None:
    state = {**Counting().state_dict(), "layer.bias": "none"}
    with pytest.raises(UserError, match=r"'layer\.bias' has another shape \(no tensor in the file, \[2\] in netG\)"):
        load_network(Counting(), saved(tmp_path / "net.pth", state), strict=True)


def test_strictness_of_G_and_E_are_two_options(tmp_path: Path, trained: ModelPlain) -> None:
    state = trained.netG.state_dict()
    partial = {name: value for name, value in state.items() if not name.startswith("head.")}
    whole, part = saved(tmp_path / "whole.pth", state), saved(tmp_path / "part.pth", partial)
    load_pretrained(whole, part, E_param_strict=False)
    with pytest.raises(UserError, match=r"part\.pth"):
        load_pretrained(whole, part)
    with pytest.raises(UserError, match=r"part\.pth"):
        load_pretrained(part, whole, E_param_strict=False)


def test_a_missing_pretrained_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^path\.pretrained_netG: .*nowhere\.pth: no such file; give a file of weights"
    ):
        load_pretrained(tmp_path / "nowhere.pth")


def test_a_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"net\.pth: refused"):
        load_pretrained(saved(tmp_path / "net.pth", nn.Linear(2, 2)))


@pytest.mark.parametrize("train", [EVERYTHING, {**SGD, "E_decay": 0.9}])
def test_a_resumed_model_goes_on_bit_equal(tmp_path: Path, train: dict[str, Any]) -> None:
    straight = train_on(model_of(train, dropout=0.2), 3)
    files = {part: saved(tmp_path / f"3_{part}.pth", copy.deepcopy(state)) for part, state in straight.state().items()}
    train_on(straight, 6, 4)
    resumed = ModelPlain(net_options(train, dropout=0.2), ONE_RANK, SEED)
    for parameter in resumed.netG.parameters():
        parameter.data.fill_(9.0)
    assert resumed.load(ResumePoint(3, files, None)) == []
    train_on(resumed, 6, 4)
    assert same_tensors(resumed.netG.state_dict(), straight.netG.state_dict())
    assert resumed.netE is not None
    assert straight.netE is not None
    assert same_tensors(resumed.netE.state_dict(), straight.netE.state_dict())


def test_a_resume_takes_the_folders_files_and_not_the_pretrained_ones(tmp_path: Path, trained: ModelPlain) -> None:
    state = trained.netG.state_dict()
    opt = net_options()
    path = opt.path.model_copy(update={"pretrained_netG": str(tmp_path / "nowhere.pth")})
    model = ModelPlain(opt.model_copy(update={"path": path}), ONE_RANK, SEED + 1)
    model.load(ResumePoint(3, {"G": saved(tmp_path / "3_G.pth", state)}, None))
    assert same_tensors(model.netG.state_dict(), state)


def test_parts_that_are_missing_in_a_resume_are_reported(
    tmp_path: Path, trained: ModelPlain, logged: pytest.LogCaptureFixture
) -> None:
    model = ModelPlain(net_options({"E_decay": 0.5}), ONE_RANK, SEED + 1)
    afresh = model.load(ResumePoint(3, {"G": saved(tmp_path / "3_G.pth", trained.netG.state_dict())}, None))
    assert afresh == ["E starts afresh", "optimizerG starts afresh"]
    said = messages(logged.records, logging.WARNING)
    assert "No E file at iteration 3" in said
    assert "optimizer's state is not restored" in said
    assert model.netE is not None
    assert same_tensors(model.netE.state_dict(), trained.netG.state_dict())


def test_saved_networks_are_flat_and_without_prefix() -> None:
    model = train_on(model_of({"E_decay": 0.5}), 1)
    for part in ("G", "E"):
        state = model.state()[part]
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        assert not any(name.startswith("module.") for name in state)
