"""Checks for compiled and parallel networks, which may ignore hooks that are added to them."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from lineas.errors import LineasError
from lineas.steering import contexts


def refuse_unsteerable(network: nn.Module) -> None:
    """Refuse a network that is compiled, also with another intervention in its code, or runs in a DataParallel."""
    if is_compiled(network):
        raise LineasError(
            "this network is compiled, and a compiled network may ignore hooks added later; "
            "steer the network first and compile it afterwards, or fold the intervention into the weights."
        )
    if any(hook.is_compiled_in() for hook in contexts.hooks_in(network)):
        raise LineasError(
            "this network was compiled while it was steered, so it takes no second intervention; detach the first, "
            "compile again, or give steer both in a list."
        )
    if any(isinstance(module, nn.DataParallel) for module in network.modules()):
        raise LineasError(
            "DataParallel runs copies of the network in threads of its own, which would not be steered; steer the "
            "network inside it on one device, or run one process per device."
        )


def warn_if_compiled_before(network: nn.Module) -> None:
    """Warn if a network of these classes was compiled before: what torch.compile returned then is not steered."""
    if any(_is_in_the_compilers_cache(kind.forward) for kind in {type(module) for module in network.modules()}):
        warnings.warn(
            f"a {type(network).__name__}, or a part of one, was compiled before; what torch.compile returned then is "
            "not steered now. Steer the network first and compile it afterwards.",
            stacklevel=4,
        )


def _is_in_the_compilers_cache(forward: Any) -> bool:
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

    while forward is not None:  # decorators may wrap the compiled function
        if (code := getattr(forward, "__code__", None)) is not None and _debug_get_cache_entry_list(code):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def is_compiled(network: nn.Module) -> bool:
    """Return whether the network, or a part of it, is compiled."""
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None  # module.compile()
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")  # module.forward = torch.compile(...)
        or "_compiled_call" in module.__dict__  # generate with a static cache on a GPU
        for module in network.modules()
    )
