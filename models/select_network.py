"""NETWORKS: one line a network."""

import torch.nn as nn

from models.network_fer_resnet import FerResNet
from models.network_fer_vgg import FerVGG
from utils.utils_error import UserError
from utils.utils_option import NetOptions
from utils.utils_table import Table

NETWORKS = Table("network", {"fer_resnet": FerResNet, "fer_vgg": FerVGG})


def define_G(options: NetOptions) -> nn.Module:
    """The bare network of the option file's netG section, freshly initialised from torch's global generator."""
    try:
        net = NETWORKS.build(options.net_type, options.arguments)
    except ValueError as error:  # a network refuses arguments that do not fit each other
        raise UserError(f"netG ({options.net_type}): {error}") from error
    assert isinstance(net, nn.Module), f"{options.net_type} is not an nn.Module"
    return net
