"""Sites of every kind in small networks of several families, in vLLM's Python class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import continued

import lineas
from lineas.intervention.model_identity import ModelIdentity

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # far from ties between tokens
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 512, "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512, "initializer_range": 0.2}
TWO_RANKS = {"RANKS": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
LLAMA, GEMMA = r".*(layernorm|o_proj|down_proj|layers\.\d)", r".*(layernorm|o_proj|down_proj)"
FAMILIES: dict[str, tuple[Any, str, dict[str, str], float]] = {
    "llama": (transformers.LlamaConfig(**SMALL), LLAMA, {}, 0.2),
    "llama on two ranks": (transformers.LlamaConfig(**SMALL), LLAMA, TWO_RANKS, 0.2),
    "qwen3": (transformers.Qwen3Config(**SMALL), LLAMA, {}, 0.2),
    "gemma3": (transformers.Gemma3TextConfig(**SMALL), GEMMA, {}, 5.0),  # large embeddings
    "gpt2": (transformers.GPT2Config(**GPT2), r".*(ln_1|ln_2|c_proj|h\.\d)", {}, 0.2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_linears_and_blocks_are_steered(family: str, shared: Path, graphs: Path, tmp_path: Path) -> None:
    """Sites of every kind; on two ranks the linears are sharded, and their outputs are whole on each."""
    config, pattern, ranks, size = FAMILIES[family]
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    tiny = lineas.TextModel(network, tokenizer, "tiny")
    folder = tiny.save_pretrained(tmp_path / "tiny")
    sites = {site.name: site for site in tiny.sites(pattern)}
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(2, 128, generator=generator) for name in sites}
    maps = {name: lineas.AffineMap(1 + size * n[0], size * n[1]) for name, n in noise.items()}
    noisy = lineas.Intervention(maps, sites, ModelIdentity.of(network, "tiny"))
    noisy.save(tmp_path / "noisy")
    named = f"noisy={tmp_path / 'noisy'}"
    rows = continued(graphs, folder, "eager", tmp_path / "out.json", ["", "noisy:0.7"], named, **ranks)
    assert len(maps) >= 4 * 3
    for said, strength in (("", 0.0), ("noisy:0.7", 0.7)):
        with lineas.steer(tiny, noisy, strength):
            for row in (row for row in rows if row["steering"] == said):
                ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
                made: Any = network.generate(ids, do_sample=False, max_new_tokens=24, min_new_tokens=24, pad_token_id=0)
                assert row["tokens"] == made[0, ids.shape[1] :].tolist()
    assert [row["tokens"] for row in rows[:4]] != [row["tokens"] for row in rows[4:]]


def test_heads_norms_are_refused_before_any_request(shared: Path, graphs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**SMALL))
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    folder = lineas.TextModel(network, tokenizer, "tiny").save_pretrained(tmp_path / "tiny")
    head = lineas.AffineMap(torch.full((32,), 2.0), torch.zeros(32))
    lineas.Intervention({"model.layers.0.self_attn.q_norm": head}).save(tmp_path / "head")
    with pytest.raises(AssertionError, match="has 32 neurons, the network's rows have 128"):
        continued(graphs, folder, "eager", tmp_path / "out.json", [""], f"head={tmp_path / 'head'}")
