"""ImageModel: a text-to-image pipeline of diffusers; batches of prompts, runs for capture, pictures."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lineas.checks import DENOISING_STEPS, GUIDANCE, SEED, SIDE, TOGETHER, as_seed, as_texts
from lineas.errors import DESTROYED, LineasError, reading
from lineas.files import strict_json, writing
from lineas.models import checkpoint
from lineas.models.image_batches import AREA, DrawnPart, seeds_of
from lineas.models.pipeline import ENCODERS, Guidance, PipelineNetwork, call
from lineas.models.read_back import read_alike, verify_pipeline
from lineas.models.samples import Batch, Samples
from lineas.modules import input_device, weights_type
from lineas.sites import Site, find_sites, norm_sites

SETTINGS = "drawing.json"
"""Beside a pipeline's own files: how it is meant to draw."""
FEW_STEPS = {"turbo": 1, "dmd": 1, "lightning": 4, "schnell": 4, "lcm": 4, "hyper": 4}
"""Steps of distilled models, which draw without guidance, by a word in their names."""


class ImageModel:
    """A text-to-image pipeline of diffusers.

    Args:
        pipeline: such as `StableDiffusionXLPipeline.from_pretrained(...)`; its weights are never changed.
        name: hub id or folder; by default what the pipeline says.
        revision: the hub commit, where known.
        steps: denoising steps, while learning as well; by default 1 to 4 for models whose names say that they are
            distilled (turbo, lightning, lcm, ...), else what the pipeline does by itself.
        guidance_scale: of classifier-free guidance; by default 0 for distilled models, else the pipeline's own.
        guidance: which halves of a guided batch are steered: "both", the "conditional" one, or "none" to draw without.
        size: height and width in pixels; by default the pipeline's own.
        seed: of the noise of each prompt while learning.
        options: further arguments of the pipeline's call, such as `{"timesteps": [399]}` for DMD2's single step.

    Raises:
        LineasError: when it is no text-to-image pipeline, or a setting makes no sense.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str | None = None,
        revision: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: Guidance = "both",
        size: tuple[int, int] | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = PipelineNetwork(pipeline, guidance).eval()
        self.pipeline = pipeline
        self.name = name or str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)
        self.revision = revision
        defaults = inspect.signature(type(pipeline).__call__).parameters
        few = _few_steps(self.name)
        self.steps = steps if steps is not None else few or int(defaults["num_inference_steps"].default)
        if guidance == "none" or (guidance_scale is None and few):
            guidance_scale = 0.0
        own = defaults["guidance_scale"].default if "guidance_scale" in defaults else 0.0
        self.guidance_scale = float(own if guidance_scale is None else guidance_scale)
        self.guidance: Guidance = guidance
        self.size = size
        self.seed = seed
        self.options = dict(options or {})
        self.judge: str | None = None  # a folder with a judge of its pictures, where it comes with one
        self.provenance: dict[str, Any] | None = None  # of a folded model: what is in its weights
        DENOISING_STEPS.check("steps", self.steps)
        GUIDANCE.check("guidance_scale", self.guidance_scale)
        SEED.check("seed", self.seed)
        if size is not None and (not isinstance(size, (tuple, list)) or len(size) != 2):
            raise LineasError(f"a size is height and width in pixels, such as (512, 768), not {size!r}.")
        for side in size or ():
            SIDE.check("a side of the size", side)

    def __repr__(self) -> str:
        return (
            f"ImageModel({self.name}, {type(self.pipeline).__name__}, {self.steps} steps, {self.dtype}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return input_device(self.network.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the denoiser's weights."""
        return weights_type(self.network.denoiser)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides, beside the prompts, what an image activates."""
        settings: dict[str, Any] = {"steps": self.steps, "guidance_scale": self.guidance_scale}
        settings["guidance"] = self.guidance
        settings |= {"size": self.size, "seed": self.seed, **self.options}
        return {"drawing": {**settings, "pipeline": type(self.pipeline).__name__, "diffusers": version("diffusers")}}

    def sites(self, pattern: str | Sequence[str] | None = None) -> list[Site]:
        """The sites a pattern names, of the denoiser and of the text encoders; None: all norms of the denoiser."""
        return norm_sites(self.network, self.network.denoises) if pattern is None else find_sites(self.network, pattern)

    def default_sites(self, pattern: str | None) -> list[Site]:
        """All norms of the denoiser, whatever a method acts on in texts."""
        return self.sites()

    def with_network(self, network: nn.Module) -> ImageModel:
        """The same model with another network, such as a folded one."""
        assert isinstance(network, PipelineNetwork)
        return self._with(network.pipeline)

    def set(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: Guidance | None = None,
        size: tuple[int, int] | None = None,
    ) -> ImageModel:
        """The same pipeline with other settings; None leaves one as it is."""
        given = {"steps": steps, "guidance_scale": guidance_scale, "guidance": guidance, "size": size}
        return self._with(self.pipeline, **{name: value for name, value in given.items() if value is not None})

    def _with(self, pipeline: Any, **settings: Any) -> ImageModel:
        same = ("name", "revision", "steps", "guidance_scale", "guidance", "size", "seed", "options")
        made = ImageModel(pipeline, **{name: getattr(self, name) for name in same} | settings)
        made.judge = self.judge
        return made

    def save_pretrained(self, folder: str | Path, overwrite: bool = False, max_shard_size: str | int = "10GB") -> Path:
        """Write a pipeline that diffusers reads.

        Args:
            folder: to be made; it is there whole or not at all.
            overwrite: replace a pipeline that is there.
            max_shard_size: of a file of weights.

        Raises:
            LineasError: when the folder exists and is not to be replaced, or is no pipeline.
        """
        folder = Path(folder)
        with writing.new_folder(folder, checkpoint.KIND, overwrite) as beside:
            self.pipeline.save_pretrained(beside, max_shard_size=max_shard_size)
            verify_pipeline(beside, self.pipeline)
            read_alike(beside, self.pipeline)
            settings = {"steps": self.steps, "guidance_scale": self.guidance_scale}
            writing.write_text(beside / SETTINGS, strict_json.dumps(settings) + "\n")
            if self.provenance:
                text = strict_json.dumps(self.provenance) + "\n"
                writing.write_text(beside / checkpoint.PROVENANCE, text)
                writing.write_text(beside / checkpoint.CARD, checkpoint.card(self.provenance, "diffusers"))
        return folder

    def batch(self, prompts: Sequence[str], max_length: int = 128, limit: int | None = None) -> Batch[DrawnPart]:
        """Prompts with their noise.

        Args:
            prompts: at least one.
            max_length: has no effect here; the text encoders cut prompts at a length of their own.
            limit: tokens of a part, which runs at once; None for no limit.

        Raises:
            LineasError: when there is no prompt.
        """
        return self.samples(prompts, max_length).batch(limit)

    def samples(self, prompts: Sequence[str], max_length: int = 128) -> Samples[DrawnPart]:
        """Give prompts their noise, for batches as `batch` makes them.

        Args:
            prompts: at least one.
            max_length: has no effect here; the text encoders cut prompts at a length of their own.

        Raises:
            LineasError: when there is no prompt.
        """
        if not prompts:
            raise LineasError("a batch needs at least one prompt, none was given.")
        as_texts("the prompts", prompts)
        self._warn_of_unknown(prompts)
        seeds, tokens = seeds_of(prompts, self.seed), self._tokens

        def in_parts(rows: Sequence[int], limit: int | None) -> list[DrawnPart]:
            at_once = len(rows) if limit is None else max(1, limit // tokens)
            parts = []
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                drawn = [prompts[i] for i in some], [seeds[i] for i in some]
                at = torch.arange(start, start + len(some), device=self.device)
                parts.append(DrawnPart(*drawn, at, self.network.denoises, tokens))
            return parts

        return Samples(prompts, *self._read(prompts), in_parts)

    def run(self, part: DrawnPart) -> None:
        """Draw a part, without decoding it; what is wanted of it is read by hooks, so nothing is returned."""
        encoders = [getattr(self.network, name, None) for name in ENCODERS]
        hooked = any(m._forward_hooks for encoder in encoders if encoder is not None for m in encoder.modules())
        with nullcontext() if hooked else self.network.prompts.keeping(part.encoded):
            self._call(part.prompts, part.seeds, "latent")

    def generate(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        batch_size: int = 4,
        progress: Callable[[int], None] | None = None,
        output_type: str = "pil",
    ) -> list[Any]:
        """Draw each prompt; the same seed gives the same pictures.

        Args:
            prompts: texts to draw.
            seed: of the first prompt's noise; the next has the next one.
            batch_size: prompts that are drawn together.
            progress: called with the number of prompts done.
            output_type: "pil", or "pt" and "np" for numbers from 0 to 1.

        Returns:
            one picture a prompt, in their order.

        Raises:
            LineasError: when the network's predictions are not finite, or the pipeline cannot draw.
        """
        prompts = as_texts("the prompts", prompts)
        seed, batch_size = SEED.check("seed", seed), TOGETHER.check("batch_size", batch_size)
        self._warn_of_unknown(prompts)
        pictures: list[Any] = []
        with torch.no_grad():
            for start in range(0, len(prompts), batch_size):
                some = list(prompts[start : start + batch_size])
                pictures += self._drawn(some, [as_seed(seed + start + i) for i in range(len(some))], output_type)
                if progress:
                    progress(len(some))
        return pictures

    def _drawn(self, prompts: list[str], seeds: Sequence[int], output_type: str) -> list[Any]:
        """Pictures, unless they are made of what is no number, which a picture would show as one colour."""
        numbers = "np" if output_type == "pil" else output_type
        with reading(f"{self.name} could not draw"), _watched(self.network.denoiser) as finite:
            made = self._call(prompts, seeds, numbers)
        if not all(map(bool, finite)) or not all(bool(torch.as_tensor(one).isfinite().all()) for one in made):
            raise LineasError(DESTROYED)
        return list(self.pipeline.numpy_to_pil(made) if output_type == "pil" else made)

    def _call(self, prompts: list[str], seeds: Sequence[int], output_type: str) -> Any:
        size = {} if self.size is None else {"height": self.size[0], "width": self.size[1]}
        return call(
            self.pipeline,
            prompt=prompts,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            output_type=output_type,
            **size,
            **self.options,
        )

    @property
    def _tokens(self) -> int:
        """What an image counts as, in the tokens of texts."""
        config: Any = self.network.denoiser.config
        sides = getattr(config, "sample_size", None) or getattr(self.pipeline, "default_sample_size", 64)
        height, width = sides if isinstance(sides, (tuple, list)) else (sides, sides)
        if self.size is not None:
            factor = getattr(self.pipeline, "vae_scale_factor", 8)
            height, width = self.size[0] // factor, self.size[1] // factor
        return max(1, height * width // AREA)

    def _warn_of_unknown(self, prompts: Sequence[str]) -> None:
        """Tell of words that are no tokens, in tokenizers of few words."""
        tokenizer: Any = getattr(self.pipeline, "tokenizer", None)
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None or unknown == tokenizer.eos_token_id:
            return
        words = dict.fromkeys(word for prompt in prompts for word in prompt.split())
        lost = [word for word in words if unknown in tokenizer(word, add_special_tokens=False).input_ids]
        if lost:
            warnings.warn(f"{self.name} does not know {', '.join(lost)}.", stacklevel=3)

    def _read(self, prompts: Sequence[str]) -> tuple[int, int]:
        """How many prompts are longer than the first text encoder reads, and how many tokens it reads."""
        tokenizer: Any = getattr(self.pipeline, "tokenizer", None)
        longest = int(getattr(tokenizer, "model_max_length", 0))
        return sum(len(tokenizer(prompt).input_ids) > longest for prompt in prompts) if longest else 0, longest


@contextmanager
def _watched(denoiser: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the block, of every pass of a denoiser, whether all that it predicts is finite."""
    finite: list[torch.Tensor] = []

    def look(module: nn.Module, args: Any, result: Any) -> None:
        values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]
        finite.extend(value.isfinite().all() for value in values if isinstance(value, torch.Tensor))

    handle = denoiser.register_forward_hook(look)
    try:
        yield finite
    finally:
        handle.remove()


def _few_steps(name: str) -> int | None:
    """The steps of a distilled model, by its name."""
    words = name.lower()
    return next((steps for word, steps in FEW_STEPS.items() if word in words), None)
