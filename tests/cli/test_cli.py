"""The command line as a new user meets it: what it prints, what it writes, and one sentence for every mistake."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from console import LEARN, check_refused, run

import lineas
from lineas.cli import VERBS, _group, _spread
from lineas.intervention import artifact
from lineas.models.loading import load_text


def test_learn_then_show_then_generate(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *LEARN, "--dtype", "float32", "--json", "learned.json")
    assert code == 0
    assert "in 3 steps" in out
    told = json.loads((desk / "learned.json").read_text())
    assert told["cost"][-1] < told["cost"][0]
    loaded = lineas.Intervention.load(desk / "calm")
    assert loaded.facts["data"]["source"]["file"] == "source.txt"
    assert loaded.facts["data"]["source"]["count"] == 3

    code, out, _ = run(capsys, "show", "calm")
    assert code == 0
    assert "post_attention_layernorm" in out
    assert "100.0%" in out
    assert "exact" in out

    arguments = ("generate", "model", "--intervention", "calm", "--strength", "0", "0.5", "1", "--prompt", "Tom was")
    code, out, _ = run(capsys, *arguments, "--json", "-", "--dtype", "float32")
    assert code == 0
    texts = json.loads(out)["continuations"][0]["by_strength"]
    assert list(texts) == ["0", "0.5", "1"]
    plain = lineas.load("model", dtype="float32").generate(["Tom was"])[0]
    assert texts["0"] == plain
    code, out, _ = run(capsys, *arguments)
    assert all(f"strength {s}" in out for s in ("0", "0.5", "1"))


def test_learn_on_top_and_compose(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An intervention learned on top of another, composed with it, is that one and then this one."""
    run(capsys, *LEARN, "--dtype", "float32")
    code, _, _ = run(capsys, *LEARN, "--dtype", "float32", "--on", "calm", "--out", "second")
    assert code == 0
    assert lineas.Intervention.load("second").facts["on"]["name"] == "calm"
    code, out, _ = run(capsys, "compose", "calm", "second", "--strength", "1", "0.5", "--out", "both", "--json", "-")
    assert code == 0
    told = json.loads(out)
    calm, second, both = (lineas.Intervention.load(name) for name in ("calm", "second", "both"))
    expected, other = calm.then(second.at(0.5)), second.at(0.5).then(calm)
    for name, map_ in both.maps.items():
        torch.testing.assert_close(map_.shift, expected.maps[name].shift)
        torch.testing.assert_close(map_.scale, expected.maps[name].scale)
    assert told["other_order_differs"] == pytest.approx(expected.distance(other))
    assert told["other_order_differs"] > 0
    for said in (both, calm.at(0.5), calm.inverse()):  # what folds is a matter of the network
        assert said.facts["folds"] == calm.facts["folds"] != {}

    code, _, _ = run(capsys, "compose", "calm", "second", "--mix", "--strength", "1", "0.5", "--out", "mixed")
    assert code == 0
    for name, map_ in lineas.Intervention.load("mixed").maps.items():
        torch.testing.assert_close(map_.shift, calm.maps[name].shift + 0.5 * second.maps[name].shift)


def test_learn_goes_on_within_a_support(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relative = ("--optimizer", "relative")
    run(capsys, *LEARN, "--dtype", "float32", *relative, "--gamma", "2e-3", "--steps", "20")
    more = ("--dtype", "float32", *relative, "--steps", "20", "--start", "calm", "--within-support", "--out", "freed")
    code, _, _ = run(capsys, *LEARN, *more)
    assert code == 0
    sparse, freed = (lineas.Intervention.load(name) for name in ("calm", "freed"))
    assert 0 < freed.support() <= sparse.support() < 1
    assert freed.facts["cost"][-1] < sparse.facts["cost"][-1]
    code, _, _ = run(
        capsys, *LEARN, "--dtype", "float32", *relative, "--gamma", "2e-3", "--steps", "20", "--refit", "--out", "both"
    )
    both = lineas.Intervention.load("both")
    assert code == 0
    assert both.digest() == freed.digest()
    assert both.facts["steps_done"] == 40


def test_the_model_defaults_to_the_interventions_own(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    code, out, _ = run(capsys, "generate", "--intervention", "calm", "--prompt", "Tom", "--json", "-")
    assert code == 0
    assert json.loads(out)["model"] == "model"


WRONG = [
    (("learn", "nowhere", *LEARN[2:]), "no model could be loaded from 'nowhere'"),
    (("learn", "someone/nothing", *LEARN[2:]), "no model could be loaded from 'someone/nothing'"),
    ((*LEARN, "--source", "missing.txt"), "there is no file missing.txt"),
    ((*LEARN, "--source", "empty.txt"), "empty.txt holds no prompts"),
    ((*LEARN, "--source", "latin.txt"), "latin.txt is not UTF-8"),
    ((*LEARN, "--source", "rows.jsonl:nope"), "has no column 'nope'"),
    ((*LEARN, "--target", "one.txt"), "the target has 1 prompt"),
    ((*LEARN, "--sites", "post_attention_layernom"), r"the nearest are 'model\.layers\.\d+\.post_attention_layernorm'"),
    ((*LEARN, "--sites", "("), "is not a regular expression"),
    ((*LEARN, "--out", "taken"), "taken exists already"),
    ((*LEARN, "--out", "taken", "--force"), "is not an intervention"),
    ((*LEARN, "--lr", "1e6"), "blew up to"),
    ((*LEARN, "--lr", "-1"), "--lr must be a positive number, not -1"),
    (
        (LEARN[0], "no/model", *LEARN[2:-2], "--method", "mean-act", "--neutral", "source.txt"),
        "the optimizer 'natural' alone",
    ),
    ((*LEARN, "--lr", "0.1", "--divergence", "0.1"), "give a divergence (optimizer natural) or a learning rate"),
    ((*LEARN, "--optimizer", "lbfgs"), "'relative', 'adam' or 'sgd'"),
    ((*LEARN, "--method", "magic"), "not 'magic'"),
    ((*LEARN, "--refit"), "give a gamma above 0"),
    ((*LEARN, "--within-support"), "keeps to the neurons of a start"),
    ((*LEARN, "--start", "nowhere"), "nowhere"),
    ((*LEARN, "--on", "nowhere"), "nowhere"),
    (("compose", "polite", "--out", "x"), "at least two interventions, not 1"),
    (("compose", "polite", "calm", "--strength", "1", "--out", "x"), "2 interventions take as many strengths, not 1"),
    (("compose", "polite", "nowhere", "--out", "x"), "nowhere"),
    (("compose", "polite", "polite", "--strength", "nan", "1", "--out", "x"), "must be a finite number, not nan"),
    (
        ("compose", "polite", "polite", "--mix", "--strength", "1", "inf", "--out", "x"),
        "must be a finite number, not inf",
    ),
    ((*LEARN, "--source", "half.jsonl"), "half of a character"),
    ((*LEARN, "--samples", "-1"), "at least 1"),
    (
        ("gate", "--intervention", "polite", "--control", "one.txt", "--max-length", "0", "--out", "x"),
        "--max-length must be at least 1",
    ),
    (
        ("gate", "--intervention", "polite", "--control", "one.txt", "--samples", "-1", "--out", "x"),
        "--samples must be at least 1",
    ),
    ((*LEARN, "--pooling", "median"), "one of mean, max, not 'median'"),
    ((*LEARN, "--samples", "9"), "9 samples were asked for and 3 prompts"),
    ((*LEARN, "--dtype", "int3"), "not 'int3'"),
    ((*LEARN, "--memory", "much"), "a size looks like 8GiB"),
    ((*LEARN, "--memory", "1MB"), "32 neutral prompts need more than"),
    ((*LEARN, "--steps", "many"), "--steps must be a whole number from 1 to 10000000, not 'many'"),
    ((*LEARN, "--json", "no/such/folder.json"), "the folder of no/such/folder.json does not exist"),
    (LEARN[:4], "Missing option '--target'"),
    (("generate", "model", "--intervention", "nothing", "--prompt", "x"), "no intervention at 'nothing'"),
    (("generate", "model", "--intervention", "taken", "--prompt", "x"), "holds no intervention.json"),
    (("show", "nothing"), "no intervention at 'nothing'"),
    (("paint-it-black",), "No such command"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(a[-2:]) for a, _ in WRONG])
def test_a_mistake_is_one_sentence_exit_code_two_and_nothing_written(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    (desk / "empty.txt").write_text("\n")
    (desk / "latin.txt").write_bytes("schön".encode("latin-1"))
    (desk / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (desk / "one.txt").write_text("alone\n")
    (desk / "half.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800 b"}\n')
    (desk / "taken").mkdir()
    (desk / "taken" / "thesis.txt").write_text("ten years")
    check_refused(capsys, desk, sentence, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--prompt", ""), "a prompt is empty"),
        ((), "nothing to continue"),
        (("--prompt", "x", "--strength", "nan"), "--strength must be a finite number, not nan"),
        (("--prompt", "x", "--top-p", "3"), "--top-p must be at most 1, not 3"),
        (("--prompt", "x", "--chat"), "has no chat template"),
        (("--prompt", "x", "--prompts", "missing.txt"), "there is no file missing.txt"),
    ],
)
def test_generate_refuses_what_it_cannot_do(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    run(capsys, *LEARN)
    code, _, err = run(capsys, "generate", "model", "--intervention", "calm", *arguments)
    assert code == 2
    assert sentence in err


def test_an_intervention_for_another_network_is_refused_and_other_model_is_named(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, *LEARN)
    changed = json.loads((desk / "calm" / "intervention.json").read_text())
    changed["model"]["fingerprint"] = "0" * 64
    (desk / "calm" / "intervention.json").write_text(json.dumps(changed))
    arguments = ("generate", "model", "--intervention", "calm", "--prompt", "Tom")
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "another checkpoint" in err
    assert "--other-model" in err
    assert run(capsys, *arguments, "--other-model")[0] == 0


def test_the_same_checkpoint_is_accepted_in_every_type(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN, "--dtype", "float32")
    for dtype in ("float32", "bfloat16", "float16"):
        arguments = ("generate", "model", "--intervention", "calm", "--prompt", "Tom", "--dtype", dtype)
        code, _, err = run(capsys, *arguments)
        assert code == 0
        assert "warning" not in err


def test_a_destroyed_model_is_one_sentence(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    for temperature in ("0", "1"):
        arguments = ("generate", "model", "--intervention", "calm", "--prompt", "Tom", "--temperature", temperature)
        check_refused(capsys, desk, "the model is destroyed", *arguments, "--strength", "1e30")


def test_a_bug_of_ours_says_where_to_report_it_and_shows_its_traceback_on_request(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: lineas.Intervention, *_: object) -> float:
        raise TypeError("no such thing")

    run(capsys, *LEARN)
    monkeypatch.setattr(lineas.Intervention, "support", broken)
    code, out, err = run(capsys, "show", "calm")
    assert code == 1
    assert "this is a bug of lineas (TypeError: no such thing, in show.py:" in err
    assert "please report it to the project" in err
    assert "Traceback" not in out + err
    monkeypatch.setenv("LINEAS_DEBUG", "1")
    code, _, err = run(capsys, "show", "calm")
    assert code == 1
    assert "Traceback" in err
    assert "TypeError: no such thing" in err
    monkeypatch.setattr(lineas.Intervention, "support", lambda self, *_: torch.empty(10**18))
    monkeypatch.setenv("LINEAS_DEBUG", "0")
    code, _, err = run(capsys, "show", "calm")
    assert code == 2
    assert "there is not enough memory" in err


def test_without_an_intervention_generate_continues_untouched(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", "model", "--prompt", "Tom was", "--max-new-tokens", "4", "--json", "-")
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    for option in (("--strength", "1"), ("--tokens", "all")):
        code, _, err = run(capsys, *arguments, *option)
        assert code == 2
        assert f"{option[0]} changes an intervention; name one with --intervention DIR." in err
    assert run(capsys, *LEARN)[0] == 0
    steered = run(capsys, *arguments, "--intervention", "calm", "--strength", "0")[1]
    assert json.loads(out)["continuations"] == json.loads(steered)["continuations"]


def test_generate_steers_the_tokens_that_are_named(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    arguments = ("generate", "model", "--intervention", "calm", "--prompt", "Tom was", "--temperature", "0")
    made = {}
    for tokens in ("all", "answer"):
        code, out, _ = run(capsys, *arguments, "--tokens", tokens, "--max-new-tokens", "8", "--json", "-")
        assert code == 0
        found = json.loads(out)
        assert found["tokens"] == tokens
        made[tokens] = found["continuations"][0]["by_strength"]["1"]
    model, calm = load_text("model"), lineas.Intervention.load("calm")
    with lineas.steer(model, calm, tokens="answer"):
        assert model.generate(["Tom was"], max_new_tokens=8, temperature=0) == [made["answer"]]
    code, _, err = run(capsys, *arguments, "--tokens", "some")
    assert code == 2
    assert "generated" in err


def test_strength_outside_zero_to_one_is_a_warning(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    arguments = ("generate", "model", "--intervention", "calm", "--prompt", "Tom", "--strength", "1.5", "-0.5")
    code, _, err = run(capsys, *arguments)
    assert code == 0
    assert "warning: strength 1.5 is outside 0 to 1" in err
    assert "warning: strength -0.5 is outside 0 to 1" in err


def test_prompts_cut_at_the_limit_are_counted(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *LEARN, "--max-length", "3")
    assert code == 0
    assert "3 of 3 source prompts were cut at 3 tokens" in err


def test_force_overwrites_an_intervention(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    assert run(capsys, *LEARN)[0] == 2
    assert run(capsys, *LEARN, "--steps", "2", "--force")[0] == 0
    assert lineas.Intervention.load("calm").facts["steps_done"] == 2


@pytest.mark.parametrize("target", ["calm", "learned.json"])
def test_no_space_left_is_one_sentence_and_nothing_half_written(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", target)

    if target == "calm":
        monkeypatch.setattr(artifact, "save_file", full)
    else:
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    code, _, err = run(capsys, *LEARN, "--json", "learned.json")
    assert code == 2
    assert "no space left on the disk" in err
    left = {p.name for p in desk.iterdir()} - {"source.txt", "target.txt", "model"}
    assert left == (set() if target == "calm" else {"calm"})


def test_options_take_several_values_after_one_name() -> None:
    given = ["generate", "--strength", "0", "-0.5", "1", "--prompt", "a", "b", "--seed", "3"]
    assert _spread(_group("generate"), given) == [
        "generate", "--strength", "0", "--strength", "-0.5", "--strength", "1", "--prompt", "a", "--prompt", "b",
        "--seed", "3",
    ]  # fmt: skip


OPTIONS = {
    "learn": "--gamma",
    "generate": "--strength",
    "paint": "--seed",
    "show": "--json",
    "evaluate": "--neutral",
    "compose": "--mix",
    "sweep": "--tolerance",
    "calibrate": "--max-damage",
    "gate": "--control",
    "report": "--out",
    "fold": "--strength",
    "export": "--out",
    "demo": "--out",
    "serve": "--intervention",
    "lm-eval": "--tasks",  # of lm_eval's own
}
"""Every verb with an option that its help should name."""


def test_no_verb_is_left_out() -> None:
    assert list(OPTIONS) == list(VERBS)


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_of_every_verb_names_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert OPTIONS[verb] in out


def test_no_arguments_show_the_help_and_no_empty_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)
    assert code in (0, 2)  # click's own choice, another one from 8.2 on
    assert err == ""
    assert all(verb in out for verb in VERBS)
