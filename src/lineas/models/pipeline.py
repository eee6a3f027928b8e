"""A diffusion pipeline as one network: its denoiser and text encoders under the names that diffusers gives them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import MethodType
from typing import Any, Literal, get_args

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.sites import Site
from lineas.steering import contexts
from lineas.steering.hooks import Edit

Guidance = Literal["both", "conditional", "none"]
"""Under classifier-free guidance the denoiser runs with and without the prompt: which halves are steered, or whether
the pipeline draws without guidance."""
DENOISERS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class PipelineNetwork(nn.Module):
    """The parts of a pipeline that sites can name: `unet.` or `transformer.`, and `text_encoder.`, `text_encoder_2.`...

    The modules are the pipeline's own, so whatever is hooked here acts on its every call.

    Args:
        pipeline: of diffusers, text to image.
        guidance: which halves of a guided batch are edited.

    Raises:
        LineasError: when the pipeline has no denoiser or no way to encode a prompt.
    """

    guidance: Guidance

    def __init__(self, pipeline: Any, guidance: Guidance = "both") -> None:
        super().__init__()
        if guidance not in get_args(Guidance):
            raise LineasError(f"guidance is one of {', '.join(map(repr, get_args(Guidance)))}, not {guidance!r}.")
        found = [name for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)]
        if not found or not hasattr(pipeline, "encode_prompt"):
            raise LineasError(
                f"a {type(pipeline).__name__} is no text-to-image pipeline with a U-Net or a transformer that denoises."
            )
        self.denoises = found[0]
        self.guidance = guidance
        if not isinstance(pipeline.encode_prompt, Prompts):
            vars(pipeline)["encode_prompt"] = Prompts(pipeline)
        self.prompts: Prompts = pipeline.encode_prompt
        self.pipeline = pipeline
        self._look_up()

    def _look_up(self) -> None:
        """Take the parts that the pipeline has now: one may have been replaced since."""
        for name in (self.denoises, *ENCODERS):
            part = getattr(self.pipeline, name, None)
            if isinstance(part, nn.Module):
                self._modules[name] = part
            else:
                self._modules.pop(name, None)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Generator[Any, Any, Any]:
        """The parts, as the pipeline has them now, and all that is in them."""
        self._look_up()
        return super().named_modules(memo, prefix, remove_duplicate)

    def get_submodule(self, target: str) -> nn.Module:
        """A module by its name, of the part that the pipeline has now."""
        self._look_up()
        return super().get_submodule(target)

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net or transformer; what the network is known by, whatever pipeline it is in."""
        return self.get_submodule(self.denoises)

    def is_denoisers(self, site: Site) -> bool:
        """Whether a site is in the denoiser, which runs once a step."""
        return f"{site.module}.".startswith(f"{self.denoises}.")

    def forward(self, **inputs: Any) -> torch.Tensor:
        """The latents that one call of the pipeline gives, with its own arguments, such as `prompt`."""
        return call(self.pipeline, **{"num_inference_steps": 2, "output_type": "latent"} | inputs)

    def positions(self, tokens: str) -> Rows:
        """For `steer`: which rows belong to which prompt."""
        if tokens != "all":
            raise LineasError(f"an image is steered as a whole: tokens='all', not {tokens!r}.")
        return Rows(self)

    def edit_rows(self, site: Site, edit: Edit, z: torch.Tensor) -> torch.Tensor:
        """An activation with an edit on its conditional rows alone, where that is what was asked for.

        These are all, or where there are two for every image, the last half: a pipeline may stop to guide on its way.
        """
        if self.guidance != "conditional" or not self.is_denoisers(site):
            return edit(z)
        images, rows = self.prompts.images, z.shape[0]
        if images is None or rows not in (images, 2 * images):
            known = "no prompt was encoded" if images is None else f"{images} images"
            raise LineasError(
                f"guidance='conditional' cannot tell which of the {rows} rows at {site.name} have a prompt ({known}); "
                "draw through the pipeline, or steer with guidance='both'."
            )
        if rows == images:
            return edit(z)
        without, told = z.chunk(2)
        after = edit(told)
        return z if after is told else torch.cat([without, after])

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineNetwork:
        """A pipeline of its own with copies of these parts; what only decodes and schedules is shared."""
        parts = {name: copy.deepcopy(part, memo) for name, part in self.named_children()}
        kind, config = type(self.pipeline), self.pipeline.config
        given = inspect.signature(kind.__init__).parameters.keys() - {"self"}
        settings = {name: config[name] for name in given & config.keys() - self.pipeline.components.keys()}
        return PipelineNetwork(kind(**{**self.pipeline.components, **settings, **parts}), self.guidance)


class Prompts:
    """A pipeline's `encode_prompt`, which knows how many images are drawn, and can encode equal prompts once.

    Args:
        pipeline: whose method it stands in for.
    """

    def __init__(self, pipeline: Any) -> None:
        self.steered: list[Rows] = []
        self._pipeline, self._original = pipeline, pipeline.encode_prompt
        self._signature = inspect.signature(self._original)
        self._kept, self._drawn = object(), object()  # what threads and tasks hold

    @property
    def images(self) -> int | None:
        """Return how many images this thread or task draws, by the embeddings that it encoded last."""
        return contexts.active().get(self._drawn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for rows in tuple(self.steered):
            rows.check_parts()
        kept = contexts.active().get(self._kept)
        if kept is None:
            encoded = self._original(*args, **kwargs)
        else:
            given = self._signature.bind(*args, **kwargs)
            given.apply_defaults()
            key = repr(given.arguments)
            if key not in kept:
                with torch.no_grad():
                    kept[key] = self._original(*args, **kwargs)
            encoded = kept[key]
        first = encoded[0] if isinstance(encoded, (tuple, list)) else encoded
        contexts.activate(self._drawn, len(first) if isinstance(first, torch.Tensor) else None)
        return encoded

    @contextmanager
    def keeping(self, kept: dict[str, Any]) -> Iterator[None]:
        """Within the block prompts that are in `kept` are not encoded again, and no gradient reaches the encoders."""
        before = contexts.active().get(self._kept)
        contexts.activate(self._kept, kept)
        try:
            yield
        finally:
            contexts.activate(self._kept, before)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # a copy of the pipeline encodes with its own encoders
        of_class: Any = type(self._pipeline)
        return MethodType(of_class.encode_prompt, memo[id(self._pipeline)])


class Rows:
    """Which rows of an activation belong to which image: those without the prompt come first, where it guides.

    Stands in for `lineas.steering.positions.Positions` and, as it is the same in every pass, for `Place`.

    Args:
        network: whose pipeline runs.
    """

    prompt_length = None

    def __init__(self, network: PipelineNetwork) -> None:
        self.roots = [network.denoiser]
        self._parts = dict(network.named_children())
        self._prompts, self._pipeline = network.prompts, network.pipeline
        self._prompts.steered.append(self)

    @property
    def shared(self) -> Rows:
        """The same for all threads."""
        return self

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows:
        """The same in every pass."""
        return self

    def called_alone(self) -> Rows:
        """The same in every part."""
        return self

    def check_parts(self) -> None:
        """Refuse to draw with a part that was put into the pipeline after it was steered.

        Raises:
            LineasError: naming the part.
        """
        other = [name for name, part in self._parts.items() if getattr(self._pipeline, name, None) is not part]
        if other:
            raise LineasError(
                f"the pipeline has another {other[0]} than the one that is steered; detach, and steer it anew."
            )

    def chosen(self, tokens: str) -> None:
        """All pixels are meant."""

    def by_row(self, z: torch.Tensor) -> torch.Tensor:
        """The activation as it is, `[rows, ...]`."""
        return z

    def repeated(self, x: torch.Tensor, n: int, what: str = "strengths") -> torch.Tensor:
        """One entry an image, `[images, ...]` or `[1, ...]`, as one a row of n."""
        given = x.shape[0]
        twice = given == self._prompts.images and n == 2 * given
        if given not in (1, n) and not twice:
            raise LineasError(f"{given} {what} were given for {n} rows; give one an image.")
        return x.repeat(2 if twice else n // given, *[1] * (x.dim() - 1))

    def remove(self) -> None:
        """Stop watching the pipeline's parts; may be repeated."""
        if self in self._prompts.steered:
            self._prompts.steered.remove(self)


def call(pipeline: Any, **arguments: Any) -> Any:
    """The first thing that a pipeline gives for a call, with gradients where they are enabled.

    A pipeline's own loop, scheduler, guidance and prompt encoding run, without the `no_grad` they are wrapped in; the
    denoiser's output is cut off from its graph, so that gradients stay within a step.
    """
    denoiser = next(getattr(pipeline, name) for name in DENOISERS if getattr(pipeline, name, None) is not None)
    if "clean_caption" in inspect.signature(type(pipeline).__call__).parameters:  # else PixArt warns at every call
        arguments.setdefault("clean_caption", find_spec("bs4") is not None and find_spec("ftfy") is not None)
    key = object()
    handle = denoiser.register_forward_hook(contexts.Scoped(key, _cut))
    shown = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        with contexts.activated(key):
            return inspect.unwrap(type(pipeline).__call__)(pipeline, **arguments, return_dict=False)[0]
    finally:
        handle.remove()
        pipeline._progress_bar_config = shown or {}


def _cut(module: nn.Module, args: Any, result: Any) -> Any:
    """A result without its graph."""
    if isinstance(result, torch.Tensor):
        return result.detach()
    if isinstance(result, dict):  # ModelOutput
        return type(result)(**{key: value.detach() for key, value in result.items()})
    return tuple(value.detach() if isinstance(value, torch.Tensor) else value for value in result)
