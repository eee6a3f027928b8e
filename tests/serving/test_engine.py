"""vLLM's Python class in processes of their own: unsteered requests and folded checkpoints, with and without graphs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import continued

import lineas

SHIPPED = "polite=polite,formal=formal"
STEERING = ["", "formal:2.5", "", "polite:1.5,formal:0.5"]


def live(model: lineas.TextModel, rows: list[dict], intervention: lineas.Intervention | None = None) -> list[str]:
    """The greedy continuations that lineas makes in plain transformers."""
    with lineas.steer(model, intervention) if intervention else nullcontext():
        prompts = [row["prompt"] for row in rows]
        return model.generate(prompts, temperature=0, repetition_penalty=1.0, max_new_tokens=24)


@pytest.mark.parametrize(("mode", "dtype"), [("eager", "float32"), ("compiled", "float32"), ("eager", "bfloat16")])
def test_unsteered_requests_are_stock_vllm_to_the_bit(
    mode: str, dtype: str, checkpoint: Path, graphs: Path, tmp_path: Path, model: lineas.TextModel
) -> None:
    """Beside steered ones in one batch; and those get what live steering gives, in float32 the same tokens.

    The engine is in the process that asks: where it is in another one, a request may arrive when the first step has
    begun, and stock vLLM rounds another way in bfloat16 when a batch is split.
    """
    alike = {"DTYPE": dtype, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    stock = continued(graphs, checkpoint, mode, tmp_path / "stock.json", [""] * len(STEERING), **alike)
    ours = continued(graphs, checkpoint, mode, tmp_path / "ours.json", STEERING, SHIPPED, **alike)
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


@pytest.mark.parametrize("name", ["VLLM_USE_V2_MODEL_RUNNER", "VLLM_USE_RUST_FRONTEND"])
def test_what_would_pass_by_the_plugin_is_refused(name: str, checkpoint: Path, graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"lineas does not steer with {name}=1"):
        continued(graphs, checkpoint, "eager", tmp_path / "out.json", [""], SHIPPED, **{name: "1"})
