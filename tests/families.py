"""Tiny random networks of every family the tests cover, and a tiny offline tokenizer; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

import lineas
from lineas.sites import Site

LAYERS = 2
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MERGES = (
    "t h|i n|th e|a n|r e|o n|e r|o u|▁ the|an d|e n|in g|h e|i s|l l|a t|▁ a|▁ s|o r|e d|▁ w|▁ and|o m|s t|▁ i|l e|g h"
)
CHARACTERS = "▁" + "".join(map(chr, range(33, 127)))
VOCABULARY = len(SPECIAL) + len(CHARACTERS) + len(MERGES.split("|"))

PROMPTS = [
    "The dog ran away from the house",
    "A bird sang",
    "He was sad, and he cried the whole day",
    "Tom lost his red ball",
    "Rain",
    "The cat sat on the mat in the rain",
    "Go on then",
]
OTHER_PROMPTS = [
    "THE SUN IS WARM! AND BRIGHT!",
    "SHE SMILED AT 7 OF US",
    "WE PLAY 24 GAMES",
    "WHAT A NICE TOY, LILY!",
    "FUN",
]

SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
GEMMA = {**GATED, "head_dim": 8, "query_pre_attn_scalar": 8, **SLIDING}

# By family: the names of its config and network in transformers, and what its config needs beside SHARED.
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", GATED),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**GATED, "head_dim": 8, "sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", GATED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**GATED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", GEMMA),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", GATED),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", GATED),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"intermediate_size": 64}),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 64}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**GATED, "num_local_experts": 4}),
}
BEFORE_5 = transformers.__version__.startswith("4.")
PROMPT_LOOKUP = pytest.param(
    "prompt lookup",
    marks=pytest.mark.skipif(BEFORE_5, reason="transformers 4 cannot look prompts up without an end-of-text token"),
)
"""A way of assisted decoding that needs no second network."""

FAMILIES = list(CONFIGS)

# Not among the families that everything is tested on: attention and MLP in parallel behind one norm; a config whose
# attention_bias is not for every projection; latent attention.
CONFIGS["cohere"] = ("CohereConfig", "CohereForCausalLM", GATED)
CONFIGS["glm4"] = ("Glm4Config", "Glm4ForCausalLM", {**GATED, "head_dim": 8})
LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {**GATED, **LATENT, **EXPERTS, "num_key_value_heads": 4, "first_k_dense_replace": 1}
CONFIGS["deepseek_v3"] = ("DeepseekV3Config", "DeepseekV3ForCausalLM", DEEPSEEK)

# Recurrent layers, alone or beside attention: nothing can be packed, and what a layer keeps is no list of keys.
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {f"linear_num_{side}_heads": n for side, n in (("key", 2), ("value", 4))}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
FEW_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN3_NEXT = {**GATED, **LINEAR, **FEW_EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16}
GRANITE = {**GATED, **MAMBA, "mamba_d_head": 16, "mamba_expand": 2, "num_local_experts": 0}
CONFIGS["lfm2"] = ("Lfm2Config", "Lfm2ForCausalLM", {**GATED, "layer_types": ["conv", "full_attention"]})
CONFIGS["qwen3_next"] = (
    "Qwen3NextConfig",
    "Qwen3NextForCausalLM",
    {**QWEN3_NEXT, "layer_types": ["linear_attention", "full_attention"]},
)
CONFIGS["falcon_h1"] = (
    "FalconH1Config",
    "FalconH1ForCausalLM",
    {**GATED, **MAMBA, "head_dim": 8, "mamba_d_ssm": 32, "mamba_d_head": 8},
)
CONFIGS["granite_hybrid"] = (
    "GraniteMoeHybridConfig",
    "GraniteMoeHybridForCausalLM",
    {**GRANITE, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 48},
)
CONFIGS["mamba2"] = (
    "Mamba2Config",
    "Mamba2ForCausalLM",
    {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2},
)
RECURRENT = ["lfm2", "qwen3_next", "falcon_h1", "granite_hybrid", "mamba2"]


BLOCK = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "mamba2": "backbone.layers",
}


def block(family: str, index: int = 0) -> str:
    """The name of a block in a family."""
    return f"{BLOCK.get(family, 'model.layers')}.{index}"


def network(family: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A network of a family with random weights: 2 blocks, 32 neurons, eval mode, float32.

    Weights are larger than at the start of a training (0.02), and norms and biases are not 1 and 0, so that whatever a
    test could confuse differs visibly.

    Args:
        family: one of `CONFIGS`.
        seed: of the weights; the global generator is left as it was.
        settings: fields of the family's config to set otherwise.
    """
    config_name, network_name, own = CONFIGS[family]
    config = getattr(transformers, config_name)(**{**SHARED, **own, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = getattr(transformers, network_name)(config)
        with torch.no_grad():
            for parameter in made.parameters():
                noise = torch.randn_like(parameter)
                parameter.add_(0.2 * noise) if parameter.dim() == 1 else parameter.copy_(0.25 * noise)
    return made.eval()


def tokenizer(bos: bool = True) -> transformers.PreTrainedTokenizerFast:
    """Printable ASCII and a few merges, BPE, with a chat template; `<s>` comes first unless `bos` is False."""
    merges = [(first, second) for first, second in (merge.split() for merge in MERGES.split("|"))]
    tokens = [*SPECIAL.values(), *CHARACTERS, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    made.chat_template = "{% for m in messages %}<s>[{{ m.role }}] {{ m.content }}</s>{% endfor %}[assistant] "
    return made


def model(family: str, bos: bool = True, seed: int = 0, **settings: Any) -> lineas.TextModel:
    """A network of a family with the tiny tokenizer, ready to learn on and to steer."""
    return lineas.TextModel(network(family, seed, **settings), tokenizer(bos), name=f"tiny-{family}")


def width(model: lineas.TextModel) -> int:
    """Return the number of neurons at the output of its blocks."""
    network: Any = model.network
    return network.config.hidden_size


def blocks(made: nn.Module) -> list[nn.Module]:
    """The two transformer blocks of a network made here."""
    return next(list(m) for m in made.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS)


def hook_count(made: nn.Module) -> int:
    """Return the number of forward hooks and pre-hooks on a network and its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.modules())


def count_calls(module: nn.Module) -> Callable[[], int]:
    """Count a module's forward passes from now on; returns a function that tells how many began."""
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return lambda: len(calls)


def outputs(model: lineas.TextModel, prompts: list[str], site: Site) -> list[torch.Tensor]:
    """Return the output at a site for each prompt run alone, `[tokens, d]` each, by a plain hook."""
    seen: list[torch.Tensor] = []
    module = model.network.get_submodule(site.module)
    handle = module.register_forward_hook(lambda _, __, result: seen.append(site.pick(result).flatten(0, -2)))
    with torch.no_grad():
        for prompt in prompts:
            model.network(torch.tensor([model.tokenizer(prompt).input_ids]))
    handle.remove()
    return seen
