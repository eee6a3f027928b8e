"""vLLM's Python class in processes of their own: unsteered requests and folded checkpoints, with and without graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUIET

import lineas

STEERING = ["", "formal:2.5", "", "polite:1.5,formal:0.5"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for compiled graphs: stock's and the plugin's meet in it."""
    return tmp_path_factory.mktemp("graphs")


def continued(graphs: Path, model: Path, mode: str, out: Path, steering: list[str], plugin: bool) -> list[dict]:
    """What a process of its own makes of the prompts."""
    environment = os.environ | QUIET | {"VLLM_CACHE_ROOT": str(graphs)}
    if plugin:
        environment["LINEAS_INTERVENTIONS"] = "polite=polite,formal=formal"
    script = str(Path(__file__).with_name("engine.py"))
    done = subprocess.run(
        [sys.executable, script, str(model), mode, str(out), *steering], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-40000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_unsteered_requests_are_stock_vllm_to_the_bit(
    mode: str, checkpoint: Path, graphs: Path, tmp_path: Path, model: lineas.TextModel
) -> None:
    """Beside steered ones in one batch; and those get what live steering gives."""
    stock = continued(graphs, checkpoint, mode, tmp_path / "stock.json", [""] * len(STEERING), plugin=False)
    ours = continued(graphs, checkpoint, mode, tmp_path / "ours.json", STEERING, plugin=True)
    unsteered = [(row, other) for row, other in zip(ours, stock) if not row["steering"]]
    assert len(unsteered) == 8
    for row, other in unsteered:
        assert (row["tokens"], row["logprobs"]) == (other["tokens"], other["logprobs"])
    greedy = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 24}
    formal, polite = lineas.Intervention.load("formal"), lineas.Intervention.load("polite")
    for said, intervention in ((STEERING[1], formal.at(2.5)), (STEERING[3], lineas.mix({polite: 1.5, formal: 0.5}))):
        rows = [row for row in ours if row["steering"] == said]
        with lineas.steer(model, intervention):
            assert [row["text"] for row in rows] == model.generate([row["prompt"] for row in rows], **greedy)
    assert any(row["tokens"] != other["tokens"] for row, other in zip(ours, stock))


def test_a_folded_checkpoint_is_served_without_lineas(
    checkpoint: Path, graphs: Path, tmp_path: Path, model: lineas.TextModel
) -> None:
    formal = lineas.Intervention.load("formal").at(2.5)
    folded = lineas.fold(model, formal).save_pretrained(tmp_path / "folded")
    rows = continued(graphs, folded, "eager", tmp_path / "folded.json", [""], plugin=False)
    with lineas.steer(model, formal):
        live = model.generate([row["prompt"] for row in rows], temperature=0, repetition_penalty=1.0, max_new_tokens=24)
    assert [row["text"] for row in rows] == live
    assert live != model.generate([r["prompt"] for r in rows], temperature=0, repetition_penalty=1.0, max_new_tokens=24)


def test_an_intervention_of_another_network_stops_the_server(shared: Path, graphs: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"learned on HuggingFaceTB/SmolLM2-135M-Instruct"):
        continued(graphs, shared / "models" / "stories260k", "eager", tmp_path / "out.json", [""], plugin=True)
