"""Steering acts in the thread or task that asked for it; what needs a network alone says so; copies are not steered."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import io
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import families
import pytest
import torch
from stress import IDS, Stress, intervention
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

import lineas
from lineas import AffineMap, Intervention, LineasError, steer
from lineas.evaluation import Plan, Steered, evaluate
from lineas.learning import gate
from lineas.learning.gamma_path import Objective
from lineas.models.sampling import Nucleus
from lineas.steering import contexts
from lineas.steering.exclusive import is_steered

FEW: dict[str, Any] = {"source": families.PROMPTS[:3], "target": families.OTHER_PROMPTS[:3]}


def logits(network: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=ids, use_cache=False).logits


def elsewhere(function: Callable[[], Any]) -> Any:
    """Return what a function gives, or raises, in a new thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.fixture
def network() -> Any:
    return families.network("llama")


@pytest.fixture
def calm(network: Any) -> Intervention:
    return intervention(network, 0)


# ---- who is steered


def test_passes_of_threads_and_tasks_at_the_same_time_are_those_of_each_alone() -> None:
    """600 of them; `LINEAS_STRESS=10000`, or `python tests/stress.py`, for more."""
    stress = Stress(int(os.environ.get("LINEAS_STRESS", "600")))
    counts = stress.work()
    assert stress.wrong == []
    assert min(counts.values()) > 0
    assert not is_steered(stress.network)
    assert families.hook_count(stress.network) == 0


def test_a_thread_that_did_not_ask_is_untouched_and_one_that_takes_the_context_along_is_not(
    network: Any, calm: Intervention
) -> None:
    plain = logits(network)
    with steer(network, calm, 0.5) as live:
        steered = logits(network)
        assert torch.equal(elsewhere(lambda: logits(network)), plain)
        assert torch.equal(elsewhere(lambda: live.run(logits, network)), steered)
        context = contextvars.copy_context()
        assert torch.equal(elsewhere(lambda: context.run(logits, network)), steered)
        with steer(network, calm, 0.1):
            assert torch.equal(elsewhere(lambda: live.run(logits, network)), steered)  # this one alone
    with pytest.raises(LineasError, match="detached"):
        live.run(logits, network)
    assert torch.equal(elsewhere(lambda: context.run(logits, network)), plain)


def test_run_refuses_what_does_its_work_after_the_call(network: Any, calm: Intervention) -> None:
    async def later() -> None: ...

    def little_by_little() -> Iterator[int]:
        yield 1

    with steer(network, calm) as live:
        for function in (later, little_by_little):
            with pytest.raises(LineasError, match="plain function"):
                live.run(function)


def test_a_thread_that_enters_what_another_made_is_steered(network: Any, calm: Intervention) -> None:
    live = steer(network, calm)

    def there() -> torch.Tensor:
        with live:
            return logits(network)

    assert torch.equal(elsewhere(there), logits_of(calm))


def logits_of(given: Intervention) -> torch.Tensor:
    other = families.network("llama")
    with steer(other, given):
        return logits(other)


def test_steering_without_a_block_belongs_to_its_task(network: Any, calm: Intervention) -> None:
    plain = logits(network)

    async def steered() -> torch.Tensor:
        live = steer(network, calm)
        await asyncio.sleep(0)
        found = logits(network)
        assert torch.equal(await asyncio.to_thread(logits, network), found)  # a task's threads go along
        assert torch.equal(await asyncio.create_task(asyncio.to_thread(logits, network)), found)
        live.detach()
        return found

    async def both() -> list[torch.Tensor]:
        return list(await asyncio.gather(steered(), asyncio.to_thread(logits, network)))

    moved, untouched = asyncio.run(both())
    assert torch.equal(untouched, plain)
    assert torch.equal(moved, logits_of(calm))
    assert torch.equal(logits(network), plain)


def test_a_pass_keeps_to_the_strength_that_it_began_with_also_when_it_is_switched_off_or_ended(
    network: Any, calm: Intervention
) -> None:
    plain = logits(network)
    for change in ("strength", "detach"):
        live = steer(network, calm, 1.0)
        whole = logits(network)
        inside, go_on = threading.Event(), threading.Event()

        def wait(*_: Any, inside: Any = inside, go_on: Any = go_on) -> None:
            inside.set()
            assert go_on.wait(30)

        handle = network.model.layers[1].register_forward_pre_hook(wait)  # after the first of two sites
        with ThreadPoolExecutor(1) as pool:
            passing = pool.submit(contextvars.copy_context().run, logits, network)
            assert inside.wait(30)
            handle.remove()
            if change == "strength":
                live.strength = 0.0
            else:
                live.detach()
            assert torch.equal(logits(network), plain)
            go_on.set()
            assert torch.equal(passing.result(), whole)
        assert not network.model.layers[0].post_attention_layernorm._forward_hooks  # and then they are off
        live.detach()
    assert families.hook_count(network) == 0


def test_prompt_lengths_belong_to_the_thread_that_set_them(network: Any, calm: Intervention) -> None:
    ids = torch.cat([IDS, IDS], 1)
    expected = {}
    for length in (2, 7):
        with steer(network, calm, tokens="generated") as live:
            live.prompt_length = length
            expected[length] = logits(network, ids)
    with steer(network, calm, tokens="generated") as live:
        live.prompt_length = 2

        def there() -> torch.Tensor:
            assert live.prompt_length is None
            live.prompt_length = 7
            return live.run(logits, network, ids)

        assert torch.equal(elsewhere(there), expected[7])
        assert live.prompt_length == 2
        assert torch.equal(logits(network, ids), expected[2])


def test_a_text_that_streams_out_of_a_thread_is_steered_by_run(network: Any, calm: Intervention) -> None:
    asked: dict[str, Any] = dict(input_ids=IDS[:1], max_new_tokens=5, do_sample=False, pad_token_id=0)
    for tokens in ("all", "generated", "answer"):
        with steer(network, calm, tokens=tokens) as live:
            expected, pieces = network.generate(**asked), []

            class Streamer(BaseStreamer):
                def put(self, value: torch.Tensor, pieces: list[Any] = pieces) -> None:
                    pieces.append(value.flatten())

                def end(self) -> None: ...

            thread = threading.Thread(
                target=live.run, args=(network.generate,), kwargs={**asked, "streamer": Streamer()}
            )
            thread.start()
            thread.join()
        assert torch.equal(torch.cat(pieces), expected[0])


def test_nothing_stays_behind_in_threads_that_go_on(network: Any, calm: Intervention) -> None:
    before = contexts.active()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with steer(network, calm, tokens="generated") as live:
                context = contextvars.copy_context()
                pool.submit(network.generate, IDS, max_new_tokens=2, pad_token_id=0).result()
                pool.submit(live.run, logits, network).result()
                context.run(logits, network)
        assert dict(pool.submit(contexts.active).result()) == {}
    assert contexts.active() == before


def test_verify_leaves_other_threads_steered(network: Any, calm: Intervention) -> None:
    with steer(network, calm) as live:
        steered, context, found = logits(network), contextvars.copy_context(), []

        def other_thread(*_: Any) -> None:
            if not found:  # and not within itself
                found.append(steered)
                found.append(context.run(logits, network))

        norm = network.model.norm  # reached first with, then without
        passes = iter((None, other_thread))
        handle = norm.register_forward_pre_hook(lambda *_: (next(passes, None) or (lambda: None))())
        assert live.verify() > 0
        handle.remove()
    assert len(found) == 2
    assert torch.equal(found[1], steered)


def test_sampling_shares_no_random_numbers_with_other_threads_and_gives_the_texts_that_it_gave() -> None:
    model = families.model("llama")
    asked: dict[str, Any] = dict(max_new_tokens=6, top_p=0.9, repetition_penalty=1.0, batch_size=2)
    alone = [model.generate(families.PROMPTS[:4], seed=seed, **asked) for seed in (1, 2)]
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(model.generate, families.PROMPTS[:4], seed=seed, **asked) for seed in (1, 2, 1, 2)]
    assert [job.result() for job in jobs] == alone * 2
    assert torch.equal(torch.random.get_rng_state(), state)
    texts = []
    with torch.random.fork_rng():  # as it was before: the generator that all share, seeded
        torch.manual_seed(1)
        order = sorted(range(4), key=lambda i: len(model.tokenizer(families.PROMPTS[i]).input_ids))
        for rows in (sorted(order[:2]), sorted(order[2:])):
            model.tokenizer.padding_side = "left"
            given = model.tokenizer([families.PROMPTS[i] for i in rows], return_tensors="pt", padding=True)
            made = model.network.generate(  # pyright: ignore[reportCallIssue]
                input_ids=given.input_ids, attention_mask=given.attention_mask, do_sample=False, pad_token_id=0,
                max_new_tokens=6, logits_processor=LogitsProcessorList([Nucleus(1.0, 0.9)]),
            )  # fmt: skip
            texts += [made[at, given.input_ids.shape[1] :].tolist() for at in range(2)]
    encoded = [model.tokenizer(prompt).input_ids for prompt in families.PROMPTS[:4]]
    ours = model.continue_ids(encoded, 6, 1.0, 0.9, 1.0, 1, 2)
    assert [ours[i] for rows in (sorted(order[:2]), sorted(order[2:])) for i in rows] == texts


# ---- alone with the network


def busy(model: Any) -> Iterator[Callable[[], Any]]:
    """All that another thread may try meanwhile."""
    map_ = AffineMap(torch.full((32,), 2.0), torch.ones(32))
    other = Intervention({"model.norm": map_})
    yield lambda: logits(model.network)
    yield lambda: model.network.model(input_ids=IDS)
    yield lambda: model.generate(["a"], max_new_tokens=1)
    yield lambda: steer(model, other)
    yield lambda: lineas.learn(model, **FEW, method=lineas.MeanAcT(), progress=False)
    yield lambda: lineas.fold(model, other)


def test_while_a_thread_learns_others_are_refused_in_a_sentence() -> None:
    model = families.model("llama")
    before = logits(model.network)
    seen: list[int] = []

    def meanwhile(done: int, steps: int, cost: float) -> None:
        for attempt in busy(model):
            with pytest.raises(LineasError, match="another thread or task learns on this network"):
                elsewhere(attempt)
        assert torch.equal(logits(families.network("llama")), before)  # other networks are free
        logits(model.network)  # and it is the learning thread's own
        seen.append(done)

    on = intervention(model.network, 1)
    learned = lineas.learn(model, **FEW, method=lineas.LinEAS(steps=2), progress=meanwhile, on=on)
    assert seen == [1, 2]
    quiet = lineas.learn(model, **FEW, method=lineas.LinEAS(steps=2), progress=False, on=on)
    assert learned.digest() == quiet.digest()
    assert families.hook_count(model.network) == 0
    assert torch.equal(elsewhere(lambda: logits(model.network)), before)


def test_a_pass_that_was_under_way_when_another_thread_began_to_learn_ends_as_it_began() -> None:
    for attention in ("eager", "sdpa"):
        network: Any = families.network("llama", attn_implementation=attention)
        model = lineas.TextModel(network, families.tokenizer())
        before = logits(network)
        inside, go_on = threading.Event(), threading.Event()

        def wait(*_: Any, inside: Any = inside, go_on: Any = go_on) -> None:
            inside.set()
            assert go_on.wait(30)

        handle = network.model.layers[0].register_forward_hook(wait)
        with ThreadPoolExecutor(1) as pool:
            passing = pool.submit(logits, network)
            assert inside.wait(30)
            handle.remove()
            ended: list[torch.Tensor] = []

            def let_it_end(*_: Any, passing: Any = passing, ended: Any = ended, go_on: Any = go_on) -> None:
                if not ended and threading.current_thread() is threading.main_thread():
                    go_on.set()
                    ended.append(passing.result())

            watch = network.model.layers[1].register_forward_pre_hook(
                lambda m, a: let_it_end() if m.self_attn.config._attn_implementation == "lineas_packed" else None
            )
            lineas.learn(model, **FEW, method=lineas.LinEAS(steps=1), progress=False)
            watch.remove()
        assert torch.equal(ended[0], before)


@pytest.mark.parametrize("where", ["here", "in another thread"])
def test_a_steered_network_is_not_learned_on_judged_or_folded(where: str) -> None:
    model = families.model("llama")
    own = intervention(model.network, 0)
    plan = Plan(prompts=families.PROMPTS[:1])
    sites = model.sites()
    attempts: list[Callable[[], Any]] = [
        lambda: lineas.learn(model, **FEW, progress=False),
        lambda: gate(model, own, **{"source": FEW["source"], "control": FEW["target"]}),
        lambda: evaluate(model, [Steered("own", own)], plan),
        lambda: lineas.fold(model, own),
        lambda: lineas.fold(model.network, own, in_place=True),
        lambda: Objective(model, **FEW, sites=sites).at(own, lineas.LinEAS()),
        lambda: lineas.learn(model=model, **FEW, progress=False, on=own),
    ]
    live = steer(model, own, 0.0) if where == "here" else elsewhere(lambda: steer(model, own))
    for attempt in attempts:
        with pytest.raises(LineasError, match="being steered; detach first"):
            attempt()
    live.detach()
    assert families.hook_count(model.network) == 0
    attempts[-1]()


# ---- copies


def copies() -> dict[str, Callable[[Any], Any]]:
    return {
        "deepcopy": copy.deepcopy,
        "of a TextModel": lambda network: copy.deepcopy(lineas.TextModel(network, families.tokenizer())).network,
        "averaged": lambda network: torch.optim.swa_utils.AveragedModel(network).module,
        "of a copy": lambda network: copy.deepcopy(copy.deepcopy(network)),
    }


@pytest.mark.parametrize("way", copies())
def test_a_copy_of_a_steered_network_is_not_steered(network: Any, calm: Intervention, way: str) -> None:
    plain = logits(network)
    with steer(network, calm, tokens="all") as live:
        steered = logits(network)
        twin = copies()[way](network)
        for strength in (1.0, 0.3):
            live.strength = strength
            assert torch.equal(logits(twin), plain)
        assert not is_steered(twin)
        assert families.hook_count(twin) == 0  # what stood for the hooks went with the first pass
        with steer(twin, calm):
            assert torch.equal(logits(twin), steered)
        live.strength = 1.0
        assert torch.equal(logits(network), steered)
    assert torch.equal(logits(twin), plain)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
def test_a_quantised_copy_is_not_steered(network: Any) -> None:
    site = "model.layers.0.self_attn.o_proj"
    given = Intervention({site: AffineMap(torch.full((32,), 2.0), torch.ones(32))})
    quantise = torch.ao.quantization.quantize_dynamic
    if not torch.backends.quantized.supported_engines[1:]:
        pytest.skip("this torch quantises nothing here")
    expected = logits(quantise(copy.deepcopy(network), {nn.Linear}))
    with steer(network, given):
        twin = quantise(network, {nn.Linear})
        assert torch.equal(logits(twin), expected)
    assert torch.equal(logits(twin), expected)


@pytest.mark.parametrize("save", [pickle.dumps, lambda x: torch.save(x, io.BytesIO())], ids=["pickle", "torch.save"])
def test_a_steered_network_is_not_pickled_and_says_so(network: Any, calm: Intervention, save: Any) -> None:
    for strength in (0.0, 1.0):
        with steer(network, calm, strength), pytest.raises(LineasError, match=r"detach first, or save its state_dict"):
            save(network)
    save(network)


# ---- blocks that run again


class Checkpointed(nn.Module):
    """Two blocks that run again in the backward pass, by torch alone."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4)) for _ in range(2))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return {"out": x}


def gradients(reentrant: bool | None, after: Callable[[Any, torch.Tensor], None]) -> list[torch.Tensor]:
    network = Checkpointed(reentrant)
    generator = torch.Generator().manual_seed(0)
    maps = {f"blocks.{i}.0": AffineMap(*(torch.rand(2, 4, generator=generator) + 0.5)) for i in range(2)}
    x = torch.randn(3, 4, generator=generator).requires_grad_()
    live = steer(network, Intervention(maps), 0.5)
    loss = network(x)["out"].square().sum() + network(2 * x)["out"].sum()
    after(live, loss)
    live.detach()
    assert x.grad is not None
    del loss
    assert families.hook_count(network) == 0
    return [x.grad, *(p.grad for p in network.parameters() if p.grad is not None)]


def within(live: Any, loss: torch.Tensor) -> None:
    loss.backward()


def after_the_end(live: Any, loss: torch.Tensor) -> None:
    live.detach()
    loss.backward()


def after_a_change(live: Any, loss: torch.Tensor) -> None:
    live.strength = 1.0
    live.strength = 0.0
    loss.backward()


def in_another_thread(live: Any, loss: torch.Tensor) -> None:
    elsewhere(loss.backward)


def beside_another(live: Any, loss: torch.Tensor) -> None:
    """Twice, and while something else is steered."""
    live.detach()
    with steer(live._network, live._intervention, 0.1):
        torch.autograd.grad(loss, list(live._network.parameters()), retain_graph=True)
        loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("after", [within, after_the_end, after_a_change, in_another_thread, beside_another])
def test_blocks_that_run_again_in_a_backward_pass_run_as_they_did(reentrant: bool, after: Any) -> None:
    expected = gradients(None, within)
    if reentrant and after is beside_another:
        after = after_the_end  # torch.autograd.grad does not go through these
    for ours, theirs in zip(gradients(reentrant, after), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_loss_made_while_steered_may_go_backward_afterwards(calm: Intervention, reentrant: bool) -> None:
    found = []
    for checkpoints in (False, True):
        network: Any = families.network("llama").train()
        if checkpoints:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            network.enable_input_require_grads()
        with steer(network, calm):
            loss = network(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


# ---- what was compiled before


def test_a_wrapper_that_was_compiled_before_is_warned_of(network: Any, calm: Intervention) -> None:
    torch._dynamo.reset()
    fast = torch.compile(network.model.layers[0].mlp, backend="eager")
    fast(torch.ones(1, 1, 32))
    with pytest.warns(UserWarning, match="compiled before"), steer(network, calm):
        pass
    torch._dynamo.reset()


def test_a_network_that_was_compiled_while_steered_is_steered_for_all_threads_and_takes_no_second() -> None:
    torch._dynamo.reset()
    part, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), torch.randn(2, 4)
    given = Intervention({"1": AffineMap(torch.full((4,), 2.0), torch.ones(4))})
    with steer(part, given) as live:
        fast = torch.compile(part, backend="eager")
        steered = fast(x)
        torch.testing.assert_close(steered, part(x))
        torch.testing.assert_close(elsewhere(lambda: fast(x)), steered)
        with pytest.raises(LineasError, match="takes no second intervention"):
            steer(part, given)
        live.strength = 0.5
        torch.testing.assert_close(fast(x), part(x))
    torch._dynamo.reset()


def test_networks_that_run_in_threads_of_their_own_are_refused(network: Any, calm: Intervention) -> None:
    wrapped = nn.DataParallel(network, device_ids=[])
    renamed = Intervention({f"module.{name}": map_ for name, map_ in calm.maps.items()})
    with pytest.raises(LineasError, match="DataParallel"):
        steer(wrapped, renamed)


# ---- types


@pytest.mark.parametrize("wrong", ["polite", None, 5, {"a": 1}, b"x", ["polite"], [None], Intervention], ids=repr)
def test_steer_takes_interventions_alone_and_says_how_to_read_one(network: Any, wrong: Any) -> None:
    with pytest.raises(LineasError, match=r"steer takes an Intervention"):
        steer(network, wrong)
    if wrong == "polite":
        with pytest.raises(LineasError, match=r"not a str; Intervention.load\('polite'\) reads one"):
            steer(network, wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "wrong",
    ["0.5", True, False, 1j, None, [], "x" * 999, 10**400, torch.tensor(True), torch.tensor([1j]), [[0.5]], {}, ["a"]],
    ids=lambda x: repr(x)[:20],
)
def test_a_strength_is_a_number(network: Any, calm: Intervention, wrong: Any) -> None:
    with pytest.raises(LineasError, match="strength is a") as error:
        steer(network, calm, wrong)
    assert len(str(error.value)) < 1200
    with steer(network, calm) as live:
        with pytest.raises(LineasError, match="strength is a"):
            live.strength = wrong
        assert live.strength == 1.0


@pytest.mark.parametrize("wrong", [5, None, ["all"], torch.ones(2), ""], ids=repr)
def test_tokens_are_one_of_four_words(network: Any, calm: Intervention, wrong: Any) -> None:
    with pytest.raises(LineasError, match="tokens must be"):
        steer(network, calm, tokens=wrong)


@pytest.mark.parametrize("wrong", [None, "model", 5, nn.Linear, object()], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_network_is_refused(calm: Intervention, wrong: Any) -> None:
    with pytest.raises(LineasError, match="cannot be steered as it is"):
        steer(wrong, calm)
