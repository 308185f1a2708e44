"""Randomness as a function of (seed, purpose, position): computed, never accumulated, so there is no state to save."""

import functools
import hashlib
import random

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@functools.lru_cache(maxsize=256)
def seed_of(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose; different purposes give unrelated seeds."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(seed: int, purpose: str, positions: npt.NDArray[np.int64], num: int) -> npt.NDArray[np.float32]:
    """Uniform numbers in [0, 1) that depend on (seed, purpose, position) alone.

    positions: (B,) places in the stream. Returns (B, num) float32. The generator is SplitMix64 (Steele, Lea and
    Flood, OOPSLA 2014) started at a hash of each position.
    """
    start = _mix(np.uint64(seed_of(seed, purpose)) + _mix(positions.astype(np.uint64) * _GOLDEN))
    steps = np.arange(1, num + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(start[:, None] + steps[None, :]) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2.0**-24)


def permutation(seed: int, purpose: str, epoch: int, num: int) -> npt.NDArray[np.int64]:
    """The order of `num` samples in one epoch: (num,) int64."""
    generator = np.random.Generator(np.random.Philox(key=seed_of(seed, purpose, epoch)))
    return generator.permutation(num)


def seed_global_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (dropout, and whatever a user's network draws from)."""
    seed_cpu_generators(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def seed_cpu_generators(seed: int) -> None:
    """The same without a GPU's, which a loader worker must not touch."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - the legacy generator is what user code may draw from
    torch.default_generator.manual_seed(seed)  # torch.manual_seed costs up to 0.2 ms: it visits every backend


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser; the arithmetic is modulo 2**64."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
