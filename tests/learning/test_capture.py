"""Capture: what is read of a batch is what each prompt gives alone, nothing more is computed, no trace is left;
and learning on top of it, in every family."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from families import OTHER_PROMPTS, PROMPTS
from torch import nn

import lineas
from lineas import LinEAS, LineasError, TextModel
from lineas.learning import transport
from lineas.learning.capture import capture
from lineas.sites import Site
from lineas.steering.hooks import edited

METHOD = LinEAS(steps=3, optimizer="adam", learning_rate=0.01)
ATTENTION_OUTPUT = {"gpt2": ".*attn.c_proj", "gpt_neox": ".*attention.dense", "opt": ".*out_proj"}
BLOCKS = {"gpt2": r"transformer\.h\.\d+", "gpt_neox": r"gpt_neox\.layers\.\d+", "opt": r"model\.decoder\.layers\.\d+"}


def places(family: str) -> list[str | None]:
    """The sites worth reading in a family: the default, the attention's output, the blocks, and what is flattened."""
    flattened = {"opt": [".*fc2"], "mixtral": [r".*\.gate"]}.get(family, [])
    return [None, ATTENTION_OUTPUT.get(family, ".*o_proj"), BLOCKS.get(family, r"model\.layers\.\d+"), *flattened]


def read(model: TextModel, prompts: list[str], sites: list[Site], limit: int | None = None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return capture(model, model.batch(prompts, limit=limit), sites)


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("way", ["pack", "packs", "padded"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_batch_gives_what_each_prompt_gives_alone_in_the_order_of_the_prompts(family: str, way: str) -> None:
    model = families.model(family)
    batch = (
        model.padded_samples(PROMPTS).batch()
        if way == "padded"
        else model.batch(PROMPTS, limit=30 if way == "packs" else None)
    )
    assert (len(batch.parts) > 1) == (way != "pack")
    for pattern in places(family):
        sites = model.sites(pattern)
        with torch.no_grad():
            together = capture(model, batch, sites)
        assert list(together) == [site.name for site in sites]
        alone = [read_alone(model, prompt, sites) for prompt in PROMPTS]
        for name, activations in together.items():
            expected = torch.cat([one[name] for one in alone])  # [n, d]
            assert float(expected.std(0).min()) > 1e-3  # rows differ, so a wrong order shows
            torch.testing.assert_close(activations, expected, atol=1e-5, rtol=1e-5)


def read_alone(model: TextModel, prompt: str, sites: list[Site]) -> dict[str, torch.Tensor]:
    """Return the mean activations of one prompt that transformers runs on its own."""
    with torch.no_grad():
        batch = model.padded_samples([prompt]).batch()
        assert bool(batch.parts[0].mask.all())
        return capture(model, batch, sites)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_largest_activation_is_that_of_each_prompt_alone(family: str) -> None:
    model = families.model(family)
    for pattern in places(family):
        sites = model.sites(pattern)
        alone = {
            site.name: torch.stack([tokens.amax(0) for tokens in families.outputs(model, PROMPTS, site)])
            for site in sites
        }
        for batch in (
            model.batch(PROMPTS),
            model.batch(PROMPTS, limit=30),
            model.padded_samples(PROMPTS).batch(),
        ):
            with torch.no_grad():
                largest = capture(model, batch, sites, "max")
            for name, expected in alone.items():
                torch.testing.assert_close(largest[name], expected, atol=1e-5, rtol=1e-5)


def test_blocks_give_the_mean_over_tokens_of_the_networks_own_hidden_states() -> None:
    model = families.model("llama", num_hidden_layers=3)
    sites = model.sites([r"model\.layers\.[01]", r"model\.norm"])
    captured = read(model, PROMPTS, sites)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([model.tokenizer(prompt).input_ids])
        with torch.no_grad():
            _, first, second, last = model.network(ids, output_hidden_states=True).hidden_states  # each [1, t, d]
        for name, hidden in zip(captured, (first, second, last)):
            torch.testing.assert_close(captured[name][row], hidden[0].mean(0), atol=1e-5, rtol=1e-5)


def test_the_first_token_of_the_tokenizer_counts_and_padding_does_not() -> None:
    """The embedding's pooled output is the mean of the rows of its table, `<s>` among them."""
    model = families.model("llama")
    table: Any = model.network.get_submodule("model.embed_tokens").weight
    captured = read(model, PROMPTS, model.sites("model.embed_tokens"))["model.embed_tokens"]
    for row, prompt in enumerate(PROMPTS):
        ids = model.tokenizer(prompt).input_ids
        assert ids[0] == model.tokenizer.bos_token_id
        torch.testing.assert_close(captured[row], table[ids].mean(0), atol=1e-6, rtol=1e-5)


def test_other_orders_and_repeated_prompts_move_rows_and_nothing_else() -> None:
    model = families.model("qwen2")
    sites = model.sites()
    captured = read(model, PROMPTS, sites)
    order = [4, 0, 6, 2, 2, 5, 1, 3, 4]
    again = read(model, [PROMPTS[i] for i in order], sites)
    for name, activations in again.items():
        torch.testing.assert_close(activations, captured[name][order], atol=1e-5, rtol=1e-5)


def test_prompts_are_cut_at_the_length_limit() -> None:
    model = families.model("gemma3")
    sites = model.sites()
    samples = model.samples(PROMPTS, max_length=5)
    assert samples.truncated == sum(len(model.tokenizer(prompt).input_ids) > 5 for prompt in PROMPTS)
    long, short = (capture(model, model.batch([text], max_length=5), sites) for text in (PROMPTS[0], PROMPTS[0][:5]))
    assert model.tokenizer(PROMPTS[0]).input_ids[:5] == model.tokenizer(PROMPTS[0][:5]).input_ids[:5]
    for name in long:
        torch.testing.assert_close(long[name], short[name], atol=1e-5, rtol=1e-5)


def test_a_network_in_bfloat16_is_read_in_float32() -> None:
    model = families.model("llama")
    exact = read(model, PROMPTS, model.sites())
    model.network.to(torch.bfloat16)
    for name, activations in read(model, PROMPTS, model.sites()).items():
        assert activations.dtype == torch.float32
        torch.testing.assert_close(activations, exact[name], atol=0.1, rtol=0.1)


def test_gradients_flow_to_edits_when_they_are_enabled() -> None:
    model = families.model("llama")
    sites = model.sites()
    first, last = sites[0], sites[-1]
    shift = torch.zeros(32, requires_grad=True)
    with edited(model.network, {first: lambda z: z + shift}):
        captured = capture(model, model.batch(PROMPTS), sites)
    captured[last.name].square().sum().backward()
    assert shift.grad is not None
    assert bool((shift.grad != 0).all())
    torch.testing.assert_close(captured[first.name].detach(), read(model, PROMPTS, [first])[first.name])


# --------------------------------------------------------------------------------------- what is not done, and left


@pytest.mark.parametrize("family", families.FAMILIES)
def test_nothing_after_the_last_site_is_computed(family: str) -> None:
    model = families.model(family)
    first, second = families.blocks(model.network)
    head: Any = model.network.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    calls = {name: families.count_calls(m) for name, m in (("first", first), ("second", second), ("head", head))}
    sites = model.sites()
    batch = model.batch(PROMPTS, limit=30)
    parts, before = len(batch.parts), {name: count() for name, count in calls.items()}

    def since() -> dict[str, int]:
        return {name: count() - before[name] for name, count in calls.items()}

    with torch.no_grad():
        capture(model, batch, sites[: len(sites) // 2])  # those of the first block
        assert since() == {"first": parts, "second": 0, "head": 0}
        capture(model, batch, sites)
        assert since() == {"first": 2 * parts, "second": parts, "head": 0}


def mlp_of(block: nn.Module) -> nn.Module:
    """The MLP of a block; Mixtral's has another name in transformers 4."""
    return next(part for name, part in block.named_children() if name in ("mlp", "block_sparse_moe"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_the_mlp_after_the_last_norm_is_not_computed(family: str) -> None:
    model = families.model(family)
    batch = model.batch(PROMPTS[:1])
    first, second = (families.count_calls(mlp_of(block)) for block in families.blocks(model.network))
    capture(model, batch, model.sites())
    assert (first(), second()) == (1, 0)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_hook_is_left_behind(family: str) -> None:
    model = families.model(family)
    ids = torch.tensor([model.tokenizer(PROMPTS[0]).input_ids])
    before, logits = families.hook_count(model.network), model.network(ids).logits
    read(model, PROMPTS, model.sites())
    assert families.hook_count(model.network) == before
    assert torch.equal(model.network(ids).logits, logits)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_hook_is_left_behind_when_the_forward_pass_raises(family: str) -> None:
    model = families.model(family)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    sites = model.sites()
    whole = read(model, PROMPTS, sites)
    handle = families.blocks(model.network)[1].register_forward_pre_hook(fail)
    before = families.hook_count(model.network)
    with pytest.raises(RuntimeError, match="out of memory"):
        read(model, PROMPTS, sites)
    assert families.hook_count(model.network) == before
    handle.remove()
    again = read(model, PROMPTS, sites)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_module_that_takes_no_part_is_named_and_no_hook_is_left_behind() -> None:
    model = families.model("llama")
    model.network.add_module("spare", nn.LayerNorm(32))
    before = families.hook_count(model.network)
    with pytest.raises(LineasError, match="spare takes no part in the forward pass"):
        read(model, PROMPTS, model.sites([".*post_attention_layernorm", "spare"]))
    assert families.hook_count(model.network) == before


@pytest.mark.parametrize(
    ("family", "pattern", "shape"),
    [("qwen3", ".*q_norm", r"\[.*, 4, 8\]"), ("llama", r"model\.rotary_emb", r"\[1, .*, 8\]")],
)
def test_activations_that_are_not_tokens_by_neurons_are_refused_with_their_shape(
    family: str, pattern: str, shape: str
) -> None:
    model = families.model(family)
    before = families.hook_count(model.network)
    with pytest.raises(LineasError, match=rf"gives an activation of shape {shape}; expected .*Choose another module"):
        capture(model, model.padded_samples(PROMPTS).batch(), model.sites(pattern))
    assert families.hook_count(model.network) == before


# ------------------------------------------------------------------------------------------- learning on top of it


@pytest.mark.parametrize("family", families.FAMILIES)
def test_learning_lowers_the_cost_moves_every_map_and_leaves_the_network_as_it_was(family: str) -> None:
    model = families.model(family)
    network = model.network.train()
    families.blocks(network)[0].eval()
    next(network.parameters()).requires_grad_(False)
    weights = {name: x.clone() for name, x in [*network.named_parameters(), *network.named_buffers()]}
    asked = {name: p.requires_grad for name, p in network.named_parameters()}
    training = {name: m.training for name, m in network.named_modules()}
    hooks = families.hook_count(network)
    assert len(set(asked.values())) == len(set(training.values())) == 2

    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, METHOD, progress=False)

    costs = learned.facts["cost"]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == METHOD.steps
    assert list(learned.maps) == [site.name for site in model.sites()]
    for map_ in learned.maps.values():
        assert bool((map_.scale != 1).all())
        assert bool((map_.shift != 0).all())
    now = dict([*network.named_parameters(), *network.named_buffers()])
    assert all(torch.equal(now[name], x) for name, x in weights.items())
    assert all(p.grad is None for p in network.parameters())
    assert {name: p.requires_grad for name, p in network.named_parameters()} == asked
    assert {name: m.training for name, m in network.named_modules()} == training
    assert families.hook_count(network) == hooks


@pytest.mark.parametrize("family", families.FAMILIES)
def test_steering_with_what_was_learned_brings_the_source_nearer_to_the_target(family: str) -> None:
    model = families.model(family)
    sites = model.sites()
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, METHOD, progress=False)
    target = read(model, OTHER_PROMPTS, sites)
    before = read(model, PROMPTS, sites)
    with lineas.steer(model, learned):
        after = read(model, PROMPTS, sites)

    def cost(moved: dict[str, torch.Tensor]) -> float:
        return float(torch.stack([transport.cost(moved[name], v) for name, v in target.items()]).mean())

    assert cost(before) == pytest.approx(learned.facts["cost"][0], rel=1e-4)
    assert cost(after) < learned.facts["cost"][-1]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_maps_are_learned_end_to_end(family: str) -> None:
    """A later site's cost changes what is learned at an earlier one: its gradient comes through the network."""
    model = families.model(family)
    first, last = model.sites()[0].name, model.sites()[-1].name
    one = lineas.learn(model, PROMPTS, OTHER_PROMPTS, METHOD, sites=first, progress=False)
    both = lineas.learn(model, PROMPTS, OTHER_PROMPTS, METHOD, sites=[first, last], progress=False)
    assert float((one.maps[first].scale - both.maps[first].scale).abs().max()) > 1e-3
