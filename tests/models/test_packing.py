"""Packing: attention sees each prompt alone and pays for nothing else; what cannot be packed says so and is padded."""

from __future__ import annotations

import warnings
from typing import Any

import families
import pytest
import torch
import transformers
from families import OTHER_PROMPTS, PROMPTS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import lineas
from lineas import LinEAS
from lineas.intervention.maps import affine
from lineas.learning import penalty
from lineas.learning.capture import backpropagate, capture
from lineas.learning.optimizers import DeviationAdam
from lineas.learning.transport import Quantiles
from lineas.models import packing
from lineas.steering.hooks import edited


def logits(network: Any, lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the activations of random prompts of these lengths in one pack, and one by one in transformers."""
    ids = torch.randint(3, 60, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad():
        with packing.packed(network, packing.Layout.of(lengths, torch.device("cpu"))):
            together = network(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
        alone = [network(input_ids=one[None], use_cache=False).logits[0] for one in ids.split(lengths)]
    return together, torch.cat(alone)


@pytest.mark.parametrize("short", [256, 4], ids=["plain products", "fused attention"])
@pytest.mark.parametrize("lengths", [[1], [20], [1, 1, 2], [3, 9, 10, 10, 30], [64, 65]], ids=str)
@pytest.mark.parametrize("family", [*families.FAMILIES, "cohere", "glm4", "deepseek_v3"])
def test_a_pack_gives_the_logits_of_each_prompt_alone(
    family: str, lengths: list[int], short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sliding windows of 6 tokens, bounded products, shared keys and latent attention are among the families."""
    monkeypatch.setattr(packing, "SHORT", short)
    together, alone = logits(families.network(family), lengths)
    torch.testing.assert_close(together, alone, atol=2e-5 * float(alone.abs().max()), rtol=1e-4)


def test_attention_does_not_pay_for_the_other_prompts_of_the_pack() -> None:
    network = families.network("llama")

    def operations(prompts: int) -> int:
        with FlopCounterMode(display=False) as counter:
            logits(network, [16] * prompts)
        return counter.get_total_flops()

    assert operations(8) == 8 * operations(1)


def test_the_network_has_its_own_attention_again_also_after_a_failure() -> None:
    network: Any = families.network("gemma3")
    before = network.config._attn_implementation

    def fail() -> None:
        with packing.packed(network, packing.Layout.of([2], torch.device("cpu"))):
            assert network.config._attn_implementation == packing.NAME
            network(input_ids=torch.tensor([[3, 4, 5]]))  # 3 tokens where the layout knows 2

    with pytest.raises(RuntimeError, match="shape"):
        fail()
    assert network.config._attn_implementation == before
    with pytest.raises(LookupError):
        packing._layout.get()


def recurrent() -> lineas.TextModel:
    config = transformers.MambaConfig(
        vocab_size=families.VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lineas.TextModel(transformers.MambaForCausalLM(config), families.tokenizer(), name="tiny-mamba")


def test_a_network_without_attention_is_padded_says_why_and_learns() -> None:
    model = recurrent()
    method = LinEAS(steps=4, learning_rate=1.0)
    with pytest.warns(UserWarning, match=r"tiny-mamba are padded instead of packed.*of its (2 )?layers"):
        learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, method, sites=r".*\.norm", progress=False)
    assert learned.facts["cost"][-1] < learned.facts["cost"][0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        lineas.learn(model, PROMPTS, OTHER_PROMPTS, method, sites=r".*\.norm", progress=False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_network_whose_pack_would_come_out_otherwise_is_padded(family: str) -> None:
    model = families.model(family)

    def mix(module: Any, args: Any, result: torch.Tensor) -> torch.Tensor:
        return result + result.mean(1, keepdim=True)  # as a layer that looks at the whole row would

    model.network.get_input_embeddings().register_forward_hook(mix)  # pyright: ignore[reportCallIssue]
    with pytest.warns(UserWarning, match="its output differs by"):
        batch = model.batch(PROMPTS)
    assert all(hasattr(part, "mask") for part in batch.parts)


def test_packing_works_in_every_type_and_in_training_mode() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert packing.reason_not_packable(families.network("llama").to(dtype)) is None
    network = families.network("opt").train()  # it has dropout
    assert packing.reason_not_packable(network) is None
    assert all(module.training for module in network.modules())


class Waits(TorchDispatchMode):
    """Operations that make the host wait for a GPU, or the GPU's result depend on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("limit", [None, 30])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_step_waits_for_nothing(family: str, limit: int | None) -> None:
    model = families.model(family)
    sites = model.sites()
    batch = model.batch(PROMPTS, limit=limit)
    with torch.no_grad():
        target = capture(model, model.batch(OTHER_PROMPTS), sites)
    targets = {name: Quantiles.of(v, len(PROMPTS)) for name, v in target.items()}
    shifts = [torch.nn.Parameter(torch.zeros(32)) for _ in sites]
    maps = {s: (torch.ones(32, requires_grad=True), shift) for s, shift in zip(sites, shifts)}
    optimizer = DeviationAdam(shifts, [torch.ones(32)] * len(shifts), 0.1, 4)
    with edited(model.network, {s: lambda z, m=m: affine(z, *m) for s, m in maps.items()}), Waits() as waits:
        backpropagate(model, batch, sites, targets)
        sizes: list[torch.Tensor] = []
        optimizer.step(lambda given, units: sizes.extend(given))  # pyright: ignore[reportArgumentType]
        for shift, size in zip(shifts, sizes, strict=True):
            penalty.prox(shift.detach(), size * 1e-3, 1.0, 1.0)
    assert waits.seen == []
    assert all(scale.grad is not None for scale, _ in maps.values())
