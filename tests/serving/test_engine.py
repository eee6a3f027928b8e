"""vLLM's Python class in processes of their own: unsteered requests and folded checkpoints, with and without graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import QUIET

import lineas
from lineas.base import BaseModel

SHIPPED = "polite=polite,formal=formal"
STEERING = ["", "formal:2.5", "", "polite:1.5,formal:0.5"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for compiled graphs: stock's and the plugin's meet in it."""
    return tmp_path_factory.mktemp("graphs")


def continued(
    graphs: Path,
    model: Path,
    mode: str,
    out: Path,
    steering: list[str],
    interventions: str | None = None,
    **variables: str,
) -> list[dict]:
    """What a process of its own makes of the prompts; stock vLLM where there are no interventions."""
    environment = os.environ | QUIET | {"VLLM_CACHE_ROOT": str(graphs), "VLLM_USE_V2_MODEL_RUNNER": "0"} | variables
    if interventions:
        environment["LINEAS_INTERVENTIONS"] = interventions
    script = str(Path(__file__).with_name("engine.py"))
    done = subprocess.run(
        [sys.executable, script, str(model), mode, str(out), *steering], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-40000:]
    return json.loads(out.read_text(encoding="utf-8"))


def live(model: lineas.TextModel, rows: list[dict], intervention: lineas.Intervention | None = None) -> list[str]:
    """The greedy continuations that lineas makes in plain transformers."""
    with lineas.steer(model, intervention) if intervention else nullcontext():
        prompts = [row["prompt"] for row in rows]
        return model.generate(prompts, temperature=0, repetition_penalty=1.0, max_new_tokens=24)


@pytest.mark.parametrize(("mode", "dtype"), [("eager", "float32"), ("compiled", "float32"), ("eager", "bfloat16")])
def test_unsteered_requests_are_stock_vllm_to_the_bit(
    mode: str, dtype: str, checkpoint: Path, graphs: Path, tmp_path: Path, model: lineas.TextModel
) -> None:
    """Beside steered ones in one batch; and those get what live steering gives, in float32 the same tokens."""
    stock = continued(graphs, checkpoint, mode, tmp_path / "stock.json", [""] * len(STEERING), DTYPE=dtype)
    ours = continued(graphs, checkpoint, mode, tmp_path / "ours.json", STEERING, SHIPPED, DTYPE=dtype)
    unsteered = [(row, other) for row, other in zip(ours, stock) if not row["steering"]]
    assert len(unsteered) == 8
    for row, other in unsteered:
        assert (row["tokens"], row["logprobs"]) == (other["tokens"], other["logprobs"])
    assert any(row["tokens"] != other["tokens"] for row, other in zip(ours, stock))
    if dtype == "float32":
        polite, formal = lineas.Intervention.load("polite"), lineas.Intervention.load("formal")
        for said, chosen in ((STEERING[1], formal.at(2.5)), (STEERING[3], lineas.mix({polite: 1.5, formal: 0.5}))):
            rows = [row for row in ours if row["steering"] == said]
            assert [row["text"] for row in rows] == live(model, rows, chosen)


def test_compiled_graphs_are_kept_by_what_they_carry(
    checkpoint: Path, graphs: Path, tmp_path: Path, model: lineas.TextModel
) -> None:
    """A second start with the graphs of the first, and an intervention at sites that those do not have."""
    continued(graphs, checkpoint, "compiled", tmp_path / "first.json", ["formal:2.5"], SHIPPED)
    kept = sorted(graphs.glob("torch_compile_cache/torch_aot_compile/*"))
    warm = continued(graphs, checkpoint, "compiled", tmp_path / "warm.json", ["formal:2.5"], SHIPPED)
    assert [row["text"] for row in warm] == live(model, warm, lineas.Intervention.load("formal").at(2.5))
    assert sorted(graphs.glob("torch_compile_cache/torch_aot_compile/*")) == kept
    larger = lineas.AffineMap(torch.full((576,), 1.3), torch.zeros(576))
    elsewhere = lineas.Intervention({f"model.layers.{i}.input_layernorm": larger for i in (1, 5)})
    elsewhere.save(tmp_path / "elsewhere")
    named = f"{SHIPPED.split(',')[0]},elsewhere={tmp_path / 'elsewhere'}"  # as many places as before
    cold = continued(graphs, checkpoint, "compiled", tmp_path / "cold.json", ["elsewhere"], named)
    assert [row["text"] for row in cold] == live(model, cold, elsewhere)
    assert live(model, cold, elsewhere) != live(model, cold)


def test_networks_of_transformers_are_steered_in_vllm(
    checkpoint: Path, graphs: Path, tmp_path: Path, model: lineas.TextModel
) -> None:
    """They put a batch of one around the tokens; several requests of different strengths."""
    rows = continued(graphs, checkpoint, "eager", tmp_path / "out.json", STEERING, SHIPPED, MODEL_IMPL="transformers")
    for said, chosen in ((STEERING[0], None), (STEERING[1], lineas.Intervention.load("formal").at(2.5))):
        mine = [row for row in rows if row["steering"] == said]
        assert [row["text"] for row in mine] == live(model, mine, chosen)


def test_a_folded_checkpoint_is_served_without_lineas(
    checkpoint: Path, graphs: Path, tmp_path: Path, model: lineas.TextModel
) -> None:
    formal = lineas.Intervention.load("formal").at(2.5)
    folded = lineas.fold(model, formal).save_pretrained(tmp_path / "folded")
    rows = continued(graphs, folded, "eager", tmp_path / "folded.json", [""])
    assert [row["text"] for row in rows] == live(model, rows, formal)
    assert live(model, rows, formal) != live(model, rows)


def test_an_intervention_of_another_network_stops_the_server(shared: Path, graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"learned on HuggingFaceTB/SmolLM2-135M-Instruct"):
        continued(graphs, shared / "models" / "stories260k", "eager", tmp_path / "out.json", [""], SHIPPED)


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
    noisy = lineas.Intervention(maps, sites, BaseModel.of(network, "tiny"))
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


@pytest.mark.parametrize("name", ["VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND"])
def test_what_would_pass_by_the_plugin_is_refused(name: str, checkpoint: Path, graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"lineas does not steer with {name}=1"):
        continued(graphs, checkpoint, "eager", tmp_path / "out.json", [""], SHIPPED, **{name: "1"})
