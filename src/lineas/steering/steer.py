"""Steering: an intervention applied to a live network, at a strength that may change at any time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, reduce
from pathlib import PurePath
from threading import RLock, get_ident
from typing import Any, Literal, ParamSpec, TypeVar
from weakref import ref

import torch
from torch import nn

from lineas.errors import DESTROYED, LineasError, shown
from lineas.intervention.intervention import Intervention
from lineas.intervention.maps import affine
from lineas.intervention.model_identity import accepts_other, other_width
from lineas.modules import input_device
from lineas.sites import Site
from lineas.steering import contexts
from lineas.steering.compiled import (
    is_compiled,
    refuse_compiled,
    refuse_compiled_with_another,
    refuse_parallel,
    warn_if_compiled_before,
)
from lineas.steering.exclusive import check_free
from lineas.steering.hooks import ChoosesRows, Placed, install
from lineas.steering.live_maps import LiveMap, Setting, keeps_addresses, mapped
from lineas.steering.passes import Backward, Pass, running_again, tensors_in
from lineas.steering.positions import HasPositions, Positions, Tokens, check_tokens
from lineas.steering.strength import as_strength, warn_if_outside

P = ParamSpec("P")
R = TypeVar("R")


def steer(
    model: Any,
    intervention: Intervention | Sequence[Intervention],
    strength: float | torch.Tensor | Literal["calibrated"] = 1.0,
    tokens: Tokens = "all",
    other_model: bool = False,
    force: bool = False,
) -> Steering:
    """Apply an intervention to a live model until the block ends or `detach()` is called.

    It acts in the thread or asyncio task that called this, and in tasks begun there; others may use the same network at
    the same time, steered otherwise or not at all. A new thread begins unsteered, see `Steering.run`. A network that
    is compiled after it was steered is steered for all threads. A copy of a steered network is not steered.

    Args:
        model: a TextModel, an ImageModel, or any torch module the intervention's sites belong to.
        intervention: one, or several to be applied one after the other; several become one map a site first.
        strength: 0 leaves the model as it is, 1 is what was learned; a tensor `[batch]` steers each row by its own;
            "calibrated" is what `lineas calibrate` found.
        tokens: which tokens are edited: "all", "prompt" (those given to `generate`), "generated" (the others), or
            "answer". The last token of the prompt makes the first new one, so under "generated" the first new token
            is chosen unsteered, and the second is the first that steering has a say in; "answer" begins one earlier,
            at the last token of the prompt. Of images always all.
        other_model: steer even when the intervention was learned on another network (the widths must still fit).
        force: the old name of `other_model`; it goes away after this version.

    Returns:
        Steering: its `strength` may be changed at any time.

    Raises:
        LineasError: when the network does not match, is compiled, or a site is missing, or while another thread
            learns on the network.
    """
    network = model if isinstance(model, nn.Module) else getattr(model, "network", None)
    if not isinstance(network, nn.Module):
        raise LineasError(
            f"a {type(model).__name__} cannot be steered as it is; wrap it in lineas.TextModel, or a pipeline of "
            "diffusers in lineas.ImageModel."
        )
    intervention = _as_one(intervention)
    if isinstance(strength, str):
        if strength != "calibrated":
            raise LineasError(f"strength is a number or 'calibrated', not {strength!r}.")
        strength = intervention.calibrated_strength
    return Steering(network, intervention, strength, tokens, accepts_other(other_model, force))


def _as_one(given: Any) -> Intervention:
    """Several interventions as one.

    Raises:
        LineasError: when something else is among them, or there is none.
    """
    several: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else [given]
    if not several:
        raise LineasError("steer needs at least one intervention, an empty list was given.")
    for one in several:
        if not isinstance(one, Intervention):
            reads = f"; Intervention.load({shown(one)}) reads one" if isinstance(one, (str, PurePath)) else ""
            raise LineasError(f"steer takes an Intervention, or a list of them, not a {type(one).__name__}{reads}.")
    return reduce(Intervention.then, several)


class Steering:
    """A live intervention on a network; what `steer` returns, and a context manager that detaches at its end.

    It acts in the thread or task that made it, in tasks begun there, and where `run` or a `with` of its own says so.
    """

    def __init__(
        self,
        network: nn.Module,
        intervention: Intervention,
        strength: float | torch.Tensor,
        tokens: Tokens,
        other_model: bool,
    ) -> None:
        check_tokens(tokens)
        strength = as_strength(strength)
        check_free(network)
        refuse_compiled(network)
        refuse_compiled_with_another(network)
        refuse_parallel(network)
        intervention.check_fits(network, other_model)
        warn_if_compiled_before(network)
        self._network = network
        self._intervention = intervention
        self._tokens: Tokens = tokens
        self._maps = {
            site: LiveMap(intervention.maps[site.name], _device(network.get_submodule(site.module), network))
            for site in intervention.sites.values()
        }
        self._key = object()  # what the contexts hold in which it acts
        self._attached = True
        self._lock = RLock()
        self._running: set[int] = set()  # threads within a forward pass
        self._waiting: set[ref[Backward]] = set()  # for backward passes in which blocks run again
        self._on, self._seen_compiling = True, False
        self._hooks: list[Placed] = []
        self._ends: list[Any] = []
        self._positions: Any = (
            network.positions(tokens) if isinstance(network, HasPositions) else Positions(network, tokens)
        )
        self._setting = Setting(0.0, {})
        self._shared = Pass(self._setting, self._positions.shared)
        try:
            moving = [site for site, live in self._maps.items() if not live.map.is_identity()]
            for root in self._positions.roots:
                self._ends += [
                    root.register_forward_pre_hook(_Own(self, self._begin), with_kwargs=True),
                    root.register_forward_hook(_Own(self, self._end), always_call=True),
                ]
            self._hooks = install(network, {site: _Own(self, self._writer(site)) for site in moving})
            check_free(network)  # again, where another thread began in between
            warn_if_outside(strength)
            self._set(strength)
        except BaseException:
            self.detach()
            raise
        contexts.put(self._key)  # last, so that no pass of this context sees half of it

    @property
    def strength(self) -> float | torch.Tensor:
        """0 is the untouched network, 1 the learned map; a tensor `[batch]` gives each row its own."""
        strength = self._setting.strength
        return strength.clone() if isinstance(strength, torch.Tensor) else strength

    @strength.setter
    def strength(self, value: float | torch.Tensor) -> None:
        strength = as_strength(value)
        warn_if_outside(strength)
        self._set(strength)

    def _set(self, strength: float | torch.Tensor) -> None:
        """Take a strength that was checked; at 0 nothing is hooked, as never is a site whose map is the identity.

        All that follows from it is one object, and a forward pass keeps to the one that it began with. So hooks are on
        before it is there, and come off when no pass needs them.
        """
        setting = Setting(strength, self._maps)
        with self._lock:
            goes_on = self._attached and setting.acts and not self._on
            if goes_on and (self._seen_compiling or is_compiled(self._network)):
                raise LineasError(
                    "this network was compiled while its intervention was at strength 0, so no other strength reaches "
                    "it; steer it at another strength before it is compiled."
                )
            if goes_on:
                for hook in self._hooks:
                    hook.on()
                self._on = True
            self._setting = self._shared.setting = setting
            for live in self._maps.values():
                live.take(setting)
            self._settle()

    def _settle(self) -> None:
        """Take off the hooks that are no longer needed, once no pass of another thread needs them."""
        with self._lock:
            if self._attached and (self._setting.acts or self._seen_compiling or is_compiled(self._network)):
                return  # compiled in, at strength 0 they do nothing
            if self._running - {get_ident()}:
                return
            if not self._waiting:
                for hook in self._hooks:
                    hook.off()
                self._on = False
            if not self._attached:
                for handle in self._ends:
                    handle.remove()

    # ---- forward passes

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> None:
        """Before every forward pass of the network: where it is in its texts, and the strength that it keeps to."""
        if contexts.is_compiling():
            self._seen_compiling = True
            self._positions.begin(module, args, kwargs)
            return
        held = contexts.here()
        if kwargs is None or not self._attached or not (self._key in held or self._seen_compiling):
            return  # kwargs: taken off by another thread while torch was on its way to this hook
        place = self._positions.begin(module, args, kwargs)
        if self._key in held:
            self._running.add(get_ident())  # before the strength is read, see `_set`
            contexts.put(self._key, Pass(self._setting, place, held[self._key], held))

    def _end(self, module: nn.Module, args: Any, result: Any) -> None:
        """After every forward pass, also after one that failed."""
        if contexts.is_compiling() or (done := contexts.here().get(self._key)) is None:
            return
        if done.runs_again:
            self._wait_for_backward(done, result)
        if self._attached:
            contexts.put(self._key, done.outer)
        else:  # ended by another thread meanwhile
            contexts.drop(self._key)
        if done.outer is None:
            self._running.discard(get_ident())
        if not self._attached or (self._on and not self._setting.acts):
            self._settle()

    def _now(self) -> Pass | None:
        """The forward pass that a hook is called in; None where it is not steered."""
        if contexts.is_compiling() or self._seen_compiling:
            return self._shared
        backward = torch._C._current_graph_task_id()  # -1: none
        if backward != -1 and backward in running_again:
            return running_again[backward].get(self._key)
        found = contexts.here().get(self._key, _NOT_HELD)
        if found is None:  # a part of the network was called alone
            return Pass(self._setting, self._positions.apart()) if self._attached else None
        return None if found is _NOT_HELD else found.noting_checkpoints()

    def _wait_for_backward(self, done: Pass, result: Any) -> None:
        """Blocks of this pass run again in its backward pass, in whichever thread: then as they ran now."""
        beside = [key for held in (done.held, contexts.here()) for key, now in held.items() if isinstance(now, Pass)]
        mark = Backward(self._key, done, beside)
        found = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        for tensor in found:
            tensor.register_hook(mark)
        if found:  # else nothing goes backward through it
            self._waiting.add(ref(mark, self._no_longer_waits))

    def _no_longer_waits(self, gone: ref[Backward]) -> None:
        """The graph of a pass is gone."""
        self._waiting.discard(gone)
        self._settle()

    def _writer(self, site: Site) -> Callable[..., Any]:
        edit = self._edit(site)
        edit_rows = self._network.edit_rows if isinstance(self._network, ChoosesRows) else None

        def hook(module: nn.Module, args: Any, result: Any) -> Any:
            now = self._now()
            if now is None or not (now.setting.acts or contexts.is_compiling()):
                return None
            before = site.pick(result)
            after = edit(now, before) if edit_rows is None else edit_rows(site, partial(edit, now), before)
            return None if after is before else site.replace(result, after)

        return hook

    def _edit(self, site: Site) -> Callable[[Pass, torch.Tensor], torch.Tensor]:
        live, gate = self._maps[site], self._intervention.gates.get(site.name)
        if gate is not None:  # now, so that no forward pass waits for a copy
            gate = gate.to(_device(self._network.get_submodule(site.module), self._network))

        def gated(z: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
            return after if gate is None else gate.mixed(z, after, site.axis)

        def edit(now: Pass, z: torch.Tensor) -> torch.Tensor:
            setting, place = now.setting, now.place
            width, here = live.map.width, z.shape[site.axis]
            if width != here:
                raise other_width(site, width, here)  # blocks and the like: not known before they run
            by_row = setting.by_row  # not the number itself, on which a compiled network would be specialised
            chosen = place.chosen(self._tokens)  # None: all; else bool [batch or 1, tokens]
            values = live.shared(z.device) if keeps_addresses(z) else setting.values(live, z.device)
            if by_row is None and chosen is None:
                return gated(z, mapped(z, values, site.axis))
            rows = place.by_row(z)  # [batch, tokens, d], also where a layer flattened the two
            scale, shift = values[:2]
            if by_row is not None:
                scale, shift = (place.spread(x, len(rows)) for x in (scale, shift))
            after = affine(rows, scale, shift, site.axis)
            if by_row is not None and setting.some_untouched:  # a row at strength 0 stays bit for bit as it is
                untouched = place.spread(by_row.to(z.device) == 0, len(rows))
                after = torch.where(untouched.view(-1, *[1] * (rows.dim() - 1)), rows, after)
            if chosen is not None:
                chosen = place.spread(chosen.to(z.device), len(rows), "prompt lengths")[:, -rows.shape[1] :]
                after = torch.where(chosen.unsqueeze(-1), after, rows)
            return gated(z, after.view(z.shape))

        return edit

    # ---- for the one who steers

    @property
    def prompt_length(self) -> int | torch.Tensor | None:
        """The number of prompt columns, in this thread or task; set by `generate` on its own, settable `[batch]` when
        scoring finished texts."""
        return self._positions.prompt_length

    @prompt_length.setter
    def prompt_length(self, value: int | torch.Tensor | None) -> None:
        self._positions.prompt_length = value

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function with this intervention in place, also in a thread that did not ask for it.

        A new thread begins without what holds in the one that starts it, so inside a `with` block it is
        `Thread(target=live.run, args=(network.generate,), kwargs=...)`. Where several are in place,
        `contextvars.copy_context().run` takes all of them along.

        Raises:
            LineasError: when it was detached, or the function only begins its work in the call.
        """
        if not self._attached:
            raise LineasError("this intervention was detached, so nothing can be run with it; steer anew.")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise LineasError("run takes a plain function; a coroutine or a generator would do its work afterwards.")
        with contexts.holding(self._key):
            return function(*args, **kwargs)

    def verify(self, **inputs: Any) -> float:
        """Run the network with and without the intervention and return the largest change of its output.

        Args:
            inputs: keyword arguments of the network; by default eight token ids, for language models.

        Raises:
            LineasError: when the output does not move although the intervention is not the identity, or is not
                finite any more.
        """
        own = not inputs
        if own:
            vocabulary = getattr(getattr(self._network, "config", None), "vocab_size", None)
            if vocabulary is None:
                raise LineasError(
                    "verify needs the network's inputs as keyword arguments here; it is no language model."
                )
            device = input_device(self._network)
            inputs = {"input_ids": (torch.arange(8, device=device) % vocabulary).unsqueeze(0)}
        now, length = self._setting.strength, self.prompt_length
        if own and self._tokens != "all" and length is None:
            self.prompt_length = 4  # so that there is some of either
        rows = len(now) if isinstance(now, torch.Tensor) else 1
        inputs = {
            k: v.repeat(rows, *[1] * (v.dim() - 1)) if k == "input_ids" and len(v) == 1 else v
            for k, v in inputs.items()
        }
        try:
            with torch.no_grad():
                with self._same_randomness(), contexts.holding(self._key):
                    steered = Site("network").pick(self._network(**inputs)).clone()
                with self._same_randomness(), self.off():
                    plain = Site("network").pick(self._network(**inputs))
        finally:
            self.prompt_length = length
        moved = _largest_change(steered.detach().float(), plain.detach().float())
        if moved == 0 and not self._intervention.is_identity():
            raise LineasError(
                f"the output did not move: the intervention at strength {now} on tokens={self._tokens!r} changed "
                "nothing for these inputs."
            )
        return moved

    def _same_randomness(self) -> AbstractContextManager[Any]:
        """Put the generators back, which all threads share, where something may be random: dropout, noise."""
        is_sure = hasattr(self._network, "generate") and not any(module.training for module in self._network.modules())
        return nullcontext() if is_sure else torch.random.fork_rng()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Return a block within which this thread or task is not steered; of a compiled network, nobody is."""
        if not (self._seen_compiling or is_compiled(self._network)):
            with contexts.without(self._key):
                yield
            return
        now = self._setting.strength
        self._set(0.0)
        try:
            yield
        finally:
            self._set(now)

    def detach(self) -> None:
        """Remove everything from the network; may be called again without effect.

        What a forward pass of another thread still needs goes when that ends, and so does what runs again in a backward
        pass.
        """
        self._attached = False
        contexts.drop(self._key)
        self._positions.remove()
        self._settle()

    def __enter__(self) -> Steering:
        if self._attached and self._key not in contexts.here():
            contexts.put(self._key)
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


_NOT_HELD = object()


class _Own(contexts.Hook):
    """A hook of a steering."""

    def __init__(self, steering: Steering, hook: Callable[..., Any]) -> None:
        self._steering, self._hook = steering, hook

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        return self._hook(module, *arguments)

    def steers(self) -> bool:
        return self._steering._attached

    def is_compiled_in(self) -> bool:
        """Return True where a compiler has seen it, and it is still in place."""
        return self._steering._attached and self._steering._seen_compiling


def _largest_change(steered: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest difference, where both are finite; a masked logit or a row of padding is not, steered or not.

    Raises:
        LineasError: when the steered output is not finite where the plain one is, or nowhere.
    """
    finite, was = steered.isfinite(), plain.isfinite()
    if bool((was & ~finite).any()) or not bool(finite.any()):
        raise LineasError(DESTROYED)
    return float((steered - plain)[finite & was].abs().max())


def _device(module: nn.Module, network: nn.Module) -> torch.device:
    """Where a module's activation will be, as far as its own weights, or else the network's, tell."""
    return input_device(module if next(module.parameters(), None) is not None else network)
