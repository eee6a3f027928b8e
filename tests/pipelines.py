"""Tiny random text-to-image pipelines of every family the tests cover, and tiny tokenizers; nothing is downloaded."""

# pyright: reportPrivateImportUsage=false
# (diffusers loads what it exports when that is asked for)

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import lineas

PROMPTS = ["a red circle", "a blue square on the left", "two green stars", "a small yellow moon at night"]
OTHER_PROMPTS = ["a striped circle", "a striped square on the left", "striped stars", "a striped moon", "stripes"]
WIDTH = 16


def clip_tokenizer() -> Any:
    """Byte-level characters as tokens, 77 at most, as CLIP's."""
    with tempfile.TemporaryDirectory() as folder:
        letters = [chr(i) for i in range(33, 127)]
        words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        (Path(folder) / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=77)


def t5_tokenizer() -> Any:
    """The same letters for a T5."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {chr(i): i - 30 for i in range(33, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def clip_encoder(projects: bool = False, width: int = 2 * WIDTH) -> Any:
    """A CLIP text encoder of two layers."""
    config = transformers.CLIPTextConfig(
        vocab_size=200, hidden_size=width, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, bos_token_id=188, eos_token_id=189, pad_token_id=1, hidden_act="gelu",
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel)(config)


def t5_encoder() -> Any:
    """A T5 encoder of two layers."""
    config = transformers.T5Config(
        vocab_size=100, d_model=2 * WIDTH, d_ff=37, d_kv=8, num_layers=2, num_heads=4, relative_attention_num_buckets=8
    )
    return transformers.T5EncoderModel(config)


def vae(channels: int = 4) -> Any:
    """An autoencoder that halves each side once."""
    return diffusers.AutoencoderKL(
        block_out_channels=[WIDTH, 2 * WIDTH], in_channels=3, out_channels=3, latent_channels=channels,  # pyright: ignore[reportArgumentType]
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=8,  # pyright: ignore[reportArgumentType]
        shift_factor=0.1, scaling_factor=0.5,
    )  # fmt: skip


def unet(**more: Any) -> Any:
    """A U-Net of two levels, with attention in one."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(WIDTH, 2 * WIDTH), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH, norm_num_groups=4, attention_head_dim=8, **more,
    )  # fmt: skip


def stable_diffusion() -> Any:
    """Stable Diffusion 1."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), unet=unet(), scheduler=scheduler,  # pyright: ignore[reportArgumentType]
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def stable_diffusion_xl() -> Any:
    """SDXL."""
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip_encoder(width=WIDTH), text_encoder_2=clip_encoder(True, WIDTH),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), scheduler=diffusers.EulerDiscreteScheduler(),  # pyright: ignore[reportArgumentType]
        unet=unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + WIDTH, use_linear_projection=True,
        ),
    )  # fmt: skip


def stable_diffusion_3() -> Any:
    """Stable Diffusion 3."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=2 * WIDTH, joint_attention_dim=2 * WIDTH, pooled_projection_dim=4 * WIDTH,
        out_channels=4, qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(),
        text_encoder=clip_encoder(True), tokenizer=clip_tokenizer(), text_encoder_2=clip_encoder(True),
        tokenizer_2=clip_tokenizer(), text_encoder_3=t5_encoder(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux() -> Any:
    """FLUX."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, pooled_projection_dim=2 * WIDTH, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_encoder(), tokenizer_2=t5_tokenizer(), vae=vae(),
        transformer=transformer,
    )  # fmt: skip


def pixart() -> Any:
    """PixArt-alpha."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        transformer=transformer, scheduler=diffusers.DPMSolverMultistepScheduler(), vae=vae(),
        text_encoder=t5_encoder(), tokenizer=t5_tokenizer(),
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {
    "stable diffusion 1": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "stable diffusion 3": stable_diffusion_3,
    "flux": flux,
    "pixart": pixart,
}


def pipeline(family: str) -> Any:
    """A pipeline of a family, with the same random weights every time."""
    torch.manual_seed(0)
    made = FAMILIES[family]()
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):  # modulations start at zero, and would hide everything
            for parameter in part.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
    return made


@cache
def image_model(family: str) -> lineas.ImageModel:
    """A family's pipeline that draws in two steps; shared, so leave it as it is."""
    size = None if family == "pixart" else (32, 32)
    return lineas.ImageModel(pipeline(family), family, steps=2, size=size)
