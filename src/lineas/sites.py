"""Site: which modules of a network can carry a map, which of their outputs, and along which axis their neurons lie."""

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
"""How the tokens (or pixels) of one sample become one activation."""
Reading = Literal["mean", "max", "none"]
"""The same, or all of them as they are, `[t, d]`."""
LAST_OUTPUT = 9999
"""The largest `k` of a module's outputs `MODULE:k`."""
_IMAGES = re.compile(r"diffusers\.models\.(resnet|downsampling|upsampling|unets\..*|transformers\.transformer_2d)$")
"""Where diffusers keeps the modules that put out maps of channels `[n, c, h, w]`."""


@dataclass(frozen=True)
class Site:
    """One place in a network where a map acts: the `output`-th result of `module`.

    Args:
        module: the module's dotted name in the network.
        output: which result, for modules that return several; written `MODULE:k` in names and patterns when not 0.
        axis: the axis of the activation along which the neurons lie: -1, or 1 for convolutional maps `[n, c, h, w]`.

    Raises:
        LineasError: when the module's name is no text, or there is no such output or axis.
    """

    module: str
    output: int = 0
    axis: int = -1

    def __post_init__(self) -> None:
        if not isinstance(self.module, str):  # "" is the network itself
            raise LineasError(f"a site needs the dotted name of a module, not {shown(self.module)}.")
        if type(self.output) is not int or not 0 <= self.output <= LAST_OUTPUT:
            given = f"not {shown(self.output)}"
            raise LineasError(f"the output of {shown(self.module)} is a whole number from 0 to {LAST_OUTPUT}, {given}.")
        if type(self.axis) is not int or self.axis not in (-1, 1):
            raise LineasError(f"the neurons of {shown(self.module)} lie along axis -1 or 1, not {shown(self.axis)}.")

    @property
    def name(self) -> str:
        """The key of this site in `Intervention.maps`."""
        return self.module if self.output == 0 else f"{self.module}:{self.output}"

    def pick(self, result: Any) -> torch.Tensor:
        """The activation this site means, out of whatever its module returned (tensor, tuple, ModelOutput)."""
        if isinstance(result, torch.Tensor):
            chosen = result if self.output == 0 else None
        else:
            values = _values(result)
            chosen = values[self.output] if self.output < len(values) else None
        if not isinstance(chosen, torch.Tensor):
            raise LineasError(
                f"output {self.output} of {self.module} is not a tensor (it returns {_describe(result)}); "
                "choose another output with ':k' after the module's name, or another module."
            )
        return chosen

    def replace(self, result: Any, activation: torch.Tensor) -> Any:
        """A copy of `result` in which this site's activation is `activation`; the original is left as it is."""
        if isinstance(result, torch.Tensor):
            return activation
        if isinstance(result, dict):  # ModelOutput
            return type(result)(**{**result, list(result)[self.output]: activation})
        values = list(result)
        values[self.output] = activation
        return type(result)(*values) if hasattr(result, "_fields") else type(result)(values)


def as_pooling(name: str) -> Pooling:
    """A way of pooling by its name.

    Raises:
        LineasError: when there is none.

    >>> as_pooling("max")
    'max'
    """
    for known in get_args(Pooling):
        if name == known:
            return known
    raise LineasError(f"the pooling is one of {', '.join(get_args(Pooling))}, not '{name}'.")


def find_sites(network: nn.Module, pattern: str | Sequence[str] | None = None) -> list[Site]:
    """The sites of a network that a pattern names, in the order in which the modules are registered.

    Of a network that also reads pictures or sound, those are left out that text alone never reaches.

    Args:
        network: any module; names are those of its `named_modules()`.
        pattern: a regular expression that must match a module's whole name (`.*o_proj`), optionally followed by `:k`
            for the k-th output; or several of them; or None for the default: in every block the norm before the
            MLP, and both post norms where a family has them (Gemma, OLMo2).

    Raises:
        LineasError: when nothing matches, naming the nearest modules.

    >>> network = nn.ModuleDict({"norm": nn.LayerNorm(4), "out": nn.Linear(4, 4)})
    >>> [site.name for site in find_sites(network, "n.*")]
    ['norm']
    """
    if pattern is None:
        return [Site(name, axis=_axis(network.get_submodule(name))) for name in _default_modules(network)]
    if not pattern and not isinstance(pattern, str):
        raise LineasError("the list of site patterns is empty; give at least one, or None for the default sites.")
    found: dict[str, Site] = {}
    for one in [pattern] if isinstance(pattern, str) else pattern:
        if not re.sub(r":\d+$", "", one):
            raise LineasError(
                f"the site pattern {one!r} is empty and matches nothing; without one, the default is taken."
            )
        matches = _matching(network, one)
        if not matches:
            raise LineasError(_nothing_matches(network, one))
        found.update({site.name: site for site in matches})
    order = {name: i for i, (name, _) in enumerate(network.named_modules())}
    return sorted(found.values(), key=lambda site: (order[site.module], site.output))


def norm_sites(network: nn.Module, part: str) -> list[Site]:
    """Every norm of a denoiser, in the order in which they are registered.

    Norms that a time step modulates (adaptive layer norms) count as one, as modulated; norms of single attention heads
    (`norm_q`, `norm_k`) are left out, and so is PixArt's `adaln_single`, which normalises nothing.

    Args:
        network: the root, whose module names the sites use.
        part: the dotted name of the denoiser in it.
    """
    found: list[Site] = []
    for name, module in network.get_submodule(part).named_modules():
        own = name.rpartition(".")[2]
        inside = any(f"{part}.{name}.".startswith(f"{site.module}.") for site in found)
        heads = own in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
        if is_norm_layer(module) and not inside and not heads and "AdaLayerNormSingle" not in type(module).__name__:
            found.append(Site(f"{part}.{name}", axis=_axis(module)))
    if not found:
        raise LineasError(f"{part} has no norms; name other modules with a regular expression.")
    return found


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
    return [
        Site(name, output, _axis(module)) for name, module in _callable_modules(network) if compiled.fullmatch(name)
    ]


def _callable_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that have a forward pass of their own, by name: everything but the root and plain containers."""
    return [
        (name, module)
        for name, module in text_modules(network)
        if name and not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    ]


def _axis(module: nn.Module) -> int:
    is_channel_first = isinstance(module, (nn.GroupNorm, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm))
    return 1 if is_channel_first or _IMAGES.match(type(module).__module__) else -1


def _default_modules(network: nn.Module) -> list[str]:
    names = []
    for block_name, block in blocks(network):
        norms = [name for name, part in block.named_children() if is_norm(part)]
        after = [name for name in norms if name.startswith("post_")]  # Llama: one; Gemma, OLMo2: both post norms
        names += [f"{block_name}.{name}" for name in after or norms[-1:]]  # GPT-2, OPT: the norm before the MLP is last
    if not names:
        raise LineasError(
            f"{type(network).__name__} has no blocks with norms, so there is no default; "
            "name the modules with a regular expression, such as sites='.*mlp'."
        )
    return names


def _nothing_matches(network: nn.Module, pattern: str) -> str:
    kinds = list(dict.fromkeys(re.sub(r"\.\d+\b", ".N", name) for name, _ in _callable_modules(network)))
    letters = re.sub(r"[^A-Za-z0-9_.]|\\d|(?<!\w)\.|\.\*", "", pattern).lower()

    def closeness(kind: str) -> float:
        tail = kind.rsplit(".", 1)[-1]
        return max(difflib.SequenceMatcher(None, letters, part.lower()).ratio() for part in (kind, tail))

    if any(name and re.fullmatch(re.sub(r":\d+$", "", pattern), name) for name, _ in network.named_modules()):
        return (
            f"'{pattern}' matches parts of {type(network).__name__} that text never reaches, so they cannot carry a "
            "map that is learned from sentences; name modules of its language model."
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
    if isinstance(result, dict):  # ModelOutput
        return list(result.values())
    return list(result) if isinstance(result, (tuple, list)) else []
