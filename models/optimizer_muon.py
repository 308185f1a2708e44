"""Muon: orthogonal updates of a network's hidden matrices, AdamW's of everything else, at one rate."""

import math
from collections.abc import Callable
from typing import Any

import torch

from models.optimizer_torch import AdamW, Groups


class Muon(AdamW):  # type: ignore[misc, valid-type]
    """Muon (Jordan et al., 2024) for the hidden matrices and kernels, AdamW for all other parameters.

    Hidden are all matrices and kernels of 2-D and 3-D convolutions but the first and the last of the network; kernels
    of depthwise convolutions are no matrices. A hidden one moves along its Nesterov momentum with all singular values
    made equal, as far as AdamW would typically move it (Liu et al., "Muon is scalable for LLM training", 2025), so that
    one rate and one decoupled weight decay suit both, those of AdamW.
    """

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float], momentum: float, nesterov: bool) -> None:
        matrices = [parameter for group in groups for _, parameter in group["params"] if parameter.ndim in (2, 4, 5)]
        hidden = {id(matrix) for matrix in matrices[1:-1] if min(matrix.shape[:2]) > 1}
        split = [
            {
                **group,
                "params": [(name, p) for name, p in group["params"] if (id(p) in hidden) is is_orthogonal],
                "is_orthogonal": is_orthogonal, "momentum": momentum, "nesterov": nesterov,
            }
            for group in groups for is_orthogonal in (True, False)
        ]  # fmt: skip
        super().__init__([group for group in split if group["params"]], lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss: float | None = super().step(closure)
        for group in self.param_groups:
            if group["is_orthogonal"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group)
        return loss

    def _init_group(self, group: dict[str, Any], *lists: list[torch.Tensor]) -> bool:
        """What AdamW moves of the group."""
        return not group["is_orthogonal"] and super()._init_group(group, *lists)

    def _move(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, rate, momentum = self.state[parameter], group["lr"], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        matrix = (gradient.lerp(average, momentum) if group["nesterov"] else average).flatten(1)
        parameter.mul_(1 - rate * group["weight_decay"])
        # The root mean square of an orthogonal matrix is 1/sqrt(larger side), that of AdamW's steps about 0.2.
        length = rate * 0.2 * math.sqrt(max(matrix.shape))
        parameter.sub_(orthogonalized(matrix).reshape(parameter.shape), alpha=length)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with its singular values brought to between 0.7 and 1.2, all but the very smallest; (m, n) -> (m, n).

    Five Newton-Schulz iterations with the coefficients of Jordan et al., chosen for speed: more come no closer to 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix  # the smaller products
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
