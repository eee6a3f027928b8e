"""Memory: how much of a batch one backward pass may go through at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from lineas.errors import LineasError
from lineas.learning.capture import Model, capture_part
from lineas.models.samples import Part, Samples
from lineas.modules import input_device, repeated
from lineas.sites import Site
from lineas.steering.hooks import edited

MARGIN = 2.3
"""What part after part takes at the peak, relative to the tensors that one forward pass keeps for its backward pass:
1.4 for the pass itself (measured on SmolLM2 on a CPU), the rest for holes between parts of different size."""
FIXED = 64 * 2**20
"""Bytes that do not depend on the prompts: the maps, the optimizer's, the libraries' own buffers."""
POOLED = 6
"""Float32 numbers held for every sample and neuron: activations, their gradients, the target, two to sort, and the
activations without maps, whose place is not given back at once."""
PROBE = 256
"""Tokens of a prompt, at most, on which it is measured what a token takes: the length at which attention keeps most a
token (see `lineas.models.packing.SHORT`)."""
SHARE = 0.5
"""Of the free memory, what learning takes when nothing else is said."""


def free(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30  # unknown system: what any machine that runs a language model has


def largest_part(
    model: Model,
    samples: Samples[Any],
    sites: Sequence[Site],
    neurons: int,
    memory: int | None,
    backward: bool = True,
) -> int:
    """How large a part of a batch may be so that learning stays within a number of bytes above the weights.

    Measured on the beginning of the longest prompt, as the bytes that its forward pass keeps for the backward pass.

    Args:
        model: what to run, with the edits that are learned in place.
        samples: the prompts that will run.
        sites: where activations are read.
        neurons: number of neurons at all sites together.
        memory: number of bytes; None for half of what is free.
        backward: whether there is a backward pass; without one only a block or two are held at a time.

    Returns:
        a limit for `samples.batch`; at least 1.

    Raises:
        LineasError: when the pooled activations alone do not fit.
    """
    device = input_device(model.network)
    given = memory if memory is not None else int(SHARE * free(device))
    left = given - FIXED - POOLED * 4 * len(samples) * neurons
    if left <= 0:
        raise LineasError(
            f"{len(samples)} prompts at {len(sites)} sites need more than {given / 2**30:.3g} GiB of memory; "
            "give more, fewer prompts, fewer sites, or a batch size."
        )
    longest = max(samples.prompts, key=len)
    probe = model.samples([longest], min(samples.longest, PROBE)).batch().parts[0]
    with nullcontext() if backward else edited(model.network, {site: _leaf for site in sites}):
        held = kept(model, probe, sites) / (1 if backward else max(1, len(repeated(model.network)) / 2))
    return max(1, int(left / MARGIN / (held / probe.size)))


def kept(model: Model, part: Part, sites: Sequence[Site]) -> int:
    """Bytes that a part's forward pass keeps for its backward pass, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.network.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        seen = capture_part(model, part, sites)
    del seen  # alive until here, so that no storage was counted under an address used twice
    return sum(sizes.values())


def _leaf(z: torch.Tensor) -> torch.Tensor:
    """Where no map is learned in place, what makes a pass keep all the same tensors as if one were."""
    return z.detach().requires_grad_()
