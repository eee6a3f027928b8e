"""Site: the place of a map in a network, given by a module, one of its outputs, and the axis of its neurons."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from lineas.errors import LineasError, shown
from lineas.modules import blocks, is_norm, is_norm_layer, text_modules

Pooling = Literal["mean", "max"]
"""The reduction of a sample's tokens (or pixels) to one activation `[d]`."""
Reading = Literal["mean", "max", "sum", "none"]
"""A pooling, or "sum" over a sample's tokens, or "none" for every token's own activation, `[t, d]`."""
LAST_OUTPUT = 9999
"""The largest `k` in a site's name `MODULE:k`."""
_NCHW = re.compile(r"diffusers\.models\.(resnet|downsampling|upsampling|unets\..*|transformers\.transformer_2d)$")
"""The modules of diffusers whose classes return `[n, c, h, w]`."""


@dataclass(frozen=True)
class Site:
    """One place in a network where a map acts: the `output`-th result of `module`.

    Args:
        module: the module's dotted name in the network.
        output: index of the result, for modules that return several; default 0. Names and patterns write `MODULE:k`.
        axis: the axis of the neurons in the activation: -1 by default, or 1 for convolutional maps `[n, c, h, w]`.

    Raises:
        LineasError: when the module's name is not a string, or the output or axis is out of range.
    """

    module: str
    output: int = 0
    axis: int = -1

    def __post_init__(self) -> None:
        if not isinstance(self.module, str):  # "" is the network itself
            raise LineasError(f"a site needs the dotted name of a module, not {shown(self.module)}.")
        if type(self.output) is not int or not 0 <= self.output <= LAST_OUTPUT:
            raise LineasError(f"the output of {shown(self.module)} is 0 to {LAST_OUTPUT}, not {shown(self.output)}.")
        if type(self.axis) is not int or self.axis not in (-1, 1):
            raise LineasError(f"the neurons of {shown(self.module)} lie along axis -1 or 1, not {shown(self.axis)}.")

    @property
    def name(self) -> str:
        """The key of this site in `Intervention.maps`."""
        return self.module if self.output == 0 else f"{self.module}:{self.output}"

    def pick(self, result: Any) -> torch.Tensor:
        """Return this site's activation from its module's result (tensor, tuple, list or ModelOutput).

        Raises:
            LineasError: when the result has no such output, or it is not a tensor.
        """
        values = _values(result)
        if self.output >= len(values) or not isinstance(values[self.output], torch.Tensor):
            raise LineasError(
                f"output {self.output} of {self.module} is not a tensor (it returns {_describe(result)}); "
                "choose another output with ':k' after the module's name, or another module."
            )
        return values[self.output]

    def replace(self, result: Any, activation: torch.Tensor) -> Any:
        """Return a copy of a module's result with another activation at this site; `result` is not changed."""
        if isinstance(result, torch.Tensor):
            return activation
        if isinstance(result, dict):  # ModelOutput
            return type(result)(**{**result, list(result)[self.output]: activation})
        values = list(result)
        values[self.output] = activation
        return type(result)(*values) if hasattr(result, "_fields") else type(result)(values)


def as_pooling(name: str) -> Pooling:
    """Check the name of a pooling.

    >>> as_pooling("max")
    'max'
    """
    if name in ("mean", "max"):
        return name
    raise LineasError(f"the pooling is one of {', '.join(get_args(Pooling))}, not '{name}'.")


def find_sites(network: nn.Module, pattern: str | Sequence[str] | None = None) -> list[Site]:
    """Return the sites that match a pattern, in the order in which the modules are registered.

    In a network that also reads images or sound, modules that text never passes through do not match.

    Args:
        network: the network; names are those of its `named_modules()`.
        pattern: a regular expression, or a list of them. It must match a module's whole name (`.*o_proj`) and may end
            in `:k` for the k-th output. None, the default, selects in every block the norm before the MLP, or both
            post norms in families that have them (Gemma, OLMo2).

    >>> network = nn.ModuleDict({"norm": nn.LayerNorm(4), "out": nn.Linear(4, 4)})
    >>> [site.name for site in find_sites(network, "n.*")]
    ['norm']
    """
    if pattern is None:
        return [Site(name, axis=_axis(network.get_submodule(name))) for name in _default_modules(network)]
    if not pattern and not isinstance(pattern, str):
        raise LineasError("the list of site patterns is empty; give at least one, or None for the default sites.")
    sites: dict[str, Site] = {}
    for one in [pattern] if isinstance(pattern, str) else pattern:
        if not re.sub(r":\d+$", "", one):
            raise LineasError(f"the site pattern {one!r} is empty and matches nothing; leave it out for the default.")
        matches = _matching(network, one)
        if not matches:
            raise LineasError(_nothing_matches(network, one))
        sites.update({site.name: site for site in matches})
    order = {name: i for i, (name, _) in enumerate(network.named_modules())}
    return sorted(sites.values(), key=lambda site: (order[site.module], site.output))


def norm_sites(network: nn.Module, part: str) -> list[Site]:
    """Return every norm of a denoiser, in the order in which they are registered.

    An adaptive layer norm is one site, at its modulated output. Norms of single attention heads (`norm_q`, `norm_k`)
    are left out, and so is PixArt's `adaln_single`, which normalises nothing.
    """
    sites: list[Site] = []
    for name, module in network.get_submodule(part).named_modules():
        own = name.rpartition(".")[2]
        inside = any(f"{part}.{name}.".startswith(f"{site.module}.") for site in sites)
        heads = own in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
        if is_norm_layer(module) and not inside and not heads and "AdaLayerNormSingle" not in type(module).__name__:
            sites.append(Site(f"{part}.{name}", axis=_axis(module)))
    if not sites:
        raise LineasError(f"{part} has no norms; name other modules with a regular expression.")
    return sites


def _matching(network: nn.Module, pattern: str) -> list[Site]:
    expression, output = pattern, 0
    suffix = re.fullmatch(r"(.*):([0-9]+)", pattern)
    if suffix:
        expression, output = suffix[1], int(suffix[2].lstrip("0")[: len(str(LAST_OUTPUT)) + 1] or "0")
        if output > LAST_OUTPUT:
            raise LineasError(f"'{pattern:.80}' names an output after the {LAST_OUTPUT}th, which no module has.")
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise LineasError(f"'{pattern}' is not a regular expression: {error}.") from None
    modules = _callable_modules(network)
    return [Site(name, output, _axis(module)) for name, module in modules if compiled.fullmatch(name)]


def _callable_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that have a forward pass, with their names: all but the root and plain containers."""
    modules, containers = text_modules(network), (nn.ModuleList, nn.ModuleDict)
    return [(name, module) for name, module in modules if name and not isinstance(module, containers)]


def _axis(module: nn.Module) -> int:
    is_channel_first = isinstance(module, (nn.GroupNorm, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm))
    return 1 if is_channel_first or _NCHW.match(type(module).__module__) else -1


def _default_modules(network: nn.Module) -> list[str]:
    names = []
    for block_name, block in blocks(network):
        norms = [name for name, part in block.named_children() if is_norm(part)]
        after = [name for name in norms if name.startswith("post_")]  # Llama: one; Gemma, OLMo2: both post norms
        names += [f"{block_name}.{name}" for name in after or norms[-1:]]  # GPT-2, OPT: the norm before the MLP is last
    if not names:
        raise LineasError(
            f"{type(network).__name__} has no blocks with norms, so there is no default; "
            "name the modules with a regular expression, such as --sites '.*mlp' (sites='.*mlp')."
        )
    return names


def _nothing_matches(network: nn.Module, pattern: str) -> str:
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\b", ".N", name) for name, _ in _callable_modules(network)))
    letters = re.sub(r"[^A-Za-z0-9_.]|\\d|(?<!\w)\.|\.\*", "", pattern).lower()

    def closeness(kind: str) -> float:
        parts = (kind, kind.rsplit(".", 1)[-1])
        return max(difflib.SequenceMatcher(None, letters, part.lower()).ratio() for part in parts)

    if any(name and re.fullmatch(re.sub(r":\d+$", "", pattern), name) for name, _ in network.named_modules()):
        return (
            f"'{pattern}' matches parts of {type(network).__name__} that text never reaches, so no map can be learned "
            "there from sentences; name modules of its language model."
        )
    nearest = sorted(kinds, key=closeness, reverse=True)[:3]
    hints = ", ".join("'" + re.sub(r"\\\.N(?=\\|$)", r"\\.\\d+", kind.replace(".", r"\.")) + "'" for kind in nearest)
    return (
        f"no module of {type(network).__name__} matches '{pattern}' (the whole name must match); "
        f"the nearest are {hints}."
    )


def _describe(result: Any) -> str:
    if isinstance(result, torch.Tensor):
        return "one tensor"
    kinds = ", ".join("tensor" if isinstance(x, torch.Tensor) else type(x).__name__ for x in _values(result))
    return f"{type(result).__name__}({kinds})"


def _values(result: Any) -> list[Any]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):  # ModelOutput
        return list(result.values())
    return list(result) if isinstance(result, (tuple, list)) else []


def upper_sites(network: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Return the sites without those in the first third of the blocks, where a change costs the most; at least one."""
    names = [f"{name}." for name, _ in blocks(network)]
    lower = names[: len(names) // 3]
    return [site for site in sites if not f"{site.module}.".startswith(tuple(lower))] or list(sites)
