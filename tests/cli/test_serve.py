"""`lineas serve` on the command line, up to where vLLM takes over (tests/serving goes on from there)."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from console import LEARN, check_refused, run

import lineas


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that would replace this process, with their environments."""
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda program, command, environment: calls.append((command, environment)))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "vllm" or found(name))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return calls


def test_vllm_is_started_with_names_and_folders(
    desk: Path, capsys: pytest.CaptureFixture[str], started: list[Any]
) -> None:
    run(capsys, *LEARN)
    code, _, err = run(
        capsys, "serve", "model", "--intervention", "calm", "again=calm", "--port", "9", "--max-model-len", "64"
    )
    assert code == 0
    assert "serving model with calm, again on http://127.0.0.1:9/v1" in err
    ((command, environment),) = started
    assert command[1:] == (
        ["-m", "lineas.vllm_plugin", "serve", "model", "--host", "127.0.0.1", "--port", "9", "--max-model-len", "64"]
    )
    assert environment["LINEAS_INTERVENTIONS"] == f"calm={desk / 'calm'},again={desk / 'calm'}"
    assert "lineas" in environment["VLLM_PLUGINS"].split(",")


def test_a_list_of_plugins_keeps_its_own_and_gets_lineas(
    desk: Path, capsys: pytest.CaptureFixture[str], started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, *LEARN)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    run(capsys, "serve", "model", "--intervention", "calm")
    ((_, environment),) = started
    assert environment["VLLM_PLUGINS"] == "lineas,other"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model"], "name at least one --intervention"),
        (["model", "--intervention", "nowhere"], "no intervention at 'nowhere'"),
        (["model", "--intervention", "polite"], "acts on 'model.layers.15.post_attention_layernorm' and 14 other"),
        (["model", "--intervention", "a=calm", "a=calm"], "two interventions have one name"),
        (["model", "--intervention", "a:b=calm"], "name is letters, digits"),
        (["model", "--intervention", "calm="], "the intervention 'calm' needs a folder"),
        ([".", "--intervention", "calm"], "is no checkpoint: it lacks a config.json"),
    ],
)
def test_mistakes_are_one_sentence(
    desk: Path, capsys: pytest.CaptureFixture[str], started: list[Any], arguments: list[str], sentence: str
) -> None:
    run(capsys, *LEARN)
    check_refused(capsys, desk, sentence, "serve", *arguments)
    assert not started


def test_a_gated_intervention_is_refused_before_vllm_starts(
    desk: Path, capsys: pytest.CaptureFixture[str], started: list[Any]
) -> None:
    run(capsys, *LEARN)
    calm = lineas.Intervention.load("calm")
    gates = {
        name: lineas.intervention.gate.Gate(torch.ones(m.width), torch.tensor(0.0)) for name, m in calm.maps.items()
    }
    calm.gated(gates).save("gated")
    check_refused(
        capsys, desk, "a gated intervention cannot be served by vLLM", "serve", "model", "--intervention", "gated"
    )
    assert not started


def test_another_model_is_named_to_the_plugin(
    desk: Path, capsys: pytest.CaptureFixture[str], started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, *LEARN)
    code, _, err = run(capsys, "serve", r"some/model[/x]\x1b", "--intervention", "calm", "--other-model", "-tp", "2")
    assert (code, r"serving some/model[/x]\x1b with calm" in err) == (0, True)
    ((command, environment),) = started
    assert command[-2:] == ["-tp", "2"]
    assert environment["LINEAS_OTHER_MODEL"] == "1"
    assert "LINEAS_FORCE" not in environment


def test_without_vllm_it_says_what_to_install(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    check_refused(capsys, desk, "pip install 'lineas[vllm]'", "serve", "model", "--intervention", "calm")
