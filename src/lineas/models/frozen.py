"""A network with frozen weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lineas.steering.exclusive import exclusive


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Freeze the weights and switch dropout off within the block, and reserve the network (see `exclusive`)."""
    with exclusive(network):
        trainable = [p for p in network.parameters() if p.requires_grad]
        in_training_mode = [m for m in network.modules() if m.training]
        network.eval().requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            for module in in_training_mode:
                module.training = True
