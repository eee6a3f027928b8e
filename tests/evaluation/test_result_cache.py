"""ResultCache parts of an evaluation are taken again for the same model, data and settings alone, and never misread."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import PROMPTS
from pipelines import image_model
from safetensors.torch import load_file, save_file
from test_picture_measures import Redness
from torch import nn
from torch.nn.utils import parametrize

import lineas
from lineas import LineasError
from lineas.evaluation import text_measures
from lineas.evaluation.evaluate import evaluate, settings_of
from lineas.evaluation.judges import JUDGE, WorldNetwork, judge
from lineas.evaluation.plan import BATCH, Plan
from lineas.evaluation.result_cache import ResultCache, content_of, digest_of
from lineas.evaluation.task_files import task_files_digest
from lineas.evaluation.variants import Adapted, Prompted, Steered, Untouched
from lineas.models.digests import description, weights_digest
from lineas.models.untouched import Unknowable, check_unchanged

NEUTRAL = ["The dog ran", "A bird sang in the rain", "He was sad"]
PLAN = Plan((), NEUTRAL)


def perplexity(model: lineas.TextModel, folder: Path | None) -> float:
    return evaluate(model, [Untouched()], PLAN, folder).rows[0].values["perplexity"]


def other_epsilon(model: lineas.TextModel) -> lineas.TextModel:
    config: Any = copy.deepcopy(model.network.config)
    config.rms_norm_eps = 0.5
    network = type(model.network)(config)
    network.load_state_dict(model.network.state_dict())
    return lineas.TextModel(network, model.tokenizer, model.name)


def other_epsilon_by_hand(model: lineas.TextModel) -> lineas.TextModel:
    network: Any = copy.deepcopy(model.network)
    network.model.norm.variance_epsilon = 0.5
    return lineas.TextModel(network, model.tokenizer, model.name)


def other_activation(model: lineas.TextModel) -> lineas.TextModel:
    network: Any = copy.deepcopy(model.network)
    for layer in network.model.layers:
        layer.mlp.act_fn = nn.GELU()
    return lineas.TextModel(network, model.tokenizer, model.name)


def other_tokenizer(model: lineas.TextModel) -> lineas.TextModel:
    return lineas.TextModel(model.network, families.tokenizer(bos=False), model.name)


def permuted_rows(model: lineas.TextModel) -> lineas.TextModel:
    network: Any = copy.deepcopy(model.network)
    weight = network.model.layers[0].mlp.down_proj.weight
    weight.data.copy_(weight.data.flip(0))  # the sums stay, and torch's count of changes too
    return lineas.TextModel(network, model.tokenizer, model.name)


def other_buffer(model: lineas.TextModel) -> lineas.TextModel:
    network: Any = copy.deepcopy(model.network)
    network.model.rotary_emb.inv_freq.mul_(0.5)
    return lineas.TextModel(network, model.tokenizer, model.name)


OTHERS = [other_epsilon, other_epsilon_by_hand, other_activation, other_tokenizer, permuted_rows, other_buffer]


@pytest.mark.parametrize("other", OTHERS, ids=[other.__name__ for other in OTHERS])
def test_another_model_does_not_take_what_was_kept_of_the_first(
    other: Callable[[lineas.TextModel], lineas.TextModel], tmp_path: Path
) -> None:
    model = families.model("llama")
    kept = perplexity(model, tmp_path)
    changed = other(model)
    fresh = perplexity(changed, None)
    assert perplexity(changed, tmp_path) == fresh != kept
    assert perplexity(model, tmp_path) == kept
    assert len(list(tmp_path.iterdir())) == 2


def test_other_generation_settings_are_other_continuations(tmp_path: Path) -> None:
    model = families.model("llama")
    plan = Plan(PROMPTS[:2], sampling={"max_new_tokens": 6})
    before = evaluate(model, [Untouched()], plan, tmp_path).continuations
    network: Any = model.network
    network.generation_config.suppress_tokens = list(range(40, 120))
    after = evaluate(model, [Untouched()], plan, tmp_path).continuations
    assert after == evaluate(model, [Untouched()], plan).continuations != before


def test_what_a_run_leaves_in_a_model_does_not_make_it_another(tmp_path: Path) -> None:
    for family in ("llama", "gpt2", "mixtral", "gemma3"):
        model = families.model(family)
        before = description(model)
        perplexity(model, None)
        model.generate(PROMPTS[:2], max_new_tokens=2)
        model.network(input_ids=torch.tensor([[3, 4]]), output_hidden_states=True)
        model.tokenizer(PROMPTS, padding=True, truncation=True, max_length=4)  # which its backend remembers
        assert description(model) == before
        assert description(lineas.TextModel(copy.deepcopy(model.network), families.tokenizer(), "renamed")) == before


def test_a_network_that_somebody_steers_is_not_measured(tmp_path: Path) -> None:
    model, pictures = families.model("llama"), image_model("stable diffusion 1")
    for one, measure in (
        (model, lambda: perplexity(model, tmp_path)),
        (pictures, lambda: evaluate(pictures, [Untouched()], Plan(["a"], concept="red", judge=Redness()), tmp_path)),
    ):
        site = one.sites()[0]
        module: Any = one.network.get_submodule(site.module)
        width = module.weight.shape[0]
        shift = lineas.Intervention(
            {site.name: lineas.AffineMap(torch.ones(width), torch.ones(width))}, {site.name: site}
        )
        for strength in (1.0, 0.0):  # which may rise meanwhile
            with lineas.steer(one, shift, strength), pytest.raises(LineasError, match="is being steered"):
                measure()
    assert not list(tmp_path.iterdir())
    assert perplexity(model, tmp_path) > 1


def by_hook(network: Any) -> None:
    network.model.norm.register_forward_hook(lambda module, args, result: result * 0.5)


def by_hook_before(network: Any) -> None:
    network.model.norm.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))


def by_forward(network: Any) -> None:
    original = network.lm_head.forward
    network.lm_head.forward = lambda x: original(x) * 0.5


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5


def by_parametrization(network: Any) -> None:
    parametrize.register_parametrization(network.lm_head, "weight", Halved())


@pytest.mark.parametrize("change", [by_hook, by_hook_before, by_forward, by_parametrization])
def test_a_network_that_other_code_changes_is_measured_and_nothing_of_it_is_kept_or_taken(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    model = families.model("llama")
    plain = perplexity(model, tmp_path)
    change(model.network)
    with pytest.warns(UserWarning, match="nothing of this evaluation is cached, or taken"):
        changed = perplexity(model, tmp_path)
    assert changed != plain
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(Unknowable):
        check_unchanged(model.network)


def test_weights_are_known_by_their_bytes_names_types_and_shapes() -> None:
    torch.manual_seed(0)
    network: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    digest = weights_digest(network)
    assert weights_digest(copy.deepcopy(network)) == digest
    others = [copy.deepcopy(network) for _ in range(4)]
    others[0][0].weight.data[0, 0] = torch.nextafter(others[0][0].weight.data[0, 0], torch.tensor(9.0))
    others[1][0], others[1][1] = others[1][1], others[1][0]
    others[2].double()
    others[3][0].bias.data = others[3][0].bias.data.view(2, 2)
    assert len({digest, *map(weights_digest, others)}) == 5
    with pytest.raises(Unknowable, match="not in memory"):
        weights_digest(nn.Linear(2, 2, device="meta"))


def test_a_kept_file_says_what_it_depends_on_and_one_that_says_otherwise_is_left_alone(tmp_path: Path) -> None:
    model = families.model("llama")
    true = perplexity(model, tmp_path)
    (file,) = tmp_path.iterdir()
    told = json.loads(file.read_text())
    assert told["key"]["network"]["weights"] == weights_digest(model.network)
    assert told["key"]["scheme"] > 1
    result = {"perplexity": [2.0] * 3, "kl": [0.0] * 3}
    forged: list[Any] = [
        result,  # as 0.1.0 wrote it
        {"key": {**told["key"], "torch": "1.0"}, "result": result},
        {"key": told["key"], "result": {"perplexity": "2.0"}},
        {"key": told["key"], "result": {"perplexity": ["2.0"], "kl": [0.0]}},
        {"key": told["key"]},
        [1, 2],
        None,
    ]
    for content in forged:
        file.write_text(json.dumps(content))
        assert perplexity(model, tmp_path) == true
        assert json.loads(file.read_text()) == told
    for unreadable in (b"\xff\xfe", b"[" * 100_000, b'{"key": ' + b"1" * 5_000 + b"}"):
        file.write_bytes(unreadable)
        assert perplexity(model, tmp_path) == true


def test_what_cannot_be_kept_is_measured_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lineas.evaluation.result_cache.write_text", full)
        with pytest.warns(UserWarning, match="could not be cached in .*No space left"):
            assert ResultCache(tmp_path, {}).get_or_make({"part": "x"}, lambda: 3) == (3, False)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LineasError, match="is a file; name a folder"):
        ResultCache(tmp_path / "file", {})


def test_a_number_that_is_none_is_not_kept(tmp_path: Path) -> None:
    assert ResultCache(tmp_path, {}).get_or_make({"part": "x"}, lambda: [float("inf")]) == ([float("inf")], False)
    assert not list(tmp_path.iterdir())


def test_texts_are_told_apart_where_their_lines_are_the_same() -> None:
    assert digest_of(["a\nb", "c"]) != digest_of(["a", "b\nc"])


def test_pictures_depend_on_every_part_of_the_pipeline_and_on_the_judge(tmp_path: Path) -> None:
    def of(model: lineas.ImageModel) -> dict[str, Any]:
        return description(model)

    model = image_model("stable diffusion 1")
    before = of(model)
    model.generate(["a"])
    assert of(model) == before
    decoder = model.pipeline.vae.decoder.conv_out
    weight = decoder.weight.data.clone()
    decoder.weight.data.copy_(weight.flip(0))
    assert of(model) != before
    decoder.weight.data.copy_(weight)
    assert of(model) == before
    scheduler = model.pipeline.scheduler
    model.pipeline.scheduler = type(scheduler)(beta_end=0.5)
    assert of(model) != before
    model.pipeline.scheduler = scheduler
    assert of(model.set(steps=3)) != before

    folder = tmp_path / "judge"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(WorldNetwork(2).state_dict(), folder / JUDGE)
    (folder / "judge.json").write_text(json.dumps({"labels": ["red", "moon"]}))

    def shown() -> float:
        plan = Plan(["a"], concept="red", judge=judge(str(folder)))
        return evaluate(model, [Untouched()], plan, tmp_path / "parts").rows[0].values["concept"]

    first = shown()
    tensors = load_file(folder / JUDGE)
    save_file({**tensors, "head.bias": tensors["head.bias"] + 1.0}, folder / JUDGE)  # under the same name
    assert shown() > first
    (folder / "judge.json").write_text(json.dumps({"labels": ["moon", "red"]}))
    shown()
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_a_judge_that_nobody_can_know_keeps_nothing(tmp_path: Path) -> None:
    class Asks(Redness):
        def __init__(self) -> None:
            self.answer = lambda: 0.5

    plan = Plan(["a"], concept="red", judge=Asks())
    with pytest.warns(UserWarning, match="what a function does cannot be told"):
        evaluate(image_model("stable diffusion 1"), [Untouched()], plan, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tasks_depend_on_every_file_beside_them_and_on_the_data_they_name(tmp_path: Path) -> None:
    tasks, data = tmp_path / "tasks", tmp_path / "data"
    tasks.mkdir()
    data.mkdir()
    task = (
        f"task: a\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}/*.jsonl'}}}}\ndoc: !function u.f\n"
    )
    (tasks / "a.yaml").write_text(task)
    seen = {task_files_digest(tasks)}
    for file in (tasks / "u.py", tasks / "deeper" / "words.txt", data / "a.jsonl", data / "b.jsonl"):
        file.parent.mkdir(exist_ok=True)
        for content in ("1", "2"):
            file.write_text(content)
            seen.add(task_files_digest(tasks))
    assert len(seen) == 9
    before = task_files_digest(tasks, tasks / "found")
    (tasks / "found").mkdir()
    (tasks / "found" / "evaluation.json").write_text("{}")
    assert task_files_digest(tasks, tasks / "found") == before


def test_a_digest_of_an_intervention_tells_its_sites_apart() -> None:
    change = lineas.AffineMap(torch.ones(2), torch.ones(2))
    site = lineas.sites.Site
    digests = {lineas.Intervention({"a": change}, {"a": place}).digest() for place in (site("a"), site("a", axis=1))}
    assert len(digests) == 2


def test_settings_of_an_evaluation_are_json_and_equal_for_the_same_alone(tmp_path: Path) -> None:
    model = families.model("llama")
    one = settings_of(model, [Untouched(), Prompted("Be kind:"), Adapted("a", tmp_path)], PLAN)
    assert json.loads(json.dumps(one)) == one
    assert one == settings_of(model, [Untouched(), Prompted("Be kind:"), Adapted("a", tmp_path)], PLAN)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert one != settings_of(model, [Untouched(), Prompted("Be kind:"), Adapted("a", tmp_path)], PLAN)
    assert one != settings_of(model, [Untouched()], replace(PLAN, max_length=9))


def test_the_content_behind_a_name_is_that_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "mine.py").write_text("def f(texts): ...")
    names = ("model", "model@toxic", "mine:f", "model+model")
    before = {name: content_of(name) for name in names}
    assert all(before.values())
    assert before["model"] == before["model@toxic"]
    (tmp_path / "model" / "out").mkdir()
    (tmp_path / "model" / "out" / "sweep.json").write_text("{}")
    assert content_of("model", tmp_path / "model" / "out") == before["model"]
    (tmp_path / "model" / "config.json").write_text('{"eps": 1}')
    (tmp_path / "mine.py").write_text("def f(texts): pass")
    assert all(content_of(name) != before[name] for name in names)
    assert content_of("profanity-check") is content_of("nobody/nothing") is content_of("a b/c") is None


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Plan("Tom was"), "prompts must be a list of prompts, not one string"),
    (lambda: Plan([1]), "prompts must be a list of prompts, and number 1 of it is an int"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan([None]), "prompts must be a list of prompts, and number 1 of it is None"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan(5), "prompts must be a list of prompts, not an int"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan([], neutral="a b"), "neutral must be a list of sentences, not one string"),
    (lambda: Plan([], tasks="mmlu"), "tasks must be a list of tasks, not one string"),
    (lambda: Plan([], seeds=3), "seeds is a list of whole numbers such as .*, not 3"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan([], seeds=[0.5]), "a seed is a whole number from .*, not 0.5"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan([], seeds=[2**64]), "a seed is a whole number from"),
    (lambda: Plan([], seeds=[-(2**63) - 1]), "a seed is a whole number from"),
    (lambda: Plan(["a"], classifiers=["x"]), "classifiers are given by name"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan(["a"], classifiers={"toxic": 3}), "classifiers are given by name"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan(["a"], NEUTRAL, concept="red"), "neutral is about texts; leave it out"),
    (lambda: Plan(["a"], concept="red", sampling={"top_p": 1}), "top_p is about texts; leave it out"),
    (lambda: Plan(["a"], sampling={"temprature": 1}), "sampling knows .*temperature.*, not 'temprature'"),
    (lambda: Plan(["a"], sampling={"top_p": float("nan")}), "top_p of the sampling must be a finite number, not nan"),
    (lambda: Plan(["a"], sampling=3), "sampling is given by name"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan([], task_path="/no/such/folder"), "there is no folder /no/such/folder"),
    (lambda: Plan([], task_limit=0), "task_limit is a whole number of at least 1, not 0"),
    (lambda: Plan([], fewshot=-1), "fewshot is a whole number of at least 0"),
    (lambda: Plan([], max_length=1.5), "max_length is a whole number"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan("a sun", concept="red", judge=Redness()), "prompts must be a list of prompts, not one string"),
    (lambda: Plan(["a"], concept="", judge=Redness()), "the concept to look for is a text"),
    (lambda: Plan(["a"], concept="red", judge=5), r"is a name, or the result of judge\(NAME\), not 5"),  # pyright: ignore[reportArgumentType]
    (lambda: Plan(["a"], concept="red", judge=Redness(), sampling={"batch_size": 0}), "batch_size is a whole number"),
    (lambda: Plan(["a", "b"], concept="red", judge=Redness(), seeds=[2**63]), "noise seeds beyond those of torch"),
    (lambda: Steered("calm", "calm"), "calm needs an Intervention, not a str"),  # pyright: ignore[reportArgumentType]
    (lambda: Prompted(""), "a prompt before every text is a text"),
    (lambda: Adapted("a", "a", float("nan")), "the strength of a must be a finite number, not nan"),
    (lambda: evaluate(families.model("llama"), "untouched", PLAN), "is a list of systems .*, not a str"),  # pyright: ignore[reportArgumentType]
    (lambda: evaluate(families.model("llama"), None, PLAN), "is a list of systems .*, not a NoneType"),  # pyright: ignore[reportArgumentType]
    (lambda: evaluate(families.model("llama"), [Untouched], PLAN), "not the class Untouched"),  # pyright: ignore[reportArgumentType]
    (lambda: evaluate(families.model("llama"), ["polite"], PLAN), "not a str"),  # pyright: ignore[reportArgumentType]
    (lambda: evaluate(families.model("llama"), [Untouched()], NEUTRAL), "is a Plan, not a list"),  # pyright: ignore[reportArgumentType]
    (lambda: evaluate("gpt2", [Untouched()], PLAN), "judges a TextModel or an ImageModel, not a str"),  # pyright: ignore[reportArgumentType]
    (lambda: evaluate("shapes", [Untouched()], PLAN), "judges a TextModel or an ImageModel, not a str"),  # pyright: ignore[reportArgumentType]
]


@pytest.mark.parametrize(("ask", "sentence"), WRONG, ids=[sentence[:40] for _, sentence in WRONG])
def test_what_cannot_be_measured_is_said_before_anything_is(ask: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        ask()


def test_a_failure_of_our_own_can_be_seen_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a bug of ours")

    model = families.model("llama")
    monkeypatch.setattr(text_measures, "perplexities", broken)
    with caplog.at_level(logging.DEBUG, "lineas"):
        (row,) = evaluate(model, [Untouched()], PLAN).rows
    assert row.errors["perplexity"] == "KeyError: 'a bug of ours'"
    assert "Traceback" in caplog.text
    monkeypatch.setenv("LINEAS_DEBUG", "1")
    with pytest.raises(KeyError, match="a bug of ours"):
        evaluate(model, [Untouched()], PLAN)


def test_every_verb_continues_the_same_number_of_prompts_together(tmp_path: Path) -> None:
    from inspect import signature

    from lineas.cli.evaluate import evaluate as verb
    from lineas.cli.plan import plan_of

    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    plan = plan_of(str(tmp_path / "prompts.txt"), None, None, shows=None, judge=None, seeds=1, limit=None)
    assert plan.sampling == {"batch_size": BATCH}
    assert signature(verb).parameters["batch_size"].default == BATCH
