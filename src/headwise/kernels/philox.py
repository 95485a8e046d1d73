"""Decide which weights dropout keeps, by a counter-based generator (Salmon et al. 2011, Philox-4x32 with 7 rounds).

A decision depends on the seed and on the place of the weight alone, so forward, backward, every backend and every
number of threads agree without storing anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["WORDS", "keep_mask", "philox"]

WORDS = 1 << 16
"""How many values a random word has: rates of dropout are rounded to one over it."""

_ROUNDS = 7
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_SIGN_BITS = -0x7FFF_7FFF_7FFF_8000
"""0x8000 in each of four 16-bit words: turns an unsigned comparison into a signed one."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Turn four 32-bit counter words and two key words, held in int64, into four random 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, which leaves the low 64 bits, all that is needed, exact.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32).bitwise_and_(_LOW) ^ (c1 ^ k0)
        c2 = (product0 >> 32).bitwise_and_(_LOW) ^ (c3 ^ k1)
        c1, c3 = product1.bitwise_and_(_LOW), product0.bitwise_and_(_LOW)
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def keep_mask(seed: Tensor, rate: float, samples_B: Tensor, heads_H: Tensor, rows_Q: Tensor, keys: slice) -> Tensor:
    """Decide for samples x heads x queries x keys whether the weight is kept.

    Args:
        seed: int64, one element.
        rate: probability of dropping, 0 to 1.
        samples_B: indices of the samples in the whole call; the others likewise.
        heads_H: query heads.
        rows_Q: queries.
        keys: a run of keys.
    """
    seed = seed.reshape(())
    blocks_N = torch.arange(keys.start // 8, (keys.stop + 7) // 8, device=seed.device)
    counter = (blocks_N, rows_Q[:, None], heads_H[:, None, None], samples_B[:, None, None, None])
    c0, c1, c2, c3 = philox(counter, (seed & _LOW, (seed >> 32) & _LOW))
    pairs_BHQN = torch.stack(torch.broadcast_tensors(c0 | (c1 << 32), c2 | (c3 << 32)), -1)
    words_BHQN = pairs_BHQN.bitwise_xor_(_SIGN_BITS).view(torch.int16).flatten(-2)
    words_BHQK = words_BHQN[..., keys.start % 8 : keys.start % 8 + keys.stop - keys.start]
    least = round(rate * WORDS) - WORDS // 2
    return words_BHQK >= least if least < WORDS // 2 else torch.zeros_like(words_BHQK, dtype=torch.bool)
