"""Tiny transformers to steer, and what a steered one is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from lineas import AffineMap, Intervention
from lineas.sites import find_sites

FAMILIES = ["llama", "gpt2", "opt"]
WIDTH, VOCABULARY = 32, 128
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}  # no text ends early
ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    **NO_IDS,
}


def tiny(family: str, seed: int = 0, **changes: Any) -> Any:
    """A seeded transformer of two blocks whose norms differ from one, without dropout, in eval mode."""
    torch.manual_seed(seed)
    network: Any
    if family == "llama":
        network = LlamaForCausalLM(LlamaConfig(**{**ROTARY, **changes}))
    elif family == "mistral":
        network = MistralForCausalLM(MistralConfig(**{**ROTARY, **changes}))
    elif family == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        network = GPT2LMHeadModel(GPT2Config(**{**sizes, "initializer_range": 0.3, **NO_IDS, **changes}))
    else:
        sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 64}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "dropout": 0.0}
        network = OPTForCausalLM(OPTConfig(**{**sizes, "init_std": 0.3, **NO_IDS, **changes}))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name or "ln_" in name:
                weight += 0.2 * torch.randn(weight.shape)
    return network.eval()


def some_map(seed: int, width: int = WIDTH) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + torch.rand(width, generator=generator)
    return AffineMap(scale, 0.5 * torch.randn(width, generator=generator))


def some_intervention(network: nn.Module, pattern: str | None = None, seed: int = 0) -> Intervention:
    """A map of its own for every site of the pattern, belonging to any network."""
    sites = find_sites(network, pattern)
    maps = {
        site.name: some_map(100 * seed + i, VOCABULARY if site.name == "lm_head" else WIDTH)
        for i, site in enumerate(sites)
    }
    return Intervention(maps, {site.name: site for site in sites})


def prompt(rows: int = 2, columns: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


def logits(network: nn.Module, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    """Logits of one pass, without a cache unless one is asked for."""
    with torch.no_grad():
        return network(input_ids=ids, **{"use_cache": False, **more}).logits


def continued(network: Any, ids: torch.Tensor, **more: Any) -> list[list[int]]:
    """The greedy continuation alone."""
    mask = more.pop("attention_mask", torch.ones_like(ids))
    made = network.generate(input_ids=ids, attention_mask=mask, **{**GREEDY, **more})
    return made[:, ids.shape[1] :].tolist()


@contextmanager
def by_hand(network: nn.Module, maps: Mapping[str, AffineMap]) -> Iterator[None]:
    """The maps applied by plain hooks: what steering is compared with. For modules that return a tensor."""
    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, args, z, map_=map_: map_(z))
        for name, map_ in maps.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def hooks_and_attributes(network: nn.Module) -> dict[str, Any]:
    """Every hook and every attribute name of every module: what complete removal must leave as it was."""
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        found[name] = set(module.__dict__)
        for key, value in module.__dict__.items():
            if "hooks" in key and value is not None:
                found[f"{name}/{key}"] = dict(value)
    return found


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


class Returns(nn.Module):
    """Returns its input in a given wrapping, so that every kind of result can carry a site."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        self.result = self.wrap(x)
        return self.result


class Letters:
    """A tokenizer of one token a letter."""

    pad_token_id, eos_token_id, chat_template = 0, None, None

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(letter) % VOCABULARY for letter in text])

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]
