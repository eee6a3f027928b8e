"""Folding into pipelines: what a time step modulates, group norms, convolutions; the folded pipeline draws the same."""

# pyright: reportPrivateImportUsage=false
# (diffusers loads what it exports when that is asked for)

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pipelines
import pytest
import torch
from pipelines import PROMPTS, image_model
from torch import nn

import lineas
from lineas import AffineMap, Intervention, LineasError
from lineas.folding.slots import folding, slots
from lineas.learning.capture import capture
from lineas.sites import Site

FOLDABLE = ["stable diffusion 1", "sdxl", "stable diffusion 3", "flux"]
INNER = {
    "stable diffusion 1": r"unet\..*(\.norm\d?|conv1|conv_out|to_out\.0|ff\.net\.2)",
    "sdxl": r"unet\..*(proj_in|proj_out|conv_shortcut|time_emb_proj|to_q)",
    "stable diffusion 3": r"transformer\..*(norm1|norm1_context|norm_out)(\.norm)?|transformer\..*(to_out\.0|norm2)",
    "flux": r"transformer\..*(\.norm|\.norm\.norm|norm1\.norm|norm2|norm2_context|norm_out\.norm|proj_mlp|x_embedder)",
}


def random_maps(model: lineas.ImageModel, sites: list[Site]) -> Intervention:
    """Maps far from the identity."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        widths = {name: z.shape[-1] for name, z in capture(model, model.batch(PROMPTS[:1]), sites).items()}
    noise = {name: 0.2 * torch.randn(2, width, generator=generator) for name, width in widths.items()}
    maps = {name: AffineMap(1 + scale, shift) for name, (scale, shift) in noise.items()}
    return Intervention(maps, {site.name: site for site in sites}, None, {})


def latents(model: Any) -> torch.Tensor:
    return torch.stack(model.generate(PROMPTS[:2], output_type="latent"))


def agree(folded: torch.Tensor, live: torch.Tensor) -> bool:
    return float((folded - live).abs().max()) <= 1e-5 * float(live.abs().max())


@pytest.mark.filterwarnings("ignore:strength -1.5 is outside 0 to 1")
@pytest.mark.parametrize("strength", [0.6, -1.5])
@pytest.mark.parametrize("family", FOLDABLE)
def test_a_folded_pipeline_draws_what_the_live_one_draws(family: str, strength: float) -> None:
    model = image_model(family)
    steering = random_maps(model, model.sites())
    plain = latents(model)
    with lineas.steer(model, steering, strength=strength):
        live = latents(model)
    folded = lineas.fold(model, steering, strength)
    assert not agree(plain, live)
    assert agree(latents(folded), live)
    assert torch.equal(latents(model), plain)  # the model itself is left as it was


@pytest.mark.parametrize("family", FOLDABLE)
def test_inner_norms_linears_and_convolutions_fold_all_at_once(family: str) -> None:
    model = image_model(family)
    sites = [site for site in model.sites(INNER[family]) if folding(model.network, site) == "exact"]
    kinds = {type(model.network.get_submodule(site.module)).__name__ for site in sites}
    assert len(kinds) > 1
    steering = random_maps(model, sites)
    with lineas.steer(model, steering, strength=0.5):
        live = latents(model)
    assert agree(latents(lineas.fold(model, steering, 0.5)), live)


def test_what_all_blocks_share_cannot_take_a_map() -> None:
    model = image_model("pixart")
    steering = random_maps(model, model.sites())
    with pytest.raises(LineasError, match=r"5 of 5 sites do not fold: transformer.*no linear of its own modulates it"):
        lineas.fold(model, steering)
    linears = random_maps(model, model.sites(r"transformer\..*attn2\.to_out\.0"))
    with lineas.steer(model, linears):
        live = latents(model)
    assert agree(latents(lineas.fold(model, linears)), live)


def test_a_norm_that_feeds_two_attentions_stays_live() -> None:
    """Stable Diffusion 3.5's first norm is modulated twice: its inner norm has no chunk of its own."""
    block = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=16, pooled_projection_dim=8, dual_attention_layers=(0,),
    )  # fmt: skip
    network = nn.ModuleDict({"transformer": block})
    name = "transformer.transformer_blocks.0.norm1"
    assert slots(network, Site(f"{name}.norm")).kind == "no"
    assert slots(network, Site(name)).kind == "exact"


@pytest.mark.filterwarnings("ignore:nothing was learned.*")
def test_foldable_learning_keeps_to_what_folds() -> None:
    model = image_model("flux")
    learned = lineas.learn(model, PROMPTS, PROMPTS[::-1], lineas.LinEAS(steps=2, foldable=True), progress=False)
    assert set(learned.facts["folds"].values()) == {"exact"}
    with pytest.raises(LineasError, match="do not fold, leave them out"):
        lineas.learn(
            image_model("pixart"), PROMPTS, PROMPTS[::-1], lineas.LinEAS(steps=2, foldable=True), progress=False
        )


def test_a_folded_pipeline_is_a_plain_folder_of_diffusers(tmp_path: Path) -> None:
    model = image_model("sdxl")
    steering = random_maps(model, model.sites())
    folded = lineas.fold(model, steering, 0.5)
    folded.save_pretrained(tmp_path / "folded")
    read: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "folded")
    made = read(
        PROMPTS[:2], num_inference_steps=2, height=32, width=32, output_type="latent",
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
    ).images  # fmt: skip
    torch.testing.assert_close(made, latents(folded))
    assert "made_by" in (tmp_path / "folded" / "lineas.json").read_text()
    assert folded.provenance is not None
    assert folded.provenance["architecture"] == "UNet2DConditionModel"


@pytest.mark.filterwarnings("ignore:.* scales are lost to bfloat16")
def test_half_precision_is_rounded_once() -> None:
    pipe = pipelines.pipeline("flux").to(torch.bfloat16)
    model = lineas.ImageModel(pipe, steps=1, size=(32, 32))
    steering = random_maps(model, model.sites())
    folded: Any = lineas.fold(model, steering).network.denoiser.norm_out.linear  # pyright: ignore[reportAttributeAccessIssue]
    linear, map_ = pipe.transformer.norm_out.linear, steering.maps["transformer.norm_out"]
    exact = (linear.weight.float()[:32] * map_.scale.unsqueeze(1)).bfloat16()
    assert torch.equal(folded.weight[:32], exact)
