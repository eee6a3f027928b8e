"""Pipelines that share a text-to-image pipeline's parts: image to image, inpainting, ControlNet."""

# pyright: reportPrivateImportUsage=false
# (diffusers loads what it exports when that is asked for)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from pipelines import OTHER_PROMPTS, PROMPTS, image_model

import lineas

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
MASK = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) // 16 * 255, (32, 1)))
"""The right half is to be drawn."""


def image_to_image(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    return diffusers.AutoPipelineForImage2Image.from_pipe(pipeline), {"image": PICTURE, "strength": 0.75}


def inpainting(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    made = diffusers.AutoPipelineForInpainting.from_pipe(pipeline)
    return made, {"image": PICTURE, "mask_image": MASK, "strength": 1.0, "height": 32, "width": 32}


def controlled(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    control = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(16, 32))
    made = diffusers.StableDiffusionControlNetPipeline(**pipeline.components, controlnet=control)
    return made, {"image": [PICTURE], "height": 32, "width": 32}


RELATED: list[Callable[[Any], tuple[Any, dict[str, Any]]]] = [image_to_image, inpainting, controlled]
related = pytest.mark.parametrize("related", RELATED, ids=lambda make: make.__name__)


def learned(model: lineas.ImageModel) -> lineas.Intervention:
    return lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.MeanAcT(), progress=False)


@related
def test_what_was_learned_on_text_to_image_steers_them(related: Any) -> None:
    model = image_model("stable diffusion 1")
    steering = learned(model)
    other, given = related(model.pipeline)
    given |= {"prompt": PROMPTS[:1], "num_inference_steps": 4, "output_type": "pt"}

    def drawn() -> torch.Tensor:
        return other(**given, generator=[torch.Generator().manual_seed(0)]).images

    plain = drawn()
    with lineas.steer(model, steering) as live:
        assert not torch.equal(drawn(), plain)
        live.strength = 0.0
        assert torch.equal(drawn(), plain)
    assert torch.equal(drawn(), plain)


@related
def test_they_are_models_of_their_own(related: Any) -> None:
    """Learned through, and steered on the half of a guided batch that has the prompt, a strength an image."""
    pipeline, given = related(pipelines.pipeline("stable diffusion 1"))
    model = lineas.ImageModel(pipeline, steps=4, guidance="conditional", options=given)
    found = lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.LinEAS(steps=5), progress=False)
    costs = found.facts["cost"]
    assert costs[-1] < costs[0]
    asked = PROMPTS[:1] if related is controlled else PROMPTS[:2]  # a ControlNet wants a picture a prompt
    plain = torch.stack(model.generate(asked, output_type="pt"))
    with lineas.steer(model, found, strength=torch.tensor([0.0, 1.0])[-len(asked) :]):
        steered = torch.stack(model.generate(asked, output_type="pt"))
    assert not torch.equal(steered[-1], plain[-1])
    assert torch.equal(steered[:-1], plain[:-1])  # strength 0, where two are drawn
