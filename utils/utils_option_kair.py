"""KAIR's option keys that have no meaning here: accepted, dropped, and reported once with what replaces them."""

from collections.abc import Iterator
from typing import Any

ITSELF = "set by the trainer itself"
NETWORK = "the network initialises itself"
RESTORED = "restored from the experiment folder"
KAIR_KEYS: dict[str, str] = {
    "gpu_ids": "use CUDA_VISIBLE_DEVICES, or torchrun --nproc_per_node",
    "dist": "launch with torchrun",
    "num_gpu": "use torchrun --nproc_per_node",
    "rank": "set by torchrun",
    "world_size": "set by torchrun",
    "local_rank": "set by torchrun",
    "find_unused_parameters": "on several ranks every parameter of netG must be used",
    "use_static_graph": "use train.compile",
    "scale": "an argument of the network or the data set that needs it",
    "n_channels": "an argument of the network or the data set that needs it",
    "opt_path": ITSELF,
    "is_train": "main_train.py trains, main_test.py tests",
    "merge_bn": "no batch norms are merged",
    "merge_bn_startpoint": "no batch norms are merged",
    "path.task": "derived from path.root and task",
    "path.log": "derived from path.root and task",
    "path.options": "derived from path.root and task",
    "path.models": "derived from path.root and task",
    "path.images": "derived from path.root and task",
    "path.pretrained_optimizerG": RESTORED,
    "path.pretrained_netD": "there is no discriminator",
    "path.pretrained_optimizerD": "there is no discriminator",
    "datasets.*.name": "the key under datasets is the name",
    "datasets.*.phase": "the key under datasets is the phase",
    "datasets.*.dataloader_shuffle": "training data is always shuffled, from manual_seed; test data never",
    "datasets.*.dataloader_drop_last": "the stream of training samples has no last batch; a test drops nothing",
    "netG.init_type": NETWORK,
    "netG.init_bn_type": NETWORK,
    "netG.init_gain": NETWORK,
    "train.G_regularizer_orthstep": "no orthogonal regularisation is done",
    "train.G_regularizer_clipstep": "no clipping of weights is done; G_optimizer_clipgrad clips the gradient",
}


def without_kair_keys(options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The options without KAIR's keys of no effect, and one notice about those found ("" if none). The input stays."""
    found = []
    for pattern, replacement in KAIR_KEYS.items():
        for path in list(_matches(options, pattern.split("."))):
            options = _without(options, path)
            found.append(f"{'.'.join(path)} ({replacement})")
    return options, f"option keys of KAIR that have no effect here: {'; '.join(found)}" if found else ""


def _matches(value: Any, pattern: list[str]) -> Iterator[list[str]]:
    if not pattern:
        yield []
    elif isinstance(value, dict):
        for key in value if pattern[0] == "*" else [pattern[0]]:
            if key in value:
                yield from ([key, *rest] for rest in _matches(value[key], pattern[1:]))


def _without(options: dict[str, Any], path: list[str]) -> dict[str, Any]:
    key, *rest = path
    if rest:
        return options | {key: _without(options[key], rest)}
    return {name: value for name, value in options.items() if name != key}
