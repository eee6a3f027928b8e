"""The API server's side: read and check a request's steering, and separate its prefix cache from others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lineas.errors import LineasError, shown
from lineas.intervention.intervention import Intervention
from lineas.vllm_plugin.limits import check_config
from lineas.vllm_plugin.requests import ARGUMENT, parse, salted, split_model
from lineas.vllm_plugin.settings import Settings, check_name
from lineas.vllm_plugin.worker import PLACES, wrap_method


@dataclass(frozen=True)
class Loaded:
    """An intervention that requests can name.

    Args:
        place: index of its maps in the engine.
        folder: the folder, or another name, that it was loaded from.
        content: sha256 of its maps.
        support: share of the neurons that it changes, from 0 to 1.
    """

    place: int
    folder: str
    content: str
    support: float

    @classmethod
    def of(cls, place: int, folder: str) -> Loaded:
        """Load an intervention and return the facts that the API server needs."""
        intervention = Intervention.load(folder)
        intervention.check_affine("served by vLLM")
        return cls(place, folder, intervention.digest(), intervention.support())


class Registry:
    """The interventions that are loaded in this server; at the start those of its settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loaded = {name: Loaded.of(i, folder) for i, (name, folder) in enumerate(settings.folders.items())}
        self.arriving: set[object] = set()  # calls that are adding a request to the engine

    def free_place(self, name: str) -> int:
        """Return a free place for a new intervention, whose name must be valid and free."""
        check_name(name)
        if name in self.loaded:
            raise LineasError(f"there is an intervention {name!r} already; remove it first.")
        used = {loaded.place for loaded in self.loaded.values()}
        free = [place for place in range(self.settings.places) if place not in used]
        if not free:
            raise LineasError(
                f"all {self.settings.places} places are taken; remove one, or start with a larger LINEAS_ROOM."
            )
        return free[0]

    def steer(self, request: Any) -> Any:
        """Replace the names of interventions by places in the engine, and give the request its own prefix-cache salt.

        The request to the engine is changed and returned.
        """
        sampling = request.sampling_params
        if sampling is None:
            return request
        extra_args = dict(sampling.extra_args or {})
        extra_args.pop(PLACES, None)  # clients must not set these
        strengths = parse(extra_args[ARGUMENT], self.loaded) if ARGUMENT in extra_args else {}
        if strengths:
            extra_args[PLACES] = [[self.loaded[name].place, strength] for name, strength in strengths.items()]
        sampling.extra_args = extra_args or None
        by_content = [(self.loaded[name].content, strength) for name, strength in strengths.items()]
        request.cache_salt = salted(request.cache_salt, by_content)
        return request

    def read_model_name(self, request: Any, bases: list[str]) -> None:
        """Split the model name `MODEL:calm@0.7` of a request into the model and its steering, and check the steering.

        The request to the API server is changed. `bases` are the names of the served models.
        """
        xargs = dict(getattr(request, "vllm_xargs", None) or {})
        can_steer = "vllm_xargs" in type(request).model_fields
        if ARGUMENT in xargs and not can_steer:
            raise LineasError("this endpoint does not steer; leave out vllm_xargs.")
        parts = split_model(request.model, bases) if request.model else None
        if parts is not None and request.model not in bases:
            base, steering = parts
            model = shown(request.model)
            if not can_steer:
                raise LineasError(f"this endpoint does not steer, so it serves {base!r} and not {model}.")
            if ARGUMENT in xargs:
                raise LineasError(f"steering is said twice: by the model's name {model} and by vllm_xargs; use one.")
            xargs[ARGUMENT] = steering
            request.model = base
            request.vllm_xargs = xargs
        if ARGUMENT in xargs and parse(xargs[ARGUMENT], self.loaded) and getattr(request, "use_beam_search", False):
            raise LineasError("beam search is not steered; leave out use_beam_search.")


def install(settings: Settings) -> Registry:
    """Wrap methods of vLLM's API server in this process so that they read steering."""
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels  # pyright: ignore[reportMissingImports]
    from vllm.entrypoints.serve.engine.serving import BaseServing  # pyright: ignore[reportMissingImports]
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]

    registry = Registry(settings)

    def checked(init: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check_config(vllm_config, settings.force)
        init(self, vllm_config, *args, **kwargs)

    def steered(process_inputs: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        try:
            return registry.steer(request)
        except LineasError as error:
            raise VLLMValidationError(str(error), parameter=ARGUMENT) from None

    async def counted(add_request: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        call = object()
        registry.arriving.add(call)
        try:
            return await add_request(self, *args, **kwargs)
        finally:
            registry.arriving.discard(call)

    async def by_name(check_model: Callable[..., Any], self: Any, request: Any) -> Any:
        try:
            if request.model not in self.models.lora_requests:
                registry.read_model_name(request, [model.name for model in self.models.base_model_paths])
        except LineasError as error:
            return self.create_error_response(str(error), param="model")
        return await check_model(self, request)

    async def with_steered(show_models: Callable[..., Any], self: Any) -> Any:
        models = await show_models(self)
        base = models.data[0]
        steered_models = [{"id": f"{base.id}:{name}", "parent": base.id} for name in registry.loaded]
        models.data += [base.model_copy(update=fields) for fields in steered_models]
        return models

    wrap_method(InputProcessor, "__init__", checked)
    wrap_method(InputProcessor, "process_inputs", steered)
    wrap_method(AsyncLLM, "add_request", counted)
    wrap_method(BaseServing, "_check_model", by_name)
    wrap_method(OpenAIServingModels, "show_available_models", with_steered)
    return registry
