"""A network whose weights stay as they are for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lineas.steering.exclusive import exclusive


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within the block no weight asks for a gradient and dropout is off; afterwards all is as before.

    The network belongs to this thread or task meanwhile (see `lineas.steering.exclusive`).
    """
    with exclusive(network):
        asked = [p for p in network.parameters() if p.requires_grad]
        was_training = [m for m in network.modules() if m.training]
        for parameter in asked:
            parameter.requires_grad_(False)
        network.eval()
        try:
            yield
        finally:
            for parameter in asked:
                parameter.requires_grad_(True)
            for module in was_training:
                module.training = True
