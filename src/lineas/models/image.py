"""ImageModel: a text-to-image pipeline of diffusers, with batches of prompts, runs for capture, and generation."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
from lineas.models.read_back import use_one_dtype, verify_pipeline
from lineas.models.samples import Batch, Samples
from lineas.modules import input_device, weights_type
from lineas.sites import Site, find_sites, norm_sites

SETTINGS = "drawing.json"
"""Name of the file with a pipeline's drawing settings, beside its own files."""
FEW_STEPS = {"turbo": 1, "dmd": 1, "lightning": 4, "schnell": 4, "lcm": 4, "hyper": 4}
"""Numbers of steps of distilled models, by a word in their names; these models draw without guidance."""


class ImageModel:
    """A text-to-image pipeline of diffusers.

    Args:
        pipeline: the pipeline, such as `StableDiffusionXLPipeline.from_pretrained(...)`; its weights are not changed.
        name: hub id or folder; by default the pipeline's own name.
        revision: the hub commit; None if unknown.
        steps: number of denoising steps, also for learning; by default 1 to 4 for models with a word such as turbo,
            lightning or lcm in their names, which are distilled, else the pipeline's own default.
        guidance_scale: scale of classifier-free guidance; by default 0 for distilled models, else the pipeline's own.
        guidance: the halves of a guided batch to steer: "both" (default) or "conditional"; "none" for no guidance.
        size: height and width in pixels; by default the pipeline's own.
        seed: seed of the prompts' noise during learning, default 0.
        options: further arguments of the pipeline's call, such as `{"timesteps": [399]}` for DMD2's single step.

    Raises:
        LineasError: when it is no text-to-image pipeline, or a setting is out of range.
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
        few = next((steps for word, steps in FEW_STEPS.items() if word in self.name.lower()), None)
        self.steps = steps if steps is not None else few or int(defaults["num_inference_steps"].default)
        if guidance == "none" or (guidance_scale is None and few):
            guidance_scale = 0.0
        own = defaults["guidance_scale"].default if "guidance_scale" in defaults else 0.0
        self.guidance_scale = float(own if guidance_scale is None else guidance_scale)
        self.guidance: Guidance = guidance
        self.size = size
        self.seed = seed
        self.options = dict(options or {})
        self.judge: str | None = None  # the folder of a judge of its images, if the model comes with one
        self.provenance: dict[str, Any] | None = None  # facts about the fold, for a folded model
        DENOISING_STEPS.check("steps", self.steps)
        GUIDANCE.check("guidance_scale", self.guidance_scale)
        SEED.check("seed", self.seed)
        if size is not None and (not isinstance(size, (tuple, list)) or len(size) != 2):
            raise LineasError(f"a size is height and width in pixels, such as (512, 768), not {size!r}.")
        for side in size or ():
            SIDE.check("a side of the size", side)

    def __repr__(self) -> str:
        kind = type(self.pipeline).__name__
        return f"ImageModel({self.name}, {kind}, {self.steps} steps, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """The denoiser's device."""
        return input_device(self.network.denoiser)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the denoiser's weights."""
        return weights_type(self.network.denoiser)

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that determine a prompt's activations."""
        settings = {name: getattr(self, name) for name in ("steps", "guidance_scale", "guidance", "size", "seed")}
        versions = {"pipeline": type(self.pipeline).__name__, "diffusers": version("diffusers")}
        return {"drawing": settings | self.options | versions}

    def sites(self, pattern: str | Sequence[str] | None = None) -> list[Site]:
        """Return the sites that match a pattern, in denoiser and text encoders; None for all norms of the denoiser."""
        network = self.network
        return norm_sites(network, network.denoiser_name) if pattern is None else find_sites(network, pattern)

    def default_sites(self, pattern: str | None) -> list[Site]:
        """Return all norms of the denoiser; a method's pattern is for text models."""
        return self.sites()

    def with_network(self, network: nn.Module) -> ImageModel:
        """Return the same model with another network, such as a folded one."""
        assert isinstance(network, PipelineNetwork)
        return self._with(network.pipeline)

    def set(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: Guidance | None = None,
        size: tuple[int, int] | None = None,
    ) -> ImageModel:
        """Return the same pipeline with other settings, as in `ImageModel`; None keeps a setting."""
        settings = {"steps": steps, "guidance_scale": guidance_scale, "guidance": guidance, "size": size}
        return self._with(self.pipeline, **{name: value for name, value in settings.items() if value is not None})

    def _with(self, pipeline: Any, **settings: Any) -> ImageModel:
        names = ("name", "revision", "steps", "guidance_scale", "guidance", "size", "seed", "options")
        model = ImageModel(pipeline, **{name: getattr(self, name) for name in names} | settings)
        model.judge = self.judge
        return model

    def save_pretrained(self, folder: str | Path, overwrite: bool = False, max_shard_size: str | int = "10GB") -> Path:
        """Write a pipeline that diffusers reads.

        Args:
            folder: the folder to write; after a failure there is none.
            overwrite: whether to replace a pipeline that is there; default False.
            max_shard_size: maximum size of a weights file, such as "10GB" (default) or a number of bytes.

        Raises:
            LineasError: when the folder exists and is not overwritten, or is no pipeline.
        """
        folder = Path(folder)
        with writing.new_folder(folder, checkpoint.KIND, overwrite) as beside:
            self.pipeline.save_pretrained(beside, max_shard_size=max_shard_size)
            verify_pipeline(beside, self.pipeline)
            use_one_dtype(beside, self.pipeline)
            settings = {"steps": self.steps, "guidance_scale": self.guidance_scale}
            (beside / SETTINGS).write_text(strict_json.dumps(settings) + "\n", encoding="utf-8")
            checkpoint.write_provenance(beside, self.provenance, "diffusers")
        return folder

    def batch(self, prompts: Sequence[str], max_length: int = 128, limit: int | None = None) -> Batch[DrawnPart]:
        """Return a batch of prompts with their noise.

        Args:
            prompts: one prompt or more.
            max_length: no effect, since text encoders cut prompts at their own length.
            limit: maximum number of tokens in a part, which runs at once; None for no limit.

        Raises:
            LineasError: when there is no prompt.
        """
        return self.samples(prompts, max_length).batch(limit)

    def samples(self, prompts: Sequence[str], max_length: int = 128) -> Samples[DrawnPart]:
        """Return prompts with their noise, from which batches are made as by `batch`.

        Args:
            prompts: one prompt or more.
            max_length: no effect, since text encoders cut prompts at their own length.

        Raises:
            LineasError: when there is no prompt.
        """
        if not prompts:
            raise LineasError("a batch needs at least one prompt, none was given.")
        as_texts("the prompts", prompts)
        self._warn_of_unknown(prompts)
        seeds, tokens = seeds_of(prompts, self.seed), self._tokens

        def in_parts(rows: Sequence[int], limit: int | None) -> list[DrawnPart]:
            parts = []
            for at in torch.arange(len(rows)).split(len(rows) if limit is None else max(1, limit // tokens)):
                some: list[int] = [rows[i] for i in at.tolist()]
                drawn = [prompts[i] for i in some], [seeds[i] for i in some]
                parts.append(DrawnPart(*drawn, at.to(self.device), self.network.denoiser_name, tokens))
            return parts

        return Samples(prompts, *self._read(prompts), in_parts)

    def run(self, part: DrawnPart) -> None:
        """Draw a part without decoding it; hooks read the activations."""
        encoders = [getattr(self.network, name, None) for name in ENCODERS]
        hooked = any(m._forward_hooks for encoder in encoders if encoder is not None for m in encoder.modules())
        with nullcontext() if hooked else self.network.prompts.caching(part.encoded):
            self._call(part.prompts, part.seeds, "latent")

    def predict(self, part: DrawnPart) -> torch.Tensor:
        """Return the denoiser's outputs in all steps, float32 `[b, k]`."""
        outputs: list[torch.Tensor] = []

        def record(module: nn.Module, args: Any, result: Any) -> None:
            output = result[0] if isinstance(result, tuple) else next(iter(result.values()))
            outputs.append(output.float().unflatten(0, (-1, len(part.prompts))).transpose(0, 1).flatten(1))

        with self.network.denoiser.register_forward_hook(record):
            self.run(part)
        return torch.cat(outputs, 1)

    def divergences(self, untouched: torch.Tensor, changed: torch.Tensor, part: DrawnPart) -> torch.Tensor:
        """Return half the mean square change of each image's predictions, relative to their mean square, `[b]`."""
        return (changed - untouched).square().mean(1) / untouched.square().mean(1) / 2

    def log_likelihoods(self, predicted: torch.Tensor, part: DrawnPart) -> None:
        """Return None, since a prompt has no picture whose likelihood could fall."""

    def sampled_score(self, predicted: torch.Tensor, part: DrawnPart, generator: torch.Generator) -> torch.Tensor:
        """Return a random projection, whose gradients have the Fisher information of `divergences` as covariance.

        Gradients stay within a denoising step, so what a change does to later steps is left out.
        """
        directions = torch.randn(predicted.shape, generator=generator).to(predicted)
        scales = predicted.detach().square().sum(1, keepdim=True).rsqrt()
        return (directions * scales * predicted).sum()

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
            prompts: the texts to draw.
            seed: seed of the first prompt's noise, default 0; the next prompt has the next seed.
            batch_size: number of prompts that are drawn together, default 4.
            progress: function that is called with the number of finished prompts after each batch.
            output_type: "pil" (default) for images, "pt" or "np" for arrays of numbers from 0 to 1.

        Returns:
            one picture per prompt, in order.

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
        """Draw prompts, and refuse values that are not finite, which an image would show as one colour."""
        array_type = "np" if output_type == "pil" else output_type
        finite: list[torch.Tensor] = []  # for each prediction of the denoiser

        def record(module: nn.Module, args: Any, result: Any) -> None:
            values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]
            finite.extend(value.isfinite().all() for value in values if isinstance(value, torch.Tensor))

        with reading(f"{self.name} could not draw"), self.network.denoiser.register_forward_hook(record):
            arrays = self._call(prompts, seeds, array_type)
        if not all(map(bool, finite)) or not all(bool(torch.as_tensor(one).isfinite().all()) for one in arrays):
            raise LineasError(DESTROYED)
        return list(self.pipeline.numpy_to_pil(arrays) if output_type == "pil" else arrays)

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
        """The number of tokens that an image counts as."""
        config: Any = self.network.denoiser.config
        sides = getattr(config, "sample_size", None) or getattr(self.pipeline, "default_sample_size", 64)
        height, width = sides if isinstance(sides, (tuple, list)) else (sides, sides)
        if self.size is not None:
            factor = getattr(self.pipeline, "vae_scale_factor", 8)
            height, width = self.size[0] // factor, self.size[1] // factor
        return max(1, height * width // AREA)

    def _warn_of_unknown(self, prompts: Sequence[str]) -> None:
        """Warn about words that the tokenizer does not know."""
        tokenizer: Any = getattr(self.pipeline, "tokenizer", None)
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is None or unknown == tokenizer.eos_token_id:
            return
        words = dict.fromkeys(word for prompt in prompts for word in prompt.split())
        if lost := [word for word in words if unknown in tokenizer(word, add_special_tokens=False).input_ids]:
            warnings.warn(f"{self.name} does not know {', '.join(lost)}.", stacklevel=3)

    def _read(self, prompts: Sequence[str]) -> tuple[int, int]:
        """Return the number of prompts that the first text encoder cuts, and the number of tokens that it reads."""
        tokenizer: Any = getattr(self.pipeline, "tokenizer", None)
        longest = int(getattr(tokenizer, "model_max_length", 0))
        return sum(len(tokenizer(prompt).input_ids) > longest for prompt in prompts) if longest else 0, longest
