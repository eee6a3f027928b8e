"""The engine's side: add maps to the sites of a loaded network, and set the strengths of each batch's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from lineas.errors import LineasError
from lineas.intervention.intervention import Intervention
from lineas.intervention.model_identity import ModelIdentity
from lineas.models.checkpoint import skeleton
from lineas.modules import is_norm, width_of
from lineas.sites import find_sites
from lineas.versions import packages
from lineas.vllm_plugin.settings import Settings
from lineas.vllm_plugin.steered import SteeredNetwork

PLACES = "lineas_places"
"""The key in a request's `extra_args` of its pairs of place and strength, which only the API server writes."""


def install(settings: Settings) -> None:
    """Wrap methods of vLLM's model runners in this process so that they steer."""
    from vllm.v1.worker import gpu_model_runner, worker_base  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner  # pyright: ignore[reportMissingImports]

    def steerable(load_model: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
        interventions = {name: Intervention.load(folder) for name, folder in settings.folders.items()}
        _add_to_cache_key(runner.vllm_config, settings, interventions)
        result = load_model(runner, *args, **kwargs)
        _prepare(runner, settings, interventions)
        return result

    def with_strengths(
        prepare_inputs: Callable[..., Any], runner: Any, scheduler_output: Any, num_scheduled_tokens: np.ndarray
    ) -> Any:
        result = prepare_inputs(runner, scheduler_output, num_scheduled_tokens)
        strengths = [_strengths(runner.requests[i].sampling_params) for i in runner.input_batch.req_ids]
        runner.lineas.lay_out(strengths, num_scheduled_tokens)
        return result

    runner_class = gpu_model_runner.GPUModelRunner
    wrap_method(runner_class, "load_model", steerable)
    wrap_method(CPUModelRunner, "load_model", steerable)
    wrap_method(runner_class, "_prepare_inputs", with_strengths)
    worker_base.WorkerBase.lineas_put = _put
    worker_base.WorkerBase.lineas_clear = _clear


def wrap_method(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a method of a class of vLLM by a wrapper, which is called with the method before the arguments."""
    if name not in vars(owner):
        import vllm  # pyright: ignore[reportMissingImports]

        raise LineasError(
            f"vLLM {vllm.__version__} has no {owner.__name__}.{name}, so lineas cannot steer it; use vLLM 0.32."
        )
    method = vars(owner)[name]
    setattr(owner, name, lambda self, *args, **kwargs: wrapper(method, self, *args, **kwargs))


def _strengths(sampling: Any) -> dict[int, float]:
    return dict((getattr(sampling, "extra_args", None) or {}).get(PLACES) or ())


def _prepare(runner: Any, settings: Settings, interventions: Mapping[str, Intervention]) -> None:
    """Add the interventions to the network that was just loaded."""
    config, network = runner.vllm_config, runner.get_model()
    for name, intervention in interventions.items():
        if intervention.base is not None and not settings.force:
            check_base(name, intervention.base, network, config.model_config.hf_config)
    widths = {one.sites[name]: map_.width for one in interventions.values() for name, map_ in one.maps.items()}
    if settings.room:
        layout = skeleton(config.model_config.hf_config, lambda name: None)
        modules = dict(layout.named_modules())
        later = {site: width_of(modules[site.module]) for site in find_sites(layout, settings.sites)}
        widths |= {site: width for site, width in later.items() if width is not None}
    tokens = max(runner.max_num_tokens, config.compilation_config.max_cudagraph_capture_size or 0)
    hidden, device = config.model_config.get_hidden_size(), torch.device(runner.device)
    runner.lineas = SteeredNetwork(network, widths, hidden, settings.places, tokens, device)
    for place, intervention in enumerate(interventions.values()):
        runner.lineas.put(place, intervention)


def _add_to_cache_key(config: Any, settings: Settings, interventions: Mapping[str, Intervention]) -> None:
    """Add the steering configuration to vLLM's compilation cache key."""
    if not isinstance(config.additional_config, dict):
        raise LineasError("lineas needs vLLM's additional_config to be a dictionary.")
    config.additional_config["lineas"] = {
        "version": packages()["lineas"],
        "sites": sorted({site.name for one in interventions.values() for site in one.sites.values()}),
        "places": settings.places,
        "later": settings.sites if settings.room else "",
    }


def check_base(name: str, base: ModelIdentity, network: nn.Module, config: Any) -> None:
    """Refuse a checkpoint that an intervention was not learned on: of another architecture, or other norm weights."""
    architectures = getattr(config, "architectures", None) or [base.architecture]
    if base.architecture not in architectures:
        raise LineasError(
            f"the intervention {name!r} was learned on {base.name} ({base.architecture}), not on a {architectures[0]}; "
            "set LINEAS_OTHER_MODEL=1 to serve it all the same."
        )
    modules = dict(network.named_modules())
    norms = skeleton(config, lambda name: getattr(modules.get(name), "weight", None))
    if any(weight.is_meta for weight in (module.weight for module in norms.modules() if is_norm(module))):
        return  # this engine has other names for norms, so only widths are compared
    if base.compared(norms)[0] == "other":
        raise LineasError(
            f"the intervention {name!r} was learned on {base.name}, and this checkpoint has other norm weights; "
            "set LINEAS_OTHER_MODEL=1 to serve it all the same."
        )


def _put(worker: Any, place: int, folder: str, name: str, content: str) -> str | None:
    """Load an intervention into a place on a worker, and return an error message or None."""
    runner = worker.model_runner
    try:
        intervention = Intervention.load(folder)
        if intervention.digest() != content:
            raise LineasError(f"{folder} has changed since it was read, or differs between machines; try again.")
        if intervention.base is not None and not (Settings.read() or Settings({})).force:
            check_base(name, intervention.base, runner.get_model(), runner.vllm_config.model_config.hf_config)
        runner.lineas.put(place, intervention)
    except LineasError as error:
        return str(error)
    return None


def _clear(worker: Any, place: int) -> None:
    worker.model_runner.lineas.clear(place)
