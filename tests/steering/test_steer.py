"""Steering keeps its contracts: nothing in place, exact at 0, complete removal, every way of running a network."""

from __future__ import annotations

import copy
import itertools
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from families import BEFORE_5, PROMPT_LOOKUP
from torch import nn
from transformers import (
    CompileConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.modeling_outputs import BaseModelOutput

from lineas import AffineMap, Intervention, LineasError, TextModel, steer
from lineas.intervention.maps import affine
from lineas.intervention.model_identity import ModelIdentity
from lineas.sites import Site, find_sites
from lineas.steering.hooks import edited
from lineas.steering.live_maps import SPARSE_NUMEL

FAMILIES = ["llama", "gpt2", "opt"]
WIDTH, VOCABULARY = 32, 128
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}  # no text ends early
ROTARY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    **NO_IDS,
}


def tiny(family: str, seed: int = 0, **changes: Any) -> Any:
    """A seeded transformer of two blocks whose norms differ from one, without dropout, in eval mode."""
    torch.manual_seed(seed)
    network: Any
    if family == "llama":
        network = LlamaForCausalLM(LlamaConfig(**{**ROTARY, **changes}))
    elif family == "mistral":
        network = MistralForCausalLM(MistralConfig(**{**ROTARY, **changes}))
    elif family == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        network = GPT2LMHeadModel(GPT2Config(**{**sizes, "initializer_range": 0.3, **NO_IDS, **changes}))
    else:
        sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 64}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "dropout": 0.0}
        network = OPTForCausalLM(OPTConfig(**{**sizes, "init_std": 0.3, **NO_IDS, **changes}))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "norm" in name or "ln_" in name:
                weight += 0.2 * torch.randn(weight.shape)
    return network.eval()


def some_map(seed: int, width: int = WIDTH) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + torch.rand(width, generator=generator)
    return AffineMap(scale, 0.5 * torch.randn(width, generator=generator))


def some_intervention(network: nn.Module, pattern: str | None = None, seed: int = 0) -> Intervention:
    """A map of its own for every site of the pattern, belonging to any network."""
    sites = find_sites(network, pattern)
    return Intervention({s.name: some_map(100 * seed + i) for i, s in enumerate(sites)}, {s.name: s for s in sites})


def prompt(rows: int = 2, columns: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


def logits(network: nn.Module, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=ids, use_cache=False, **more).logits


def continued(network: Any, ids: torch.Tensor, **more: Any) -> list[list[int]]:
    """The greedy continuation alone."""
    mask = more.pop("attention_mask", torch.ones_like(ids))
    made = network.generate(input_ids=ids, attention_mask=mask, **{**GREEDY, **more})
    return made[:, ids.shape[1] :].tolist()


@contextmanager
def by_hand(network: nn.Module, maps: Mapping[str, AffineMap]) -> Iterator[None]:
    """The maps applied by plain hooks: what steering is compared with. For modules that return a tensor."""
    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, args, z, map_=map_: map_(z))
        for name, map_ in maps.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def hooks_and_attributes(network: nn.Module) -> dict[str, Any]:
    """Every hook and every attribute name of every module: what complete removal must leave as it was."""
    found: dict[str, Any] = {}
    for name, module in network.named_modules():
        found[name] = set(module.__dict__)
        for key, value in module.__dict__.items():
            if "hooks" in key and value is not None:
                found[f"{name}/{key}"] = dict(value)
    return found


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


class Returns(nn.Module):
    """Returns its input in a given wrapping, so that every kind of result can carry a site."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        self.result = self.wrap(x)
        return self.result


# ---- nothing is written in place, nothing is added to the state


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
@pytest.mark.parametrize("strength", [1.0, torch.tensor([0.3, 1.0])], ids=["number", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensor_a_module_returned_is_left_as_it_was(family: str, strength: Any, tokens: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    returned: list[tuple[torch.Tensor, torch.Tensor]] = []
    for name in intervention.maps:  # hooks run in the order of registration, so these see what the module returned
        network.get_submodule(name).register_forward_hook(lambda m, a, z: returned.append((z, z.clone())))
    with steer(network, intervention, strength, tokens=tokens) as live:
        live.prompt_length = 2
        steered = logits(network, prompt())
    assert len(returned) == 2
    assert all(torch.equal(now, then) for now, then in returned)
    assert not torch.equal(steered, logits(network, prompt()))


@pytest.mark.parametrize("strength", [1.0, torch.tensor([0.0, 1.0])], ids=["number", "rows"])
def test_a_module_that_returns_its_input_does_not_let_steering_write_into_it(strength: Any) -> None:
    network = nn.Sequential(nn.Identity())
    x = torch.ones(2, 3, WIDTH)
    with steer(network, Intervention({"0": some_map(0)}), strength):
        assert not torch.equal(network(x), x)
    assert torch.equal(x, torch.ones(2, 3, WIDTH))


def test_the_state_dict_is_the_same_while_steered_and_afterwards() -> None:
    network = tiny("llama")
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with steer(network, some_intervention(network), tokens="generated"):
        continued(network, prompt())
        during = network.state_dict()
        parameters = dict(network.named_parameters())
    for state in (during, network.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], weight) for name, weight in before.items())
    assert parameters.keys() == dict(network.named_parameters()).keys()


# ---- removal


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_removal_is_complete_and_may_be_repeated(family: str, tokens: Any) -> None:
    network = tiny(family)
    ids = prompt()
    before, output, texts = hooks_and_attributes(network), logits(network, ids), continued(network, ids)
    with steer(network, some_intervention(network), tokens=tokens) as live:
        live.prompt_length = 2
        assert not torch.equal(logits(network, ids), output)
        continued(network, ids)
    for _ in range(2):
        assert hooks_and_attributes(network) == before
        assert network.generate.__func__ is type(network).generate
        assert torch.equal(logits(network, ids), output)
        assert continued(network, ids) == texts
        live.detach()


def test_the_block_detaches_when_an_error_leaves_it() -> None:
    network = tiny("llama")
    before = hooks_and_attributes(network)
    with (
        pytest.raises(IndexError),
        steer(network, some_intervention(network), torch.ones(2), tokens="prompt"),
    ):
        continued(network, torch.full((2, 3), VOCABULARY))  # no such token
    assert hooks_and_attributes(network) == before


def test_detaching_keeps_the_hooks_of_others_and_those_made_meanwhile() -> None:
    network = tiny("llama")
    calls: list[str] = []
    network.model.norm.register_forward_hook(lambda *_: calls.append("before"))
    with steer(network, some_intervention(network, "model.norm")):
        network.model.norm.register_forward_hook(lambda *_: calls.append("meanwhile"))
    logits(network, prompt())
    assert calls == ["before", "meanwhile"]


@pytest.mark.parametrize("tokens", ["all", "generated"])
def test_a_generate_of_the_users_own_is_still_there_afterwards(tokens: Any) -> None:
    network = tiny("llama")
    network.generate = own = lambda *args, **kwargs: "mine"
    with steer(network, some_intervention(network), tokens=tokens):
        assert network.generate(prompt()) == "mine"
    assert network.generate is own


def test_a_copy_made_while_steered_generates_with_its_own_weights() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network)):
        twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert continued(twin, prompt()) == [[0] * 8] * 2
    assert continued(network, prompt()) != [[0] * 8] * 2


# ---- a failure half-way through installation


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("tokens", ["all", "generated"])
def test_a_failure_half_way_through_installation_rolls_back(tokens: Any, error: type[BaseException]) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    output = logits(network, prompt())

    def fails(*_: Any, **__: Any) -> None:
        raise error

    last = network.get_submodule(list(intervention.maps)[-1])
    last.register_forward_hook = fails
    before = hooks_and_attributes(network)
    with pytest.raises(error):
        steer(network, intervention, tokens=tokens)
    assert hooks_and_attributes(network) == before
    assert torch.equal(logits(network, prompt()), output)


def test_a_module_that_disappears_during_installation_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny("gpt2")
    intervention = some_intervention(network)
    gone = list(intervention.maps)[-1]
    find = network.get_submodule

    def find_most(name: str) -> nn.Module:
        if name == gone:
            raise AttributeError(name)
        return find(name)

    before = hooks_and_attributes(network)
    monkeypatch.setitem(network.__dict__, "get_submodule", find_most)
    with pytest.raises((LineasError, AttributeError)):
        steer(network, intervention, tokens="prompt")
    monkeypatch.undo()
    assert hooks_and_attributes(network) == before


def test_edits_roll_back_when_a_site_is_missing_and_end_with_the_block() -> None:
    network = tiny("llama")
    before, output = hooks_and_attributes(network), logits(network, prompt())
    with (
        pytest.raises((LineasError, AttributeError)),
        edited(network, {Site("model.norm"): torch.neg, Site("gone"): torch.neg}),
    ):
        pass
    assert hooks_and_attributes(network) == before
    with edited(network, {Site("lm_head"): torch.neg}):
        assert torch.equal(logits(network, prompt()), -output)
    assert hooks_and_attributes(network) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": "some"},
        {"strength": float("nan")},
        {"strength": float("inf")},
        {"strength": torch.tensor([1.0, float("nan")])},
        {"strength": torch.ones(2, 3)},
        {"strength": torch.ones(0)},
        {"intervention": []},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_in_a_sentence_and_leaves_nothing_behind(wrong: dict[str, Any]) -> None:
    network = tiny("llama")
    before = hooks_and_attributes(network)
    with pytest.raises(LineasError):
        steer(network, **{"intervention": some_intervention(network), **wrong})
    assert hooks_and_attributes(network) == before


# ---- strength


@pytest.mark.parametrize("tokens", ["all", "prompt"])
@pytest.mark.parametrize("strength", [0.0, torch.zeros(2)], ids=["number", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_is_the_identity_bit_for_bit(family: str, dtype: Any, strength: Any, tokens: Any) -> None:
    network = tiny(family).to(dtype)
    with steer(network, some_intervention(network), strength, tokens=tokens):
        at_0 = logits(network, prompt())
        texts = continued(network, prompt())
    assert torch.equal(at_0, logits(network, prompt()))
    assert texts == continued(network, prompt())


def test_at_strength_0_no_site_is_hooked_and_a_site_of_the_identity_never_is() -> None:
    network = tiny("llama")
    maps = some_intervention(network).maps
    first, *others = maps
    intervention = Intervention({**maps, first: AffineMap.identity(32)})

    def hooked() -> list[str]:
        return [name for name, module in network.named_modules() if name and module._forward_hooks]

    with steer(network, intervention, 0.5) as live:
        assert hooked() == others
        for nothing in (0.0, torch.zeros(2)):
            live.strength = nothing
            assert hooked() == []
        live.strength = torch.tensor([0.0, 0.1])
        assert hooked() == others
    with steer(network, intervention, 0.0):
        assert hooked() == []


def test_interventions_keep_their_order_when_one_is_switched_off_and_on() -> None:
    network = tiny("llama")
    one, two = some_intervention(network, seed=1), some_intervention(network, seed=2)
    with steer(network, one) as first, steer(network, two):
        expected = logits(network, prompt())
        first.strength = 0.0
        alone = logits(network, prompt())
        first.strength = 1.0
        assert torch.equal(logits(network, prompt()), expected)
    with steer(network, two), steer(network, one, 0.0) as second:
        assert torch.equal(logits(network, prompt()), alone)
        second.strength = 1.0
        assert not torch.equal(logits(network, prompt()), expected)  # the order matters for these two


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_touching_few_neurons_alone_gives_what_touching_all_gives(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.LayerNorm(512)).to(dtype)
    map_ = AffineMap.identity(512)
    map_.scale[7], map_.shift[7], map_.shift[300] = 1.5, -0.25, 0.75
    x = torch.randn(64, 5, 512).to(dtype)
    assert x.numel() > SPARSE_NUMEL
    plain = network(x)
    with steer(network, Intervention({"0": map_})) as live:
        for s in (1.0, 0.3):
            live.strength = s
            steered = network(x)
            assert torch.equal(steered, affine(plain, *(getattr(map_.at(s), k) for k in ("scale", "shift"))))
            assert (steered != plain).any(0).any(0).nonzero().flatten().tolist() == [7, 300]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_at_strength_0_is_untouched_bit_for_bit_beside_steered_rows(family: str, dtype: Any) -> None:
    network = tiny(family).to(dtype)
    plain = logits(network, prompt(3))
    with steer(network, some_intervention(network), torch.tensor([1.0, 0.0, 0.5])):
        steered = logits(network, prompt(3))
    assert torch.equal(steered[1], plain[1])
    assert not torch.equal(steered[0], plain[0])
    assert not torch.equal(steered[2], plain[2])


@pytest.mark.parametrize("strength", [0.0, torch.zeros(1)], ids=["number", "row"])
def test_strength_0_keeps_even_values_that_arithmetic_would_not(strength: Any) -> None:
    x = torch.tensor([[[-0.0, float("inf"), float("nan"), 1e-42] * 2]])
    network, map_ = nn.Sequential(nn.Identity()), AffineMap(torch.full((8,), 2.0), torch.tensor([1.0] * 4 + [-1.0] * 4))
    with steer(network, Intervention({"0": map_}), strength):
        assert torch.equal(network(x).view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("strength", [1.0, torch.ones(2)], ids=["number", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_strength_1_is_the_map_applied_by_hand(family: str, strength: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with by_hand(network, intervention.maps):
        expected = logits(network, prompt())
    with steer(network, intervention, strength):
        assert_same(logits(network, prompt()), expected)


@pytest.mark.parametrize("s", [0.25, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_strength_between_is_the_map_at_that_strength(family: str, s: float) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with by_hand(network, {name: map_.at(s) for name, map_ in intervention.maps.items()}):
        expected = logits(network, prompt())
    with steer(network, intervention, s) as live:
        assert_same(logits(network, prompt()), expected)
        live.strength = torch.tensor([s, s])
        assert_same(logits(network, prompt()), expected)
    with steer(network, intervention.at(s)):
        assert_same(logits(network, prompt()), expected)


@pytest.mark.parametrize("strength", [-0.5, 1.5, torch.tensor([0.5, 2.0])], ids=str)
def test_a_strength_outside_0_to_1_warns_and_extrapolates(strength: Any) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    with pytest.warns(UserWarning, match="outside 0 to 1"), steer(network, intervention, strength):
        steered = logits(network, prompt())
    for row, s in enumerate(torch.as_tensor(strength).expand(2).tolist()):
        with by_hand(network, {name: map_.at(s) for name, map_ in intervention.maps.items()}):
            assert_same(steered[row], logits(network, prompt())[row])


def test_strengths_within_0_to_1_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), 0.0) as live:
        live.strength = 1
        live.strength = torch.tensor([0.0, 1.0])
    assert not recwarn.list


def test_strength_changes_at_once() -> None:
    network, plain = tiny("llama"), tiny("llama")
    intervention = some_intervention(network)
    with steer(network, intervention) as live:
        for s in (1.0, 0.3, 0.0, torch.tensor([0.2, 0.9]), torch.tensor([0.0, 0.4]), 0.8):
            live.strength = s
            steered = logits(network, prompt())
            assert torch.equal(torch.as_tensor(live.strength), torch.as_tensor(s))
            for row, of_row in enumerate(torch.as_tensor(s).expand(2).tolist()):
                with by_hand(plain, intervention.at(of_row).maps):
                    assert_same(steered[row], logits(plain, prompt())[row])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_strength_changes_between_two_calls_of_generate(family: str, use_cache: bool) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    plain = continued(network, prompt(), use_cache=use_cache)
    with by_hand(network, intervention.at(0.6).maps):
        expected = continued(network, prompt(), use_cache=use_cache)
    with steer(network, intervention, 0.6) as live:
        assert continued(network, prompt(), use_cache=use_cache) == expected != plain
        live.strength = 0.0
        assert continued(network, prompt(), use_cache=use_cache) == plain
        live.strength = torch.tensor([0.0, 0.6])
        assert continued(network, prompt(), use_cache=use_cache) == [plain[0], expected[1]]


def test_strength_changes_in_the_middle_of_generate() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    ids = prompt(1)
    expected = ids
    for step in range(8):
        with by_hand(network, intervention.at(1.0 if step < 4 else 0.25).maps):
            expected = torch.cat([expected, logits(network, expected)[:, -1:].argmax(-1)], 1)
    with steer(network, intervention, 1.0) as live:

        def weaken_after_four(made: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            live.strength = 1.0 if made.shape[1] - 5 < 3 else 0.25
            return scores

        made = continued(network, ids, use_cache=False, logits_processor=[weaken_after_four])
    assert made == expected[:, 5:].tolist() != continued(network, ids)


def test_the_strength_kept_is_the_strength_applied_whatever_is_done_to_the_tensor_given() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    given = torch.ones(2)
    with steer(network, intervention, given) as live:
        logits(network, prompt())
        given.fill_(0.5)
        live.strength[0] = 0.25  # type: ignore[index]
        steered, said = logits(network, prompt()), live.strength
    assert isinstance(said, torch.Tensor)
    for row, s in enumerate(said.tolist()):
        with by_hand(network, intervention.at(s).maps):
            assert_same(steered[row], logits(network, prompt())[row])


@pytest.mark.parametrize(("strengths", "rows"), [(3, 2), (2, 3), (4, 2), (2, 1), (2, 4)])
def test_strengths_for_another_number_of_rows_are_refused(strengths: int, rows: int) -> None:
    network = tiny("llama")
    with (
        steer(network, some_intervention(network), torch.ones(strengths)),
        pytest.raises(LineasError, match=rf"{strengths} strengths.* {rows} rows"),
    ):
        logits(network, prompt(rows))


def test_generate_refuses_strengths_for_another_number_of_prompts() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), torch.tensor([0.0, 1.0])), pytest.raises(LineasError):
        continued(network, prompt(4))  # not "two beams each"


class Letters:
    """A tokenizer of one token a letter."""

    pad_token_id, eos_token_id, chat_template = 0, None, None

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(letter) % VOCABULARY for letter in text])

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def test_strengths_a_row_belong_to_the_prompts_in_the_order_given() -> None:
    model = TextModel(tiny("llama"), Letters())
    prompts = ["a long prompt", "short", "the middle"]
    greedy: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 8}
    intervention = some_intervention(model.network)
    expected = []
    for text, s in zip(prompts, (0.0, 1.0, 0.5)):
        with steer(model, intervention, s):
            expected += model.generate([text], **greedy)
    with steer(model, intervention, torch.tensor([0.0, 1.0, 0.5])):
        assert model.generate(prompts, **greedy) == expected


# ---- results, types, devices

Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda x: x, 0),
        (lambda x: (x, "kept"), 0),
        (lambda x: ("kept", x), 1),
        (lambda x: (x, None), 0),
        (lambda x: [x, "kept"], 0),
        (lambda x: Pair("kept", x), 1),
        (lambda x: {"kept": "kept", "hidden": x}, 1),
        (lambda x: BaseModelOutput(last_hidden_state=x, hidden_states=(x,)), 0),
    ],
    ids=["tensor", "tuple", "tuple:1", "tuple with None", "list", "namedtuple:1", "dict:1", "ModelOutput"],
)
def test_every_kind_of_result_can_be_steered_and_keeps_its_kind(wrap: Any, output: int, strength: Any) -> None:
    network = nn.Sequential(Returns(wrap))
    site, map_, x = Site("0", output), some_map(1), torch.randn(2, 3, WIDTH)
    with steer(network, Intervention({site.name: map_}, {site.name: site}), strength):
        result = network(x)
    original = network[0].result
    assert type(result) is type(original)
    assert_same(site.pick(result), map_.at(0.5)(x))
    assert torch.equal(site.pick(original), x)  # what the module returned, container included, is as it was
    if not isinstance(result, torch.Tensor):
        values, kept = (list(r.values()) if isinstance(r, dict) else list(r) for r in (result, original))
        assert len(values) == len(kept)
        assert all(now is then for i, (now, then) in enumerate(zip(values, kept)) if i != output)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.norm", torch.Tensor), ("model.layers.0.self_attn", tuple), ("model", dict), ("model.layers.0", object)],
)
def test_the_results_of_a_real_transformer_can_be_steered(name: str, kind: type) -> None:
    network, map_ = tiny("llama"), some_map(1)
    seen: list[Any] = []
    reader = network.get_submodule(name).register_forward_hook(lambda m, a, r: seen.append(r))
    plain = logits(network, prompt())
    assert isinstance(seen[0], kind)
    reader.remove()
    with steer(network, Intervention({name: map_})):
        network.get_submodule(name).register_forward_hook(lambda m, a, r: seen.append(r))
        steered = logits(network, prompt())
    assert type(seen[1]) is type(seen[0])
    assert_same(Site(name).pick(seen[1]), map_(Site(name).pick(seen[0])))
    assert not torch.equal(steered, plain)


def test_an_output_that_is_no_tensor_is_refused_in_a_sentence() -> None:
    network, site = tiny("llama"), Site("model.layers.0.self_attn", 1)
    with (
        steer(network, Intervention({site.name: some_map(0)}, {site.name: site})),
        pytest.raises(LineasError, match="self_attn is not a tensor"),
    ):
        logits(network, prompt())


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_type_of_activation_keeps_its_type_and_is_computed_in_float32_or_wider(dtype: Any, strength: Any) -> None:
    network, map_ = nn.Sequential(nn.Identity()), some_map(0)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64).to(dtype)
    with steer(network, Intervention({"0": map_}), strength):
        z = network(x)
    assert z.dtype == dtype
    half = map_.at(0.5)
    exact = half.scale.double() * x.double() + half.shift.double()
    torch.testing.assert_close(
        z, exact.to(dtype), atol=1e-6, rtol=torch.finfo(dtype).eps if dtype.itemsize < 8 else 1e-7
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_any_type_is_steered_and_keeps_its_type(family: str, dtype: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with steer(network, intervention):
        expected = logits(network, prompt())
    network.to(dtype)
    plain = logits(network, prompt())
    with steer(network, intervention):
        steered = logits(network, prompt())
    assert steered.dtype == plain.dtype == dtype
    wanted, got = (expected - plain.float()), (steered - plain).float()
    assert torch.nn.functional.cosine_similarity(wanted.flatten(), got.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("tokens", ["all", "prompt"])
@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.0, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize(
    "device",
    [
        pytest.param("meta", marks=pytest.mark.skipif(BEFORE_5, reason="transformers 4 makes no masks on meta")),
        *(["cuda"] if torch.cuda.is_available() else []),
    ],
)
def test_maps_and_strengths_follow_the_activation_to_its_device(device: str, strength: Any, tokens: Any) -> None:
    network = tiny("opt").to(device)
    with steer(network, some_intervention(network), strength, tokens=tokens) as live:
        live.prompt_length = torch.tensor([2, 3])
        assert logits(network, prompt().to(device)).device.type == device


def test_channels_on_the_second_axis_are_steered_by_row() -> None:
    network, site, map_ = nn.Sequential(nn.Conv2d(3, 4, 1)), Site("0", axis=1), some_map(0, 4)
    x = torch.randn(2, 3, 5, 5)
    plain = network(x)
    with steer(network, Intervention({"0": map_}, {"0": site}), torch.tensor([1.0, 0.5])):
        steered = network(x)
    assert_same(steered[0], map_(plain, axis=1)[0])
    assert_same(steered[1], map_.at(0.5)(plain, axis=1)[1])


class Flattening(nn.Module):
    """A language model whose middle layer sees `[batch * tokens, d]`, as those of mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        z = self.embed(input_ids)
        return self.head(self.middle(z.flatten(0, 1)).unflatten(0, input_ids.shape))


def test_a_layer_that_flattens_batch_and_tokens_is_steered_by_row_and_by_token() -> None:
    torch.manual_seed(0)
    network, map_ = Flattening(), some_map(0, 4)
    ids = torch.randint(9, (2, 3))
    plain = network(ids)
    with by_hand(network, {"middle": map_}):
        full = network(ids)
    with by_hand(network, {"middle": map_.at(0.5)}):
        half = network(ids)
    intervention = Intervention({"middle": map_})
    with steer(network, intervention, torch.tensor([0.5, 1.0])):
        assert_same(network(ids), torch.stack([half[0], full[1]]))
    with steer(network, intervention, tokens="generated") as live:
        live.prompt_length = 2
        assert_same(network(ids), torch.cat([plain[:, :2], full[:, 2:]], 1))


# ---- autograd


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.0])], ids=["number", "rows"])
def test_the_gradient_is_the_analytic_one(strength: Any) -> None:
    torch.manual_seed(0)
    network, map_ = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Identity()), some_map(0, 4)
    x, upstream = torch.randn(2, 3, requires_grad=True), torch.randn(2, 4)
    with steer(network, Intervention({"1": map_}), strength):
        (network(x) * upstream).sum().backward()
    scales = torch.stack([map_.at(float(s)).scale for s in torch.as_tensor(strength).expand(2)])
    assert_same(x.grad, (upstream * scales) @ network[0].weight)
    assert_same(network[0].weight.grad, (upstream * scales).T @ x.detach())


@pytest.mark.parametrize(
    ("strength", "tokens"), [(0.7, "all"), (torch.tensor([0.7, 0.0]), "all"), (torch.tensor([0.7, 0.2]), "generated")]
)
@pytest.mark.parametrize("family", ["gpt2", "opt"])  # Llama's norms round to float32, too coarse for differences
def test_gradients_reach_the_inputs_and_equal_finite_differences(family: str, strength: Any, tokens: Any) -> None:
    network = tiny(family).double().requires_grad_(False)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        return network(inputs_embeds=x, use_cache=False).logits[:, -1]

    with steer(network, some_intervention(network), strength, tokens=tokens) as live:
        live.prompt_length = torch.tensor([1, 2])
        assert torch.autograd.gradcheck(run, x, fast_mode=True)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # its new name is not in 4.57
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_gets_the_gradient_of_the_steered_network_also_with_checkpointing(family: str) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    gradients = []
    for checkpointing in (None, False, True):  # None: by hand
        network.zero_grad()
        if checkpointing:
            network.gradient_checkpointing_enable()
            network.train()  # without dropout, see `tiny`
        with by_hand(network, intervention.maps) if checkpointing is None else steer(network, intervention):
            network(input_ids=prompt(), labels=prompt(), use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for other in gradients[1:]:
        for name, expected in gradients[0].items():
            assert_same(other[name], expected)


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.2])], ids=["number", "rows"])
def test_a_network_that_ran_in_inference_mode_can_be_differentiated_afterwards(strength: Any) -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), strength):
        with torch.inference_mode():
            network(input_ids=prompt())
        network(input_ids=prompt(), labels=prompt()).loss.backward()
    assert network.model.embed_tokens.weight.grad.abs().sum() > 0


# ---- ways of running a language model


@pytest.mark.parametrize("s", [1.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_nothing(family: str, s: float) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with by_hand(network, intervention.at(s).maps):
        expected = continued(network, prompt(), use_cache=False)
    with steer(network, intervention, s):
        cached, uncached = continued(network, prompt(), use_cache=True), continued(network, prompt(), use_cache=False)
    assert cached == uncached == expected != continued(network, prompt())


def padded(lengths: list[int], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and position ids `[b, t]` of rows of these lengths."""
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, where], mask[row, where] = prompt(1, length, seed=row)[0], 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("strength", [0.8, torch.tensor([0.8, 0.3, 0.0])], ids=["number", "rows"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_gives_each_row_what_it_gets_alone(family: str, side: str, strength: Any) -> None:
    network = tiny(family)
    lengths = [6, 3, 4]
    ids, mask, positions = padded(lengths, side)
    with steer(network, some_intervention(network), strength) as live:
        batch = logits(network, ids, attention_mask=mask, position_ids=positions)
        for row, s in enumerate(torch.as_tensor(strength).expand(3).tolist()):
            live.strength = s
            alone = logits(network, ids[row][mask[row] == 1].unsqueeze(0))
            assert_same(batch[row][mask[row] == 1], alone[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_padded_on_the_left_is_continued_as_each_row_alone(family: str) -> None:
    network = tiny(family)
    ids, mask, _ = padded([6, 3, 4], "left")
    strengths = torch.tensor([1.0, 0.3, 0.0])
    with steer(network, some_intervention(network), strengths) as live:
        batch = continued(network, ids, attention_mask=mask)
        for row in range(3):
            live.strength = float(strengths[row])
            assert continued(network, ids[row][mask[row] == 1].unsqueeze(0)) == [batch[row]]


@pytest.mark.parametrize("returned", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_beam_is_steered_by_the_strength_of_its_row(family: str, use_cache: bool, returned: int) -> None:
    network = tiny(family)
    ids = prompt(3)
    strengths = torch.tensor([0.0, 0.5, 1.0])
    beams = {"num_beams": 3, "num_return_sequences": returned, "use_cache": use_cache}
    with steer(network, some_intervention(network), strengths) as live:
        batch = continued(network, ids, **beams)
        alone = []
        for row in range(3):
            live.strength = float(strengths[row])
            alone += continued(network, ids[row : row + 1], **beams)
    assert batch == alone
    plain = continued(network, ids, **beams)
    assert batch[:returned] == plain[:returned]
    assert batch != plain


def test_every_sample_of_a_prompt_is_steered_by_the_strength_of_its_row() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), torch.tensor([0.0, 1.0])) as live:
        batch = continued(network, prompt(), num_return_sequences=2, do_sample=True, top_k=1)
        assert batch[0] == batch[1]
        assert batch[2] == batch[3]
        for row in range(2):
            live.strength = float(row)
            assert continued(network, prompt()[row : row + 1]) == [batch[2 * row]]


@pytest.mark.parametrize("help_", ["assistant", "same weights", PROMPT_LOOKUP])
@pytest.mark.parametrize("strength", [0.3, torch.tensor([0.3])], ids=["number", "row"])
@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_decoding_gives_the_steered_text(family: str, strength: Any, help_: str) -> None:
    network = tiny(family)
    ids = prompt(1, 4).repeat(1, 3)  # repeats itself, so that a look-up finds something
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if help_ != "prompt lookup":
        options = {"assistant_model": tiny(family, seed=1 if help_ == "assistant" else 0)}
        options["assistant_model"].generation_config.assistant_confidence_threshold = 0.0
    plain = continued(network, ids, max_new_tokens=12)
    with steer(network, some_intervention(network), strength):
        expected = continued(network, ids, max_new_tokens=12, use_cache=False)
        widths: list[int] = []
        network.lm_head.register_forward_pre_hook(lambda m, args: widths.append(args[0].shape[1]))
        assert continued(network, ids, max_new_tokens=12, **options) == expected != plain
    assert max(widths) > 1  # several tokens were checked at once


# ---- several interventions


@pytest.mark.parametrize("family", FAMILIES)
def test_several_interventions_become_one_map_a_site_before_anything_is_hooked(family: str) -> None:
    network = tiny(family)
    norms, final = find_sites(network), find_sites(network, r".*(model.norm|ln_f|decoder.final_layer_norm)")
    first = Intervention({s.name: some_map(i) for i, s in enumerate(norms)})
    second = Intervention({s.name: some_map(10 + i) for i, s in enumerate([*norms[1:], *final])})
    third = Intervention({norms[1].name: some_map(20)})
    with by_hand(network, first.maps), by_hand(network, second.maps), by_hand(network, third.maps):
        expected = logits(network, prompt())
    hooks = torch.nn.modules.module.Module.register_forward_hook
    hooked: list[nn.Module] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_forward_hook", lambda m, *a, **k: hooked.append(m) or hooks(m, *a, **k))
        live = steer(network, [first, second, third])
    hooked = [module for module in hooked if module is not network]  # where passes are told apart
    sites = {network.get_submodule(name) for name in {**first.maps, **second.maps}}
    assert len(hooked) == len(sites)
    assert set(hooked) == sites
    assert all(len(module._forward_hooks) == 1 for module in sites)
    assert_same(logits(network, prompt()), expected)
    live.strength = 0.5
    half = logits(network, prompt())
    live.detach()
    with steer(network, first.then(second).then(third).at(0.5)):
        assert_same(logits(network, prompt()), half)


def test_several_interventions_may_come_as_a_tuple_and_order_counts() -> None:
    network = tiny("llama")
    a, b = some_intervention(network, seed=1), some_intervention(network, seed=2)
    with steer(network, (a, b)):
        a_then_b = logits(network, prompt())
    with steer(network, (b, a)):
        assert not torch.allclose(logits(network, prompt()), a_then_b, atol=1e-3)
    with steer(network, a):
        only_a = logits(network, prompt())
    with steer(network, [a]):
        assert torch.equal(logits(network, prompt()), only_a)


def test_interventions_of_different_networks_are_refused_together() -> None:
    network, other = tiny("llama"), tiny("llama", seed=1)
    before = hooks_and_attributes(network)
    maps = some_intervention(network).maps
    pair = [Intervention(maps, base=ModelIdentity.of(n, name)) for n, name in [(network, "mine"), (other, "yours")]]
    with pytest.raises(LineasError, match="mine and yours"):
        steer(network, pair)
    assert hooks_and_attributes(network) == before


# ---- compiled networks


COMPILED: dict[str, Any] = {  # what cache_implementation="static" alone means on a GPU
    "cache_implementation": "static",
    "compile_config": CompileConfig(backend="eager", mode="default", fullgraph=False),
    "max_new_tokens": 4,
}
COMPILED["compile_config"]._compile_all_devices = True


@pytest.fixture
def compiler() -> Iterator[None]:
    """The compiler keeps what it made for a class of networks; here every test begins and ends without."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_as_a_whole(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


def compiled_block(network: nn.Module) -> nn.Module:
    network.model.layers[0].compile(backend="eager")  # type: ignore[union-attr,index]
    return network


def compiled_wrapped_block(network: nn.Module) -> nn.Module:
    network.model.layers[0] = torch.compile(network.model.layers[0], backend="eager")  # type: ignore[union-attr,index]
    return network


def compiled_forward(network: nn.Module) -> nn.Module:
    network.forward = torch.compile(network.forward, backend="eager")
    return network


def compiled_by_generate(network: nn.Module) -> nn.Module:
    continued(network, prompt(), **COMPILED)
    return network


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "compile_",
    [
        compiled_as_a_whole,
        compiled_in_place,
        compiled_block,
        compiled_wrapped_block,
        compiled_forward,
        compiled_by_generate,
    ],
)
def test_a_compiled_network_is_refused_instead_of_left_unsteered(compile_: Callable[[nn.Module], nn.Module]) -> None:
    network = compile_(tiny("llama"))
    before = hooks_and_attributes(network)
    norm = next(name for name, _ in network.named_modules() if name.endswith(".input_layernorm"))
    for given in (network, TextModel(network, Letters())):
        with pytest.raises(LineasError, match="compiled"):
            steer(given, Intervention({norm: some_map(0)}))
    assert hooks_and_attributes(network) == before


@pytest.mark.usefixtures("compiler")
def test_steering_first_and_compiling_afterwards_works_as_the_error_says() -> None:
    torch.manual_seed(0)
    network, map_ = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), some_map(0, 4)
    plain, x = copy.deepcopy(network), torch.randn(2, 4)
    with steer(network, Intervention({"1": map_})) as live:
        compiled = torch.compile(network, backend="eager")
        for s in (1.0, 0.25, 0.0):
            live.strength = s
            with by_hand(plain, {"1": map_.at(s)}):
                assert_same(compiled(x), plain(x))
        live.strength = 1.0
    assert_same(compiled(x), plain(x))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("compile_", [compiled_as_a_whole, compiled_in_place, compiled_block])
def test_a_compiled_network_follows_the_strength_without_being_compiled_again(compile_: Any) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    expected = {}
    for s in (0.3, 0.9, 0.0):
        with steer(network, intervention, s):
            expected[s] = logits(network, prompt())
    with steer(network, intervention, 0.5) as live:
        compiled = compile_(network)
        logits(compiled, prompt())
        with torch._dynamo.config.patch(error_on_recompile=True):
            for s in (0.3, 0.9, 0.3):
                live.strength = s
                torch.testing.assert_close(logits(compiled, prompt()), expected[s])
        for s in (0.0, 0.9, 0.0):  # switching off and on may compile again, but must be followed
            live.strength = s
            torch.testing.assert_close(logits(compiled, prompt()), expected[s])


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("compile_", [compiled_as_a_whole, compiled_in_place, compiled_block, compiled_forward])
def test_what_was_compiled_at_strength_0_is_not_silently_left_unsteered(compile_: Any) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    with steer(network, intervention, 0.0) as live:
        compiled = compile_(network)
        logits(compiled, prompt())
        with pytest.raises(LineasError, match="compiled while its intervention was at strength 0"):
            live.strength = 1.0


@pytest.mark.usefixtures("compiler")
def test_a_network_that_generate_compiles_while_it_is_steered_is_steered_row_by_row_and_let_go() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    plain = continued(network, prompt(), max_new_tokens=4)
    with steer(network, intervention):
        expected = continued(network, prompt(), max_new_tokens=4)
    with steer(network, intervention, torch.tensor([1.0, 0.0])) as live:
        assert continued(network, prompt(), **COMPILED) == [expected[0], plain[1]]
        live.strength = torch.tensor([0.0, 1.0])
        assert continued(network, prompt(), **COMPILED) == [plain[0], expected[1]]
    assert expected != plain
    assert continued(network, prompt(), **COMPILED) == plain


# ---- verify


@pytest.mark.parametrize("strength", [1.0, torch.tensor([0.0, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_verify_returns_the_largest_change_of_the_output(family: str, strength: Any) -> None:
    network = tiny(family)
    before = logits(network, prompt())
    with steer(network, some_intervention(network), strength) as live:
        after = logits(network, prompt())
        change = live.verify(input_ids=prompt(), use_cache=False)
        assert change == pytest.approx(float((after - before).abs().max()), rel=1e-4)
        assert live.verify() > 0  # on eight tokens of its own
        assert torch.equal(torch.as_tensor(live.strength), torch.as_tensor(strength))
        assert torch.equal(logits(network, prompt()), after)  # and the network is steered as before


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_verify_is_one_call_for_every_choice_of_tokens(tokens: Any) -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), tokens=tokens) as live:
        assert live.verify() > 0
        live.prompt_length = 2
        assert live.verify(input_ids=prompt()) > 0


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.used(x), 0.5, self.training)


def test_verify_raises_when_the_output_does_not_move() -> None:
    network, x = WithUnused().eval(), torch.randn(2, 4)
    with steer(network, Intervention({"unused": some_map(0, 4)})) as live:
        with pytest.raises(LineasError, match="did not move"):
            live.verify(x=x)
        assert live.strength == 1.0
    with steer(network, Intervention({"used": some_map(0, 4)})) as live:
        assert live.verify(x=x) > 0
        live.strength = 0.0
        with pytest.raises(LineasError, match="strength 0"):
            live.verify(x=x)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_verify_refuses_a_destroyed_model(family: str) -> None:
    network = tiny(family)
    found = some_intervention(network)
    enormous = {name: AffineMap(m.scale, torch.full_like(m.shift, 3e38)) for name, m in found.maps.items()}
    with steer(network, Intervention(enormous, found.sites)) as live, pytest.raises(LineasError, match="is destroyed"):
        live.verify()


def test_verify_looks_at_numbers_alone_where_a_network_masks_some() -> None:
    network, x = WithUnused().eval(), torch.randn(2, 4)
    network.register_forward_hook(lambda _, __, result: result.index_fill(1, torch.tensor([2]), -torch.inf))
    with steer(network, Intervention({"used": some_map(0, 4)})) as live:
        assert 0 < live.verify(x=x) < torch.inf


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_verify_finds_where_the_inputs_of_an_offloaded_network_go(offload: Any, tmp_path: Any) -> None:
    network = tiny("llama")
    found = some_intervention(network)
    with steer(network, found) as live:
        moved = live.verify()
    offload(network, *([tmp_path] if offload is disk_offload else []), execution_device=torch.device("cpu"))
    with steer(network, found) as live:
        assert live.verify() == pytest.approx(moved)


def test_verify_is_not_deceived_by_dropout() -> None:
    network = WithUnused().train()
    with (
        steer(network, Intervention({"unused": some_map(0, 4)})) as live,
        pytest.raises(LineasError, match="did not move"),
    ):
        live.verify(x=torch.randn(2, 4))


def test_verify_is_fine_for_an_intervention_that_changes_nothing() -> None:
    network = tiny("llama")
    with steer(network, Intervention({"model.norm": AffineMap.identity(WIDTH)})) as live:
        assert live.verify() == 0.0


def test_verify_asks_for_inputs_where_it_cannot_make_its_own() -> None:
    with (
        steer(WithUnused(), Intervention({"used": some_map(0, 4)})) as live,
        pytest.raises(LineasError, match="inputs"),
    ):
        live.verify()


# ---- the network it belongs to


def learned_on(network: nn.Module, pattern: str | None = None) -> Intervention:
    plain = some_intervention(network, pattern)
    return Intervention(plain.maps, plain.sites, ModelIdentity.of(network, "home/model"))


def assert_forced(network: Any, intervention: Intervention) -> None:
    with by_hand(network, intervention.maps):
        expected = logits(network, prompt())
    with steer(network, intervention, other_model=True):
        assert_same(logits(network, prompt()), expected)


def test_another_architecture_is_refused_by_name_unless_forced() -> None:
    network, intervention = tiny("mistral"), learned_on(tiny("llama"))
    before = hooks_and_attributes(network)
    with pytest.raises(LineasError, match=r"home/model \(LlamaForCausalLM\), not on a Mistral.*other_model=True"):
        steer(network, intervention)
    assert hooks_and_attributes(network) == before
    assert_forced(network, intervention)


def test_another_checkpoint_is_refused_by_its_norm_weights_unless_forced() -> None:
    network, intervention = tiny("llama", seed=1), learned_on(tiny("llama"))
    with pytest.raises(LineasError, match=r"home/model.*other norm weights.*other_model=True"):
        steer(network, intervention)
    assert_forced(network, intervention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_same_checkpoint_in_another_type_is_accepted(dtype: Any) -> None:
    network = tiny("llama").to(dtype)
    with steer(network, learned_on(tiny("llama"))) as live:
        assert live.verify() > 0


@pytest.mark.parametrize("force", [False, True])
def test_a_missing_module_is_refused_by_name_even_when_forced(force: bool) -> None:
    network = tiny("gpt2")
    with pytest.raises(
        LineasError, match=r"'model.layers.0.post_attention_layernorm' and 1 other.* GPT2LMHeadModel does not have"
    ):
        steer(network, learned_on(tiny("llama")), other_model=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.norm"),
        ("llama", "model.layers.0.self_attn.o_proj"),
        ("gpt2", "transformer.h.0.attn.c_proj"),
        ("gpt2", "transformer.ln_f"),
    ],
)
def test_another_width_is_refused_with_both_widths_even_when_forced(family: str, name: str, force: bool) -> None:
    network = tiny(family)
    with pytest.raises(LineasError, match=r"16 .*32 "):
        steer(network, Intervention({name: some_map(0, 16)}), other_model=force)


@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("strength", [1.0, torch.ones(2)], ids=["number", "rows"])
@pytest.mark.parametrize("name", ["model.layers.0", "model.layers.0.mlp"])
def test_a_width_known_only_when_the_network_runs_is_refused_then(name: str, strength: Any, width: int) -> None:
    network = tiny("llama")
    with (
        steer(network, Intervention({name: some_map(0, width)}), strength),
        pytest.raises(LineasError, match=rf"{width} neurons"),
    ):
        logits(network, prompt())


def test_a_bare_module_works_as_well_as_a_text_model() -> None:
    model = TextModel(tiny("llama"), Letters())
    intervention = learned_on(model.network)
    with steer(model, intervention, 0.6):
        through_model = logits(model.network, prompt())
        texts = model.generate(["one", "three"], temperature=0)
    with steer(model.network, intervention, 0.6):
        assert torch.equal(logits(model.network, prompt()), through_model)
        assert model.generate(["one", "three"], temperature=0) == texts
    assert model.generate(["one", "three"], temperature=0) != texts
    network, map_, x = nn.Sequential(nn.Linear(3, 4)), some_map(0, 4), torch.randn(2, 3)
    expected = map_(network(x))
    with steer(network, Intervention({"0": map_})):  # not even a transformer
        assert_same(network(x), expected)


# ---- one inside the other


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_nested_steering_acts_in_turn_and_detaches_in_any_order(family: str, order: tuple[int, ...]) -> None:
    network = tiny(family)
    before, plain = hooks_and_attributes(network), logits(network, prompt())
    parts = [some_intervention(network, seed=seed) for seed in range(3)]
    lives = {i: steer(network, part, 0.5) for i, part in enumerate(parts)}
    for gone in order:
        left = [parts[i].at(0.5) for i in lives]
        steered = logits(network, prompt())
        reference = tiny(family)
        with steer(reference, left):
            assert_same(steered, logits(reference, prompt()))
        lives.pop(gone).detach()
    assert hooks_and_attributes(network) == before
    assert torch.equal(logits(network, prompt()), plain)


def test_nested_blocks_leave_the_outer_one_in_force() -> None:
    network = tiny("llama")
    a, b = some_intervention(network, seed=1), some_intervention(network, seed=2)
    with steer(network, a) as outer:
        alone = logits(network, prompt())
        with steer(network, b) as inner:
            both = logits(network, prompt())
            outer.strength = 0.0  # each keeps a strength of its own
            only_b = logits(network, prompt())
            assert inner.strength == 1.0
            outer.strength = 1.0
        assert torch.equal(logits(network, prompt()), alone)
    with steer(network, [a, b]):
        assert_same(logits(network, prompt()), both)
    with steer(network, b):
        assert torch.equal(logits(network, prompt()), only_b)
