"""lm-eval: tasks over local files, with the model type `lineas`; accuracies against a computation of our own."""

from __future__ import annotations

import copy
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from console import check_refused, run
from stories import stories as stories_of
from tokenizers.processors import TemplateProcessing

import lineas
from lineas import LineasError
from lineas.cli import main
from lineas.evaluation.lm_harness import check_tasks, model_class, run_tasks
from lineas.models.loading import load_text

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
COUNT = 24


def questions(count: int, seed: int, least: int, most: int) -> list[dict[str, Any]]:
    """Questions about what came next in a little story, with sentences to choose from."""
    drawn, told = random.Random(seed), [story.split(". ") for story in stories_of(5 * count)]
    sentences, docs = sorted({sentence for story in told for sentence in story}), []
    for story in told[:count]:
        others = [sentence for sentence in sentences if sentence != story[-1]]
        choices = [story[-1], *drawn.sample(others, drawn.randint(least, most) - 1)]
        drawn.shuffle(choices)
        docs.append({"question": ". ".join(story[:-1]), "choices": choices, "answer": choices.index(story[-1])})
    return docs


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files over questions about little stories, of the shapes of MMLU's and of TruthfulQA's."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = {"four_choices": questions(COUNT, 1, 4, 4), "many_choices": questions(COUNT, 2, 2, 6)}
    for name, docs in rows.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        text = "Q: {{question}}\\nA:"
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file, text=text), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def harsh(stories: lineas.TextModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    width = families.width(stories)
    generator = torch.Generator().manual_seed(0)
    maps = {
        site.name: lineas.AffineMap(torch.ones(width), torch.randn(width, generator=generator))
        for site in stories.sites()
    }
    return lineas.Intervention(maps).save(tmp_path_factory.mktemp("harsh") / "harsh")


def accuracy(model: lineas.TextModel, file: Path) -> float:
    """The share of questions whose right choice is the likeliest continuation, one forward pass a choice."""
    right = 0
    docs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for doc in docs:
        likelihoods = []
        for choice in doc["choices"]:
            context = model.tokenizer(f"Q: {doc['question']}\nA:").input_ids
            whole = model.tokenizer(f"Q: {doc['question']}\nA: {choice}").input_ids
            ids = torch.tensor([whole])
            with torch.no_grad():
                steps = model.network(ids).logits[0, :-1].log_softmax(-1)
            chosen = steps.gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1)
            likelihoods.append(float(chosen[len(context) - 1 :].sum()))
        right += likelihoods.index(max(likelihoods)) == doc["answer"]
    return right / len(docs)


@pytest.mark.parametrize("task", ["four_choices", "many_choices"])
def test_accuracies_are_those_of_the_model_as_it_is_steered(
    stories: lineas.TextModel, harsh: Path, tasks: Path, task: str
) -> None:
    plain = run_tasks(stories, [task], str(tasks))[task]
    assert plain["value"] == pytest.approx(accuracy(stories, tasks / f"{task}.jsonl"), abs=1.01 / COUNT)
    with lineas.steer(stories, lineas.Intervention.load(harsh)):
        steered = run_tasks(stories, [task], str(tasks))[task]
        own = accuracy(stories, tasks / f"{task}.jsonl")
    assert steered["value"] == pytest.approx(own, abs=1.01 / COUNT)
    assert abs(own - plain["value"]) > 2.02 / COUNT  # so that answers of the untouched model would be noticed
    assert plain["metric"] == "acc"
    assert 0 < plain["error"] < 0.2


def test_the_model_type_loads_steers_and_gives_likelihoods(stories_folder: Path, harsh: Path) -> None:
    from lm_eval.api.instance import Instance

    folder = str(stories_folder)
    request = [Instance("loglikelihood", {}, ("Once upon", " a time"), 0)]
    found = {}
    for strength in (0.0, 1.0):
        made = model_class()(pretrained=folder, intervention=str(harsh), strength=strength, dtype="float32")
        ((found[strength], _),) = made.loglikelihood(request)
    model = load_text(folder, dtype="float32")
    ids = torch.tensor([model.tokenizer("Once upon a time").input_ids])
    before = len(model.tokenizer("Once upon").input_ids)
    with torch.no_grad():
        steps = model.network(ids).logits[0, :-1].log_softmax(-1)
    own = float(steps.gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1)[before - 1 :].sum())
    assert found[0.0] == pytest.approx(own, abs=1e-3)
    assert found[1.0] < found[0.0]


def test_the_command_line_of_lm_eval_knows_the_model_type(
    stories_folder: Path, harsh: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"pretrained={stories_folder},intervention={harsh},strength=0.5,dtype=float32"
    before = list(sys.argv)
    main([
        "lm-eval", "--model", "lineas", "--model_args", arguments, "--tasks", "many_choices",
        "--include_path", str(tasks), "--limit", "8", "--output_path", str(tmp_path / "out"),
    ])  # fmt: skip
    assert sys.argv == before
    assert "many_choices" in capsys.readouterr().out
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text())["results"]["many_choices"]["acc,none"]
    model = load_text(stories_folder, dtype="float32")
    with lineas.steer(model, lineas.Intervention.load(harsh), 0.5):
        assert found == run_tasks(model, ["many_choices"], str(tasks), limit=8)["many_choices"]["value"]


def answers(asked: Any, cache: Path) -> tuple[Any, ...]:
    """Return what lm-eval gets of a model whose answers it keeps in a file."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM

    kept = CachingLM(asked, str(cache))
    compared = kept.loglikelihood([Instance("loglikelihood", {}, ("Once upon", " a time"), 0)])
    rolling = kept.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("Once upon a time",), 0)])
    settings = {"until": ["."], "max_gen_toks": 6, "do_sample": False}
    made = kept.generate_until([Instance("generate_until", {}, ("Once upon a time", settings), 0)])
    kept.dbdict.close()
    return compared[0], rolling[0], made[0]


def test_kept_answers_are_those_of_the_same_model_intervention_and_strength(
    stories: lineas.TextModel, harsh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, made = tmp_path / "x.db", model_class()
    given: dict[str, dict[str, Any]] = {
        "untouched": {},
        "0": {"intervention": str(harsh), "strength": 0},
        "1": {"intervention": str(harsh), "strength": 1},
        "0.5": {"intervention": str(harsh), "strength": 0.5},
    }

    def asked(pretrained: lineas.TextModel, cache: Path, **options: Any) -> tuple[Any, ...]:
        model = made(pretrained=pretrained, **options)
        try:
            return answers(model, cache)
        finally:
            if model.live is not None:
                model.live.detach()

    true = {name: asked(stories, tmp_path / f"{name}.db", **options) for name, options in given.items()}
    assert true["untouched"] == true["0"] != true["1"] != true["0.5"]
    for _ in range(2):
        assert {name: asked(stories, cache, **options) for name, options in given.items()} == true
    network: Any = copy.deepcopy(stories.network)
    network.model.norm.weight.data.mul_(0.5)
    other = lineas.TextModel(network, stories.tokenizer, stories.name)
    assert asked(other, cache) == asked(other, tmp_path / "other.db") != true["untouched"]
    with monkeypatch.context() as patch:
        patch.setattr("lineas.evaluation.lm_model.likelihoods", None)  # nothing is computed again
        assert asked(stories, cache, **given["0.5"])[:2] == true["0.5"][:2]
        with pytest.raises(TypeError):  # only those generated are steered: another model
            asked(stories, cache, intervention=str(harsh), tokens="all", strength=0.25)
    changed = made(pretrained=stories, **given["1"])
    changed.live.strength = 0.5
    assert answers(changed, cache) == true["0.5"]
    changed.live.detach()
    with lineas.steer(stories, lineas.Intervention.load(harsh)), pytest.raises(LineasError, match="is being steered"):
        answers(made(pretrained=stories), cache)


def test_a_head_with_weights_of_its_own_keeps_them(stories: lineas.TextModel) -> None:
    network: Any = copy.deepcopy(stories.network)
    network.config.tie_word_embeddings = True
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach() * 2)
    before = network.lm_head.weight
    model_class()(pretrained=lineas.TextModel(network, stories.tokenizer))
    assert network.lm_head.weight is before
    assert "tie_weights" not in vars(network)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"interventon": "iv"}, "no argument 'interventon'; did you mean intervention?"),
    ({"strengths": 1}, "no argument 'strengths'; did you mean strength?"),
    ({"force": True}, "no argument 'force'; did you mean other_model?"),
    ({"load_in_8bit": True}, "no argument 'load_in_8bit'"),
    ({"device_map": "auto"}, "no argument 'device_map'"),
    *(
        ({name: "x"}, f"'{name}' is an argument of lm-eval's hf that does nothing")
        for name in ("peft", "delta", "autogptq", "gptqmodel", "parallelize", "subfolder", "tokenizer", "backend",
                     "trust_remote_code", "gguf_file", "softmax_dtype", "logits_cache")
    ),
    ({"max_length": "long"}, "max_length is int, not 'long'"),
    ({"add_bos_token": 1}, "add_bos_token is bool, not 1"),
    ({"batch_size": 0}, "batch_size is a whole number of at least 1, auto or auto:N, not 0"),
    ({"batch_size": "many"}, "batch_size is a whole number"),
    ({"dtype": "float32"}, "loaded already, so dtype has no effect"),
    ({"strength": 1.0}, "strength needs an intervention; give intervention=DIR"),
    ({"tokens": "prompt"}, "tokens needs an intervention"),
    ({"intervention": "HARSH", "strength": "calibrated"}, "no calibrated strength"),
    ({"intervention": "HARSH", "strength": "strong"}, "a number or 'calibrated', not 'strong'"),
    ({"intervention": "HARSH", "tokens": "some"}, "tokens must be"),
    ({"intervention": "HARSH", "other_model": "yes"}, "other_model is True or False"),
    ({"pretrained": 0.5}, "a hub id, a folder or a TextModel, not a float"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=[" ".join(map(str, a)) + s[-9:] for a, s in REFUSED])
def test_a_model_argument_that_nobody_takes_is_refused(
    arguments: dict[str, Any], sentence: str, stories: lineas.TextModel, harsh: Path
) -> None:
    given = {name: str(harsh) if value == "HARSH" else value for name, value in arguments.items()}
    with pytest.raises(LineasError, match=re.escape(sentence)):
        model_class()(**{"pretrained": stories, **given})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in stories.network.modules())


def test_a_calibrated_strength_tokens_and_another_model_are_taken(
    stories: lineas.TextModel, harsh: Path, tmp_path: Path
) -> None:
    calm = (
        lineas.Intervention.load(harsh)
        .with_facts(calibration={"strength": 0.25, "reached": True})
        .save(tmp_path / "calm")
    )
    more = {"strength": "calibrated", "tokens": "generated", "other_model": True, "batch_size": 2}
    made = model_class().create_from_arg_obj(
        {"pretrained": stories, "intervention": str(calm), **more}, {"batch_size": 1, "device": None}
    )
    assert made.live.strength == 0.25
    assert made.batch_size == 2
    with pytest.raises(LineasError, match="tokens=generated is for tasks that generate"):
        made._loglikelihood_tokens([(None, [1], [2])])
    made.live.detach()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("Tasks not found: no_such"), "lm-eval has no task: no_such; `lineas lm-eval ls tasks`"),
        (RuntimeError("the data could not be fetched\nand more"), "lm-eval ended: RuntimeError: the data could not"),
    ],
)
def test_what_ends_lm_eval_is_one_sentence(
    error: Exception, sentence: str, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", failing)
    check_refused(capsys, desk, sentence, "lm-eval", "--model", "lineas", "--tasks", "no_such")
    monkeypatch.setenv("LINEAS_DEBUG", "1")
    assert "Traceback" in run(capsys, "lm-eval", "--model", "lineas", "--tasks", "no_such")[2]


def test_the_tokenizer_and_the_generators_stay_as_they_were(stories: lineas.TextModel, tasks: Path) -> None:
    padding = stories.tokenizer.pad_token_id
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    run_tasks(stories, ["many_choices"], str(tasks), limit=2)
    assert stories.tokenizer.pad_token_id == padding
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_an_unknown_task_is_said(stories: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match=r"'truthfulqa' stands for several tasks .*truthfulqa_mc1"):
        run_tasks(stories, ["truthfulqa"])
    with pytest.raises(LineasError, match="no task 'no_such_task'"):
        run_tasks(stories, ["no_such_task"])


def test_task_files_are_read_once_and_anew_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Manager:
        """Stands for lm-eval's own, which takes ten seconds."""

        def __init__(self, include_path: str) -> None:
            self.all_tags: list[str] = []
            self.all_tasks = self.all_subtasks = [file.stem for file in Path(include_path).iterdir()]

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    (tmp_path / "first.yaml").write_text("task: first")
    once, again = (check_tasks(["first"], tmp_path) for _ in range(2))
    assert once is again
    with pytest.raises(LineasError, match="no task 'second'"):
        check_tasks(["second"], tmp_path)
    (tmp_path / "second.yaml").write_text("task: second")
    assert check_tasks(["second"], tmp_path) is not once


def test_contexts_end_without_what_the_tokenizer_adds(stories: lineas.TextModel) -> None:
    tokenizer = copy.deepcopy(stories.tokenizer)
    template = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = template
    ending, plain = (model_class()(lineas.TextModel(stories.network, t)) for t in (tokenizer, stories.tokenizer))
    for text in ("Once upon a time", "The end</s>"):
        assert ending.tok_encode(text) == plain.tok_encode(text)
        assert ending.tok_encode(text, left_truncate_len=2) == plain.tok_encode(text, left_truncate_len=2)
        for options in ({}, {"left_truncate_len": 3}):
            (ids, mask), (expected, real) = (lm.tok_batch_encode([text, "Tom"], **options) for lm in (ending, plain))
            assert torch.equal(ids[mask == 1], expected[real == 1])


def test_tasks_of_a_destroyed_model_are_no_answer() -> None:
    model = families.model("llama")
    model.network.model.norm.weight.data.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    lm = model_class()(model)
    with pytest.raises(LineasError, match="the model is destroyed"):
        lm._model_generate(torch.tensor([[1, 45]]), max_length=5, stop=["x"])
