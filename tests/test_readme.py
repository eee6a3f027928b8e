"""The README's Python example runs as it stands, and its figures are those of the committed results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lineas
import lineas.prompts

ROOT = Path(__file__).parents[1]


def test_the_python_example_runs(
    smollm2: lineas.TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    assert "torch.Size([576])" in capsys.readouterr().out
    assert (tmp_path / "calm" / "intervention.json").exists()


def test_the_examples_of_the_page_on_methods_run(smollm2: lineas.TextModel) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL)
    sides = {side: lineas.prompts.read_prompts(f"lineas:polite/{side}")[:8] for side in ("source", "target")}
    names: dict = {"rude": sides["source"], "polite": sides["target"]}
    for block in blocks:
        exec(compile(block, "methods.md", "exec", dont_inherit=True), names)
    assert isinstance(names["act"], lineas.Intervention)
    own = lineas.learn(smollm2, names["rude"], names["polite"], names["Medians"](), progress=False)
    assert own.facts["method"] == {"name": "Medians"}
    assert own.support() > 0.5


def test_the_example_of_the_page_on_evaluation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.DOTALL)
    exec(compile(block, "evaluation.md", "exec"), {})
    assert "| polite | 0.5 |" in capsys.readouterr().out


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
    every_neuron = len(smollm2.sites()) * smollm2.network.config.hidden_size  # of the default sites, 30 layers
    assert 0 < touched < 0.1 * every_neuron
    folder = ROOT / "src" / "lineas" / "data" / "interventions" / name
    assert (folder / "intervention.safetensors").stat().st_size < 10_000
    assert [row["strength"] for row in shipped.facts["measurements"]] == [0.0, 0.5, 1.0]
    with lineas.steer(smollm2, shipped) as live:
        assert live.verify() > 0
