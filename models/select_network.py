"""NETWORKS: one line a network."""

from collections.abc import Mapping
from typing import Any

import torch.nn as nn

from models.network_fer_resnet import FerResNet
from models.network_fer_vgg import FerVGG
from models.network_hand_pose import HandPoseNet
from utils.utils_error import UserError
from utils.utils_option import NetOptions
from utils.utils_table import Table

NETWORKS = Table("network", {"fer_resnet": FerResNet, "fer_vgg": FerVGG, "hand_pose_net": HandPoseNet})


def check_fits_data(options: NetOptions, data: str, wanted: Mapping[str, Any]) -> None:
    """UserError when the network has one of the arguments that the data want, and does not get that value."""
    fields = NETWORKS.arguments(options.net_type).model_fields
    for name in fields.keys() & wanted.keys():
        if (value := options.arguments.get(name, fields[name].default)) != wanted[name]:
            raise UserError(f"netG.{name}: {value}, but {data} needs {wanted[name]}")


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
