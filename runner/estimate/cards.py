"""How much memory GPUs have."""

from __future__ import annotations

import re

from lorsa.runner.errors import UserError, nearest

# MiB that nvidia-smi gives as a card's total.
CARDS = {
    "a100-40gb": 40960,
    "a100-80gb": 81920,
    "a40": 46068,
    "a6000": 49140,
    "h100": 81559,
    "h200": 143771,
    "l40s": 46068,
    "rtx3090": 24576,
    "rtx4090": 24564,
    "t4": 15360,
    "v100-16gb": 16384,
    "v100-32gb": 32768,
}
# What a process of PyTorch takes of a card before it allocates anything, and no allocator counts: the CUDA context with
# the kernels of PyTorch, cuBLAS and NCCL. 0.4 to 0.6 GiB is what users of PyTorch 2 report for A100 and H100.
CONTEXT = 600 * 2**20


def card_bytes(name: str) -> int:
    """Return a card's memory in bytes, by its name or by its GiB.

    Raises:
        UserError: there is no such card.
    """
    if re.fullmatch(r"\d+(\.\d+)?", name) and float(name) > 0:
        return int(float(name) * 2**30)
    if name.lower() not in CARDS:
        raise UserError(
            f"--card {name}: no such card is known{nearest(name.lower(), CARDS)} Or give its GiB: --card 80."
        )
    return CARDS[name.lower()] * 2**20
