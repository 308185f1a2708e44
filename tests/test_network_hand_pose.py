"""hand_pose_net: what it promises about its output, that it can find joints, and its size."""

import io
from typing import Any

import pytest
import torch
import torch.nn as nn

from models.network_hand_pose import soft_argmax
from models.select_network import define_G
from utils.utils_option import NetOptions
from utils.utils_pose import mpjpe_mm

SMALL = {"size": 32, "num_joints": 5, "widths": [8, 16, 16], "depths": [1, 1], "heat_width": 16}


def built(**arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return define_G(NetOptions(net_type="hand_pose_net", **arguments))


def random_images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("size", "num_joints", "root"), [(32, 5, 0), (48, 21, 9), (96, 2, 1)])
def test_joints_are_relative_to_the_root(size: int, num_joints: int, root: int) -> None:
    arguments = {**SMALL, "size": size, "num_joints": num_joints, "root_joint_idx": root}
    output = built(**arguments)(random_images(3, size))
    assert output.shape == (3, num_joints, 3)
    assert output.dtype == torch.float32
    assert (output == 0).all(dim=2).tolist() == [[joint == root for joint in range(num_joints)]] * 3


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 32, 32), (2, 3, 32, 48)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"netG\.size: 32 stands for images \(3, 32, 32\), not \(") as caught:
        built(**SMALL)(torch.zeros(shape))
    assert str(shape[1:]) in str(caught.value)


def test_weights_suit_images_of_any_size() -> None:
    small, large = built(**SMALL), built(**{**SMALL, "size": 64})
    large.load_state_dict(small.state_dict())
    assert large(random_images(2, 64)).shape == (2, 5, 3)


def test_the_default_stays_below_10_mb() -> None:
    net = built()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    assert 4e6 < len(file.getvalue()) < 10e6
    assert net.eval()(random_images(1, 128)).shape == (1, 21, 3)


def test_bf16_does_not_round_the_joints() -> None:
    """Autocast ends before the head: what it gives is no number of 8 bits."""
    with torch.autocast("cpu", torch.bfloat16):
        output = built(**SMALL)(random_images(4, 32))
    assert not torch.equal(output, output.bfloat16().float())


def test_the_expectation_of_a_sharp_heatmap_is_its_pixel() -> None:
    """Row 1 of 3 and column 3 of 4: the middle of the map's height and, at a pixel's centre, 3/4 to its right."""
    heat = torch.zeros(1, 2, 3, 4)
    heat[0, 0, 1, 3] = 1e4
    heat[0, 1, 0, 1] = 1e4
    features = torch.arange(24.0).reshape(1, 2, 3, 4)
    wanted = torch.tensor([[[0.75, 0, 7, 19], [-0.25, -2 / 3, 1, 13]]])
    assert torch.allclose(soft_argmax(heat, features), wanted, atol=1e-6)


def test_the_expectation_of_a_flat_heatmap_is_the_mean() -> None:
    features = torch.arange(24.0).reshape(1, 2, 3, 4)
    wanted = torch.tensor([[[0, 0, 5.5, 17.5]]])
    assert torch.allclose(soft_argmax(torch.full((1, 1, 3, 4), 9.0), features), wanted, atol=1e-6)


def dots(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a dot for each of three joints, in a colour of its own, and the joints: depth is a dot's width."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(count, 3, 3, generator=generator) * 2 - 1  # x, y, depth
    grid = (torch.arange(16) * 2 + 1) / 16 - 1
    x, y = (place[:, :, i, None, None] * 0.8 for i in range(2))
    distance = (grid - x).square() + (grid[:, None] - y).square()  # (B, 3, 16, 16)
    width = 0.2 + 0.1 * place[:, :, 2, None, None]
    return torch.exp(-distance / (2 * width**2)) * 4 - 1, (place - place[:, :1]) * 50


def test_it_learns_to_find_joints() -> None:
    """From images that are never seen twice."""
    net = built(**{**SMALL, "size": 16, "num_joints": 3})
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 200)
        images, target = dots(32, step)
        loss = mpjpe_mm(net(images), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, target = dots(64, 10_000)
    error = mpjpe_mm(net.eval()(images), target).mean().item()
    of_the_mean = mpjpe_mm(torch.zeros_like(target), target).mean().item()
    assert of_the_mean > 40
    assert error < of_the_mean / 3
