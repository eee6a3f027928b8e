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
"""The halves of a batch that are steered: with classifier-free guidance the denoiser runs with and without the prompt.
"none" draws without guidance."""
DENOISERS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class PipelineNetwork(nn.Module):
    """The parts of a pipeline that sites can name: `unet.` or `transformer.`, and `text_encoder.`, `text_encoder_2.`...

    The modules are the pipeline's own, so a hook on one acts whenever the pipeline is called.
    """

    def __init__(self, pipeline: Any, guidance: Guidance = "both") -> None:
        super().__init__()
        if guidance not in get_args(Guidance):
            raise LineasError(f"guidance is one of {', '.join(map(repr, get_args(Guidance)))}, not {guidance!r}.")
        names = [name for name in DENOISERS if isinstance(getattr(pipeline, name, None), nn.Module)]
        if not names or not hasattr(pipeline, "encode_prompt"):
            raise LineasError(
                f"a {type(pipeline).__name__} is no text-to-image pipeline with a U-Net or a transformer that denoises."
            )
        self.denoiser_name = names[0]
        self.guidance: Guidance = guidance
        if not isinstance(pipeline.encode_prompt, Prompts):
            vars(pipeline)["encode_prompt"] = Prompts(pipeline)
        self.prompts: Prompts = pipeline.encode_prompt
        self.pipeline = pipeline
        self._look_up()

    def _look_up(self) -> None:
        """Look up the pipeline's current parts, since one may have been replaced."""
        for name in (self.denoiser_name, *ENCODERS):
            part = getattr(self.pipeline, name, None)
            if isinstance(part, nn.Module):
                self._modules[name] = part
            else:
                self._modules.pop(name, None)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Generator[Any, Any, Any]:
        """Yield the pipeline's current parts and all modules in them, with their names."""
        self._look_up()
        return super().named_modules(memo, prefix, remove_duplicate)

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module by its name, from the pipeline's current parts."""
        self._look_up()
        return super().get_submodule(target)

    @property
    def denoiser(self) -> nn.Module:
        """The U-Net or transformer, which identifies the network in any pipeline."""
        return self.get_submodule(self.denoiser_name)

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Call the pipeline with its own arguments, such as `prompt`, and return the latents."""
        return call(self.pipeline, **{"num_inference_steps": 2, "output_type": "latent"} | inputs)

    def positions(self, tokens: str) -> Rows:
        """Return the assignment of rows to prompts, which `steer` uses."""
        if tokens != "all":
            raise LineasError(f"an image is steered as a whole: tokens='all', not {tokens!r}.")
        return Rows(self)

    def edit_rows(self, site: Site, edit: Edit, z: torch.Tensor) -> torch.Tensor:
        """Return an activation with an edit applied to the rows that `guidance` selects.

        With two rows per image, the last half is conditional; else all rows are, since guidance may end early.
        """
        in_denoiser = f"{site.module}.".startswith(f"{self.denoiser_name}.")  # else in a text encoder
        if self.guidance != "conditional" or not in_denoiser:
            return edit(z)
        images, rows = self.prompts.images, z.shape[0]
        if images is None or rows not in (images, 2 * images):
            drawn = "no prompt was encoded" if images is None else f"{images} images"
            raise LineasError(
                f"guidance='conditional' cannot tell which of the {rows} rows at {site.name} have a prompt ({drawn}); "
                "draw through the pipeline, or steer with guidance='both'."
            )
        if rows == images:
            return edit(z)
        unconditional, conditional = z.chunk(2)
        after = edit(conditional)
        return z if after is conditional else torch.cat([unconditional, after])

    def __deepcopy__(self, memo: dict[int, Any]) -> PipelineNetwork:
        """Return a new pipeline with copies of these parts, which shares decoder and scheduler with the old one."""
        parts = {name: copy.deepcopy(part, memo) for name, part in self.named_children()}
        kind, config = type(self.pipeline), self.pipeline.config
        names = inspect.signature(kind.__init__).parameters.keys() - {"self"}
        settings = {name: config[name] for name in names & config.keys() - self.pipeline.components.keys()}
        return PipelineNetwork(kind(**{**self.pipeline.components, **settings, **parts}), self.guidance)


class Prompts:
    """A wrapper of a pipeline's `encode_prompt` that counts the images to draw and can cache embeddings."""

    def __init__(self, pipeline: Any) -> None:
        self.steered: list[Rows] = []
        self._pipeline, self._original = pipeline, pipeline.encode_prompt
        self._signature = inspect.signature(self._original)
        self._cache_key, self._images_key = object(), object()  # keys in `contexts`, with values per thread or task

    @property
    def images(self) -> int | None:
        """The number of images that this thread or task draws, by its latest embeddings; None if unknown."""
        return contexts.active().get(self._images_key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for rows in tuple(self.steered):
            rows.check_parts()
        if (cache := contexts.active().get(self._cache_key)) is None:
            encoded = self._original(*args, **kwargs)
        else:
            call_args = self._signature.bind(*args, **kwargs)
            call_args.apply_defaults()
            key = repr(call_args.arguments)
            if key not in cache:
                with torch.no_grad():
                    cache[key] = self._original(*args, **kwargs)
            encoded = cache[key]
        first = encoded[0] if isinstance(encoded, (tuple, list)) else encoded
        contexts.activate(self._images_key, len(first) if isinstance(first, torch.Tensor) else None)
        return encoded

    @contextmanager
    def caching(self, cache: dict[str, Any]) -> Iterator[None]:
        """Reuse the embeddings in `cache` within the block, and add new ones; encoders get no gradients."""
        before = contexts.active().get(self._cache_key)
        contexts.activate(self._cache_key, cache)
        try:
            yield
        finally:
            contexts.activate(self._cache_key, before)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # so that a copied pipeline uses its own encoders
        of_class: Any = type(self._pipeline)
        return MethodType(of_class.encode_prompt, memo[id(self._pipeline)])


class Rows:
    """The image that each row of an activation belongs to; with guidance, rows without the prompt come first.

    It replaces `lineas.steering.positions.Positions` and, being the same in every pass, `Place`.
    """

    prompt_length = None

    def __init__(self, network: PipelineNetwork) -> None:
        self.roots = [network.denoiser]
        self._parts = dict(network.named_children())
        self._prompts, self._pipeline = network.prompts, network.pipeline
        self._prompts.steered.append(self)

    @property
    def shared(self) -> Rows:
        """This object, for all threads."""
        return self

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rows:
        return self

    def called_alone(self) -> Rows:
        return self

    def check_parts(self) -> None:
        """Refuse to draw with a part that was put into the pipeline after it was steered."""
        if replaced := [name for name, part in self._parts.items() if getattr(self._pipeline, name, None) is not part]:
            raise LineasError(
                f"the pipeline has another {replaced[0]} than the one that is steered; detach, and steer it again."
            )

    def chosen(self, tokens: str) -> None:
        """Return None, which stands for all pixels."""

    def by_row(self, z: torch.Tensor) -> torch.Tensor:
        """Return the activation unchanged, `[rows, ...]`."""
        return z

    def repeated(self, x: torch.Tensor, n: int, what: str = "strengths") -> torch.Tensor:
        """Repeat each image's entry for all of its rows; see `Place.repeated`."""
        entries = x.shape[0]
        twice = entries == self._prompts.images and n == 2 * entries
        if entries not in (1, n) and not twice:
            raise LineasError(f"{entries} {what} were given for {n} rows; give one per image.")
        return x.repeat(2 if twice else n // entries, *[1] * (x.dim() - 1))

    def remove(self) -> None:
        """Stop checking the pipeline's parts; does nothing at the second call."""
        if self in self._prompts.steered:
            self._prompts.steered.remove(self)


def call(pipeline: Any, **arguments: Any) -> Any:
    """Call a pipeline without its `no_grad`, and return the first value of its result.

    The denoiser's output is detached, so that gradients stay within a step.
    """
    denoiser = next(getattr(pipeline, name) for name in DENOISERS if getattr(pipeline, name, None) is not None)
    if "clean_caption" in inspect.signature(type(pipeline).__call__).parameters:  # PixArt warns if this is not set
        arguments.setdefault("clean_caption", find_spec("bs4") is not None and find_spec("ftfy") is not None)
    key = object()
    bar_config = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        with denoiser.register_forward_hook(contexts.Scoped(key, _detached)), contexts.activated(key):
            return inspect.unwrap(type(pipeline).__call__)(pipeline, **arguments, return_dict=False)[0]
    finally:
        pipeline._progress_bar_config = bar_config or {}


def _detached(module: nn.Module, args: Any, result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.detach()
    if isinstance(result, dict):  # ModelOutput
        return type(result)(**{key: value.detach() for key, value in result.items()})
    return tuple(value.detach() if isinstance(value, torch.Tensor) else value for value in result)
