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


def check_num_classes(options: NetOptions, class_names: Sequence[str]) -> None:
    """UserError when a network that has `num_classes` does not have one for each class of the data."""
    field = NETWORKS.arguments(options.net_type).model_fields.get("num_classes")
    if field is None or not class_names:
        return
    num_classes = options.arguments.get("num_classes", field.default)
    if num_classes != len(class_names):
        raise UserError(
            f"netG.num_classes: {num_classes}, but the data has {len(class_names)} classes "
            f"({', '.join(class_names)}); use {len(class_names)}"
        )


def define_G(options: NetOptions) -> nn.Module:
    """The bare network of the option file's netG section, freshly initialised from torch's global generator."""
    try:
        net = NETWORKS.build(options.net_type, options.arguments)
    except (ValueError, RuntimeError) as error:  # a network, or torch, refuses arguments
        raise UserError(f"netG ({options.net_type}): {error}") from error
    assert isinstance(net, nn.Module), f"{options.net_type} is not an nn.Module"
    return net
