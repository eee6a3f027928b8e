"""The steered tokens: resolved from positions, compared with one pass without a cache and with masks by hand."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from families import BEFORE_5, PROMPT_LOOKUP
from tiny_transformers import (
    FAMILIES,
    GREEDY,
    VOCABULARY,
    assert_same,
    continued,
    logits,
    prompt,
    some_intervention,
    tiny,
)
from torch import nn
from transformers import DynamicCache

from lineas import AffineMap, Intervention, LineasError, steer
from lineas.steering.positions import Positions

SIDES = ["prompt", "generated"]
NEW = GREEDY["max_new_tokens"]


def reference(network: nn.Module, ids: torch.Tensor, intervention: Intervention, steered: torch.Tensor) -> torch.Tensor:
    """Logits `[b, t, v]` of texts in one pass without a cache, where the tokens in `steered` `[b, t]` are edited."""
    mask = steered.expand(ids.shape).unsqueeze(-1)  # [b, t, 1]

    def edit(z: torch.Tensor, map_: AffineMap) -> torch.Tensor:
        rows = z.reshape(*ids.shape, -1)  # OPT flattens batch and tokens
        return torch.where(mask, rows * map_.scale + map_.shift, rows).reshape(z.shape)

    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, args, z, map_=map_: edit(z, map_))  # pyright: ignore[reportArgumentType]
        for name, map_ in intervention.maps.items()
    ]
    with torch.no_grad():
        result = network(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return result


def side(tokens: str, length: int, width: int) -> torch.Tensor:
    """The columns meant by `tokens` in a text of `width` columns whose prompt has `length`, `[1, width]`."""
    columns = torch.arange(width).unsqueeze(0)
    return columns < length if tokens == "prompt" else columns >= length - (tokens == "answer")


def reference_text(network: nn.Module, row: torch.Tensor, intervention: Intervention, tokens: str) -> list[int]:
    """The greedy continuation of one prompt `[t]`, each token from a pass over the whole text."""
    ids = row.unsqueeze(0)
    for _ in range(NEW):
        scores = reference(network, ids, intervention, side(tokens, len(row), ids.shape[1]))
        ids = torch.cat([ids, scores[:, -1:].argmax(-1)], 1)
    return ids[0, len(row) :].tolist()


# ---- generate


CACHES = [{"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}]


@pytest.mark.parametrize("cache", CACHES, ids=["cached", "uncached", "static"])
@pytest.mark.parametrize("tokens", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_steers_the_tokens_meant(family: str, tokens: Any, cache: dict[str, Any]) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    expected = [reference_text(network, row, intervention, tokens) for row in prompt()]
    with steer(network, intervention, tokens="all"):
        everything = continued(network, prompt())
    with steer(network, intervention, tokens=tokens):
        made = continued(network, prompt(), **cache)
    assert made == expected
    assert made != everything
    assert made != continued(network, prompt())


@pytest.mark.parametrize("tokens", [*SIDES, "answer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_of_every_step_of_generate_are_those_of_one_pass(family: str, tokens: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "output_logits": True}
    with steer(network, intervention, tokens=tokens):
        made = network.generate(prompt(), return_dict_in_generate=True, **options)
    text = made.sequences[:, :-1]
    expected = reference(network, text, intervention, side(tokens, 5, text.shape[1]))
    assert_same(torch.stack(made.logits, 1), expected[:, 4:])


@pytest.mark.parametrize("how", ["positional", "inputs", "input_ids", "inputs_embeds"])
@pytest.mark.parametrize("tokens", SIDES)
def test_the_prompt_is_known_however_it_is_given_to_generate(tokens: Any, how: str) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    expected = [reference_text(network, row, intervention, tokens) for row in prompt()]
    options = {"do_sample": False, "max_new_tokens": NEW, "attention_mask": torch.ones_like(prompt())}
    with steer(network, intervention, tokens=tokens):
        if how == "positional":
            made = network.generate(prompt(), **options)
        elif how == "inputs_embeds":
            made = network.generate(inputs_embeds=network.get_input_embeddings()(prompt()), **options)
        else:
            made = network.generate(**{how: prompt()}, **options)
    assert made[:, -NEW:].tolist() == expected


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("tokens", [*SIDES, "answer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_padded_on_the_left_are_steered_as_each_alone(family: str, tokens: Any, use_cache: bool) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    rows = [prompt(1, length, seed=length)[0] for length in (6, 2, 4)]
    ids, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, 6 - len(row) :], mask[at, 6 - len(row) :] = row, 1
    with steer(network, intervention, tokens=tokens):
        made = continued(network, ids, attention_mask=mask, use_cache=use_cache)
    assert made == [reference_text(network, row, intervention, tokens) for row in rows]


@pytest.mark.parametrize("help_", ["assistant", "same weights", PROMPT_LOOKUP])
@pytest.mark.parametrize("tokens", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_decoding_steers_the_tokens_meant(family: str, tokens: Any, help_: str) -> None:
    network = tiny(family)
    intervention = some_intervention(network).at(0.4)
    ids = prompt(1, 4).repeat(1, 3)  # repeats itself, so that a look-up finds something
    expected = reference_text(network, ids[0], intervention, tokens)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if help_ != "prompt lookup":
        options = {"assistant_model": tiny(family, seed=1 if help_ == "assistant" else 0)}
        options["assistant_model"].generation_config.assistant_confidence_threshold = 0.0
    widths: list[int] = []
    network.lm_head.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    with steer(network, intervention, tokens=tokens):
        assert continued(network, ids, **options) == [expected]
    assert max(widths) > 1  # several tokens were checked at once


@pytest.mark.parametrize("tokens", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_strengths_a_row_keep_to_the_tokens_meant(family: str, tokens: Any) -> None:
    network = tiny(family)
    strengths = torch.tensor([1.0, 0.0, 0.5])
    with steer(network, some_intervention(network), strengths, tokens=tokens) as live:
        batch = continued(network, prompt(3), num_beams=3)
        for row in range(3):
            live.strength = float(strengths[row])
            alone = continued(network, prompt(3)[row : row + 1], num_beams=3, use_cache=False)
            assert alone == [batch[row]]
    plain = continued(network, prompt(3), num_beams=3)
    assert batch[1] == plain[1]
    assert batch != plain


@pytest.mark.skipif(BEFORE_5, reason="transformers 4 prefills in chunks around the network's call: lineas refuses")
@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
@pytest.mark.parametrize("tokens", [*SIDES, "answer"])
def test_a_prefill_in_chunks_by_generate_is_all_prompt(tokens: Any, chunk: int) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    with steer(network, intervention, tokens=tokens):
        made = continued(network, prompt(1), prefill_chunk_size=chunk)
    assert made == [reference_text(network, prompt(1)[0], intervention, tokens)]


@pytest.mark.parametrize("tokens", [*SIDES, "answer"])
def test_the_head_that_sees_the_last_token_only_is_steered_by_position_too(tokens: Any) -> None:
    network = tiny("llama")
    intervention = some_intervention(network, "lm_head")
    with steer(network, intervention, tokens=tokens) as live:
        made = continued(network, prompt())
        live.prompt_length = 4
        last_two = logits(network, prompt(), logits_to_keep=2)  # one of the prompt, one generated
    assert made == [reference_text(network, row, intervention, tokens) for row in prompt()]
    assert_same(last_two, reference(network, prompt(), intervention, side(tokens, 4, 5))[:, -2:])


@pytest.mark.parametrize("tokens", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_on_the_cache_of_the_first_is_prompt_from_where_the_cache_ends(family: str, tokens: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    cache = DynamicCache(config=network.config)
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "past_key_values": cache}
    with steer(network, intervention, tokens=tokens):
        first = network.generate(prompt(1), max_new_tokens=3, **options)  # 5 + 3 tokens, the last is not yet cached
        second = torch.cat([first, prompt(1, 2, seed=1)], 1)  # the user says two more
        made = network.generate(second, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **options)
    in_prompt = torch.tensor([[True] * 5 + [False] * 2 + [True] * 3 + [False] * 2])
    steered = in_prompt if tokens == "prompt" else ~in_prompt
    expected = reference(network, made.sequences[:, :-1], intervention, steered)
    assert_same(torch.stack(made.logits, 1), expected[:, 9:])


# ---- forward passes by hand, with the length of the prompt given


@pytest.mark.parametrize("cut", [1, 3, 4])
@pytest.mark.parametrize("tokens", [*SIDES, "answer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_read_in_two_chunks_and_continued_by_hand(family: str, tokens: Any, cut: int) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    text = prompt(2, 8)
    expected = reference(network, text, intervention, side(tokens, 5, 8))
    cache = DynamicCache(config=network.config)
    with steer(network, intervention, tokens=tokens) as live:
        live.prompt_length = 5
        chunks = [text[:, :cut], text[:, cut:5], text[:, 5:7], text[:, 7:]]
        got = [logits(network, chunk, past_key_values=cache, use_cache=True) for chunk in chunks]
        across = logits(network, text)  # and in one pass that holds both
    assert_same(torch.cat(got, 1), expected)
    assert_same(across, expected)


@pytest.mark.parametrize("tokens", SIDES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_cache_given_as_a_positional_argument_counts(family: str, tokens: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    text = prompt(1, 6)
    cache = DynamicCache(config=network.config)
    with steer(network, intervention, tokens=tokens) as live, torch.no_grad():
        live.prompt_length = 3
        got = []
        for chunk in (text[:, :4], text[:, 4:]):
            args = (chunk, cache) if family == "gpt2" else (chunk, None, None, cache)
            got.append(network(*args, use_cache=True).logits)
    assert_same(torch.cat(got, 1), reference(network, text, intervention, side(tokens, 3, 6)))


@pytest.mark.parametrize("strength", [1.0, torch.tensor([1.0, 0.0, 0.6])], ids=["number", "rows"])
@pytest.mark.parametrize("tokens", [*SIDES, "answer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_finished_texts_are_scored_with_a_prompt_length_a_row(family: str, tokens: Any, strength: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    lengths, widths = [2, 5, 3], [6, 8, 4]  # of the prompt, of the text; padded on the right
    ids, mask = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.long)
    for row, width in enumerate(widths):
        ids[row, :width], mask[row, :width] = prompt(1, width, seed=row)[0], 1
    with steer(network, intervention, strength, tokens=tokens) as live:
        live.prompt_length = torch.tensor(lengths)
        scores = logits(network, ids, attention_mask=mask, use_cache=False)
        assert torch.equal(torch.as_tensor(live.prompt_length), torch.tensor(lengths))
    for row, s in enumerate(torch.as_tensor(strength).expand(3).tolist()):
        text = ids[row : row + 1, : widths[row]]
        expected = reference(network, text, intervention.at(s), side(tokens, lengths[row], widths[row]))
        assert_same(scores[row, : widths[row]], expected[0])


def test_without_a_prompt_length_a_text_that_is_read_is_all_prompt() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    plain = logits(network, prompt())
    everything = reference(network, prompt(), intervention, torch.ones(2, 5, dtype=torch.bool))
    with steer(network, intervention, tokens="prompt"):
        assert_same(logits(network, prompt()), everything)
    with steer(network, intervention, tokens="generated") as live:
        assert torch.equal(logits(network, prompt()), plain)
        live.prompt_length = 0  # nothing was prompt: all of it was generated
        assert_same(logits(network, prompt()), everything)
        live.prompt_length = None
        assert torch.equal(logits(network, prompt()), plain)


@pytest.mark.parametrize("tokens", SIDES)
def test_tokens_that_are_not_meant_are_untouched_bit_for_bit(tokens: Any) -> None:
    network = tiny("llama").to(torch.bfloat16)
    seen: list[torch.Tensor] = []
    norm = network.model.norm
    norm.register_forward_hook(lambda module, args, z: seen.append(z))
    with steer(network, some_intervention(network, "model.norm"), tokens=tokens) as live:
        norm.register_forward_hook(lambda module, args, z: seen.append(z))
        live.prompt_length = torch.tensor([1, 4])
        logits(network, prompt())
    before, after = seen
    changed = (before != after).any(-1)
    assert torch.equal(changed, torch.cat([side(tokens, 1, 5), side(tokens, 4, 5)]))


# ---- the life of the prompt length and of generate


def test_generate_leaves_the_prompt_length_as_it_was_also_when_it_fails() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), tokens="generated") as live:
        seen = []
        reader = network.register_forward_hook(lambda *_: seen.append(live.prompt_length))
        continued(network, prompt(2, 4))
        assert live.prompt_length is None
        live.prompt_length = 3
        continued(network, prompt(2, 6), max_new_tokens=2)
        assert live.prompt_length == 3
        reader.remove()
        with pytest.raises(IndexError):
            continued(network, torch.full((1, 2), VOCABULARY))  # no such token
        assert live.prompt_length == 3
    assert seen == [4] * NEW + [6] * 2


@pytest.mark.parametrize("outer", SIDES)
@pytest.mark.parametrize("inner", SIDES)
@pytest.mark.parametrize("leaves", ["outer", "inner"])
def test_nested_steering_of_chosen_tokens_goes_on_when_one_leaves(leaves: str, inner: Any, outer: Any) -> None:
    network = tiny("llama")
    parts = {"outer": (some_intervention(network, seed=1), outer), "inner": (some_intervention(network, seed=2), inner)}
    alone = {
        name: [reference_text(network, row, intervention, tokens) for row in prompt()]
        for name, (intervention, tokens) in parts.items()
    }
    plain = continued(network, prompt())
    lives = {name: steer(network, intervention, tokens=tokens) for name, (intervention, tokens) in parts.items()}
    lives.pop(leaves).detach()
    ((left, live),) = lives.items()
    assert continued(network, prompt()) == alone[left]
    live.detach()
    assert "generate" not in network.__dict__
    assert continued(network, prompt()) == plain


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_generate_is_itself_again_in_whatever_order_nested_steering_ends(order: tuple[int, ...]) -> None:
    network = tiny("llama")
    plain, attributes = continued(network, prompt()), set(network.__dict__)
    lives = [steer(network, some_intervention(network, seed=s), tokens=t) for s, t in enumerate(["all", *SIDES])]  # pyright: ignore[reportArgumentType]
    for at in order:
        lives[at].detach()
    assert set(network.__dict__) == attributes
    assert continued(network, prompt()) == plain


@pytest.mark.parametrize("wrong", ["all of them", "Prompt", "", None, 3], ids=repr)
def test_an_unknown_choice_of_tokens_is_refused_in_a_sentence(wrong: Any) -> None:
    network = tiny("llama")
    with pytest.raises(LineasError, match="'all', 'prompt', 'generated' or 'answer'"):
        steer(network, some_intervention(network), tokens=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        -1,
        2.5,
        "five",
        float("nan"),
        torch.tensor([1.5, 2.0]),
        torch.tensor([-1, 2]),
        torch.ones(2, 2).long(),
        [1, 2, 3],
    ],
    ids=repr,
)
def test_a_prompt_length_that_is_none_is_refused_in_a_sentence(wrong: Any) -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), tokens="prompt") as live:

        def score() -> None:
            live.prompt_length = wrong
            logits(network, prompt())

        with pytest.raises(LineasError, match=r"prompt.length"):
            score()


def test_prompt_lengths_for_another_number_of_rows_are_refused_as_such() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), tokens="prompt") as live:
        live.prompt_length = torch.tensor([1, 2, 3])
        with pytest.raises(LineasError, match=r"3 prompt.* 2 rows"):
            logits(network, prompt())


# ---- Positions on its own


class Root(nn.Module):
    """A network that only hands its part what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Identity()

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, past_key_values: Any = None) -> Any:
        return self.part(input_ids if inputs_embeds is None else inputs_embeds)


def test_columns_are_counted_from_the_start_of_the_text_through_the_cache() -> None:
    network = Root()
    positions = Positions(network)
    cache = DynamicCache()
    positions.prompt_length = 3
    expected = {0: [True, True], 2: [True, False], 4: [False, False]}
    answers = {0: [False, False], 2: [True, True], 4: [True, True]}
    for past, in_prompt in expected.items():
        place = positions.begin(network, (), {"input_ids": torch.zeros(1, 2), "past_key_values": cache})
        choices = {"prompt": in_prompt, "generated": [not x for x in in_prompt], "answer": answers[past]}
        for tokens, chosen in choices.items():
            got = place.chosen(tokens)  # pyright: ignore[reportArgumentType]
            assert got is not None
            assert got.tolist() == [chosen], past
        assert place.chosen("all") is None
        cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    positions.prompt_length = torch.tensor([1, 4])
    place = positions.begin(network, (), {"inputs_embeds": torch.zeros(2, 4, 8)})  # without a cache, it begins anew
    assert place.chosen("prompt").tolist() == [[True, False, False, False], [True] * 4]  # pyright: ignore[reportOptionalMemberAccess]


def test_flattened_activations_are_put_back_into_rows_and_others_left() -> None:
    network = Root()
    positions = Positions(network)
    flat = torch.arange(24.0).view(6, 4)
    assert positions.called_alone().by_row(flat) is flat  # the network does not run
    place = positions.begin(network, (torch.zeros(2, 3),), {})
    assert torch.equal(place.by_row(flat), flat.view(2, 3, 4))
    for other in (flat.view(2, 3, 4), flat[:2], flat.view(2, 3, 2, 2)):
        assert place.by_row(other) is other


@pytest.mark.parametrize("tokens", [*SIDES, "answer"])
def test_a_loop_of_ones_own_that_says_no_prompt_length_is_warned_once(tokens: Any) -> None:
    network = tiny("llama")
    kept = network.generate
    with warnings.catch_warnings(record=True) as seen, steer(network, some_intervention(network), tokens=tokens):
        warnings.simplefilter("always")
        kept(prompt(), max_new_tokens=4, do_sample=False)
        cache = DynamicCache(config=network.config)
        for chunk in (prompt(), prompt(2, 1)):
            logits(network, chunk, past_key_values=cache, use_cache=True)
    assert ["continues a cache" in str(one.message) for one in seen].count(True) == 1
    for said in (True, False):
        with warnings.catch_warnings(), steer(network, some_intervention(network), tokens=tokens) as live:
            warnings.simplefilter("error")
            continued(network, prompt())
            cache = DynamicCache(config=network.config)
            live.prompt_length = 5 if said else None
            for chunk in (prompt(), prompt(2, 1)) if said else (prompt(),):
                logits(network, chunk, past_key_values=cache, use_cache=True)


def test_the_first_new_token_is_steered_under_answer_alone() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    plain = network.generate(prompt(), return_dict_in_generate=True, **options).logits[0]
    for tokens, moved in (("generated", False), ("answer", True)):
        with steer(network, intervention, tokens=tokens):  # pyright: ignore[reportArgumentType]
            first = network.generate(prompt(), return_dict_in_generate=True, **options).logits[0]
        assert torch.equal(first, plain) is not moved


def test_a_text_from_nothing_has_a_prompt_of_one_token() -> None:
    network = tiny("llama")
    network.generation_config.bos_token_id = 1
    intervention = some_intervention(network)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with steer(network, intervention, tokens="generated"):
        assert torch.equal(network.generate(**options), network.generate(torch.tensor([[1]]), **options))


def test_a_part_of_a_network_called_alone_has_no_positions() -> None:
    network = tiny("llama")
    with (
        steer(network, some_intervention(network), tokens="prompt"),
        pytest.raises(LineasError, match="whole network"),
    ):
        network.model(input_ids=prompt())


def test_a_network_that_cannot_generate_can_be_followed_too() -> None:
    network, map_ = Root(), AffineMap(torch.full((4,), 2.0), torch.ones(4))
    x = torch.randn(2, 3, 4)
    with steer(network, Intervention({"part": map_}), tokens="generated") as live:
        live.prompt_length = torch.tensor([1, 2])
        steered = network(inputs_embeds=x)
    meant = torch.cat([side("generated", 1, 3), side("generated", 2, 3)]).unsqueeze(-1)
    assert_same(steered, torch.where(meant, 2 * x + 1, x))
    assert torch.equal(network(inputs_embeds=x), x)
