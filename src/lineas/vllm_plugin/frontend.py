"""The server's side: what a request says is understood, checked, and made part of the key of its cached prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lineas.errors import LineasError, shown
from lineas.intervention.intervention import Intervention
from lineas.vllm_plugin.limits import check_config
from lineas.vllm_plugin.requests import ARGUMENT, parse, salted, split_model
from lineas.vllm_plugin.settings import Settings, check_name
from lineas.vllm_plugin.worker import PLACES, replace


@dataclass(frozen=True)
class Loaded:
    """An intervention that requests can name.

    Args:
        place: where its maps are in the engine.
        folder: where it came from.
        content: sha256 of its maps.
        support: the share of neurons that it touches.
    """

    place: int
    folder: str
    content: str
    support: float

    @classmethod
    def of(cls, place: int, folder: str) -> Loaded:
        """Read what a front end needs to know."""
        intervention = Intervention.load(folder)
        intervention.check_affine("served by vLLM")
        return cls(place, folder, intervention.digest(), intervention.support())


class Registry:
    """What is loaded in this server now.

    Args:
        settings: with what it starts.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loaded = {name: Loaded.of(i, folder) for i, (name, folder) in enumerate(settings.folders.items())}

    def free_place(self, name: str) -> int:
        """Where one more intervention can go.

        Raises:
            LineasError: for a name that is taken or cannot be said, or when no place is left.
        """
        check_name(name)
        if name in self.loaded:
            raise LineasError(f"there is an intervention {name!r} already; remove it first.")
        taken = {loaded.place for loaded in self.loaded.values()}
        free = [place for place in range(self.settings.places) if place not in taken]
        if not free:
            raise LineasError(
                f"all {self.settings.places} places are taken; remove one, or start with a larger LINEAS_ROOM."
            )
        return free[0]

    def steer(self, request: Any) -> Any:
        """A request of the engine's with its steering as places, and its cache apart from every other steering's."""
        sampling = request.sampling_params
        if sampling is None:
            return request
        said = dict(sampling.extra_args or {})
        said.pop(PLACES, None)  # no client writes these
        strengths = parse(said[ARGUMENT], self.loaded) if ARGUMENT in said else {}
        if strengths:
            said[PLACES] = [[self.loaded[name].place, strength] for name, strength in strengths.items()]
        sampling.extra_args = said or None
        by_content = [(self.loaded[name].content, strength) for name, strength in strengths.items()]
        request.cache_salt = salted(request.cache_salt, by_content)
        return request

    def read_model_name(self, request: Any, bases: list[str]) -> None:
        """Turn the model name `MODEL:calm@0.7` into the model and the steering, and check what is said of steering.

        Raises:
            LineasError: for steering that cannot be understood, or that this kind of request has no way to carry.
        """
        said = dict(getattr(request, "vllm_xargs", None) or {})
        carries = "vllm_xargs" in type(request).model_fields  # else it would be read and dropped
        if ARGUMENT in said and not carries:
            raise LineasError("this endpoint does not steer; leave out vllm_xargs.")
        named = split_model(request.model, bases) if request.model else None
        if named is not None and request.model not in bases:
            base, steering = named
            if not carries:
                raise LineasError(
                    f"this endpoint does not steer, so it serves {base!r} and not {shown(request.model)}."
                )
            if ARGUMENT in said:
                raise LineasError(
                    f"steering is said twice: by the model's name {shown(request.model)} and by vllm_xargs."
                )
            said[ARGUMENT] = steering
            request.model = base
            request.vllm_xargs = said
        if ARGUMENT in said and parse(said[ARGUMENT], self.loaded) and getattr(request, "use_beam_search", False):
            raise LineasError("beam search is not steered; leave out use_beam_search.")


def install(settings: Settings) -> Registry:
    """Teach this process's front end to read steering.

    Raises:
        LineasError: when this vLLM is not built as the plugin expects, or an intervention cannot be read.
    """
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels  # pyright: ignore[reportMissingImports]
    from vllm.entrypoints.serve.engine.serving import BaseServing  # pyright: ignore[reportMissingImports]
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]

    registry = Registry(settings)

    def checked(init: Callable[..., Any]) -> Callable[..., Any]:
        def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            check_config(vllm_config, settings.force)
            init(self, vllm_config, *args, **kwargs)

        return __init__

    def steered(process: Callable[..., Any]) -> Callable[..., Any]:
        def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
            request = process(self, *args, **kwargs)
            try:
                return registry.steer(request)
            except LineasError as error:
                raise VLLMValidationError(str(error), parameter=ARGUMENT) from None

        return process_inputs

    def by_name(check: Callable[..., Any]) -> Callable[..., Any]:
        async def _check_model(self: Any, request: Any) -> Any:
            try:
                if request.model not in self.models.lora_requests:
                    registry.read_model_name(request, [model.name for model in self.models.base_model_paths])
            except LineasError as error:
                return self.create_error_response(str(error), param="model")
            return await check(self, request)

        return _check_model

    def with_steered(show: Callable[..., Any]) -> Callable[..., Any]:
        async def show_available_models(self: Any) -> Any:
            models = await show(self)
            base = models.data[0]
            told = [{"id": f"{base.id}:{name}", "parent": base.id} for name in registry.loaded]
            models.data += [base.model_copy(update=one) for one in told]
            return models

        return show_available_models

    replace(InputProcessor, "__init__", checked)
    replace(InputProcessor, "process_inputs", steered)
    replace(BaseServing, "_check_model", by_name)
    replace(OpenAIServingModels, "show_available_models", with_steered)
    return registry
