"""Sites: what patterns name in every family, what a module's result holds, and which maps could become weights."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import families
import pytest
import torch
from families import block
from torch import nn
from transformers.utils import ModelOutput  # pyright: ignore[reportPrivateImportUsage]

from lineas import LineasError
from lineas.folding.slots import folding
from lineas.learning.capture import capture
from lineas.sites import Site, find_sites
from lineas.steering.hooks import edited

DEFAULTS = {
    "gpt2": ["ln_2"],
    "opt": ["final_layer_norm"],
    **{family: ["post_attention_layernorm", "post_feedforward_layernorm"] for family in ("gemma2", "gemma3", "olmo2")},
}


def names(sites: list[Site]) -> list[str]:
    return [site.name for site in sites]


@dataclass
class Pair(ModelOutput):
    """A possible output of an encoder."""

    hidden: torch.Tensor | None = None
    extra: torch.Tensor | None = None
    rest: tuple[torch.Tensor, ...] | None = None


class Both(NamedTuple):
    hidden: torch.Tensor
    extra: torch.Tensor | None = None


class Two(nn.Module):
    """A module with two results, a plain tuple or a ModelOutput."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.inner = nn.Linear(4, 4)

    def forward(self, z: torch.Tensor) -> Any:
        results = (self.inner(z), 2 * z)
        return Pair(*results) if self.kind is Pair else results


class Holder(nn.Module):
    """A network around one module with two results."""

    def __init__(self, kind: type = tuple) -> None:
        super().__init__()
        self.two = Two(kind)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        result = self.two(z)
        values = list(result.values()) if isinstance(result, Pair) else result
        return values[0] + values[1]


# ------------------------------------------------------------------------------------------------- which modules


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_default_is_the_norm_before_the_mlp_or_both_post_norms(family: str) -> None:
    expected = DEFAULTS.get(family, ["post_attention_layernorm"])
    sites = find_sites(families.network(family))
    assert names(sites) == [f"{block(family, i)}.{name}" for i in range(2) for name in expected]
    assert {(site.output, site.axis) for site in sites} == {(0, -1)}


def test_the_default_needs_blocks_with_norms_and_says_what_to_do_without() -> None:
    with pytest.raises(LineasError, match=r"Sequential has no blocks with norms.*regular expression"):
        find_sites(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "olmo2", "mixtral"])
def test_a_pattern_matches_whole_names_in_the_order_of_the_network(family: str) -> None:
    network = families.network(family)
    assert names(find_sites(network, ".*o_proj")) == [f"model.layers.{i}.self_attn.o_proj" for i in range(2)]
    assert names(find_sites(network, r"model\.layers\.\d+")) == ["model.layers.0", "model.layers.1"]
    assert names(find_sites(network, r"model\.layers\.1\.post_attention_layernorm")) == [
        "model.layers.1.post_attention_layernorm"
    ]


def test_several_patterns_join_in_the_order_of_the_network_each_site_once() -> None:
    network = families.network("llama")
    found = find_sites(network, [".*down_proj", r"model\.layers\.\d+", r".*\.0\.mlp\.down_proj"])
    assert names(found) == [
        "model.layers.0",
        "model.layers.0.mlp.down_proj",
        "model.layers.1",
        "model.layers.1.mlp.down_proj",
    ]


def test_an_output_is_chosen_by_a_colon_and_its_number() -> None:
    network = families.network("llama")
    first = find_sites(network, ".*self_attn:0")
    assert first == find_sites(network, ".*self_attn")
    assert names(first) == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert find_sites(Holder(), "two:1") == [Site("two", output=1)]
    assert names(find_sites(Holder(), ["two:1", "two.*"])) == ["two", "two:1", "two.inner"]


def test_convolutional_modules_carry_their_neurons_along_axis_1() -> None:
    network = nn.ModuleDict({"norm": nn.GroupNorm(2, 4), "conv": nn.Conv2d(4, 4, 1), "out": nn.Linear(4, 4)})
    assert [site.axis for site in find_sites(network, ".*")] == [1, 1, -1]


@pytest.mark.parametrize("pattern", ["*o_proj", ".*(o_proj", [".*o_proj", "["], "[:1"])
def test_a_broken_expression_is_named(pattern: str | list[str]) -> None:
    broken = pattern if isinstance(pattern, str) else pattern[-1]
    with pytest.raises(LineasError, match=rf"'{re.escape(broken)}' is not a regular expression"):
        find_sites(families.network("llama"), pattern)


@pytest.mark.parametrize(
    ("family", "pattern", "nearest"),
    [
        ("llama", ".*o_prj", r"model\.layers\.\d+\.self_attn\.o_proj"),
        ("llama", "post_attention_layernorm", r"model\.layers\.\d+\.post_attention_layernorm"),
        ("llama", r"layers\.\d+\.mlp", r"model\.layers\.\d+\.mlp"),
        ("gpt2", ".*o_proj", r"transformer\.h\.\d+\.attn\.c_proj"),
        ("opt", ".*final_layernorm", r"model\.decoder\.layers\.\d+\.final_layer_norm"),
        ("mixtral", [".*o_proj", ".*mlp.down_projection:1"], None),
    ],
)
def test_no_match_names_the_nearest_modules_as_patterns_that_work(
    family: str, pattern: str | list[str], nearest: str | None
) -> None:
    network = families.network(family)
    with pytest.raises(LineasError, match="whole name must match") as raised:
        find_sites(network, pattern)
    asked, *hints = re.findall(r"'([^']*)'", str(raised.value))
    assert asked == (pattern if isinstance(pattern, str) else pattern[-1])
    assert nearest is None or nearest in hints
    assert all(find_sites(network, hint) for hint in hints)


def test_hints_work_where_a_module_is_called_something_with_a_capital_n() -> None:
    network = nn.ModuleDict({"block": nn.ModuleDict({"Norm": nn.LayerNorm(3)})})
    with pytest.raises(LineasError) as raised:
        find_sites(network, "Norm")
    assert names(find_sites(network, re.findall(r"'([^']*)'", str(raised.value))[1])) == ["block.Norm"]


def test_no_patterns_at_all_are_refused() -> None:
    """Else `learn` would run with nothing to learn."""
    with pytest.raises(LineasError):
        find_sites(families.network("llama"), [])


# ------------------------------------------------------------------------------------------- what a module returns

HIDDEN, EXTRA, NEW = torch.full((1, 2), 1.0), torch.full((1, 2), 2.0), torch.full((1, 2), 3.0)
RESULTS = {
    "tuple": (HIDDEN, EXTRA),
    "list": [HIDDEN, EXTRA],
    "namedtuple": Both(HIDDEN, EXTRA),
    "ModelOutput": Pair(hidden=HIDDEN, extra=EXTRA),
    "ModelOutput without its first": Pair(extra=HIDDEN, rest=EXTRA),  # pyright: ignore[reportArgumentType]
    "dict": {"hidden": HIDDEN, "extra": EXTRA},
    "OrderedDict": OrderedDict(hidden=HIDDEN, extra=EXTRA),
}


def values(result: Any) -> list[Any]:
    return list(result.values()) if isinstance(result, dict) else list(result)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("kind", RESULTS)
def test_pick_and_replace_act_on_one_output_and_leave_the_result_alone(kind: str, output: int) -> None:
    result = RESULTS[kind]
    site = Site("two", output)
    assert site.pick(result) is (HIDDEN, EXTRA)[output]
    changed = site.replace(result, NEW)
    assert type(changed) is type(result)
    assert changed is not result
    assert site.pick(changed) is NEW
    assert values(changed)[1 - output] is values(result)[1 - output]
    assert len(values(changed)) == 2
    if isinstance(result, dict):
        assert list(changed) == list(result)
    assert values(result)[0] is HIDDEN
    assert values(result)[1] is EXTRA
    assert bool((HIDDEN == 1).all() and (EXTRA == 2).all() and (NEW == 3).all())


def test_fields_of_replaced_results_can_be_read_by_name() -> None:
    replaced = Site("two", 1).replace(RESULTS["ModelOutput"], NEW)
    assert replaced.extra is NEW
    assert replaced["extra"] is NEW
    assert replaced.rest is None
    assert Site("two").replace(RESULTS["namedtuple"], NEW).hidden is NEW


def test_a_tensor_is_its_own_only_output() -> None:
    assert Site("two").pick(HIDDEN) is HIDDEN
    assert Site("two").replace(HIDDEN, NEW) is NEW
    with pytest.raises(LineasError, match=r"output 1 of two is not a tensor \(it returns one tensor\)"):
        Site("two", 1).pick(HIDDEN)


@pytest.mark.parametrize(
    ("result", "output", "described"),
    [
        ((HIDDEN, None), 1, r"tuple\(tensor, NoneType\)"),
        ((HIDDEN, EXTRA), 2, r"tuple\(tensor, tensor\)"),
        ([(HIDDEN,), EXTRA], 0, r"list\(tuple, tensor\)"),
        (Pair(hidden=HIDDEN, rest=(EXTRA,)), 1, r"Pair\(tensor, tuple\)"),
        (None, 0, "NoneType"),
        (2.5, 0, "float"),
    ],
)
def test_an_output_that_is_no_tensor_is_refused_with_what_there_is(result: Any, output: int, described: str) -> None:
    with pytest.raises(LineasError, match=rf"output {output} of two is not a tensor \(it returns {described}"):
        Site("two", output).pick(result)


@pytest.mark.parametrize("kind", [tuple, Pair])
def test_a_map_at_the_second_output_changes_that_output_alone(kind: type) -> None:
    network, z = Holder(kind), torch.randn(3, 4)
    with torch.no_grad(), edited(network, {site: lambda x: x + 1 for site in find_sites(network, "two:1")}):
        moved = network(z)
        result = network.two(z)
    assert torch.equal(moved, network.two.inner(z) + (2 * z + 1))
    assert torch.equal(values(result)[0], network.two.inner(z))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mixtral"])
def test_an_attention_gives_its_activation_as_output_0_and_no_neurons_as_output_7(family: str) -> None:
    model = families.model(family)
    attention = "attention" if family == "gpt_neox" else "self_attn"
    batch = model.batch(families.PROMPTS)
    read = capture(model, batch, model.sites(f".*{attention}:0"))
    assert [list(z.shape) for z in read.values()] == [[len(families.PROMPTS), 32]] * 2
    before = families.hook_count(model.network)
    with pytest.raises(LineasError, match=rf"output 7 of .*{attention} is not a tensor"):
        capture(model, batch, model.sites(f".*{attention}:7"))
    assert families.hook_count(model.network) == before


# ------------------------------------------------------------------------------------------------------ what folds

LIKE_LLAMA = {"input_layernorm": "exact", "post_attention_layernorm": "exact", "self_attn.o_proj": "exact"}
LIKE_GEMMA = {
    "input_layernorm": "exact",  # into the biases that attention_bias gives
    "post_attention_layernorm": "scale",
    "pre_feedforward_layernorm": "scale",  # the MLP has no biases
    "post_feedforward_layernorm": "scale",
    "self_attn.o_proj": "exact",
    "mlp.down_proj": "scale",
}
NO_BIASES = {"input_layernorm": "scale", "post_attention_layernorm": "scale", "self_attn.o_proj": "scale"}
FOLDS: dict[str, dict[str, str]] = {
    "llama": {**LIKE_LLAMA, "mlp.down_proj": "exact", "self_attn.q_proj": "exact"},
    "mistral": {**LIKE_LLAMA, "mlp.down_proj": "exact"},
    "qwen2": {**LIKE_LLAMA, "mlp.down_proj": "exact"},
    "qwen3": {**LIKE_LLAMA, "post_attention_layernorm": "scale", "self_attn.q_norm": "scale", "mlp.down_proj": "scale"},
    "gemma2": LIKE_GEMMA,
    "gemma3": LIKE_GEMMA,
    "phi3": {**NO_BIASES, "self_attn.qkv_proj": "scale", "mlp.down_proj": "scale"},
    "olmo2": {
        "post_attention_layernorm": "scale",
        "post_feedforward_layernorm": "scale",
        "self_attn.o_proj": "exact",
        "mlp.down_proj": "scale",
    },
    "gpt2": dict.fromkeys(["ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_proj"], "exact"),
    "gpt_neox": dict.fromkeys(["input_layernorm", "post_attention_layernorm", "attention.dense"], "exact"),
    "opt": dict.fromkeys(["self_attn_layer_norm", "final_layer_norm", "self_attn.out_proj", "fc2"], "exact"),
    "mixtral": NO_BIASES,  # the norm feeds a router and experts
    "cohere": {"input_layernorm": "scale"},  # feeds the attention and the MLP, and the MLP has no biases
    "glm4": {"input_layernorm": "exact", "self_attn.o_proj": "scale"},  # attention_bias leaves o_proj out
    "deepseek_v3": {"input_layernorm": "scale", "self_attn.q_proj": "scale"},  # attention_bias leaves q_proj out
}


@pytest.mark.parametrize("family", FOLDS)
def test_what_folds_in_a_block(family: str) -> None:
    network, prefix = families.network(family), block(family)
    assert {name: folding(network, Site(f"{prefix}.{name}")) for name in FOLDS[family]} == FOLDS[family]
    children = dict(network.get_submodule(prefix).named_children())
    attention = next(name for name in ("self_attn", "attn", "attention") if name in children)
    assert folding(network, Site(prefix)) == "no"
    assert folding(network, Site(f"{prefix}.{attention}")) == "no"
    assert {folding(network, Site(f"{prefix}.{name}", output=1)) for name in FOLDS[family]} == {"no"}


def test_sliding_windows_keep_a_network_from_becoming_a_llama() -> None:
    mistral = families.network("mistral", sliding_window=8)
    qwen2 = families.network("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    for network in (mistral, qwen2):
        assert folding(network, Site("model.layers.0.post_attention_layernorm")) == "scale"
        assert folding(network, Site("model.layers.0.self_attn.o_proj")) == "scale"
    assert folding(mistral, Site("model.layers.0.input_layernorm")) == "scale"
    assert folding(qwen2, Site("model.layers.0.input_layernorm")) == "exact"  # q, k, v have biases of their own


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_a_norm_into_the_residual_never_folds_its_shift_whatever_biases_the_mlp_has(family: str) -> None:
    network = families.network(family)
    for linear in (m for name, m in network.named_modules() if name.endswith(("gate_proj", "up_proj", "down_proj"))):
        linear.bias = nn.Parameter(torch.zeros(linear.out_features))  # pyright: ignore[reportArgumentType, reportCallIssue]
    for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
        assert folding(network, Site(f"model.layers.0.{name}")) == "scale"
    if family != "olmo2":
        assert folding(network, Site("model.layers.0.pre_feedforward_layernorm")) == "exact"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_folds_is_known_where_weights_are_kept_elsewhere(family: str) -> None:
    """Weights on a disk are on the meta device here; what a network is like does not depend on them."""
    away = families.network(family).to("meta")
    assert {name: folding(away, Site(f"{block(family)}.{name}")) for name in FOLDS[family]} == FOLDS[family]


def test_the_last_norm_and_modules_without_weights() -> None:
    llama, gpt2 = families.network("llama"), families.network("gpt2")
    assert folding(llama, Site("model.norm")) == "scale"
    assert folding(gpt2, Site("transformer.ln_f")) == "exact"
    assert folding(llama, Site("model.layers.0.mlp.act_fn")) == "no"
    assert folding(nn.ModuleDict({"norm": nn.GroupNorm(2, 4)}), Site("norm", axis=1)) == "exact"
    assert folding(nn.ModuleDict({"norm": nn.LayerNorm(4, elementwise_affine=False)}), Site("norm")) == "no"


@pytest.mark.parametrize("pattern", ["", ":0", [".*norm", ""]])
def test_an_empty_pattern_is_said_to_match_nothing(pattern: str | list[str]) -> None:
    with pytest.raises(LineasError, match="is empty and matches nothing"):
        find_sites(families.network("llama"), pattern)
    with pytest.raises(LineasError, match="no module of LlamaForCausalLM matches"):
        find_sites(families.network("llama"), "(x)?")
