"""Text models: batches with little padding, generation that is reproducible, and the text that comes back."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import families
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import lineas
from lineas import LineasError
from lineas.evaluation.perplexity import perplexities
from lineas.evaluation.plan import Plan
from lineas.learning.gating import gate
from lineas.models import loading
from lineas.models.likelihoods import likelihoods
from lineas.models.text_batches import PackedPart, PaddedPart


def test_parts_hold_every_prompt_once_with_little_padding(stories: lineas.TextModel) -> None:
    prompts = ["Tom " * n for n in (1, 40, 2, 3, 38, 41, 1, 12)]
    batch = stories.padded_samples(prompts).batch()
    rows = torch.cat([part.rows for part in batch.parts])
    assert sorted(rows.tolist()) == list(range(8))
    real = sum(int(part.mask.sum()) for part in batch.parts)
    assert real == sum(len(stories.tokenizer(p).input_ids) for p in prompts)
    assert sum(part.ids.numel() for part in batch.parts) <= real / 0.8
    for part in batch.parts:
        for ids, mask, row in zip(part.ids, part.mask, part.rows):
            assert ids[mask.bool()].tolist() == stories.tokenizer(prompts[row]).input_ids


@pytest.mark.parametrize("limit", [None, 50, 10])
def test_packs_hold_every_prompt_once_without_padding_up_to_a_limit(stories: lineas.TextModel, limit: int) -> None:
    prompts = ["Tom " * n for n in (1, 40, 2, 3, 38, 41, 1, 12)]
    expected = [stories.tokenizer(p).input_ids for p in prompts]
    batch = stories.batch(prompts, limit=limit)
    found = {}
    for part in batch.parts:
        assert limit is None or part.size <= limit or len(part.rows) == 1
        assert part.positions[0].tolist() == [at for row in part.rows for at in range(len(expected[row]))]  # pyright: ignore[reportAttributeAccessIssue]
        found |= dict(zip(part.rows.tolist(), part.ids[0].split([len(expected[row]) for row in part.rows])))
    assert {row: ids.tolist() for row, ids in found.items()} == dict(enumerate(expected))
    assert (len(batch.parts) == 1) == (limit is None)


def test_packing_is_tried_anew_when_attention_is_computed_in_another_way() -> None:
    def twice(*args: Any, **kwargs: Any) -> Any:
        made, weights = sdpa_attention_forward(*args, **kwargs)
        return 2 * made, weights

    AttentionInterface.register("twice", twice)
    model = families.model("llama")
    assert isinstance(model.batch(["Tom ran"]).parts[0], PackedPart)
    model.network.set_attn_implementation("twice")  # pyright: ignore[reportCallIssue]
    with pytest.warns(UserWarning, match="padded instead of packed"):
        assert isinstance(model.batch(["Tom ran"]).parts[0], PaddedPart)
    model.network.set_attn_implementation("sdpa")  # pyright: ignore[reportCallIssue]
    assert isinstance(model.batch(["Tom ran"]).parts[0], PackedPart)


def test_the_same_seed_gives_the_same_texts_and_touches_no_global_state(stories: lineas.TextModel) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = stories.generate(["Once", "Tom was"], top_p=1.0, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one == stories.generate(["Once", "Tom was"], top_p=1.0, seed=3)
    assert one != stories.generate(["Once", "Tom was"], top_p=1.0, seed=4)


def test_greedy_continuations_do_not_depend_on_the_batch(stories: lineas.TextModel) -> None:
    prompts = ["Once upon a time", "Tom", "The little dog was very"]
    options = {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 12}
    together = stories.generate(prompts, **options)
    assert together == [stories.generate([p], **options)[0] for p in prompts]
    assert together == stories.generate(prompts, batch_size=2, **options)


def test_prompt_and_continuation_join_to_the_text_the_model_wrote(stories: lineas.TextModel) -> None:
    """This tokenizer drops a leading space when ids are decoded alone."""
    options = {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 12}
    ids = stories.tokenizer("Tom and", return_tensors="pt").input_ids
    whole = stories.network.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)  # pyright: ignore[reportCallIssue]
    expected = stories.tokenizer.decode(whole[0], skip_special_tokens=True)
    assert "Tom and" + stories.generate(["Tom and"], **options)[0] == expected
    assert expected[len("Tom and")] == " "


def test_what_cannot_be_continued_or_run_is_refused(stories: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match="a list of prompts, not one string"):
        stories.generate("Tom")
    with pytest.raises(LineasError, match="no chat template"):
        stories.generate(["Tom"], chat=True)
    with pytest.raises(LineasError, match="at least one prompt"):
        stories.batch([])


def test_chat_prompts_go_through_the_template(smollm2: lineas.TextModel) -> None:
    chat = smollm2.generate(["What is two plus two?"], chat=True, temperature=0, max_new_tokens=12)[0]
    plain = smollm2.generate(["What is two plus two?"], temperature=0, max_new_tokens=12)[0]
    assert chat != plain
    assert "= 4" in chat


@pytest.fixture
def ending(stories: lineas.TextModel) -> lineas.TextModel:
    """The real tiny model with a tokenizer that ends every text."""
    tokenizer = copy.deepcopy(stories.tokenizer)
    template = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = template
    return lineas.TextModel(stories.network, tokenizer)


def test_what_a_tokenizer_puts_after_a_text_is_left_out_everywhere(
    stories: lineas.TextModel, ending: lineas.TextModel
) -> None:
    prompts = ["Once upon a time", "Tom was sad", "The end</s>"]
    assert ending.token_ids(prompts) == stories.token_ids(prompts)
    assert ending.token_ids(prompts)[2][-1] == 2  # its own
    assert ending.generate(prompts[:1], temperature=0) == stories.generate(prompts[:1], temperature=0)
    assert perplexities(ending, prompts, prefix="A story: ") == perplexities(stories, prompts, prefix="A story: ")
    learned, expected = (
        lineas.learn(model, prompts, ["A bird sang", "Rain"], lineas.MeanAcT(), progress=False)
        for model in (ending, stories)
    )
    assert learned.distance(expected) == 0
    assert learned.facts["end_of_text"] == "left out"
    assert "end_of_text" not in expected.facts


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_more_tokens_than_a_table_of_positions_has_are_refused(family: str) -> None:
    model = families.model(family)
    long = "a b c d e f " * 12  # 134 tokens of 128
    short = ["Rain", "A bird sang"]
    with pytest.raises(LineasError, match=r"the prompt has 134 tokens, and 1 are to be added; .* reads 128"):
        model.generate([long], max_new_tokens=1)
    with pytest.raises(LineasError, match=r"has 6 tokens, and 200 are to be added; .* reads 128"):
        model.generate(["a b c"], max_new_tokens=200)
    assert len(model.generate(["a b c"], max_new_tokens=123, temperature=0)) == 1  # the last one is not read
    for do in (
        lambda: lineas.learn(model, [long, long], short, lineas.MeanAcT(), max_length=500, progress=False),
        lambda: perplexities(model, [long], max_length=500),
        lambda: perplexities(model, ["a b c d " * 10], prefix=long, max_length=500),
        lambda: likelihoods(model, [([1] * 200, [2])], longest=500),
    ):
        with pytest.raises(LineasError, match="reads 128"):
            do()
    with pytest.warns(UserWarning, match="2 of 2 source prompts were cut at 128 tokens"):
        assert lineas.learn(model, [long, long], short, lineas.MeanAcT(), max_length=128, progress=False)


def test_more_tokens_than_a_network_was_made_for_are_warned_of_once() -> None:
    model = families.model("llama")
    with pytest.warns(UserWarning, match="was made for 128; what it predicts beyond them may be nonsense"):
        model.generate(["Rain"], max_new_tokens=130)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(["Rain"], max_new_tokens=131)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_destroyed_model_says_so_instead_of_writing(temperature: float) -> None:
    model = families.model("llama")
    harsh = lineas.AffineMap(torch.full((32,), 1e30), torch.full((32,), 1e30))
    intervention = lineas.Intervention({"model.layers.0.post_attention_layernorm": harsh})
    with lineas.steer(model, intervention), pytest.raises(LineasError, match="the model is destroyed: its predictions"):
        model.generate(["Tom"], temperature=temperature)
    model.network.model.norm.weight.data.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    with pytest.raises(LineasError, match="the model is destroyed"):
        model.generate(["Tom"], temperature=temperature)
    with pytest.raises(LineasError, match="the model is destroyed"):
        likelihoods(model, [([1, 2], [3])], longest=100)


def test_a_gate_of_a_destroyed_model_is_refused() -> None:
    model = families.model("llama")
    site = "model.layers.1.post_attention_layernorm"
    model.network.model.layers[0].mlp.down_proj.weight.data.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    learned = lineas.Intervention({site: lineas.AffineMap(torch.full((32,), 2.0), torch.zeros(32))})
    with pytest.warns(UserWarning, match="nan"), pytest.raises(LineasError, match="the model is destroyed"):
        gate(model, learned, families.PROMPTS, families.OTHER_PROMPTS)


@pytest.mark.parametrize("prompts", [["caf\udce9"], ["Tom", 5], [b"Tom"], None])
def test_what_is_no_text_is_refused(prompts: Any) -> None:
    model = families.model("llama")
    for read in (model.generate, model.batch, lambda some: perplexities(model, some), lambda some: Plan(some)):
        with pytest.raises(LineasError, match="prompt"):
            read(prompts)


@pytest.mark.parametrize("template", ["{% for %}", "{{ nothing.at.all }}", "{{ raise_exception('no') }}"])
def test_a_broken_chat_template_is_one_sentence(template: str) -> None:
    model = families.model("llama")
    model.tokenizer.chat_template = template
    with pytest.raises(LineasError, match="the chat template of tiny-llama could not be filled in"):
        model.generate(["Tom"], chat=True)


def test_load_says_what_it_cannot_load(tmp_path) -> None:
    with pytest.raises(LineasError, match="no model could be loaded"):
        lineas.load(tmp_path)
    with pytest.raises(LineasError, match="'auto', 'checkpoint' or one of float32"):
        lineas.load(dtype="int8")


@pytest.mark.parametrize(
    ("native", "bfloat16", "taken"), [(True, 0.4, "bfloat16"), (True, 1.7, "float32"), (False, 0.4, "float32")]
)
def test_auto_is_bfloat16_only_where_the_processor_is_faster_in_it(
    native: bool, bfloat16: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(loading, "_seconds", lambda: {torch.bfloat16: bfloat16, torch.float32: 1.0})
    loading._bfloat16_pays.cache_clear()
    try:
        assert loading.fast_dtype(torch.device("cpu")) == getattr(torch, taken)
    finally:
        loading._bfloat16_pays.cache_clear()
