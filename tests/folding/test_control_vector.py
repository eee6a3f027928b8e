"""Control vectors for llama.cpp: what of an intervention they carry, and what is said to be lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from console import LEARN, check_refused, run
from gguf import GGUFReader

import lineas
from lineas.folding.control_vector import ControlVector

WIDTH = 4


def shifts(*names: str, scale: float = 1.0) -> lineas.Intervention:
    maps = {
        name: lineas.AffineMap(torch.full((WIDTH,), scale), torch.arange(WIDTH) + float(i))
        for i, name in enumerate(names, start=1)
    }
    return lineas.Intervention(maps)


def test_shifts_at_block_outputs_are_carried_and_the_rest_is_named(tmp_path: Path) -> None:
    both = shifts("model.layers.0", "model.layers.2", "model.layers.1", "model.layers.1.mlp", "model.norm")
    made = ControlVector.of(both)
    assert set(made.directions) == {1, 2}
    assert made.lost.keys() == {"model.layers.0", "model.layers.1.mlp", "model.norm"}
    made.write(tmp_path / "calm.gguf", "LlamaForCausalLM")
    read = GGUFReader(tmp_path / "calm.gguf")
    assert read.fields["general.architecture"].contents() == "controlvector"
    assert read.fields["controlvector.model_hint"].contents() == "llama"
    assert read.fields["controlvector.layer_count"].contents() == 2
    found = {tensor.name: np.array(tensor.data) for tensor in read.tensors}
    assert found.keys() == {"direction.1", "direction.2"}
    assert found["direction.2"].dtype == np.float32
    assert found["direction.2"].tolist() == both.maps["model.layers.2"].shift.tolist()


def test_scales_are_lost_and_counted() -> None:
    made = ControlVector.of(shifts("transformer.h.1", scale=1.25))
    assert made.lost == {"transformer.h.1": "the scales of 4 of 4 neurons, up to 0.25 from 1"}


@pytest.mark.parametrize("names", [("model.layers.0",), ("model.layers.3.mlp.down_proj", "model.norm")])
def test_nothing_to_carry_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(lineas.LineasError, match="nothing of this intervention can be a control vector"):
        ControlVector.of(shifts(*names))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_shifts_of_zero_are_not_blamed_on_the_sites(strength: float) -> None:
    scales = lineas.Intervention({"model.layers.1": lineas.AffineMap(torch.full((WIDTH,), 2.0), torch.zeros(WIDTH))})
    with pytest.raises(
        lineas.LineasError, match=r"every shift at the outputs of blocks is 0|this intervention changes nothing"
    ):
        ControlVector.of((shifts("model.layers.1") if strength == 0 else scales).at(strength))


def test_export_on_the_command_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN[:-2], "--method", "caa")
    code, out, _ = run(capsys, "export", "calm", "--strength", "0.5", "--out", "calm.gguf", "--json", "told.json")
    assert code == 0
    assert "1 of 1 sites are in calm.gguf" in out
    told = json.loads(Path("told.json").read_text())
    assert (told["blocks"], told["lost"]) == ([2], {})
    (direction,) = GGUFReader("calm.gguf").tensors
    learned = lineas.Intervention.load("calm").maps["model.layers.2"].shift
    torch.testing.assert_close(torch.tensor(np.array(direction.data)), 0.5 * learned)
    check_refused(capsys, desk, "calm.gguf exists already", "export", "calm", "--out", "calm.gguf")


def test_mistakes_are_one_sentence(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    check_refused(capsys, desk, "nothing of this intervention can be", "export", "calm", "--out", "calm.gguf")
    check_refused(capsys, desk, "no intervention at 'nowhere'", "export", "nowhere", "--out", "calm.gguf")
