"""Train the embedded image model: a small Stable Diffusion of the world of world.py, in about an hour on two cores.

    python tools/train_images.py [--out FOLDER] [--minutes 60] [--seed 0]

Each part has its share of the time: an autoencoder (64 x 64 pixels to 16 x 16 x 6 latents) and its decoder once more;
a U-Net with a text encoder of its own (v-prediction, so that few steps do); a second round in which the U-Net learns to
draw in four steps what it draws in sixteen; and a classifier that tells what a picture shows. Writes a pipeline as
diffusers reads it and the classifier beside it; prints what it measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import world
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from lineas.evaluation.judges import WorldNetwork

SCENES = 48_000
WORDS = 24
"""Tokens of a prompt, filled up."""
STEPS, STEPS_BEFORE = 4, 16
"""The steps of the finished model, and of the one that teaches it."""
SHARES = {"classifier": 0.04, "autoencoder": 0.12, "decoder": 0.2, "denoiser": 0.43, "few steps": 0.14}
"""The shares of the time; the rest goes to drawing the world."""
BATCH = 64
DROPPED = 0.1
"""Prompts that are left empty, for guidance."""
GUIDANCE = 2.0
"""The guidance of the pictures that the second round learns from."""
EMBEDDING, LATENT = 96, 6


def vocabulary() -> list[str]:
    """Every word of the world."""
    scenes = " ".join((*world.PLACES, *world.PAIRS, *world.STYLES, *world.SIZES, *world.TEXTURES))
    words = {*scenes.split(), *world.COLOURS, *world.SHAPES, *world.GROUNDS, "a", "an", "on", "with", "sun"}
    return ["<pad>", "<start>", "<end>", "<unknown>", *sorted(words)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words as tokens, in lower case, without punctuation."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unknown>"))
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(",", " ")])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<start>", 1), ("<end>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>",
        model_max_length=WORDS,
    )  # fmt: skip


def parts() -> tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel]:
    """The networks, untrained."""
    autoencoder = AutoencoderKL(
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=LATENT, norm_num_groups=8, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )  # fmt: skip
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary()), hidden_size=EMBEDDING, intermediate_size=2 * EMBEDDING, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=WORDS, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=LATENT, out_channels=LATENT, block_out_channels=(48, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=EMBEDDING, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    return autoencoder, encoder, unet


def scheduler() -> Any:
    """Noise down to nothing but noise, so that a picture starts where training did (arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        steps_offset=1, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
        set_alpha_to_one=True,
    )  # fmt: skip


def scenes(count: int, seed: int) -> tuple[np.ndarray, list[world.Scene]]:
    """Pictures, uint8 `[n, 64, 64, 3]`, and what they show; drawn by all cores, 500 at a time."""
    with ProcessPoolExecutor() as pool:
        drawn = list(pool.map(_some_scenes, [(seed, i) for i in range(-(-count // 500))]))
    return np.concatenate([pictures for pictures, _ in drawn])[:count], [s for _, some in drawn for s in some][:count]


def _some_scenes(seeds: tuple[int, int]) -> tuple[np.ndarray, list[world.Scene]]:
    chance = np.random.default_rng(seeds)
    shown = [world.some_scene(chance) for _ in range(500)]
    return np.stack([world.draw(scene, chance) for scene in shown]), shown


def as_numbers(pictures: np.ndarray) -> torch.Tensor:
    """Pictures as networks read them, -1 to 1, `[n, 3, 64, 64]`."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


class Trainer:
    """Adam with a warm-up and a cosine over a number of minutes, and an average of the weights.

    Args:
        modules: what learns.
        minutes: how long.
        rate: the largest learning rate.
        average: how much of the average stays at a step; 0 for the weights themselves.
        matrices: the largest learning rate of weights that are matrices, or convolutions taken as such, by Muon
            (https://kellerjordan.github.io/posts/muon/); 0 for Adam, as for the rest.
    """

    def __init__(
        self, name: str, modules: list[nn.Module], minutes: float, rate: float, average: float = 0.0,
        matrices: float = 0.0,
    ) -> None:  # fmt: skip
        self.name, self.modules, self.average = name, modules, average
        self.parameters = [p for module in modules for p in module.parameters()]
        layers = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        weights = [layer.weight for layer in layers]
        large = [w for w in weights if matrices and min(len(w), w[0].numel()) >= 32]
        self.flat = [(p, nn.Parameter(p.detach().flatten(1))) for p in large]  # of the same storage
        rest = [p for p in self.parameters if all(p is not q for q in large)]
        self.optimizers: list[Any] = [torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]
        if large:
            views = [view for _, view in self.flat]
            self.optimizers.append(
                torch.optim.Muon(views, lr=matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            )
        self.rates = [rate, matrices]
        self.kept = [p.detach().clone() for p in self.parameters]
        self.begun, self.seconds, self.steps = time.monotonic(), 60 * minutes, 0

    def until_over(self) -> Iterator[int]:
        """Steps, until the time is over."""
        while time.monotonic() - self.begun < self.seconds:
            yield self.steps

    def step(self, loss: torch.Tensor) -> None:
        """One step."""
        past = min(1.0, (time.monotonic() - self.begun) / self.seconds)
        self.steps += 1
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for parameter, view in self.flat:
            view.grad = parameter.grad.flatten(1)
        for optimizer, rate in zip(self.optimizers, self.rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, self.steps / 100) * (0.02 + 0.98 * (1 + np.cos(np.pi * past)) / 2)
            optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        with torch.no_grad():
            for kept, parameter in zip(self.kept, self.parameters):
                kept.lerp_(parameter, 1 - min(self.average, self.steps / (self.steps + 10)))
        if self.steps % 100 == 0:
            print(f"{self.name}: {past:4.0%}, step {self.steps}, loss {float(loss.detach()):.4f}", flush=True)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averages in place."""
        for kept, parameter in zip(self.kept, self.parameters):
            parameter.copy_(kept)
        for module in self.modules:
            module.eval().requires_grad_(False)


def train_autoencoder(autoencoder: Any, pictures: np.ndarray, minutes: float, chance: np.random.Generator) -> None:
    """Squared errors, and next to nothing of the latents' divergence from a normal distribution."""
    trainer = Trainer("autoencoder", [autoencoder], minutes, 4e-3, 0.995)
    for _ in trainer.until_over():
        x = as_numbers(pictures[chance.integers(len(pictures), size=16)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = autoencoder.encode(x).latent_dist
            made = autoencoder.decode(posterior.sample()).sample
        trainer.step(4 * F.mse_loss(made.float(), x) + 1e-8 * posterior.kl().float().mean())
    trainer.finish()


def train_decoder(
    autoencoder: Any, latents: torch.Tensor, pictures: np.ndarray, minutes: float, chance: np.random.Generator
) -> None:
    """The decoder alone, when the latents are as they stay."""
    parts = [autoencoder.post_quant_conv, autoencoder.decoder]
    for part in parts:
        part.train().requires_grad_(True)
    trainer = Trainer("decoder", parts, minutes, 1e-3, 0.998, 3e-3)
    for _ in trainer.until_over():
        rows = chance.integers(len(pictures), size=16)
        with torch.autocast("cpu", torch.bfloat16):
            made = autoencoder.decode(latents[rows]).sample
        trainer.step(4 * F.mse_loss(made.float(), as_numbers(pictures[rows])))
    trainer.finish()


@torch.no_grad()
def signal_to_noise(autoencoder: Any, latents: torch.Tensor, pictures: np.ndarray) -> float:
    """Return the signal-to-noise ratio of 1,000 pictures, in dB."""
    wanted = as_numbers(pictures[:1000])
    made = torch.cat([autoencoder.decode(part).sample for part in latents[:1000].split(100)])
    return float(-10 * (made - wanted).div(2).square().mean((1, 2, 3)).log10().mean())


@torch.no_grad()
def encoded(autoencoder: Any, pictures: np.ndarray) -> torch.Tensor:
    """The latents of pictures, `[n, 6, 16, 16]`."""
    parts = (as_numbers(pictures[i : i + 256]) for i in range(0, len(pictures), 256))
    return torch.cat([autoencoder.encode(part).latent_dist.mean for part in parts])


@torch.no_grad()
def whiten(autoencoder: Any, pictures: np.ndarray) -> None:
    """Change the convolutions of one pixel around the latents: channels become uncorrelated, of deviation 1."""
    found = encoded(autoencoder, pictures).transpose(0, 1).flatten(1).double()  # [6, n 16 16]
    middle = found.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(found))
    there, back = vectors.T / values.sqrt().unsqueeze(1), vectors * values.sqrt()
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    weight, bias = before.weight[:LATENT, :, 0, 0].double(), before.bias[:LATENT].double()
    before.weight[:LATENT, :, 0, 0] = (there @ weight).float()
    before.bias[:LATENT] = (there @ (bias - middle)).float()
    weight = after.weight[:, :, 0, 0].double()
    after.bias += (weight @ middle).float()
    after.weight[:, :, 0, 0] = (weight @ back).float()
    autoencoder.register_to_config(scaling_factor=1.0)


class Denoiser:
    """Return the U-Net's output for latents, times and token ids."""

    def __init__(self, encoder: Any, unet: Any) -> None:
        self.encoder, self.unet = encoder, unet

    def __call__(self, latents: torch.Tensor, times: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the gradients of others are slower
            words = self.encoder(ids)[0]
            return self.unet(latents, times, words).sample.float()


def train_denoiser(denoiser: Denoiser, noise: Any, latents: torch.Tensor, ids: torch.Tensor, minutes: float) -> None:
    """Velocities of noised latents (arXiv 2202.00512), some without their prompts."""
    trainer = Trainer("denoiser", [denoiser.encoder, denoiser.unet], minutes, 1e-3, 0.998, 8e-3)
    empty = ids[-1]
    for _ in trainer.until_over():
        rows = torch.randint(len(latents), (BATCH,))
        told = ids[rows].clone()
        told[torch.rand(BATCH) < DROPPED] = empty
        times = torch.randint(noise.config.num_train_timesteps, (BATCH,))
        clean, added = latents[rows], torch.randn(BATCH, *latents.shape[1:])
        wanted = noise.get_velocity(clean, added, times)
        loss = F.mse_loss(denoiser(noise.add_noise(clean, added, times), times, told), wanted)
        trainer.step(loss)
    trainer.finish()


@torch.no_grad()
def sampled(
    denoiser: Denoiser, steps: int, ids: torch.Tensor, empty: torch.Tensor, start: torch.Tensor, guidance: float
) -> torch.Tensor:
    """Latents drawn in a number of steps."""
    noise = scheduler()
    noise.set_timesteps(steps)
    x = start
    for t in noise.timesteps:
        times = t.expand(len(x))
        v = denoiser(x, times, ids)
        if guidance != 1:
            without = denoiser(x, times, empty.expand_as(ids))
            v = without + guidance * (v - without)
        x = noise.step(v, t, x).prev_sample
    return x


def train_few_steps(denoiser: Denoiser, ids: torch.Tensor, minutes: float) -> None:
    """Four steps that end where sixteen guided ones do, from the same noise.

    The teacher's pictures are drawn first (half of the time); then each of the four steps learns to point at them.
    """
    begun, empty = time.monotonic(), ids[-1]
    starts, ends, told = [], [], []
    while time.monotonic() - begun < 30 * minutes:
        rows = torch.randint(len(ids) - 1, (BATCH,))
        start = torch.randn(BATCH, LATENT, 16, 16)
        ends.append(sampled(denoiser, STEPS_BEFORE, ids[rows], empty, start, GUIDANCE))
        starts.append(start)
        told.append(ids[rows])
    start, end, words = torch.cat(starts), torch.cat(ends), torch.cat(told)
    print(f"few steps: learning from {len(end)} pictures", flush=True)
    noise = scheduler()
    noise.set_timesteps(STEPS)
    for module in (denoiser.encoder, denoiser.unet):
        module.train().requires_grad_(True)
    trainer = Trainer("few steps", [denoiser.encoder, denoiser.unet], minutes / 2, 4e-4, 0.99, 2.5e-3)
    for _ in trainer.until_over():
        rows = torch.randint(len(end), (BATCH,))
        times = noise.timesteps[torch.randint(STEPS, (BATCH,))]
        x = noise.add_noise(end[rows], start[rows], times)
        trainer.step(F.mse_loss(denoiser(x, times, words[rows]), noise.get_velocity(end[rows], start[rows], times)))
    trainer.finish()


LABELS = (*world.SHAPES, *world.COLOURS, *(t for t in world.TEXTURES if t), "sun", *world.STYLES)


def labels(scene: world.Scene) -> list[float]:
    """Return the content of a picture, 1 or 0 for each label."""
    words = str(scene)
    shown = {word for thing in scene.things for word in (thing.shape, thing.colour, thing.texture)}
    shown |= ({"sun"} if scene.sun else set()) | {style for style in world.STYLES if style in words}
    return [float(label in shown) for label in LABELS]


def train_judge(
    judge: WorldNetwork, pictures: np.ndarray, shown: list[world.Scene], minutes: float, chance: np.random.Generator
) -> None:
    """Return the content of each picture, by its scene."""
    truth = torch.tensor([labels(scene) for scene in shown])
    trainer = Trainer("classifier", [judge], minutes, 2e-3, 0.99, 1e-2)
    for _ in trainer.until_over():
        rows = chance.integers(len(pictures), size=64)
        x = as_numbers(pictures[rows])
        x = x + 0.03 * torch.randn_like(x)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(x)[1]
        trainer.step(F.binary_cross_entropy_with_logits(logits.float(), truth[rows]))
    trainer.finish()


@torch.no_grad()
def accuracy(judge: WorldNetwork, x: torch.Tensor, shown: list[world.Scene]) -> dict[str, float]:
    """The mean over labels of the balanced accuracy, and its smallest."""
    truth = torch.tensor([labels(scene) for scene in shown]) > 0.5
    found = torch.cat([judge(part)[1] for part in x.split(128)]) > 0
    rates = []
    for k in range(len(LABELS)):
        yes, no = found[truth[:, k], k].float(), ~found[~truth[:, k], k]
        rates.append(float((yes.mean() + no.float().mean()) / 2))
    worst = int(np.argmin(rates))
    return {"mean": float(np.mean(rates)), f"smallest ({LABELS[worst]})": rates[worst]}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("shapes"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=SCENES)
    options = parser.parse_args()
    begun = time.monotonic()
    torch.manual_seed(options.seed)
    chance = np.random.default_rng(options.seed)
    pictures, shown = scenes(options.scenes, options.seed)
    print(f"{len(pictures)} scenes in {time.monotonic() - begun:.0f} s", flush=True)
    minutes = {name: share * options.minutes for name, share in SHARES.items()}
    (autoencoder, encoder, unet), judge = parts(), WorldNetwork(len(LABELS))
    for name, part in (("autoencoder", autoencoder), ("text encoder", encoder), ("U-Net", unet)):
        print(f"{name}: {sum(p.numel() for p in part.parameters()):,} parameters", flush=True)
    train_judge(judge, pictures, shown, minutes["classifier"], chance)
    train_autoencoder(autoencoder, pictures, minutes["autoencoder"], chance)
    whiten(autoencoder, pictures)
    latents, noise, words = encoded(autoencoder, pictures), scheduler(), tokenizer()
    print(f"autoencoder: {signal_to_noise(autoencoder, latents, pictures):.1f} dB", flush=True)
    train_decoder(autoencoder, latents, pictures, minutes["decoder"], chance)
    padded: Callable[..., Any] = words
    ids = padded([*map(str, shown), ""], padding="max_length", max_length=WORDS, return_tensors="pt").input_ids
    denoiser = Denoiser(encoder, unet)
    train_denoiser(denoiser, noise, latents, ids, minutes["denoiser"])
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=encoder, tokenizer=words, unet=unet, scheduler=noise, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(options.out.with_name(f"{options.out.name}-many-steps"))
    train_few_steps(denoiser, ids, minutes["few steps"])
    facts = {
        "made_by": "tools/train_images.py",
        "seed": options.seed,
        "minutes": (time.monotonic() - begun) / 60,
        "threads": torch.get_num_threads(),
        **measured(pipeline, judge, options.seed + 1),
    }
    print(json.dumps(facts, indent=1))
    write(pipeline, judge, facts, options.out)


def measured(pipeline: Any, judge: WorldNetwork, seed: int) -> dict[str, Any]:
    """Return the quality of the autoencoder and the accuracy of the classifier, on 1,000 other scenes."""
    held_out, told = scenes(1000, seed)
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for i in range(0, len(told), 100):
        asked = list(map(str, told[i : i + 100]))
        kind: Any = pipeline(asked, num_inference_steps=STEPS, guidance_scale=0.0, output_type="np")
        drawn.append(torch.from_numpy(kind.images).permute(0, 3, 1, 2) * 2 - 1)
    return {
        "autoencoder, dB": signal_to_noise(pipeline.vae, encoded(pipeline.vae, held_out), held_out),
        "classifier on the world": accuracy(judge, as_numbers(held_out), told),
        "classifier on what is drawn": accuracy(judge, torch.cat(drawn), told),
    }


def write(pipeline: Any, judge: WorldNetwork, facts: dict[str, Any], out: Path) -> None:
    """The folder that is shipped, in float16."""
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet, judge):
        part.half()
    pipeline.save_pretrained(out)
    for file in (out / "model_index.json", out / "tokenizer" / "tokenizer_config.json"):
        named = file.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")  # what transformers 4 knows
        file.write_text(named)
    save_file(judge.state_dict(), out / "judge.safetensors")
    (out / "judge.json").write_text(json.dumps({"labels": LABELS}, indent=1) + "\n")
    (out / "drawing.json").write_text(json.dumps({"steps": STEPS, "guidance_scale": 0.0}, indent=1) + "\n")
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
