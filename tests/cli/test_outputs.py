"""Outputs are checked before any work: nothing of others is replaced, no place is written twice."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from console import LEARN, check_refused, run

import lineas
from lineas.cli.common import write_json
from lineas.files import writing

MINE = "mine, and of nobody else"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two interventions, one at blocks, a tiny model and files of the user's."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("calm", 1.5), ("brief", 2.0)):
        norm = "model.layers.0.post_attention_layernorm"
        lineas.Intervention({norm: lineas.AffineMap(torch.full((32,), value), torch.zeros(32))}).save(name)
    lineas.Intervention({"model.layers.1": lineas.AffineMap(torch.ones(32), torch.ones(32))}).save("blocks")
    families.model("llama").save_pretrained("model")
    for name in ("mine.txt", "mine.json", "s.txt", "t.txt"):
        Path(name).write_text(MINE + "\na second line\n")
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text(MINE)
    Path("link").symlink_to("mine.txt")
    os.mkfifo("pipe")
    return tmp_path


def state(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
        if not stat.S_ISFIFO(p.lstat().st_mode)
    }


WITH_JSON = {
    "show": ("show", "calm"),
    "compose": ("compose", "calm", "brief", "--out", "new"),
    "export": ("export", "blocks", "--out", "new.gguf"),
    "report": ("report", "--intervention", "calm", "--out", "new.html"),
    "fold": ("fold", "model", "--intervention", "calm", "--out", "new"),
    "learn": ("learn", "model", "--source", "s.txt", "--target", "t.txt", "--out", "new"),
    "generate": ("generate", "model", "--intervention", "calm", "--prompt", "a"),
    "gate": ("gate", "--intervention", "calm", "--control", "s.txt", "--source", "t.txt", "--out", "new", "model"),
    "evaluate": ("evaluate", "model", "--neutral", "s.txt", "--out", "new"),
    "sweep": ("sweep", "model", "--source", "s.txt", "--target", "t.txt", "--neutral", "s.txt", "--out", "new"),
    "calibrate": ("calibrate", "model", "--intervention", "calm", "--max-damage", "kl<=1", "--neutral", "s.txt"),
    "paint": ("paint", "model", "--intervention", "calm", "--prompt", "a", "--out", "new"),
    "demo": ("demo", "model", "--out", "new"),
}


@pytest.mark.parametrize("verb", WITH_JSON)
def test_json_replaces_no_file_of_others(verb: str, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(room)
    for place, sentence in (
        ("mine.txt", "exists already"),
        ("link", "exists already"),
        ("calm/intervention.json", "exists already"),
        ("mine", "is a folder"),
        ("", "an empty name"),
        ("mine.txt/under.json", "is no folder"),
        ("nowhere/told.json", "does not exist"),
        ("x" * 256, "name too long"),
    ):
        check_refused(capsys, room, sentence, *WITH_JSON[verb], "--json", place)
    for place in ("mine.txt", "mine.json", "calm/intervention.json", "calm/.lineas.json", "model/config.json"):
        sentence = f"{place} is not JSON that lineas {verb} wrote, so it is not overwritten"
        check_refused(capsys, room, sentence, *WITH_JSON[verb], "--json", place, "--force")
    assert state(room) == before


def test_json_is_written_to_a_pipe_and_to_a_device(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert run(capsys, "show", "calm", "--json", "pipe")[0] == 0
    assert json.loads(os.read(reader, 10**6))["intervention"] == "calm"
    os.close(reader)
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)
    assert run(capsys, "show", "calm", "--json", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()


def test_json_of_the_same_verb_is_replaced_when_asked(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "show", "calm", "--json", "told.json")[0] == 0
    check_refused(capsys, room, "told.json exists already", "show", "brief", "--json", "told.json")
    assert run(capsys, "show", "brief", "--json", "told.json", "--force")[0] == 0
    assert json.loads(Path("told.json").read_text())["intervention"] == "brief"
    compose = ("compose", "calm", "brief", "--out", "new", "--json", "told.json", "--force")
    check_refused(capsys, room, "told.json is not JSON that lineas compose wrote", *compose)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("report", "--intervention", "calm", "--out", "r.html", "--json", "r.html"), "one place"),
        (("report", "--intervention", "calm", "--out", "r.html", "--json", "./mine/../r.html"), "one place"),
        (("compose", "calm", "brief", "--out", "new", "--json", "new"), "one place"),
        (("compose", "calm", "brief", "--out", "new/deep", "--json", "new"), "one place"),
        (("fold", "model", "--intervention", "calm", "--out", "model", "--force"), "model is what the command reads"),
        (("fold", "model", "--intervention", "calm", "--out", "calm", "--force"), "calm is what the command reads"),
        (("fold", "model", "--intervention", "calm", "--out", "./calm/../model", "--force"), "what the command reads"),
        (("compose", "calm", "brief", "--out", "brief", "--force"), "brief is what the command reads"),
        ((*WITH_JSON["learn"], "--json", "s.txt", "--force"), "s.txt is what the command reads"),
        ((*WITH_JSON["learn"][:-1], "calm", "--on", "calm", "--force"), "calm is what the command reads"),
        ((*WITH_JSON["gate"], "--json", "t.txt", "--force"), "t.txt is what the command reads"),
        (("report", "--intervention", "calm+brief", "--out", "calm"), "calm is what the command reads"),
    ],
)
def test_an_output_is_no_input_and_no_other_output(
    arguments: tuple[str, ...], sentence: str, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(room)
    check_refused(capsys, room, sentence, *arguments)
    assert state(room) == before


FOLDERS = {verb: command for verb, command in WITH_JSON.items() if "new" in command}


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_folder_of_others_is_not_taken(verb: str, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("config.json", "model_index.json", "intervention.json", "strip.png", "sweep.json", "evaluation.json")
    for name in names:
        (room / "mine" / name).write_text("{}")
    (room / "mine" / "polite").mkdir()
    (room / "mine" / "polite" / "intervention.json").write_text("{}")
    before = state(room)
    command = [str(room / "mine") if one == "new" else one for one in FOLDERS[verb]]
    for more in ((), ("--force",)):
        code, _, err = run(capsys, *command, *more)
        assert (code, "error:" in err) == (2, True)
    assert state(room) == before


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    verb: str, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, sentence in (("mine.txt/o", "is no folder"), ("/proc/o", "nothing can be"), ("x" * 256, "too long")):
        command = [place if one == "new" else one for one in FOLDERS[verb]]
        check_refused(capsys, room, sentence, *command)


def test_folding_again_keeps_what_others_put_there(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = ("fold", "model", "--intervention", "calm", "--out", "folded")
    assert run(capsys, *fold)[0] == 0
    (room / "folded" / "thesis.tex").write_text(MINE)
    (room / "folded" / ".git").mkdir()
    (room / "folded" / ".git" / "HEAD").write_text("ref")
    check_refused(capsys, room, "folded exists already", *fold)
    assert run(capsys, *fold, "--strength", "0.5", "--force")[0] == 0
    assert (room / "folded" / "thesis.tex").read_text() == MINE
    assert (room / "folded" / ".git" / "HEAD").read_text() == "ref"
    assert json.loads((room / "folded" / "lineas.json").read_text())["strength"] == 0.5
    assert lineas.load("folded", dtype="float32").generate(["The dog"])
    assert {stat.S_IMODE(p.stat().st_mode) & 0o044 for p in (room / "folded").iterdir() if p.is_file()} == {0o044}


def test_force_only_overwrites(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For one version it still accepts another model, and says what to write instead."""
    other = families.model("llama", seed=1)
    other.save_pretrained("other")
    base = lineas.Intervention.load("calm")
    known = lineas.intervention.model_identity.ModelIdentity.of(families.network("llama"), "home/model")
    lineas.Intervention(base.maps, base.sites, known).save("learned")
    fold = ("fold", "other", "--intervention", "learned", "--out", "folded")
    check_refused(capsys, room, "--other-model", *fold)
    code, _, err = run(capsys, *fold, "--force")
    assert (code, "--force accepts another model than home/model for the last time" in err) == (0, True)
    code, _, err = run(capsys, *fold, "--force", "--other-model")
    assert (code, "for the last time" in err) == (0, False)


def test_what_was_learned_is_kept_elsewhere_when_its_place_fails(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = writing._moved

    def full(new: Path, path: Path) -> bool:
        if path.name == "calm" and path.parent == desk:
            raise OSError(28, "No space left on device", str(path))
        return replace(new, path)

    monkeypatch.setattr(writing, "_moved", full)
    code, _, err = run(capsys, *LEARN)
    assert (code, "what was made is in" in err) == (2, True)
    kept = Path(err.split("what was made is in ")[1].strip().rstrip("."))
    assert lineas.Intervention.load(kept).facts["steps_done"] == 3
    assert not (desk / "calm").exists()
    shutil.rmtree(kept.parent)


def test_an_evaluation_goes_on_in_its_own_folder_alone(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ("evaluate", "model", "--neutral", "target.txt", "--dtype", "float32", "--out", "found")
    assert run(capsys, *evaluate)[0] == 0
    (desk / "found" / "notes.md").write_text(MINE)
    assert run(capsys, *evaluate)[0] == 0
    other = (*evaluate, "--limit", "2")
    code, _, err = run(capsys, *other)
    assert (code, "found holds an evaluation of other settings" in err) == (2, True)
    assert run(capsys, *other, "--force")[0] == 0
    assert json.loads((desk / "found" / "evaluation.json").read_text())["neutral"]["count"] == 2
    with writing.locked(desk / "found"):
        code, _, err = run(capsys, *other)
    assert (code, "another run works in found" in err) == (2, True)
    assert (desk / "found" / "notes.md").read_text() == MINE


@pytest.mark.parametrize("change", ["words", "one letter", "link"])
def test_a_changed_result_of_a_working_folder_is_not_replaced(
    change: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ("evaluate", "model", "--neutral", "target.txt", "--dtype", "float32", "--out", "found")
    assert run(capsys, *evaluate)[0] == 0
    (desk / "precious.txt").write_text(MINE)
    place = desk / "found" / "evaluation.json"
    mine = place.read_text().replace('"', "'", 1) if change == "one letter" else MINE
    place.unlink()
    place.symlink_to("../precious.txt") if change == "link" else place.write_text(mine)
    for more in ((), ("--force",), ("--limit", "2", "--force")):
        code, _, err = run(capsys, *evaluate, *more)
        assert (code, "evaluation.json was not written by lineas, or was changed since" in err) == (2, True)
    assert (place.read_text(), (desk / "precious.txt").read_text()) == (mine, MINE)


def test_calibrating_does_not_undo_what_another_process_has_written(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, *LEARN, "--dtype", "float32")
    changed = lineas.Intervention.load("calm").at(0.5)

    from lineas.cli import calibrate

    find = calibrate.find_strength

    def meanwhile(*given: Any, **options: Any) -> object:
        changed.save("calm", overwrite=True)
        return find(*given, **options)

    monkeypatch.setattr(calibrate, "find_strength", meanwhile)
    code, _, err = run(
        capsys,
        "calibrate",
        "--intervention",
        "calm",
        "--max-damage",
        "kl<=9",
        "--neutral",
        "target.txt",
        "--dtype",
        "float32",
    )
    assert (code, "calm was changed meanwhile" in err) == (2, True)
    assert lineas.Intervention.load("calm").digest() == changed.digest()
    assert "calibration" in lineas.Intervention.load("calm.calibrated").facts


def test_the_first_key_of_json_says_who_wrote_it(room: Path) -> None:
    write_json(room / "told.json", {"a": 1}, "show")
    assert list(json.loads((room / "told.json").read_text())) == ["written_by", "a"]
