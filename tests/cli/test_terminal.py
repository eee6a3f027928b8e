"""Texts from elsewhere reach a terminal as they are, with their control characters shown."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from console import LEARN, run
from rich.table import Table
from rich.text import Text

import lineas
from lineas.cli import common
from lineas.cli.terminal import Terminal, terminal
from lineas.intervention import artifact

EVIL = "\x1b]52;c;aGk=\x07\x1b]0;title\x07\x1b[2J\x9b2J\u202egnp\x7f"
SHOWN = "\\x1b]52;c;aGk=\\x07\\x1b]0;title\\x07\\x1b[2J\\x9b2J\\u202egnp\\x7f"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printed(*what: object, **options: object) -> str:
    stream = io.StringIO()
    Terminal(file=stream, width=200, **options).print(*what)
    return stream.getvalue()


def test_what_is_printed_shows_control_characters_and_keeps_markup_and_emoji() -> None:
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL, style="bold")
    table.add_row(Text(EVIL, "red"))
    for what in (EVIL, Text(EVIL), table):
        assert not RAW.search(printed(what))
    assert SHOWN in printed(EVIL)
    assert printed(table).count(SHOWN) == 3
    assert printed(r"a\[/b] [red]x[/red] :smile: [/]") == "a\\[/b] [red]x[/red] :smile: [/]\n"


def test_styles_are_still_written() -> None:
    styled = printed(Text.assemble(("red", "red"), EVIL), force_terminal=True, color_system="standard")
    assert styled.startswith("\x1b[31mred\x1b[0m")
    assert not RAW.search(styled.replace("\x1b[31m", "").replace("\x1b[0m", ""))
    assert "\x1b[1m" in printed(Text("x", "bold"), force_terminal=True, color_system="standard")
    stream = io.StringIO()
    terminal(file=stream, width=20).rule("a\x1bb")
    assert "a\\x1bb" in stream.getvalue()


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An intervention whose description says what no terminal should read."""
    monkeypatch.chdir(tmp_path)
    map_ = lineas.AffineMap(torch.ones(4), torch.ones(4))
    site = f"layers.0.{EVIL}"
    facts = {
        "data": {"source": {"file": EVIL, "count": 1, "sha256": EVIL}},
        "method": {"name": EVIL, EVIL: EVIL},
        "made_by": EVIL,
        "measurements": [{EVIL: 1.0}],
        "folds": {site: EVIL},
        "name": EVIL,
    }
    base = lineas.intervention.model_identity.ModelIdentity(EVIL, EVIL, "0" * 64)
    lineas.Intervention({site: map_}, base=base, facts=facts).save(tmp_path / "foreign")
    return tmp_path


def test_show_and_errors_show_control_characters(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [("show", "foreign"), ("export", "foreign", "--out", "x"), ("show", EVIL), (EVIL,), ("show", f"--{EVIL}")]
    calls += [("show", "foreign", "--json", "-"), ("generate", "--intervention", "foreign", "--prompt", "a")]
    calls += [("learn", "m", "--source", f"{EVIL}.txt", "--target", EVIL, "--out", "x"), ("show", "a\nb")]
    for call in calls:
        _, out, err = run(capsys, *call)
        assert not RAW.search(out + err), call
        assert len([line for line in err.splitlines() if line.startswith("error:")]) <= 1
    _, out, _ = run(capsys, "show", "foreign", "--json", "-")
    assert json.loads(out)["facts"]["made_by"] == EVIL
    _, out, _ = run(capsys, "show", "foreign")
    assert SHOWN in out.replace("\n", "")


def test_warnings_are_one_line(
    foreign: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = artifact.read

    def read_with_a_warning(folder: Path) -> Any:
        warnings.warn(f"a\n{EVIL} [red]b[/red]", stacklevel=1)
        return read(folder)

    monkeypatch.setattr(artifact, "read", read_with_a_warning)
    _, _, err = run(capsys, "show", "foreign")
    assert err == f"warning: a\\n{SHOWN} [red]b[/red]\n"


@pytest.mark.parametrize("name", [r"a\[/b]", r"x\[/foo]", "[/]", "[bold]x", r"\[", "a[/b]\\"])
def test_brackets_stay_in_the_sentence(desk: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, _, err = run(capsys, "show", name)
    assert (code, f"no intervention at '{name}'" in err) == (2, True)
    code, _, err = run(capsys, *LEARN, "--sites", name)
    assert code == 2
    assert name in err


def test_a_wrong_use_names_the_help_of_its_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert "see lineas show --help" in run(capsys, "show")[2]
    assert "see lineas lm-eval --help" not in run(capsys, "lm-evil")[2]
    assert "see lineas --help" in run(capsys, "shew")[2]
    assert "see lineas generate --help" in run(capsys, "generate", "--nothing")[2]


def test_texts_of_models_and_prompts_are_shown(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN, "--steps", "1")
    arguments = ("generate", "model", "--intervention", "calm", "--max-new-tokens", "1")
    code, out, err = run(capsys, *arguments, "--prompt", "-5 degrees [/x] :smile:", f"once {EVIL}", "--strength", "0")
    assert (code, RAW.search(out + err)) == (0, None)
    assert "-5 degrees [/x] :smile:" in out
    assert "once \\x1b]52" in out
    # strengths that look alike to six digits have a column and a key each; equal ones share it
    near = ("--prompt", "Tom", "--strength", "0.1234567", "0.1234568", "0.1234567", "--json", "-")
    code, out, _ = run(capsys, *arguments, *near)
    assert list(json.loads(out)["continuations"][0]["by_strength"]) == ["0.1234567", "0.1234568"]
    # the same prompts on both sides teach nothing, and that is said
    code, out, err = run(capsys, *LEARN, "--target", "source.txt", "--out", "nothing", "--steps", "1")
    assert (code, "warning: nothing was learned" in err) == (0, True)
    code, out, err = run(capsys, "export", "calm", "--strength", "0", "--out", "x.gguf")
    assert (code, "changes nothing (at strength 0 none does)" in err) == (2, True)


def test_a_log_has_lines_of_progress(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "SECONDS", 0.0)
    code, _, err = run(capsys, *LEARN, "--steps", "4")
    assert code == 0
    progress = [line for line in err.splitlines() if line.startswith("learning: ")]
    assert [line.split(",")[0] for line in progress] == [f"learning: {done} of 4" for done in (1, 2, 3, 4)]
    assert all("cost " in line for line in progress)


def test_a_quick_command_writes_no_line_of_progress(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, *LEARN, "--steps", "4")
    assert err.splitlines() == ["loading model"]
