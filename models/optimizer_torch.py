"""torch's optimizers as this trainer uses them: without the import of torch._dynamo."""

import inspect
from typing import Any, TypeVar

import torch

Groups = list[dict[str, Any]]
T = TypeVar("T", bound=torch.optim.Optimizer)


def without_dynamo(optimizer: type[T]) -> type[T]:
    """A subclass with the same methods, which do not import torch._dynamo: that costs as much CPU time as torch itself.

    torch wraps them in something that keeps torch.compile out of an optimizer; ours is never compiled.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in wrapped}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


Adam = without_dynamo(torch.optim.Adam)
AdamW = without_dynamo(torch.optim.AdamW)


class SGD(without_dynamo(torch.optim.SGD)):  # type: ignore[misc]
    """torch's, whose fused kernel fails where a parameter gets its first gradient after others have a momentum."""

    def _init_group(
        self, group: dict[str, Any], params: list[torch.Tensor], grads: list[torch.Tensor],
        momentum_buffers: list[torch.Tensor | None],
    ) -> bool:  # fmt: skip
        has_sparse_grad: bool = super()._init_group(group, params, grads, momentum_buffers)
        is_missing = [momentum is None for momentum in momentum_buffers]
        if any(is_missing) and not all(is_missing):  # from zero the first momentum is the gradient, as it should be
            momentum_buffers[:] = [
                torch.zeros_like(parameter) if momentum is None else momentum
                for parameter, momentum in zip(params, momentum_buffers, strict=True)
            ]
        return has_sparse_grad
