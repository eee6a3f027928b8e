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
from lineas.steering.compiled import is_compiled, refuse_unsteerable, warn_if_compiled_before
from lineas.steering.exclusive import check_free
from lineas.steering.hooks import ChoosesRows, Placed
from lineas.steering.passes import Backward, Pass, running_again, tensors_in
from lineas.steering.positions import HasPositions, Positions, Tokens, check_tokens
from lineas.steering.strength import LiveMap, Setting, as_strength, keeps_addresses, mapped, warn_if_outside

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

    Only the calling thread or asyncio task is steered, with the tasks that it starts. Others may use the same network
    at the same time, unsteered or with another intervention. A new thread starts unsteered; see `Steering.run`. If a
    network is compiled after it was steered, the compiled network is steered in all threads. A copy of a steered
    network is not steered.

    Args:
        model: a TextModel, an ImageModel, or any torch module that has the intervention's sites.
        intervention: the intervention, or a list of them to apply one after the other; they become one map per site.
        strength: 0 leaves the model unchanged, 1 (the default) is what was learned. A tensor `[batch]` gives each row
            its own strength; "calibrated" is the strength that `lineas calibrate` found.
        tokens: the tokens to steer: "all" (the default, and the only choice for images), "prompt" (the input of
            `generate`), "generated" (the tokens after it), or "answer" (the last prompt token and those after it).
            The last prompt token predicts the first new one, so "generated" influences new tokens from the second on,
            and "answer" from the first on.
        other_model: whether to steer a network that it was not learned on, default False; the widths must still fit.
        force: the old name of `other_model`, to be removed after this version.

    Returns:
        the live intervention; its `strength` may be changed at any time.

    Raises:
        LineasError: when the network is not the one that the intervention was learned on, lacks a site or is
            compiled, or while another thread learns on it.
    """
    network = model if isinstance(model, nn.Module) else getattr(model, "network", None)
    if not isinstance(network, nn.Module):
        raise LineasError(
            f"a {type(model).__name__} cannot be steered as it is; wrap it in lineas.TextModel, or a pipeline of "
            "diffusers in lineas.ImageModel."
        )
    intervention = _as_one(intervention)
    if isinstance(strength, str):
        strength = intervention.strength_from(strength)
    return Steering(network, intervention, strength, tokens, accepts_other(other_model, force))


def _as_one(value: Any) -> Intervention:
    """Return one intervention that applies those of a list in order."""
    several: list[Any] = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    if not several:
        raise LineasError("steer needs at least one intervention, an empty list was given.")
    for one in several:
        if not isinstance(one, Intervention):
            reads = f"; Intervention.load({shown(one)}) reads one" if isinstance(one, (str, PurePath)) else ""
            raise LineasError(f"steer takes an Intervention, or a list of them, not a {type(one).__name__}{reads}.")
    return reduce(Intervention.then, several)


class Steering:
    """A live intervention on a network, made by `steer`; as a context manager it detaches at the end of the block.

    It acts in the thread or task that made it, in tasks started there, and in those that call `run` or enter it.
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
        refuse_unsteerable(network)
        intervention.check_fits(network, other_model)
        warn_if_compiled_before(network)
        self._network = network
        self._intervention = intervention
        self._tokens: Tokens = tokens
        self._maps = {
            site: LiveMap(intervention.maps[site.name], _device(network.get_submodule(site.module), network))
            for site in intervention.sites.values()
        }
        self._key = object()  # active in the threads and tasks that are steered
        self._attached = True
        self._lock = RLock()
        self._running: set[int] = set()  # threads within a forward pass
        self._waiting: set[ref[Backward]] = set()  # graphs whose checkpointed blocks may run again
        self._on, self._seen_compiling = True, False
        self._hooks: list[Placed] = []
        self._ends: list[Any] = []
        self._positions: Any = (
            network.positions(tokens) if isinstance(network, HasPositions) else Positions(network, tokens)
        )
        self._setting = Setting(0.0, ())
        self._shared = Pass(self._setting, self._positions.shared)
        try:
            moving = [site for site, live in self._maps.items() if not live.map.is_identity()]
            for root in self._positions.roots:
                self._ends += [
                    root.register_forward_pre_hook(_SteeringHook(self, self._begin), with_kwargs=True),
                    root.register_forward_hook(_SteeringHook(self, self._end), always_call=True),
                ]
            for site in moving:
                hook = _SteeringHook(self, self._writer(site))
                self._hooks.append(Placed(network.get_submodule(site.module), hook))
            check_free(network)  # another thread may have reserved it meanwhile
            warn_if_outside(strength)
            self._set(strength)
        except BaseException:
            self.detach()
            raise
        contexts.activate(self._key)  # last, so that no pass is steered in part

    @property
    def strength(self) -> float | torch.Tensor:
        """The current strength: 0 for the unchanged network, 1 for the learned map, or one per row `[batch]`."""
        strength = self._setting.strength
        return strength.clone() if isinstance(strength, torch.Tensor) else strength

    @strength.setter
    def strength(self, value: float | torch.Tensor) -> None:
        strength = as_strength(value)
        warn_if_outside(strength)
        self._set(strength)

    def _set(self, strength: float | torch.Tensor) -> None:
        """Change to a checked strength.

        At strength 0 no hooks are registered. A forward pass keeps the setting that it began with: hooks are added
        before a setting becomes current, and removed when no pass needs them.
        """
        setting = Setting(strength, self._maps.values())
        with self._lock:
            adds_hooks = self._attached and setting.acts and not self._on
            if adds_hooks and (self._seen_compiling or is_compiled(self._network)):
                raise LineasError(
                    "this network was compiled while its intervention was at strength 0, so no other strength reaches "
                    "it; steer it at another strength before it is compiled."
                )
            if adds_hooks:
                for hook in self._hooks:
                    hook.on()
                self._on = True
            self._setting = self._shared.setting = setting
            for live in self._maps.values():
                live.update(setting)
            self._remove_unneeded_hooks()

    def _remove_unneeded_hooks(self) -> None:
        """Remove hooks that no longer act, unless a pass of another thread still needs them."""
        with self._lock:
            if self._attached and (self._setting.acts or self._seen_compiling or is_compiled(self._network)):
                return  # compiled hooks stay; at strength 0 they do nothing
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
        """Record, before each forward pass of the network, its place in the texts and its strength."""
        if contexts.is_compiling():
            self._seen_compiling = True
            self._positions.begin(module, args, kwargs)
            return
        active = contexts.active()
        if kwargs is None or not self._attached or not (self._key in active or self._seen_compiling):
            return  # kwargs are missing if another thread removed this hook while torch was calling it
        place = self._positions.begin(module, args, kwargs)
        if self._key in active:
            self._running.add(get_ident())  # before the strength is read, see `_set`
            contexts.activate(self._key, Pass(self._setting, place, active[self._key], active))

    def _end(self, module: nn.Module, args: Any, result: Any) -> None:
        """Forget a forward pass when it ends, also if it failed."""
        if contexts.is_compiling() or (done := contexts.active().get(self._key)) is None:
            return
        if done.runs_again:
            self._wait_for_backward(done, result)
        if self._attached:
            contexts.activate(self._key, done.outer)
        else:  # another thread has detached it
            contexts.deactivate(self._key)
        if done.outer is None:
            self._running.discard(get_ident())
        if not self._attached or (self._on and not self._setting.acts):
            self._remove_unneeded_hooks()

    def _current_pass(self) -> Pass | None:
        """Return the forward pass in which a hook is called; None if it is not steered."""
        if contexts.is_compiling() or self._seen_compiling:
            return self._shared
        backward = torch._C._current_graph_task_id()  # -1: none
        if backward != -1 and backward in running_again:
            return running_again[backward].get(self._key)
        current = contexts.active().get(self._key, _INACTIVE)
        if current is None:  # a part of the network was called alone
            return Pass(self._setting, self._positions.called_alone()) if self._attached else None
        return None if current is _INACTIVE else current.noting_checkpoints()

    def _wait_for_backward(self, done: Pass, result: Any) -> None:
        """Keep a pass until its graph is freed: the backward pass, in any thread, runs its blocks again."""
        values = [*done.active.items(), *contexts.active().items()]
        mark = Backward(self._key, done, [key for key, value in values if isinstance(value, Pass)])
        outputs = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        for tensor in outputs:
            tensor.register_hook(mark)
        if outputs:
            self._waiting.add(ref(mark, self._no_longer_waits))

    def _no_longer_waits(self, freed: ref[Backward]) -> None:
        self._waiting.discard(freed)
        self._remove_unneeded_hooks()

    def _writer(self, site: Site) -> Callable[..., Any]:
        edit = self._edit(site)
        edit_rows = self._network.edit_rows if isinstance(self._network, ChoosesRows) else None

        def hook(module: nn.Module, args: Any, result: Any) -> Any:
            current = self._current_pass()
            if current is None or not (current.setting.acts or contexts.is_compiling()):
                return None
            before = site.pick(result)
            after = edit(current, before) if edit_rows is None else edit_rows(site, partial(edit, current), before)
            return None if after is before else site.replace(result, after)

        return hook

    def _edit(self, site: Site) -> Callable[[Pass, torch.Tensor], torch.Tensor]:
        live, gate = self._maps[site], self._intervention.gates.get(site.name)
        if gate is not None:  # copied now, so that no forward pass has to wait
            gate = gate.to(_device(self._network.get_submodule(site.module), self._network))

        def gated(z: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
            return after if gate is None else gate.mixed(z, after, site.axis)

        def edit(current: Pass, z: torch.Tensor) -> torch.Tensor:
            setting, place = current.setting, current.place
            width, width_here = live.map.width, z.shape[site.axis]
            if width != width_here:
                raise other_width(site, width, width_here)  # a block's width is unknown before it runs
            by_row = setting.by_row  # a compiled network must not be specialised on the number itself
            chosen = place.chosen(self._tokens)  # None: all; else bool [batch or 1, tokens]
            values = live.buffers(z.device) if keeps_addresses(z) else setting.values(live, z.device)
            if by_row is None and chosen is None:
                return gated(z, mapped(z, values, site.axis))
            rows = place.by_row(z)  # [batch, tokens, d]
            scale, shift = values[:2]
            if by_row is not None:
                scale, shift = (place.repeated(x, len(rows)) for x in (scale, shift))
            after = affine(rows, scale, shift, site.axis)
            if by_row is not None and setting.some_untouched:  # a row at strength 0 stays the same bit for bit
                untouched = place.repeated(by_row.to(z.device) == 0, len(rows))
                after = torch.where(untouched.view(-1, *[1] * (rows.dim() - 1)), rows, after)
            if chosen is not None:
                chosen = place.repeated(chosen.to(z.device), len(rows), "prompt lengths")[:, -rows.shape[1] :]
                after = torch.where(chosen.unsqueeze(-1), after, rows)
            return gated(z, after.view(z.shape))

        return edit

    # ---- for users

    @property
    def prompt_length(self) -> int | torch.Tensor | None:
        """The number of prompt columns in this thread or task, for all rows or per row `[batch]`; None if unknown.

        `generate` sets it. Set it yourself to score finished texts.
        """
        return self._positions.prompt_length

    @prompt_length.setter
    def prompt_length(self, value: int | torch.Tensor | None) -> None:
        self._positions.prompt_length = value

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function with this intervention active, also in a thread that is not steered.

        A new thread starts unsteered; to steer it, use `Thread(target=live.run, args=(network.generate,), kwargs=...)`.
        With several active interventions, `contextvars.copy_context().run` takes all of them to the new thread.

        Args:
            function: a plain function, called with the other arguments.

        Raises:
            LineasError: when the intervention was detached, or the function is a coroutine or a generator.
        """
        if not self._attached:
            raise LineasError("this intervention was detached, so nothing can be run with it; steer again.")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise LineasError("run takes a plain function; a coroutine or a generator would do its work afterwards.")
        with contexts.activated(self._key):
            return function(*args, **kwargs)

    def verify(self, **inputs: Any) -> float:
        """Run the network with and without the intervention and return the largest change of its output.

        Args:
            inputs: keyword arguments of the network; by default eight token ids, for language models.

        Raises:
            LineasError: when the output does not change although the intervention is not the identity, or when it is
                not finite.
        """
        strength, length = self._setting.strength, self.prompt_length
        if not inputs:
            vocabulary = getattr(getattr(self._network, "config", None), "vocab_size", None)
            if vocabulary is None:
                raise LineasError(
                    "this is not a language model, so verify needs the network's inputs as keyword arguments."
                )
            inputs = {"input_ids": (torch.arange(8, device=input_device(self._network)) % vocabulary).unsqueeze(0)}
            if self._tokens != "all" and length is None:
                self.prompt_length = 4  # so that there are tokens of both kinds
        ids = inputs.get("input_ids")
        if ids is not None and len(ids) == 1 and isinstance(strength, torch.Tensor):
            inputs["input_ids"] = ids.repeat(len(strength), *[1] * (ids.dim() - 1))
        try:
            with torch.no_grad():
                with self._same_randomness(), contexts.activated(self._key):
                    steered = Site("network").pick(self._network(**inputs)).clone()
                with self._same_randomness(), self.off():
                    plain = Site("network").pick(self._network(**inputs))
        finally:
            self.prompt_length = length
        moved = _largest_change(steered.detach().float(), plain.detach().float())
        if moved == 0 and not self._intervention.is_identity():
            raise LineasError(
                f"the output did not move: the intervention at strength {strength} on tokens={self._tokens!r} changed "
                "nothing for these inputs."
            )
        return moved

    def _same_randomness(self) -> AbstractContextManager[Any]:
        """Return a block that restores torch's random generators, if the network may use them (dropout, noise)."""
        is_fixed = hasattr(self._network, "generate") and not any(module.training for module in self._network.modules())
        return nullcontext() if is_fixed else torch.random.fork_rng()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Stop steering within the block: in this thread or task, or in all of them if the network is compiled."""
        if not (self._seen_compiling or is_compiled(self._network)):
            with contexts.deactivated(self._key):
                yield
            return
        strength = self._setting.strength
        self._set(0.0)
        try:
            yield
        finally:
            self._set(strength)

    def detach(self) -> None:
        """Remove the intervention from the network; a second call has no effect.

        Hooks that a running pass of another thread needs are removed when it ends, also if it is a backward pass.
        """
        self._attached = False
        contexts.deactivate(self._key)
        self._positions.remove()
        self._remove_unneeded_hooks()

    def __enter__(self) -> Steering:
        if self._attached and self._key not in contexts.active():
            contexts.activate(self._key)
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


_INACTIVE = object()


class _SteeringHook(contexts.Hook):
    def __init__(self, steering: Steering, hook: Callable[..., Any]) -> None:
        self._steering, self._hook = steering, hook

    def __call__(self, module: nn.Module, *arguments: Any) -> Any:
        return self._hook(module, *arguments)

    def steers(self) -> bool:
        return self._steering._attached

    def is_compiled_in(self) -> bool:
        return self._steering._attached and self._steering._seen_compiling


def _largest_change(steered: torch.Tensor, plain: torch.Tensor) -> float:
    """Return the largest difference of two outputs, ignoring values that are not finite in both (masked logits)."""
    finite, was_finite = steered.isfinite(), plain.isfinite()
    if bool((was_finite & ~finite).any()) or not bool(finite.any()):
        raise LineasError(DESTROYED)
    return float((steered - plain)[finite & was_finite].abs().max())


def _device(module: nn.Module, network: nn.Module) -> torch.device:
    """Return the device on which a module will compute: that of its weights, or else of the network's."""
    return input_device(module if next(module.parameters(), None) is not None else network)
