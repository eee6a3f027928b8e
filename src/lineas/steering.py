"""Steering: an intervention applied to a live network, by forward hooks that write; the only place that does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, Literal

import torch
from torch import nn

from lineas.base import other_width
from lineas.errors import LineasError
from lineas.intervention import Intervention
from lineas.maps import affine
from lineas.positions import Positions
from lineas.sites import Site

Tokens = Literal["all", "prompt", "generated"]
Edit = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def edited(network: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Within the block, the activation of every site passes through its edit, `z -> edit(z)`.

    Args:
        network: the module whose submodules the sites name.
        edits: by site, a function of the activation that returns one of the same shape and type.
    """
    handles = _install(network, edits)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _install(network: nn.Module, edits: Mapping[Site, Edit]) -> list[Any]:
    handles: list[Any] = []
    try:
        for site, edit in edits.items():
            handles.append(network.get_submodule(site.module).register_forward_hook(_writer(site, edit)))
    except BaseException:
        for handle in handles:
            handle.remove()
        raise
    return handles


def _writer(site: Site, edit: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        before = site.pick(result)
        after = edit(before)
        return result if after is before else site.replace(result, after)

    return hook


def steer(
    model: Any,
    intervention: Intervention | Sequence[Intervention],
    strength: float | torch.Tensor = 1.0,
    tokens: Tokens = "all",
    force: bool = False,
) -> Steering:
    """Apply an intervention to a live model until the block ends or `detach()` is called.

    Args:
        model: a TextModel, or any torch module the intervention's sites belong to.
        intervention: one, or several to be applied one after the other; several become one map a site first.
        strength: 0 leaves the model as it is, 1 is what was learned; a tensor `[batch]` steers each row by its own.
        tokens: which tokens are edited: "all", "prompt" (those given to `generate`), or "generated" (the others).
        force: steer even when the intervention was learned on another network (the widths must still fit).

    Returns:
        Steering: its `strength` may be changed at any time.

    Raises:
        LineasError: when the network does not match, is compiled, or a site is missing.
    """
    network = model if isinstance(model, nn.Module) else model.network
    if isinstance(intervention, Sequence):
        if not intervention:
            raise LineasError("steer needs at least one intervention, an empty list was given.")
        intervention = reduce(Intervention.then, intervention)
    return Steering(network, intervention, strength, tokens, force)


class Steering:
    """A live intervention on a network; what `steer` returns, and a context manager that detaches at its end."""

    def __init__(
        self,
        network: nn.Module,
        intervention: Intervention,
        strength: float | torch.Tensor,
        tokens: Tokens,
        force: bool,
    ) -> None:
        if tokens not in ("all", "prompt", "generated"):
            raise LineasError(f"tokens must be 'all', 'prompt' or 'generated', not {tokens!r}.")
        _refuse_compiled(network)
        intervention.check_fits(network, force=force)
        self._network = network
        self._intervention = intervention
        self._tokens = tokens
        self._effective: dict[tuple[str, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
        self.strength = strength
        self._positions = Positions(network)
        try:
            self._handles = _install(network, {site: self._edit(site) for site in intervention.sites.values()})
        except BaseException:
            self._positions.remove()
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
        self._strength = given if given.dim() else float(value)
        self._effective.clear()

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
                self._strength = 0.0
                with torch.random.fork_rng():
                    plain = Site("network").pick(self._network(**inputs))
        finally:
            self._strength, self.prompt_length = now, length
        moved = float((steered.float() - plain.float()).abs().max())
        if moved == 0 and not self._intervention.is_identity():
            raise LineasError(
                f"the output did not move: the intervention at strength {now} on tokens={self._tokens!r} changed "
                "nothing for these inputs."
            )
        return moved

    def detach(self) -> None:
        """Remove everything from the network; may be called again without effect."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._positions.remove()

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _edit(self, site: Site) -> Edit:
        def edit(z: torch.Tensor) -> torch.Tensor:
            strength = self._strength
            if isinstance(strength, float) and strength == 0.0:
                return z
            chosen = self._positions.chosen(self._tokens)  # None: all; else bool [batch or 1, tokens]
            width, here = self._intervention.maps[site.name].width, z.shape[site.axis]
            if width != here:
                raise other_width(site, width, here)  # blocks and the like: not known before they run
            scale, shift = self._at_strength(site, z.device)
            if isinstance(strength, float) and chosen is None:
                return affine(z, scale, shift, site.axis)
            rows = self._positions.by_row(z)  # [batch, tokens, d], also where a layer flattened the two
            if isinstance(strength, torch.Tensor):
                scale, shift = self._by_row(scale, rows), self._by_row(shift, rows)
            after = affine(rows, scale, shift, site.axis)
            if isinstance(strength, torch.Tensor):  # a row at strength 0 stays bit for bit as it is
                untouched = self._by_row(strength.to(z.device) == 0, rows)
                after = torch.where(untouched.view(-1, *[1] * (rows.dim() - 1)), rows, after)
            if chosen is not None:
                chosen = self._by_row(chosen.to(z.device), rows, "prompt lengths")[:, -rows.shape[1] :]
                after = torch.where(chosen.unsqueeze(-1), after, rows)
            return after.view(z.shape)

        return edit

    def _by_row(self, x: torch.Tensor, rows: torch.Tensor, what: str = "strengths") -> torch.Tensor:
        """One entry a row of the activation, repeated where generate made several rows (beams, samples) of a prompt."""
        n = rows.shape[0]
        prompts = self._positions.prompts or n
        if x.shape[0] not in (1, prompts) or n % prompts:
            raise LineasError(f"{x.shape[0]} {what} were given for a batch of {prompts} rows; give one a row.")
        return x.repeat_interleave(n // x.shape[0], dim=0)

    def _at_strength(self, site: Site, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of `T_s` on a device: `[d]`, or `[batch, d]` for a strength a row. Kept until s changes."""
        key = (site.name, device)
        if key not in self._effective:
            map_ = self._intervention.maps[site.name]
            with torch.inference_mode(False):  # kept, so they must serve autograd as well
                scale, shift = map_.scale.to(device), map_.shift.to(device)
                s = torch.as_tensor(self._strength, device=device).unsqueeze(-1)  # [1] or [batch, 1]
                self._effective[key] = (1 + s * (scale - 1), s * shift)
        return self._effective[key]


def warn_if_outside(strength: torch.Tensor) -> None:
    """Warn about strengths outside [0, 1]: they extrapolate beyond what was learned."""
    if bool(((strength < 0) | (strength > 1)).any()):
        warnings.warn(
            f"strength {strength.tolist()} is outside 0 to 1: this goes beyond what was learned, check the text.",
            stacklevel=4,
        )


def _refuse_compiled(network: nn.Module) -> None:
    compiled = any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None  # module.compile()
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")  # module.forward = torch.compile(...)
        or "_compiled_call" in module.__dict__  # generate with a static cache on a GPU
        for module in network.modules()
    )
    if compiled:
        raise LineasError(
            "this network is compiled, and a compiled network may ignore hooks added later; "
            "steer the network first and compile it afterwards, or fold the intervention into the weights."
        )
