"""`lineas evaluate`: several interventions at several strengths, its files, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import LEARN, TARGET, check_refused, run

import lineas
from lineas.evaluation.perplexity import perplexity
from lineas.learning.lora import LoRA
from lineas.models.loading import load_text

EVALUATE = ("evaluate", "model", "--prompts", "source.txt", "--neutral", "target.txt", "--dtype", "float32")


def letter_e(texts: list[str]) -> list[float]:
    """A concept classifier for these tests: the share of words with an e."""
    return [sum("e" in word for word in text.split()) / max(1, len(text.split())) for text in texts]


def test_effect_and_damage_of_everything_at_every_strength(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN, "--dtype", "float32")
    run(capsys, *LEARN[:6], "--out", "act", "--method", "lin-act")
    LoRA(epochs=1).fine_tune(load_text("model", dtype="float32"), TARGET.splitlines(), "adapter")
    code, out, err = run(
        capsys, *EVALUATE, "--intervention", "calm", "act", "calm+act", "--strength", "0", "0.5", "1",
        "--prompt-baseline", "Be kind:", "--adapter", "adapter", "--seeds", "2", "--out", "found", "--json", "-",
        "--classifier", "profanity-check", f"concept={__name__}:letter_e",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    judged = [(row["system"], row["strength"]) for row in told["rows"]]
    both = [(name, s) for name in ("calm", "act", "calm+act") for s in (0.5, 1.0)]
    assert judged == [("untouched", 0.0), *both, ("prompt", 1.0), ("adapter", 0.5), ("adapter", 1.0)]
    model = load_text("model", dtype="float32")
    assert told["rows"][0]["values"]["perplexity"] == pytest.approx(perplexity(model, TARGET.splitlines()))
    with lineas.steer(model, [lineas.Intervention.load(name) for name in ("calm", "act")], strength=0.5):
        assert told["rows"][5]["values"]["perplexity"] == pytest.approx(perplexity(model, TARGET.splitlines()))
    assert {"toxic", "toxic_score", "concept", "concept_score", "perplexity", "kl", "repetition"} <= told["rows"][1][
        "values"
    ].keys()
    assert len(told["rows"][1]["by_seed"]["toxic"]) == 2
    assert told["versions"]["lineas"]
    assert json.loads((desk / "found" / "evaluation.json").read_text()) == told
    table = (desk / "found" / "evaluation.md").read_text()
    assert table.count("\n| ") == 1 + len(judged)
    assert (desk / "found" / "effect-damage.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_alone_and_a_classifier_fitted_on_the_spot(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, *EVALUATE, "--classifier", "none", "--positive", "lineas:formal/target",
        "--negative", "lineas:formal/source",
    )  # fmt: skip
    assert code == 0, err
    assert "untouched" in out
    assert "concept score" in out
    assert "toxic" not in out
    assert "area under the ROC curve 1.000" in err


def fails(texts: list[str]) -> list[float]:
    raise MemoryError("no memory left for the classifier")


def test_what_fails_is_named_and_the_rest_is_there_with_exit_code_one(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *EVALUATE, "--classifier", f"{__name__}:fails", "--json", "found.json")
    assert code == 1
    assert "perplexity" in out
    assert "not measured: untouched at 0, fails: MemoryError: no memory left for the classifier" in err
    row = json.loads((desk / "found.json").read_text())["rows"][0]
    assert row["values"]["perplexity"] > 0
    assert "fails" in row["errors"]


def test_systems_of_one_name_are_told_apart(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for draw in ("a", "b"):
        run(capsys, *LEARN[:6], "--out", f"{draw}/calm", "--steps", "1", "--dtype", "float32")
    _, out, _ = run(capsys, *EVALUATE, "--intervention", "a/calm", "b/calm", "--strength", "1", "--json", "-")
    assert [row["system"] for row in json.loads(out)["rows"]] == ["untouched", "a/calm", "b/calm"]


def test_a_strength_beyond_what_was_learned_is_warned_about_once(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, *LEARN, "--steps", "1", "--dtype", "float32")
    _, _, err = run(capsys, *EVALUATE, "--intervention", "calm", "--strength", "1.5", "--seeds", "3")
    assert err.count("strength 1.5 is outside 0 to 1") == 1


WRONG = [
    (
        ("--classifier", "s-nlp/roberta_toxicity_classifier"),
        "there is no classifier 's-nlp/roberta_toxicity_classifier'",
    ),
    (("--classifier", "nothing:here"), "no classifier nothing:here"),
    (("--classifier", "a:judge", "b:judge"), "two classifiers would fill the column 'judge'; write COLUMN=NAME"),
    (("--classifier", "kl=a:judge"), "a classifier cannot fill the column 'kl', which is another measure's"),
    (("--classifier", "none", "profanity-check"), "none stands alone"),
    (
        ("--classifier", "concept=profanity-check", "--positive", "lineas:formal/target", "--negative", "target.txt"),
        "two classifiers would fill the column 'concept'",
    ),
    (("--positive", "source.txt"), "needs both --positive and --negative"),
    (("--positive", "source.txt", "--negative", "target.txt"), "at least 5 texts a side, the concept side has 3"),
    (("--intervention", "nothing"), "no intervention at 'nothing'"),
    (("--adapter", "nothing"), "no adapter of peft"),
    (("--seeds", "0"), "--seeds must be at least 1"),
    (("--limit", "0"), "--limit must be at least 1"),
    (("--top-p", "3"), "--top-p must be at most 1, not 3"),
    (("--prompts", "missing.txt"), "there is no file missing.txt"),
    (("--out", "source.txt"), "source.txt is what the command reads"),
    (("--json", "no/such/folder.json"), "the folder of no/such/folder.json does not exist"),
    (("--task-path", "missing", "--tasks", "mmlu"), "there is no folder missing"),
    (("--tasks", "no_such_task"), "lm-eval has no task 'no_such_task'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_a_mistake_is_one_sentence_exit_code_two_and_nothing_written(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    check_refused(capsys, desk, sentence, *EVALUATE, *arguments)


def test_without_a_classifier_the_table_shows_how_varied_continuations_are(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "evaluate", "model", "--prompts", "source.txt", "--classifier", "none")
    assert (code, "repetition" in out, "perplexity" in out) == (0, True, False)


def test_nothing_to_measure_is_said(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "evaluate", "model")
    assert code == 2
    assert "give --prompts, --neutral or --tasks" in err


def test_an_intervention_for_another_network_is_refused_before_anything_is_measured(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *EVALUATE, "--intervention", "polite", "--out", "found")
    assert code == 2
    assert (
        "acts on 'model.layers.15.post_attention_layernorm' and 14 other modules that LlamaForCausalLM does not" in err
    )
    assert not (desk / "found").exists()
