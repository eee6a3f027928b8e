"""Memory: how large a part of a batch can go through one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.learning.capture import Model, capture_part
from lineas.models.samples import Part, Samples
from lineas.modules import input_device, smallest_blocks
from lineas.sites import Site
from lineas.steering.hooks import Edit, edited

MARGIN = 2.3
"""Peak memory of one part after another, relative to the tensors that one forward pass saves for its backward pass:
1.4 for the pass itself (measured on SmolLM2 on a CPU), the rest for gaps between parts of different size."""
FIXED = 64 * 2**20
"""Bytes that do not depend on the prompts: the maps, the optimizer, the libraries' own buffers."""
POOLED = 6
"""Float32 numbers in memory for every sample and neuron: the activations, their gradients, the target, two for sorting,
and the activations without maps, whose memory is not freed at once."""
ROWS = 4
"""Float32 numbers in memory for every neutral prompt and neuron: the gradients of its scale and shift, twice."""
COPIES = 5
"""Float32 copies of the predictions of a part that are in memory at once, beside those that the forward pass saves."""
KEPT = 0.25
"""Share of the memory that the untouched model's predictions may take."""
PROBE = 256
"""Largest number of tokens on which the memory of a token is measured: the length at which attention saves most per
token (see `lineas.models.packing.SHORT`)."""
STATES = 0.05
"""Share of the memory that kept hidden states may take; a pass saves hundreds of times as much for each token."""
SHARE = 0.5
"""Share of the free memory that learning takes by default."""


def free(device: torch.device) -> int:
    """Return the number of bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 * 2**30  # an unknown system: any machine that runs a language model has that much


def largest_part(
    model: Model, samples: Samples[Any], sites: Sequence[Site], neurons: int, memory: int | None, backward: bool = True
) -> int:
    """Return the size of the largest part of a batch with which learning stays within its memory.

    It is measured on the beginning of the longest prompt: the bytes that the forward pass saves for the backward pass.

    Args:
        model: model to run, with the edits that are learned in place.
        memory: number of bytes beside the weights; None for half of the free memory.
        backward: whether there is a backward pass. Without one only one or two blocks are in memory at a time.
    """
    for_parts = (1 - STATES) * _left(
        model, memory, POOLED * 4 * len(samples) * neurons, f"{len(samples)} prompts at {len(sites)} sites"
    )
    probe = _probe(model, samples)
    # without gradients nothing is trained, so leaves make the probing pass save the tensors that training would save
    leaves = {} if backward else _leaves(sites)
    with edited(model.network, leaves):
        saved = saved_bytes(model.network, lambda: capture_part(model, probe, sites))
    saved /= 1 if backward else max(1, len(smallest_blocks(model.network)) / 2)
    return max(1, int(for_parts / MARGIN / (saved / probe.size)))


def largest_predicted_part(
    model: Model, neutral: Samples[Any], sites: Sequence[Site], neurons: int, memory: int | None
) -> tuple[int, int]:
    """Return the size of the largest part whose random score goes through one backward pass within the memory.

    The second number is that of the bytes that are left for predictions that are kept.
    """
    for_parts = (1 - STATES) * _left(
        model, memory, ROWS * 4 * len(neutral) * neurons, f"{len(neutral)} neutral prompts"
    )
    probe = _probe(model, neutral)
    predicted = [torch.empty(0)]

    def score() -> torch.Tensor:
        predicted[0] = model.predict(probe)
        return model.sampled_score(predicted[0], probe, torch.Generator())

    with edited(model.network, _leaves(sites)):
        saved = saved_bytes(model.network, score)
    needed = (MARGIN * saved + COPIES * predicted[0].nbytes) / probe.size
    return max(1, int((1 - KEPT) * for_parts / needed)), int(KEPT * for_parts)


def for_states(model: Model, memory: int | None) -> int:
    """Return the largest number of bytes of hidden states that are kept (see `lineas.learning.kept_states`)."""
    return int(STATES * _left(model, memory))


def _left(model: Model, memory: int | None, taken: int = 0, what: str = "the prompts") -> int:
    """Return the number of bytes that are left for the parts of a batch when `what` has taken its own."""
    total = memory if memory is not None else int(SHARE * free(input_device(model.network)))
    if (left := total - FIXED - taken) <= 0:
        raise LineasError(
            f"{what} need more than {total / 2**30:.3g} GiB of memory; give more, fewer prompts, fewer "
            "sites, or a batch size."
        )
    return left


def _probe(model: Model, samples: Samples[Any]) -> Part:
    """Return the beginning of the longest prompt as a part of its own."""
    longest = max(samples.prompts, key=len)
    return model.samples([longest], min(samples.longest, PROBE)).batch().parts[0]


def _leaves(sites: Sequence[Site]) -> dict[Site, Edit]:
    """Return edits that make every site's output a leaf, so that a forward pass saves what training would save."""
    return {site: lambda z: z.detach().requires_grad_() for site in sites}


def saved_bytes(network: nn.Module, run: Callable[[], Any]) -> int:
    """Return the bytes that a forward pass saves for its backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    del result  # alive until here, so that no two storages were counted under one address
    return sum(sizes.values())
