"""README's examples run as they stand, it stays short, and its figures are those of the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages
import pytest
from pages import ROOT
from test_docs import loaded_once  # noqa: F401

import lineas

README = ROOT / "README.md"


@pytest.mark.filterwarnings("ignore:.* scales are lost to bfloat16")
def test_the_python_example_runs(loaded_once: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    (block,) = pages.blocks(README, "python")
    exec(compile(block.code, "README.md", "exec"), {})
    assert "torch.Size([576])" in capsys.readouterr().out
    assert Path("calm", "intervention.json").exists()
    assert Path("model-calm", "lineas.json").exists()


def test_the_commands_run_one_after_the_other(loaded_once: Path) -> None:  # noqa: F811
    """All of them where the default model is enough; few steps and texts, or the test would take minutes."""
    (block,) = [one for one in pages.blocks(README, "bash") if "lineas learn" in one.code]
    run = [one for one in pages.commands(block) if one[0] not in ("serve", "paint")]
    assert len(run) == 8
    for arguments in run:
        assert pages.run(arguments) == 0, f"lineas {' '.join(arguments)}"
    assert lineas.Intervention.load("calm").calibrated_strength > 0
    assert len(json.loads(Path("found", "evaluation.json").read_text())["rows"]) == 3
    assert {"both", "model-calm-folded", "calm.html"} <= {file.name for file in Path().iterdir()}


def test_a_newcomer_is_told_how_to_install() -> None:
    shell = "".join(block.code for block in pages.blocks(README, "bash"))
    assert "source .venv/bin/activate" in shell
    assert "pip install" in shell
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_the_figures_are_those_of_the_committed_results() -> None:
    check = subprocess.run(
        [sys.executable, "-m", "benchmarks.pages", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("name", ["polite", "formal", "archaic"])
def test_what_ships_fits_the_default_model_is_sparse_and_small(smollm2: lineas.TextModel, name: str) -> None:
    shipped = lineas.Intervention.load(name)
    shipped.check_fits(smollm2.network)
    touched = sum(int(map_.support().sum()) for map_ in shipped.maps.values())
    network: Any = smollm2.network
    every_neuron = len(smollm2.sites()) * network.config.hidden_size  # of the default sites, 30 layers
    assert 0 < touched < 0.1 * every_neuron
    folder = ROOT / "src" / "lineas" / "data" / "interventions" / name
    assert (folder / "intervention.safetensors").stat().st_size < 10_000
    assert [row["strength"] for row in shipped.facts["measurements"]] == [0.0, 0.5, 1.0]
    with lineas.steer(smollm2, shipped) as live:
        assert live.verify() > 0
