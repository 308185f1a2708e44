"""NETWORKS: one line a network."""

from collections.abc import Sequence

import torch.nn as nn

from models.network_fer_resnet import FerResNet
from models.network_fer_vgg import FerVGG
from models.network_hand_pose import HandPoseNet
from utils.utils_error import UserError
from utils.utils_option import NetOptions
from utils.utils_table import Table

NETWORKS = Table("network", {"fer_resnet": FerResNet, "fer_vgg": FerVGG, "hand_pose_net": HandPoseNet})


def check_fits_data(options: NetOptions, class_names: Sequence[str], root_joint_idx: int | None) -> None:
    """UserError when the network is built for other classes, or for joints relative to another one, than the data's."""
    if class_names:
        has = f"has {len(class_names)} classes ({', '.join(class_names)})"
        _check_argument(options, "num_classes", len(class_names), has)
    if root_joint_idx is not None:
        _check_argument(options, "root_joint_idx", root_joint_idx, f"has joints relative to joint {root_joint_idx}")


def _check_argument(options: NetOptions, name: str, wanted: int, has: str) -> None:
    """UserError when a network that has the argument `name` does not get `wanted`."""
    field = NETWORKS.arguments(options.net_type).model_fields.get(name)
    if field is not None and (value := options.arguments.get(name, field.default)) != wanted:
        raise UserError(f"netG.{name}: {value}, but the data {has}; use {wanted}")


def define_G(options: NetOptions) -> nn.Module:
    """The bare network of the option file's netG section, freshly initialised from torch's global generator."""
    try:
        net = NETWORKS.build(options.net_type, options.arguments)
    except (ValueError, RuntimeError) as error:  # a network, or torch, refuses arguments
        raise UserError(f"netG ({options.net_type}): {error}") from error
    assert isinstance(net, nn.Module), f"{options.net_type} is not an nn.Module"
    for name, parameter in net.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UserError(
                f"netG ({options.net_type}): {name!r} has no shape before the first forward pass; give the layer its "
                "sizes, or send one input through it in the constructor"
            )
    return net
