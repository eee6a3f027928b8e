"""Steering: an intervention applied to a live network, at a strength that may change at any time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import nn

from lineas.base import accepts_other, other_width
from lineas.edits import Edit, Hook, install
from lineas.errors import LineasError
from lineas.intervention import Intervention
from lineas.maps import AffineMap, affine
from lineas.positions import HasPositions, Positions
from lineas.sites import Site

SPARSE_SHARE, SPARSE_NUMEL = 1 / 8, 2**17
"""On a CPU in half precision, maps of at most this share of neurons touch those alone, where the activation has at
least so many numbers: there converting all of them costs more than picking a few (benchmarks/steering.py)."""
Tokens = Literal["all", "prompt", "generated"]


def steer(
    model: Any,
    intervention: Intervention | Sequence[Intervention],
    strength: float | torch.Tensor | Literal["calibrated"] = 1.0,
    tokens: Tokens = "all",
    other_model: bool = False,
    force: bool = False,
) -> Steering:
    """Apply an intervention to a live model until the block ends or `detach()` is called.

    Args:
        model: a TextModel, an ImageModel, or any torch module the intervention's sites belong to.
        intervention: one, or several to be applied one after the other; several become one map a site first.
        strength: 0 leaves the model as it is, 1 is what was learned; a tensor `[batch]` steers each row by its own;
            "calibrated" is what `lineas calibrate` found.
        tokens: which tokens are edited: "all", "prompt" (those given to `generate`), or "generated" (the others); of
            images always all.
        other_model: steer even when the intervention was learned on another network (the widths must still fit).
        force: the old name of `other_model`; it goes away after this version.

    Returns:
        Steering: its `strength` may be changed at any time.

    Raises:
        LineasError: when the network does not match, is compiled, or a site is missing.
    """
    network = model if isinstance(model, nn.Module) else getattr(model, "network", None)
    if network is None:
        raise LineasError(
            f"a {type(model).__name__} cannot be steered as it is; wrap it in lineas.TextModel, or a pipeline of "
            "diffusers in lineas.ImageModel."
        )
    if isinstance(intervention, Sequence):
        if not intervention:
            raise LineasError("steer needs at least one intervention, an empty list was given.")
        intervention = reduce(Intervention.then, intervention)
    if isinstance(strength, str):
        if strength != "calibrated":
            raise LineasError(f"strength is a number or 'calibrated', not {strength!r}.")
        strength = intervention.calibrated_strength
    return Steering(network, intervention, strength, tokens, accepts_other(other_model, force))


class Steering:
    """A live intervention on a network; what `steer` returns, and a context manager that detaches at its end."""

    def __init__(
        self,
        network: nn.Module,
        intervention: Intervention,
        strength: float | torch.Tensor,
        tokens: Tokens,
        other_model: bool,
    ) -> None:
        if tokens not in ("all", "prompt", "generated"):
            raise LineasError(f"tokens must be 'all', 'prompt' or 'generated', not {tokens!r}.")
        _refuse_compiled(network)
        intervention.check_fits(network, other_model)
        self._network = network
        self._intervention = intervention
        self._tokens = tokens
        self._maps = {
            site: _LiveMap(intervention.maps[site.name], _device(network.get_submodule(site.module), network))
            for site in intervention.sites.values()
        }
        self._attached = True
        self._positions = network.positions(tokens) if isinstance(network, HasPositions) else Positions(network)
        self._on, self._seen_compiling = True, False
        self._hooks: list[Hook] = []
        self._watcher = network.register_forward_pre_hook(self._watch)
        try:
            moving = {site: self._edit(site) for site, live in self._maps.items() if not live.map.is_identity()}
            self._hooks = install(network, moving)
            self.strength = strength
        except BaseException:
            self.detach()
            raise

    @property
    def strength(self) -> float | torch.Tensor:
        """0 is the untouched network, 1 the learned map; a tensor `[batch]` gives each row its own."""
        return self._strength.clone() if isinstance(self._strength, torch.Tensor) else self._strength

    @strength.setter
    def strength(self, value: float | torch.Tensor) -> None:
        given = torch.as_tensor(value, dtype=torch.float32).detach().clone()
        if given.dim() > 1 or not given.numel():
            raise LineasError(f"strength is a number or one number a row [batch], not of shape {list(given.shape)}.")
        if not bool(torch.isfinite(given).all()):
            raise LineasError(f"strength must be finite, not {value}.")
        warn_if_outside(given)
        self._set(given if given.dim() else float(value))

    def _set(self, strength: float | torch.Tensor) -> None:
        """Take a strength that was checked; at 0 nothing is hooked, as never is a site whose map is the identity."""
        on = self._attached and bool(torch.as_tensor(strength).any())
        if self._attached and on != self._on and (self._seen_compiling or _is_compiled(self._network)):
            if on:
                raise LineasError(
                    "this network was compiled while its intervention was at strength 0, so no other strength reaches "
                    "it; steer it at another strength before it is compiled."
                )
            on = True  # the hooks are compiled in, and at strength 0 they do nothing
        self._strength = strength
        self._by_row_strength = strength if isinstance(strength, torch.Tensor) else None
        self._some_untouched = isinstance(strength, torch.Tensor) and not bool(strength.all())
        for live in self._maps.values():
            live.take(strength)
        for hook in self._hooks:
            hook.on() if on else hook.off()
        self._on = on

    def _watch(self, *_: Any) -> None:
        """Before every forward pass of the network: notice that it is being compiled, hooks and all."""
        if torch.compiler.is_compiling():
            self._seen_compiling = True

    @property
    def prompt_length(self) -> int | torch.Tensor | None:
        """How many columns are prompt; set by `generate` on its own, settable `[batch]` when scoring finished texts."""
        return self._positions.prompt_length

    @prompt_length.setter
    def prompt_length(self, value: int | torch.Tensor | None) -> None:
        self._positions.prompt_length = value

    def verify(self, **inputs: Any) -> float:
        """Run the network with and without the intervention and return the largest change of its output.

        Args:
            inputs: keyword arguments of the network; by default eight token ids, for language models.

        Raises:
            LineasError: when the output does not move although the intervention is not the identity.
        """
        own = not inputs
        if own:
            vocabulary = getattr(getattr(self._network, "config", None), "vocab_size", None)
            if vocabulary is None:
                raise LineasError(
                    "verify needs the network's inputs as keyword arguments here; it is no language model."
                )
            device = next(self._network.parameters()).device
            inputs = {"input_ids": (torch.arange(8, device=device) % vocabulary).unsqueeze(0)}
        now, length = self._strength, self.prompt_length
        if own and self._tokens != "all" and length is None:
            self.prompt_length = 4  # so that there is some of either
        rows = len(now) if isinstance(now, torch.Tensor) else 1
        inputs = {
            k: v.repeat(rows, *[1] * (v.dim() - 1)) if k == "input_ids" and len(v) == 1 else v
            for k, v in inputs.items()
        }
        try:
            with torch.no_grad():
                with torch.random.fork_rng():  # the same dropout in both
                    steered = Site("network").pick(self._network(**inputs)).clone()
                self._set(0.0)
                with torch.random.fork_rng():
                    plain = Site("network").pick(self._network(**inputs))
        finally:
            self._set(now)
            self.prompt_length = length
        moved = float((steered.float() - plain.float()).abs().max())
        if moved == 0 and not self._intervention.is_identity():
            raise LineasError(
                f"the output did not move: the intervention at strength {now} on tokens={self._tokens!r} changed "
                "nothing for these inputs."
            )
        return moved

    def detach(self) -> None:
        """Remove everything from the network; may be called again without effect."""
        self._attached = False
        for hook in self._hooks:
            hook.off()
        self._watcher.remove()
        self._positions.remove()

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _edit(self, site: Site) -> Edit:
        live, gate = self._maps[site], self._intervention.gates.get(site.name)
        if gate is not None:  # now, so that no forward pass waits for a copy
            gate = gate.to(_device(self._network.get_submodule(site.module), self._network))

        def gated(z: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
            return after if gate is None else gate.mixed(z, after, site.axis)

        def edit(z: torch.Tensor) -> torch.Tensor:
            width, here = live.map.width, z.shape[site.axis]
            if width != here:
                raise other_width(site, width, here)  # blocks and the like: not known before they run
            by_row = self._by_row_strength  # not the number itself, on which a compiled network would be specialised
            chosen = self._positions.chosen(self._tokens)  # None: all; else bool [batch or 1, tokens]
            if by_row is None and chosen is None:
                return gated(z, live(z, site.axis))
            rows = self._positions.by_row(z)  # [batch, tokens, d], also where a layer flattened the two
            scale, shift = live.at(z.device)
            if by_row is not None:
                scale, shift = (self._positions.spread(x, len(rows)) for x in (scale, shift))
            after = affine(rows, scale, shift, site.axis)
            if self._some_untouched:  # a row at strength 0 stays bit for bit as it is
                untouched = torch.as_tensor(self._strength, device=z.device) == 0
                untouched = self._positions.spread(untouched, len(rows))
                after = torch.where(untouched.view(-1, *[1] * (rows.dim() - 1)), rows, after)
            if chosen is not None:
                chosen = self._positions.spread(chosen.to(z.device), len(rows), "prompt lengths")[:, -rows.shape[1] :]
                after = torch.where(chosen.unsqueeze(-1), after, rows)
            return gated(z, after.view(z.shape))

        return edit


class _LiveMap:
    """One site's map at the current strength, `T_s`, held in buffers that a new strength is written into.

    The buffers keep their place in memory, so that a network that was compiled or captured in a graph after it was
    steered follows the strength too.
    """

    def __init__(self, map_: AffineMap, device: torch.device) -> None:
        self.map = map_
        self._touched = map_.support(0.0).nonzero().squeeze(1)
        self._is_sparse = len(self._touched) <= SPARSE_SHARE * map_.width
        self._strength: float | torch.Tensor = 0.0
        self._buffers = {device: self._values(device)}

    def take(self, strength: float | torch.Tensor) -> None:
        """Bring the buffers to a strength: in place, unless they change their shape."""
        same = torch.as_tensor(strength).shape == torch.as_tensor(self._strength).shape
        self._strength = strength
        for device, buffers in self._buffers.items():
            values = self._values(device)
            if same:
                for buffer, value in zip(buffers, values):
                    buffer.copy_(value)
            else:
                self._buffers[device] = values

    def at(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Scale and shift on a device, `[d]`, or `[batch, d]` for a strength a row; then both for touched neurons."""
        if device not in self._buffers:
            self._buffers[device] = self._values(device)
        return self._buffers[device]

    def __call__(self, z: torch.Tensor, axis: int) -> torch.Tensor:
        """The map on an activation, of the touched neurons alone where that is faster."""
        scale, shift, *few = self.at(z.device)
        if not few or z.dtype == torch.float32 or z.numel() < SPARSE_NUMEL:
            return affine(z, scale, shift, axis)
        index, scale, shift = few
        return z.index_copy(axis, index, affine(z.index_select(axis, index), scale, shift, axis))

    @torch.inference_mode(False)  # kept, so they must serve autograd as well
    def _values(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        scale, shift = self.map.scale.to(device), self.map.shift.to(device)
        s = torch.as_tensor(self._strength, device=device).unsqueeze(-1)  # [1] or [batch, 1]
        scale, shift = 1 + s * (scale - 1), s * shift
        if not self._is_sparse or device.type != "cpu" or scale.dim() > 1:
            return scale, shift
        return scale, shift, self._touched, scale[self._touched], shift[self._touched]


def _device(module: nn.Module, network: nn.Module) -> torch.device:
    """Where a module's activation will be, as far as its own weights, or else the network's, tell."""
    weight = next(module.parameters(), None)
    weight = weight if weight is not None else next(network.parameters(), None)
    return weight.device if weight is not None and not weight.is_meta else torch.device("cpu")


def warn_if_outside(strength: torch.Tensor) -> None:
    """Warn about strengths outside [0, 1]: they extrapolate beyond what was learned."""
    if bool(((strength < 0) | (strength > 1)).any()):
        warnings.warn(
            f"strength {strength.tolist()} is outside 0 to 1: this goes beyond what was learned, check the text.",
            stacklevel=4,
        )


def _refuse_compiled(network: nn.Module) -> None:
    if _is_compiled(network):
        raise LineasError(
            "this network is compiled, and a compiled network may ignore hooks added later; "
            "steer the network first and compile it afterwards, or fold the intervention into the weights."
        )


def _is_compiled(network: nn.Module) -> bool:
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None  # module.compile()
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")  # module.forward = torch.compile(...)
        or "_compiled_call" in module.__dict__  # generate with a static cache on a GPU
        for module in network.modules()
    )
