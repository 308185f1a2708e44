"""Every network of the table: shapes, sizes, modes and refusals."""

import io
from typing import Any

import pytest
import torch
import torch.nn as nn

from models.network_blocks import ResidualBlock, SqueezeExcitation
from models.select_network import NETWORKS, define_G
from tests.helpers import validated
from utils.utils_error import UserError
from utils.utils_option import NetOptions, parse

SMALL: dict[str, dict[str, Any]] = {
    "fer_resnet": {"widths": [4, 8, 8], "depths": [1, 2, 1]},
    "fer_vgg": {"widths": [4, 8], "hidden": 16},
    "hand_pose_net": {"size": 32, "widths": [4, 8, 8], "depths": [1, 2], "heat_width": 8},
}
CLASSIFIERS = [name for name in SMALL if name.startswith("fer_")]


def built(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return define_G(NetOptions(net_type=name, **{**SMALL[name], **arguments}))


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def faces(count: int, channels: int = 1, size: int = 48) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def images(name: str, count: int) -> torch.Tensor:
    """What the network takes by default."""
    return faces(count) if name in CLASSIFIERS else faces(count, channels=3, size=SMALL[name]["size"])


def test_every_network_is_tested() -> None:
    assert sorted(NETWORKS) == sorted(SMALL)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("channels", "num_classes"), [(1, 7), (3, 10)])
def test_shapes(name: str, channels: int, num_classes: int) -> None:
    net = built(name, in_channels=channels, num_classes=num_classes)
    for count in (2, 5):
        output = net(faces(count, channels))
        assert output.shape == (count, num_classes)
        assert output.dtype == torch.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    net = built(name, dropout=0.0)
    net(images(name, 6)).square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(torch.isfinite(parameter.grad).all()), parameter_name
        assert bool(parameter.grad.any()), parameter_name


@pytest.mark.parametrize("name", NETWORKS)
def test_in_a_test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    net = built(name, dropout=0.5).eval()
    batch = images(name, 5)
    with torch.no_grad():
        together = net(batch)
        assert torch.equal(net(batch), together), "something is random in evaluation mode"
        for place in range(5):
            assert torch.allclose(net(batch[place : place + 1])[0], together[place], atol=1e-5)
        net.train()
        assert not torch.allclose(net(batch), together, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_what_the_option_says(name: str) -> None:
    still, dropping = built(name, dropout=0.0), built(name, dropout=0.5)
    batch = images(name, 4)
    assert torch.equal(still(batch), still(batch))
    assert not torch.equal(dropping(batch), dropping(batch))


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16(name: str) -> None:
    net = built(name, dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(images(name, 4))
    assert output.dtype == (torch.bfloat16 if name in CLASSIFIERS else torch.float32)  # joints are in mm
    wanted = net(images(name, 4))
    assert torch.allclose(output.float(), wanted, atol=0.1 * max(1.0, wanted.std().item()))
    output.float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_gives_the_same_output(name: str) -> None:
    net = built(name, dropout=0.0).eval()
    batch = images(name, 3)
    expected = net(batch)
    net.to(memory_format=torch.channels_last)
    assert torch.allclose(net(batch.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_is_flat_tensors_and_nothing_derived(name: str) -> None:
    """A grid or a mask, which follows from the options, would not load at another size."""
    net = built(name)
    state = net.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    learned = {parameter_name for parameter_name, _ in net.named_parameters()}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert {each.rpartition(".")[2] for each in state.keys() - learned} <= statistics


@pytest.mark.parametrize("name", ["fer.json", "fer_distill.json"])
def test_size_of_the_shipped_fer_resnet(name: str, pytestconfig: pytest.Config) -> None:
    net = define_G(parse(pytestconfig.rootpath / "options" / name).netG)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    assert 0.2e6 < len(file.getvalue()) <= 1.5e6
    assert net(faces(2)).shape == (2, 7)


@pytest.mark.parametrize("depths", [(2, 1, 1), (1, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_number_of_parameters_of_fer_resnet_by_hand(depths: tuple[int, ...], stem_stride: int) -> None:
    """Convolution k x k x in x out; two a batch norm channel; a shortcut where the width changes."""
    widths, width_in = (32, 64, 128), 32
    expected = 9 * 1 * 32 + 2 * 32
    for width, depth in zip(widths, depths, strict=True):
        for _ in range(depth):
            expected += 9 * width_in * width + 9 * width * width + 4 * width
            expected += (width_in * width + 2 * width) if width != width_in else 0
            width_in = width
    expected += 128 * 7 + 7
    net = built("fer_resnet", widths=widths, depths=depths, stem_stride=stem_stride)
    assert num_parameters(net) == expected


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_stages_of_fer_resnet_halve_the_image(stem_stride: int) -> None:
    net = built("fer_resnet", stem_stride=stem_stride)
    stem = net.stem(faces(1))
    assert stem.shape[-1] == 48 // stem_stride
    assert net.body(stem).shape == (1, 8, 12 // stem_stride, 12 // stem_stride)


def test_number_of_parameters_of_fer_vgg_by_hand() -> None:
    expected, width_in = 0, 1
    for width in (64, 128, 256, 512):
        expected += 9 * width_in * width + 9 * width * width + 4 * width
        width_in = width
    expected += (512 * 3 * 3) * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 7 + 7
    assert num_parameters(define_G(NetOptions(net_type="fer_vgg"))) == expected


def test_fer_vgg_without_hidden_layers_classifies_the_mean() -> None:
    net = built("fer_vgg", hidden=0).eval()
    for size in (48, 56):
        images = faces(2, size=size)
        weight, bias = net.head[1].weight, net.head[1].bias
        expected = net.body(images).flatten(2).mean(dim=2) @ weight.T + bias
        torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize(("name", "arguments"), [("fer_resnet", {}), ("fer_vgg", {"hidden": 0})])
def test_the_weighted_pool_begins_as_the_mean_and_weighs_each_pixel(name: str, arguments: dict[str, Any]) -> None:
    net = built(name, pool="weighted", size=44, **arguments).eval()
    mean = built(name, pool="mean", **arguments).eval()
    mean.load_state_dict({key: value for key, value in net.state_dict().items() if key != "pool.weight"})
    images = faces(3, size=44)
    torch.testing.assert_close(net(images), mean(images))
    nn.init.normal_(net.pool.weight)
    features = net.body(net.stem(images)) if name == "fer_resnet" else net.body(images)
    summed = torch.einsum("bchw,chw->bc", features, net.pool.weight)
    head = net.head if name == "fer_resnet" else net.head[1]
    torch.testing.assert_close(net(images), summed @ head.weight.T + head.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [8, 47, 64])
def test_the_weighted_pool_refuses_another_size(size: int) -> None:
    """Also 8 pixels, of which one is left, that would be taken for all."""
    net = built("fer_resnet", stem_stride=1, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), pool="weighted", size=40)
    assert net(faces(2, size=40)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"netG\.size: .* instead of \(8, 5, 5\)"):
        net(faces(2, size=size))


def test_squeeze_excitation_by_hand() -> None:
    block = SqueezeExcitation(8, reduction=2)
    x = torch.randn(2, 8, 5, 3)
    first, second = (block.scale[n] for n in (0, 2))
    assert first.weight.shape == (4, 8)
    for image, scaled in zip(x, block(x), strict=True):
        squeezed = torch.stack([channel.sum() / 15 for channel in image])
        hidden = (first.weight @ squeezed + first.bias).clamp(min=0)
        gate = 1 / (1 + torch.exp(-(second.weight @ hidden + second.bias)))
        torch.testing.assert_close(scaled, torch.stack([c * g for c, g in zip(image, gate, strict=True)]))


def test_squeeze_adds_two_linear_layers_a_block() -> None:
    sizes = [num_parameters(built("fer_resnet", squeeze=squeeze)) for squeeze in (0, 2)]
    blocks = [each for each in built("fer_resnet").modules() if isinstance(each, ResidualBlock)]
    widths = [block.body[0].out_channels for block in blocks]
    hidden = [max(width // 2, 4) for width in widths]
    assert sizes[1] - sizes[0] == sum(2 * w * h + w + h for w, h in zip(widths, hidden, strict=True))


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_fer_resnet_takes_other_sizes(size: int) -> None:
    assert built("fer_resnet").eval()(faces(1, size=size)).shape == (1, 7)


def test_fer_vgg_takes_the_size_it_was_built_for() -> None:
    assert built("fer_vgg", size=32).eval()(faces(1, size=32)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("fer_resnet", {"widths": [8, 8], "depths": [1]}, "netG.depths"),
        ("fer_resnet", {"widths": [8], "depths": [1, 1]}, "netG.depths"),
        ("fer_resnet", {"widths": [], "depths": []}, "netG.widths"),
        ("fer_resnet", {"widths": [8, 0], "depths": [1, 1]}, "netG.widths"),
        ("fer_resnet", {"widths": [8, -4], "depths": [1, 1]}, "netG.widths"),
        ("fer_resnet", {"dropout": 1.5}, "dropout"),
        ("fer_resnet", {"stem_stride": 0}, "netG.stem_stride: 0 must be positive"),
        ("fer_resnet", {"squeeze": -1}, "netG.squeeze: -1"),
        ("fer_resnet", {"size": 0}, "netG.size: 0"),
        ("fer_vgg", {"hidden": -1}, "netG.hidden: -1"),
        ("fer_vgg", {"hidden": 8, "pool": "weighted"}, "netG.pool: 'weighted' needs netG.hidden 0"),
        ("fer_resnet", {"pool": "max"}, 'pool: "max" is not allowed: must be "mean" or "weighted"'),
        ("fer_vgg", {"widths": [4] * 6}, "netG.size"),
        ("fer_vgg", {"size": 2}, "netG.size"),
        ("fer_vgg", {"widths": [4, 0]}, "netG.widths"),
        ("hand_pose_net", {"size": 30}, "netG.size: 30"),
        ("hand_pose_net", {"size": 8}, "use a multiple of 8 from 16 on"),
        ("hand_pose_net", {"widths": [8], "depths": []}, "netG.widths"),
        ("hand_pose_net", {"widths": [8, 0, 8]}, "netG.widths"),
        ("hand_pose_net", {"depths": [1, 1, 1]}, "netG.depths"),
        ("hand_pose_net", {"depths": [1, 0]}, "netG.depths"),
        ("hand_pose_net", {"num_joints": 1}, "netG.num_joints"),
        ("hand_pose_net", {"heat_width": 0}, "netG.heat_width: 0 must be positive"),
        (
            "hand_pose_net",
            {"num_joints": 5, "root_joint_idx": 5},
            "netG.root_joint_idx: 5 is not one of the joints 0 to 4",
        ),
        ("fer_resnet", {"widths": "8"}, "widths"),
        ("fer_resnet", {"width": [8]}, "width"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        built(name, **arguments)
    assert named in str(caught.value)


def test_unknown_network_is_named_with_the_nearest(tiny_options: Any) -> None:
    with pytest.raises(UserError, match="fer_resnet"):
        validated(tiny_options(netG__net_type="fer_resnt"))
