"""A diffusion pipeline as one network: its denoiser and text encoders under the names that diffusers gives them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import MethodType
from typing import Any, Literal, get_args

import torch
from torch import nn

from lineas.edits import Edit
from lineas.errors import LineasError
from lineas.sites import Site

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
        self.pipeline, self.guidance = pipeline, guidance
        if not isinstance(pipeline.encode_prompt, Prompts):
            vars(pipeline)["encode_prompt"] = Prompts(pipeline)
        self.prompts: Prompts = pipeline.encode_prompt
        for name in (self.denoises, *ENCODERS):
            if isinstance(part := getattr(pipeline, name, None), nn.Module):
                self.add_module(name, part)

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
        """An activation with an edit on its conditional half alone, where that is what was asked for."""
        if self.guidance != "conditional" or not self.prompts.guided or not self.is_denoisers(site):
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
    """A pipeline's `encode_prompt`, which tells whether the pipeline guides, and can encode equal prompts once.

    Args:
        pipeline: whose method it stands in for.
    """

    def __init__(self, pipeline: Any) -> None:
        self.guided = False
        self._pipeline, self._original = pipeline, pipeline.encode_prompt
        self._signature = inspect.signature(self._original)
        self._kept: dict[str, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        self.guided = bool(given.arguments.get("do_classifier_free_guidance", False))
        if self._kept is None:
            return self._original(*args, **kwargs)
        key = repr(given.arguments)
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = self._original(*args, **kwargs)
        return self._kept[key]

    @contextmanager
    def keeping(self, kept: dict[str, Any]) -> Iterator[None]:
        """Within the block prompts that are in `kept` are not encoded again, and no gradient reaches the encoders."""
        before, self._kept = self._kept, kept
        try:
            yield
        finally:
            self._kept = before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # a copy of the pipeline encodes with its own encoders
        of_class: Any = type(self._pipeline)
        return MethodType(of_class.encode_prompt, memo[id(self._pipeline)])


class Rows:
    """Which rows of an activation belong to which image: those without the prompt come first, where it guides.

    Args:
        network: whose pipeline runs.
    """

    prompt_length = None

    def __init__(self, network: PipelineNetwork) -> None:
        self._network = network

    def chosen(self, tokens: str) -> None:
        """All pixels are meant."""

    def by_row(self, z: torch.Tensor) -> torch.Tensor:
        """The activation as it is, `[rows, ...]`."""
        return z

    def spread(self, x: torch.Tensor, n: int, what: str = "strengths") -> torch.Tensor:
        """One entry an image, `[images, ...]` or `[1, ...]`, as one a row of n."""
        twice = 2 if self._network.prompts.guided and n % 2 == 0 and n == 2 * x.shape[0] else 1
        if x.shape[0] not in (1, n // twice):
            raise LineasError(f"{x.shape[0]} {what} were given for {n} rows; give one an image.")
        return x.repeat(twice if x.shape[0] > 1 else n, *[1] * (x.dim() - 1))

    def remove(self) -> None:
        """Nothing was added."""


def call(pipeline: Any, **arguments: Any) -> Any:
    """The first thing that a pipeline gives for a call, with gradients where they are enabled.

    A pipeline's own loop, scheduler, guidance and prompt encoding run, without the `no_grad` they are wrapped in; the
    denoiser's output is cut off from its graph, so that gradients stay within a step.
    """
    denoiser = next(getattr(pipeline, name) for name in DENOISERS if getattr(pipeline, name, None) is not None)
    if "clean_caption" in inspect.signature(type(pipeline).__call__).parameters:  # else PixArt warns at every call
        arguments.setdefault("clean_caption", find_spec("bs4") is not None and find_spec("ftfy") is not None)
    handle = denoiser.register_forward_hook(_cut)
    shown = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
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
