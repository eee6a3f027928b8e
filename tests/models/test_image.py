"""ImageModel: what a text-to-image pipeline activates, steps on its maps, and pictures; every family, no downloads."""

# pyright: reportPrivateImportUsage=false
# (diffusers loads what it exports when that is asked for)

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pipelines
import pytest
import torch
from pipelines import OTHER_PROMPTS, PROMPTS, image_model

import lineas
from lineas import AffineMap, Intervention, LineasError
from lineas.learning import transport
from lineas.learning.capture import backpropagate, capture, stacked
from lineas.learning.trained_maps import TrainedMaps
from lineas.learning.transport import Quantiles
from lineas.models.image_batches import seeds_of
from lineas.sites import norm_sites
from lineas.steering.hooks import edited

FAMILIES = list(pipelines.FAMILIES)
XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def random_maps(model: lineas.ImageModel, size: float = 0.3, seed: int = 1) -> Intervention:
    """Maps far from the identity at every default site."""
    generator = torch.Generator().manual_seed(seed)
    sites = model.sites()
    seen = capture(model, model.batch(PROMPTS[:2]), sites)
    maps = {}
    for name, activation in seen.items():
        noise = size * torch.randn(2, activation.shape[-1], generator=generator)
        maps[name] = AffineMap(1 + noise[0], noise[1])
    by_name = {site.name: site for site in sites}
    return Intervention(maps, {name: by_name[name] for name in maps}, None, {})


def drawn(model: Any, prompts: list[str] = PROMPTS[:2]) -> torch.Tensor:
    return torch.stack(model.generate(prompts, output_type="pt"))


def test_the_sites_of_sdxl_are_the_papers_256_norms() -> None:
    with torch.device("meta"):
        network = torch.nn.ModuleDict({"unet": diffusers.UNet2DConditionModel(**XL)})
    sites = norm_sites(network, "unet")
    assert len(sites) == 256  # arXiv 2503.10679, appendix on images
    assert {site.axis for site in sites if ".resnets." in site.name} == {1}
    assert {site.axis for site in sites if ".transformer_blocks." in site.name} == {-1}


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_of_every_step(family: str) -> None:
    model = image_model(family)
    with torch.no_grad():
        seen = capture(model, model.batch(PROMPTS), model.sites())
        again = capture(model, model.batch(PROMPTS, limit=1), model.sites())  # an image a part
    widths = {name: activation.shape[-1] for name, activation in seen.items()}
    assert {activation.shape[:2] for activation in seen.values()} == {(len(PROMPTS), model.steps)}
    assert set(widths) == {site.name for site in model.sites()}
    for name, activation in seen.items():  # a prompt's noise does not depend on what it is drawn with
        torch.testing.assert_close(activation, again[name], atol=1e-5, rtol=1e-4)
        assert not torch.equal(activation[:, 0], activation[:, 1])


def test_activations_are_those_of_a_loop_by_hand() -> None:
    """Stable Diffusion 1 without lineas: embeddings, guidance and scheduler steps written out."""
    model = image_model("stable diffusion 1")
    pipe = model.pipeline
    site = model.sites(r"unet\.mid_block\.attentions\.0\.transformer_blocks\.0\.norm2")[0]
    group = model.sites(r"unet\.conv_norm_out")[0]
    found: dict[str, list[torch.Tensor]] = {site.name: [], group.name: []}
    with torch.no_grad():
        ids = pipe.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        told, untold = (
            pipe.text_encoder(x)[0]
            for x in (ids, pipe.tokenizer([""] * 4, padding="max_length", max_length=77, return_tensors="pt").input_ids)
        )
        noise = [
            torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds_of(PROMPTS, 0)
        ]
        latents = torch.cat(noise)
        pipe.scheduler.set_timesteps(2)
        handles = [
            model.network.get_submodule(site.module).register_forward_hook(
                lambda module, args, result: found[site.name].append(result[4:].mean(1))
            ),
            model.network.get_submodule(group.module).register_forward_hook(
                lambda module, args, result: found[group.name].append(result[4:].mean((2, 3)))
            ),
        ]
        for t in pipe.scheduler.timesteps:
            both = pipe.unet(torch.cat([latents] * 2), t, torch.cat([untold, told])).sample
            without, given = both.chunk(2)
            latents = pipe.scheduler.step(without + 7.5 * (given - without), t, latents).prev_sample
        for handle in handles:
            handle.remove()
        seen = capture(model, model.batch(PROMPTS), [site, group])
    for name, calls in found.items():
        torch.testing.assert_close(seen[name], torch.stack(calls, 1), atol=1e-5, rtol=1e-5)


def test_the_cost_is_the_mean_over_steps() -> None:
    u, v = torch.randn(5, 3, 7), torch.randn(4, 3, 7)
    by_step = [transport.cost(u[:, k], v[:, k]) for k in range(3)]
    torch.testing.assert_close(Quantiles.of(v, 5).cost(u), torch.stack(by_step).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_map(family: str) -> None:
    model = image_model(family)
    with torch.no_grad():
        targets = capture(model, model.batch(OTHER_PROMPTS), model.sites())
    trained = TrainedMaps(model.sites(), targets)
    quantiles = {name: Quantiles.of(v, len(PROMPTS)) for name, v in targets.items()}
    with edited(model.network, trained.edits):
        backpropagate(model, model.batch(PROMPTS), model.sites(), quantiles)
    grads = {name: p.grad for name, p in {**trained.scales, **trained.shifts}.items()}
    assert all(grad is not None and bool(grad.any()) for grad in grads.values())


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_parts_and_checkpoints_give_the_same_gradients(family: str) -> None:
    """One backward pass through everything, through an image after the other, and with blocks that run again."""
    model = image_model(family)
    with torch.no_grad():
        targets = capture(model, model.batch(OTHER_PROMPTS), model.sites())
    quantiles = {name: Quantiles.of(v, len(PROMPTS)) for name, v in targets.items()}
    found = []
    for limit in (None, model.batch(PROMPTS[:1]).parts[0].size, 1):
        trained = TrainedMaps(model.sites(), targets)
        with edited(model.network, trained.edits):
            cost = backpropagate(model, model.batch(PROMPTS, limit=limit), model.sites(), quantiles)
        found.append((cost, [p.grad for p in trained.parameters]))
    (cost, grads), *others = found
    for other, theirs in others:
        torch.testing.assert_close(other, cost, atol=1e-6, rtol=1e-4)
        for ours, their in zip(grads, theirs):
            torch.testing.assert_close(their, ours, atol=1e-6, rtol=1e-3)


def test_gradients_stay_within_a_step() -> None:
    """A shift in the first step alone moves the second step's activations, and no gradient says so."""
    model = image_model("stable diffusion 1")
    site = model.sites(r"unet\.conv_norm_out")[0]
    shift = torch.zeros(pipelines.WIDTH, requires_grad=True)
    calls = 0

    def first_step_alone(z: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return z + shift.view(1, -1, 1, 1) if calls == 1 else z

    with edited(model.network, {site: first_step_alone}):
        u = capture(model, model.batch(PROMPTS[:2]), [site])[site.name]
    assert u[:, 0].requires_grad
    assert torch.autograd.grad(u[:, 1].sum(), shift)[0].abs().sum() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_learning_brings_the_cost_down(family: str) -> None:
    model = image_model(family)
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.LinEAS(steps=10), progress=False)
    assert learned.facts["cost"][-1] < 0.75 * learned.facts["cost"][0]
    assert learned.facts["drawing"]["steps"] == 2
    assert learned.base is not None
    assert learned.base.architecture == type(model.network.denoiser).__name__


@pytest.mark.parametrize(
    "method", [lineas.MeanAcT(), lineas.GaussianAcT(), lineas.LinAcT(), lineas.CAA(), lineas.ITIc(), lineas.AurA()]
)
def test_every_method_learns_on_images(method: Any) -> None:
    model = image_model("stable diffusion 1")
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, method, progress=False)
    assert not learned.is_identity()
    before = drawn(model)
    with lineas.steer(model, learned):
        assert not torch.equal(drawn(model), before)


def test_one_map_is_fitted_on_the_samples_of_all_steps() -> None:
    model = image_model("stable diffusion 1")
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.LinAcT(), r"unet\.conv_norm_out", progress=False)
    (fitted,) = learned.maps.values()
    before: list[torch.Tensor] = []
    (site,) = learned.sites.values()
    with torch.no_grad():
        target = capture(model, model.batch(OTHER_PROMPTS), [site])[site.name]

        def as_fitted(z: torch.Tensor) -> torch.Tensor:
            """The second step's input has passed the first step's own fit."""
            before.append(z[-len(PROMPTS) :].mean((2, 3)))
            return transport.linear_map(torch.cat(before), stacked(target[:, : len(before)]))(z, 1)

        with edited(model.network, {site: as_fitted}):
            capture(model, model.batch(PROMPTS), [site])
    oracle = transport.linear_map(torch.cat(before), stacked(target))
    torch.testing.assert_close(fitted.scale, oracle.scale, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fitted.shift, oracle.shift, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_is_the_same_picture_bit_for_bit(family: str) -> None:
    model = image_model(family)
    plain, steering = drawn(model), random_maps(model)
    with lineas.steer(model, steering, strength=0.0) as live:
        assert torch.equal(drawn(model), plain)
        live.strength = 0.8
        moved = drawn(model)
        assert not torch.equal(moved, plain)
        live.strength = torch.tensor([0.0, 0.8])  # one an image
        each = drawn(model)
        assert live.verify(prompt=["a star", "a moon"]) > 0
    assert torch.equal(each[0], plain[0])
    assert torch.equal(each[1], moved[1])
    assert torch.equal(drawn(model), plain)


def test_a_plain_pipeline_call_is_steered() -> None:
    model = lineas.ImageModel(pipelines.pipeline("sdxl"), steps=2)
    steering = random_maps(model)
    plain, steered = drawn(model), None
    with lineas.steer(model, steering, strength=torch.tensor([0.0, 1.0])):
        steered = drawn(model)
        by_pipeline = model.pipeline(
            PROMPTS[:2], num_inference_steps=2, output_type="pt",
            generator=[torch.Generator().manual_seed(i) for i in range(2)],
        ).images  # fmt: skip
    assert torch.equal(by_pipeline, steered)
    assert torch.equal(steered[0], plain[0])


@pytest.mark.parametrize("family", ["stable diffusion 1", "pixart"])
def test_the_conditional_half_can_be_steered_alone(family: str) -> None:
    size = None if family == "pixart" else (32, 32)
    model = lineas.ImageModel(pipelines.pipeline(family), steps=2, guidance="conditional", size=size)
    plain = image_model(family)
    site = model.sites()[-1]
    steering = random_maps(model)
    last = Intervention({site.name: steering.maps[site.name]}, {site.name: site}, None, {})
    seen: list[torch.Tensor] = []
    with lineas.steer(model, last):  # a hook added later sees what the edit made
        handle = model.network.get_submodule(site.module).register_forward_hook(lambda m, a, z: seen.append(z))  # pyright: ignore[reportArgumentType]
        drawn(model)
        handle.remove()
    handle = plain.network.get_submodule(site.module).register_forward_hook(lambda m, a, z: seen.append(z))  # pyright: ignore[reportArgumentType]
    drawn(plain)
    handle.remove()
    steered, _, untouched, _ = seen  # the first of two steps each
    assert len(steered) == 4
    assert torch.equal(steered[:2], untouched[:2])
    torch.testing.assert_close(steered[2:], last.maps[site.name](untouched[2:], site.axis))


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[:2]], ids=["one prompt", "two"])
def test_guidance_that_is_switched_off_on_the_way_leaves_conditional_rows_alone(prompts: list[str]) -> None:
    """Return what diffusers calls dynamic guidance: compared with maps by hand on the rows that have a prompt."""
    model = lineas.ImageModel(pipelines.pipeline("stable diffusion 1"), steps=3, guidance="conditional", size=(32, 32))
    pipe, n = model.pipeline, len(prompts)

    def cut(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if i == 0:
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"][-n:]
        return given

    def draw() -> torch.Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(n)]
        return pipe(
            prompts, num_inference_steps=3, height=32, width=32, output_type="latent", generator=generators,
            callback_on_step_end=cut, callback_on_step_end_tensor_inputs=["prompt_embeds"],
        ).images  # fmt: skip

    site = model.sites()[-1]
    map_ = random_maps(model).maps[site.name]
    steering = Intervention({site.name: map_}, {site.name: site}, None, {})

    def by_hand(module: Any, args: Any, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z[:-n], map_(z[-n:], site.axis)])

    handle = model.network.get_submodule(site.module).register_forward_hook(by_hand)
    expected = draw()
    handle.remove()
    with lineas.steer(model, steering) as live:
        torch.testing.assert_close(draw(), expected, atol=1e-5, rtol=1e-4)
        live.strength = torch.ones(n)
        torch.testing.assert_close(draw(), expected, atol=1e-5, rtol=1e-4)


def test_rows_that_do_not_add_up_are_refused() -> None:
    model = lineas.ImageModel(pipelines.pipeline("stable diffusion 1"), steps=1, guidance="conditional", size=(32, 32))
    unet = model.network.denoiser
    given = {"timestep": torch.tensor(1), "encoder_hidden_states": torch.zeros(3, 4, 2 * pipelines.WIDTH)}
    steering = random_maps(model)
    with lineas.steer(model, steering):
        drawn(model)
        with pytest.raises(LineasError, match=r"which of the 3 rows .*2 images"):
            unet(torch.zeros(3, 4, 16, 16), **given)
    with (
        lineas.steer(model.set(guidance="both"), steering, torch.tensor([0.5, 1.0])),
        pytest.raises(LineasError, match=r"2 strengths .* 3 rows"),
    ):
        unet(torch.zeros(3, 4, 16, 16), **given)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_part_that_is_replaced_in_the_pipeline_is_the_one_that_is_steered(part: str) -> None:
    model = lineas.ImageModel(pipelines.pipeline("stable diffusion 1"), steps=1, size=(32, 32))
    torch.manual_seed(9)
    other = {"unet": pipelines.unet, "text_encoder": pipelines.clip_encoder}[part]()
    setattr(model.pipeline, part, other.eval())
    site = model.sites(rf"{part}\..*norm.*")[-1]
    width = model.network.get_submodule(site.module).weight.shape[0]  # pyright: ignore[reportIndexIssue]
    map_ = AffineMap(torch.full((width,), 2.0), torch.ones(width))  # pyright: ignore[reportArgumentType, reportCallIssue]
    steering = Intervention({site.name: map_}, {site.name: site}, None, {})
    plain = drawn(model)
    with lineas.steer(model, steering):
        assert not torch.equal(drawn(model), plain)
        setattr(model.pipeline, part, {"unet": pipelines.unet, "text_encoder": pipelines.clip_encoder}[part]())
        with pytest.raises(LineasError, match=f"another {part} than the one that is steered"):
            drawn(model)
    drawn(model)


def test_verify_draws_from_the_same_noise_twice() -> None:
    model = image_model("stable diffusion 1")
    site = model.sites()[-1]
    steering = Intervention({site.name: AffineMap.identity(pipelines.WIDTH)}, {site.name: site}, None, {})
    with lineas.steer(model, steering) as live:
        assert live.verify(prompt=["a star"], height=32, width=32) == 0.0


def test_a_copy_of_a_steered_pipeline_is_not_steered() -> None:
    model = lineas.ImageModel(pipelines.pipeline("stable diffusion 1"), steps=1, size=(32, 32))
    steering = random_maps(model)
    plain = drawn(model)
    with lineas.steer(model, steering):
        twin = model.with_network(copy.deepcopy(model.network))
        assert torch.equal(drawn(twin), plain)
        assert not torch.equal(drawn(model), plain)


def test_without_guidance_half_as_much_is_computed() -> None:
    model = image_model("stable diffusion 1")
    rows: list[int] = []
    handle = model.network.denoiser.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    drawn(model.set(guidance="none"))
    drawn(model)
    handle.remove()
    assert rows == [2, 2, 4, 4]


def test_text_encoders_carry_maps_on_request() -> None:
    model = image_model("sdxl")
    sites = model.sites(r"text_encoder.*layer_norm2|unet\.conv_norm_out")
    assert {site.name.partition(".")[0] for site in sites} == {"unet", "text_encoder", "text_encoder_2"}
    learned = lineas.learn(
        model, PROMPTS, OTHER_PROMPTS, lineas.LinEAS(steps=6), r"text_encoder.*layer_norm2|unet\.conv_norm_out",
        progress=False,
    )  # fmt: skip
    assert learned.facts["cost"][-1] < learned.facts["cost"][0]
    assert all(not map_.is_identity() for map_ in learned.maps.values())


def test_prompts_are_encoded_once_while_the_denoiser_is_learned_on() -> None:
    model = image_model("stable diffusion 1")
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    batch = model.batch(PROMPTS)
    handle = model.pipeline.text_encoder.register_forward_pre_hook(count)
    with torch.no_grad():
        for _ in range(3):
            capture(model, batch, model.sites())
    handle.remove()
    assert calls == 2  # the prompts, and the empty one


def test_repeated_prompts_have_noise_of_their_own() -> None:
    one, two, three = seeds_of(["a cat", "a dog", "a cat"], 0)
    assert one != three
    assert [two, one] == seeds_of(["a dog", "a cat"], 0)
    assert one != seeds_of(["a cat"], 1)[0]


def test_half_precision_learns_too() -> None:
    model = lineas.ImageModel(pipelines.pipeline("stable diffusion 3").to(torch.bfloat16), steps=1, size=(32, 32))
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.LinEAS(steps=8), progress=False)
    assert learned.facts["cost"][-1] < learned.facts["cost"][0]
    assert learned.facts["dtype"] == "bfloat16"


def test_an_intervention_belongs_to_the_denoiser_whatever_pipeline_it_is_in(tmp_path: Path) -> None:
    model = image_model("stable diffusion 1")
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.MeanAcT(), progress=False)
    read = Intervention.load(learned.save(tmp_path / "striped"))
    other_way = diffusers.StableDiffusionImg2ImgPipeline(**model.pipeline.components, requires_safety_checker=False)
    with lineas.steer(lineas.ImageModel(other_way), read) as live:
        assert live.strength == 1.0
    torch.manual_seed(5)
    stranger = lineas.ImageModel(pipelines.stable_diffusion())
    for parameter in stranger.network.denoiser.parameters():
        torch.nn.init.normal_(parameter)
    with pytest.raises(LineasError, match="another checkpoint"):
        lineas.steer(stranger, read)
    with pytest.raises(LineasError, match="does not have"):
        lineas.steer(image_model("flux"), read)


def test_a_pipeline_is_loaded_as_it_draws(tmp_path: Path) -> None:
    model = image_model("stable diffusion 1").set(steps=3, guidance_scale=2.0)
    model.save_pretrained(tmp_path / "tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # that diffusers or transformers will drop what was used
        read = lineas.load(tmp_path / "tiny", dtype="float32")
    assert isinstance(read, lineas.ImageModel)
    assert (read.steps, read.guidance_scale) == (3, 2.0)
    torch.testing.assert_close(drawn(read.set(size=(32, 32))), drawn(model))
    with pytest.raises(LineasError, match="exists already"):
        model.save_pretrained(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("name", "steps", "scale"),
    [("stabilityai/sdxl-turbo", 1, 0.0), ("black-forest-labs/FLUX.1-schnell", 4, 0.0), ("runwayml/sd", 50, 7.5)],
)
def test_distilled_models_are_known_by_their_names(name: str, steps: int, scale: float) -> None:
    model = lineas.ImageModel(image_model("stable diffusion 1").pipeline, name)
    assert (model.steps, model.guidance_scale) == (steps, scale)


def test_the_pipelines_own_arguments_are_handed_on() -> None:
    """DMD2 draws in one step from a time of its own."""
    pipe = pipelines.pipeline("stable diffusion 1")
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    model = lineas.ImageModel(pipe, steps=1, options={"timesteps": [399]})
    times: list[int] = []
    handle = model.network.denoiser.register_forward_pre_hook(lambda module, args: times.append(int(args[1])))
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.MeanAcT(), r"unet\.conv_norm_out", progress=False)
    handle.remove()
    assert set(times) == {399}
    assert learned.facts["drawing"]["timesteps"] == [399]
    assert model.set(size=(32, 32)).options == {"timesteps": [399]}


def test_words_that_a_text_encoder_does_not_know_are_told() -> None:
    model = image_model("pixart")
    with pytest.warns(UserWarning, match="pixart does not know żółw, ü"):
        model.generate(["a żółw and a ü cat"])


def test_what_cannot_be_is_refused_in_a_sentence() -> None:
    model = image_model("stable diffusion 1")
    with pytest.raises(LineasError, match=r"wrap it in lineas\.TextModel, or a pipeline of diffusers in lineas\.Image"):
        lineas.steer(model.pipeline, random_maps(model))
    with pytest.raises(LineasError, match="an image is steered as a whole"):
        lineas.steer(model, random_maps(model), tokens="prompt")
    with pytest.raises(LineasError, match="guidance is one of 'both', 'conditional', 'none'"):
        model.set(guidance="half")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="must be a list of prompts, not one string"):
        model.generate("a cat")
    with pytest.raises(LineasError, match="steps must be at least 1, not -1"):
        model.set(steps=-1)
    with pytest.raises(LineasError, match="is no text-to-image pipeline"):
        lineas.ImageModel(object())
    with lineas.steer(model, random_maps(model), torch.ones(3)), pytest.raises(LineasError, match="give one per image"):
        drawn(model)


@pytest.mark.parametrize("output_type", ["pil", "pt", "np"])
def test_a_destroyed_pipeline_says_so_instead_of_drawing_one_colour(output_type: str) -> None:
    model = image_model("stable diffusion 1")
    site = model.sites()[0]
    width = model.network.get_submodule(site.module).weight.shape[0]  # pyright: ignore[reportIndexIssue]
    harsh = AffineMap(torch.full((width,), 1e30), torch.full((width,), 1e30))  # pyright: ignore[reportArgumentType, reportCallIssue]
    steered = lineas.steer(model, Intervention({site.name: harsh}, {site.name: site}))
    with steered, pytest.raises(LineasError, match="the model is destroyed: its predictions are not finite"):
        model.generate(PROMPTS[:1], output_type=output_type)
    assert not model.network.denoiser._forward_hooks


def test_pictures_are_the_pipelines_own() -> None:
    model = image_model("stable diffusion 1")
    (made,) = model.generate(PROMPTS[:1])
    with torch.no_grad():
        (expected,) = model._call(PROMPTS[:1], [0], "pil")
    assert made.tobytes() == expected.tobytes()


def test_a_prompt_that_is_no_text_is_not_drawn() -> None:
    with pytest.raises(LineasError, match="is no UTF-8"):
        image_model("stable diffusion 1").generate(["a red \ud800 circle"])
