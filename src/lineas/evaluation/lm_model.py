"""lm-eval's model type `lineas`: a language model with an intervention; arguments without effect are refused."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lineas.errors import LineasError, needing
from lineas.evaluation.continuing import continuing
from lineas.evaluation.model_args import check_batch_size, check_model_args
from lineas.intervention.intervention import Intervention
from lineas.models import load_text
from lineas.models.digests import describe_part, description
from lineas.models.likelihoods import likelihoods
from lineas.models.text import TextModel
from lineas.models.untouched import Unknowable, refuse_steered
from lineas.steering.steer import steer
from lineas.versions import packages, version_of

BATCH = 16
MODEL_TYPE = "lineas"
LM_EVAL = "tasks need lm-eval", "evaluate"
"""The arguments of `needing` for lm-eval."""


def model_class() -> type:
    """Return the class of lm-eval's model type `lineas`: a model of transformers with an intervention.

    Its arguments (`--model_args`) are `pretrained` (hub id or folder, by default the intervention's own model, or
    lineas's default model), `intervention` (folder, shipped name or hub id), `strength` (a number or "calibrated", by
    default 1), `tokens` ("all" by default, for tasks that generate also "prompt" or "generated"), `other_model` (False
    by default), `dtype` ("auto" by default), `revision`, `device`, `batch_size`, and those of lm-eval's own `hf` in
    ACTING. Any other argument is refused.
    """
    with needing(*LM_EVAL):
        from lm_eval.models.huggingface import HFLM
        from lm_eval.utils import simple_parse_args_string

    base: Any = continuing(HFLM)
    of_hf = tuple(inspect.signature(base.__init__).parameters)

    class LineasLM(base):
        """A text model for lm-eval, loaded already or by name."""

        def __init__(
            self,
            pretrained: str | Path | TextModel | None = None,
            intervention: str | None = None,
            strength: float | str | None = None,
            tokens: str | None = None,
            other_model: bool = False,
            dtype: str | None = None,
            revision: str | None = None,
            device: str | None = None,
            batch_size: int | str | None = BATCH,
            **options: Any,
        ) -> None:
            check_model_args(options, of_hf)
            check_batch_size(batch_size)
            steering = {"strength": strength, "tokens": tokens, "other_model": other_model or None}
            learned = _load_intervention(intervention, steering)
            if pretrained is None and learned is not None and learned.base is not None:
                pretrained = learned.base.name
            self.text_model = loaded = _load_model(pretrained, {"dtype": dtype, "device": device, "revision": revision})
            tokenizer = copy.deepcopy(loaded.tokenizer)  # lm-eval adds a padding token to it
            more = options | {"tokenizer": tokenizer, "backend": "causal", "batch_size": batch_size or BATCH}
            with _without_tying(loaded.network):
                super().__init__(pretrained=loaded.network, **more)
            self._answer_settings = {**options, "tokens": tokens or "all"}
            self._tokens, self._other_model, self._learned = tokens or "all", bool(other_model), learned
            self.live: Any = None
            if learned is not None and strength is not None:
                self._steer(learned.strength_from(strength, "the model argument strength"))
            else:
                self._steer(1.0)

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
            """Return the model of `--model_args`, which override values that lm-eval adds, such as a batch size."""
            more = {name: value for name, value in (additional_config or {}).items() if value is not None}
            return cls(**(more | arg_dict))

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
            """Return the model of `--model_args` in one text, `key=value,key=value`."""
            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        def _steer(self, strength: float | torch.Tensor) -> None:
            if self._learned is not None:
                model, learned, tokens = self.text_model, self._learned, self._tokens
                self.live = steer(model, learned, strength, tokens, self._other_model)  # pyright: ignore[reportArgumentType]

        def set_cache_hook(self, cache_hook: Any) -> None:
            """Make lm-eval cache answers (`--use_cache`) under a key of all they depend on, also the strength."""
            super().set_cache_hook(cache_hook)
            answers = cache_hook.dbdict
            if answers is None:
                return
            plain = getattr(answers, "encode_key", None)
            if plain is None:
                raise LineasError("lineas does not know the answer cache of this lm-eval; leave out --use_cache.")
            about = self._dependencies()

            def key(request: str) -> str:
                strength = None if self.live is None else torch.as_tensor(self.live.strength).tolist()
                dependencies = json.dumps([about, strength], sort_keys=True)
                return plain(f"{hashlib.sha256(dependencies.encode()).hexdigest()}-{request}")

            answers.encode_key = key

        def _dependencies(self) -> dict[str, Any]:
            """Return everything that answers depend on beside the request and the strength."""
            strength = None if self.live is None else self.live.strength
            if self.live is not None:
                self.live.detach()  # hooks that remain now are not ours
            try:
                refuse_steered(self.text_model.network, "caching answers")
                about = description(self.text_model)
            except Unknowable as error:
                raise LineasError(f"answers cannot be cached: {error} Leave out --use_cache.") from None
            finally:
                if strength is not None:
                    self._steer(strength)
            versions = {**packages(), "lm_eval": version_of("lm_eval")}
            learned = None if self._learned is None else self._learned.digest()
            settings = {name: repr(value) for name, value in self._answer_settings.items()}
            return {**about, "intervention": learned, "asked": settings, **versions}

        @property
        def tokenizer_name(self) -> str:
            """The key of cached requests (`--cache_requests`): the tokenizer's name and a digest of the tokenizer."""
            state = json.dumps(describe_part(self.text_model.tokenizer))
            return f"{super().tokenizer_name}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            """Answer each request (texts, context ids, continuation ids); examples that requests share run once."""
            if self._tokens != "all":
                raise LineasError(
                    f"tokens={self._tokens} is for tasks that generate; for tasks that compare likelihoods, use "
                    "tokens=all."
                )
            rows = override_bs or (self.batch_size if isinstance(self.batch_size, int) else BATCH)
            pairs = [(context, continuation) for _, context, continuation in requests]
            with tqdm(total=len(pairs), disable=disable_tqdm or self.rank != 0, desc="log-likelihoods") as bar:
                answers = likelihoods(self.text_model, pairs, self.max_length, rows, bar.update)
            for (texts, _, _), answer in zip(requests, answers):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
            return answers

    return LineasLM


@contextmanager
def _without_tying(network: Any) -> Iterator[None]:
    """Disable `tie_weights` within the block, since lm-eval would undo a head that has its own weights."""
    vars(network)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(network)["tie_weights"]


def register() -> None:
    """Add the model type to lm-eval in this process."""
    target = model_class()
    from lm_eval.api.registry import model_registry

    if MODEL_TYPE not in model_registry:
        model_registry.register(MODEL_TYPE, target=target)


def _load_intervention(intervention: str | None, steering: dict[str, Any]) -> Intervention | None:
    """Load the intervention; without one, refuse arguments about steering."""
    if intervention is None:
        used = [name for name, value in steering.items() if value is not None]
        if used:
            raise LineasError(f"the model argument {used[0]} needs an intervention; give intervention=DIR.")
        return None
    if not isinstance(steering["other_model"] or False, bool):
        raise LineasError(f"the model argument other_model is True or False, not {steering['other_model']!r}.")
    return Intervention.load(str(intervention))


def _load_model(pretrained: Any, options: dict[str, Any]) -> TextModel:
    """Load the model of a name, or return one that is loaded already."""
    options = {name: str(value) for name, value in options.items() if value is not None}
    if isinstance(pretrained, TextModel):
        if options:
            raise LineasError(f"the model is loaded already, so {next(iter(options))} has no effect; leave it out.")
        return pretrained
    if pretrained is not None and not isinstance(pretrained, (str, int, Path)):
        raise LineasError(f"pretrained is a hub id, a folder or a TextModel, not a {type(pretrained).__name__}.")
    if options.get("device", "").startswith("cuda") and not torch.cuda.is_available():
        del options["device"]  # lm-eval passes it by default
    return load_text(None if pretrained is None else str(pretrained), **options)
