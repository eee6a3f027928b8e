"""lm-eval's model type `lineas`: a language model with an intervention, whose arguments are all known or refused."""

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

from lineas.errors import LineasError
from lineas.evaluation.continuing import continuing
from lineas.evaluation.model_args import as_strength, check_batch_size, check_model_args
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
NOT_INSTALLED = "tasks need lm-eval: pip install 'lineas[evaluate]'."


def model_class() -> type:
    """lm-eval's model type `lineas`: a model of transformers with an intervention.

    Its arguments (`--model_args`): `pretrained` (hub id or folder; where left out, the intervention's own model or the
    default one), `intervention` (folder, shipped name or hub id), `strength` (1; a number or "calibrated"), `tokens`
    ("all"; of tasks that generate also "prompt" or "generated"), `other_model` (False), `dtype` ("auto"), `revision`,
    `device`, `batch_size`, and those of lm-eval's own `hf` in ACTING. Any other is refused.
    """
    try:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.utils import simple_parse_args_string
    except ImportError:
        raise LineasError(NOT_INSTALLED) from None

    base: Any = continuing(HFLM)
    of_hf = tuple(inspect.signature(base.__init__).parameters)

    class LineasLM(base):
        """A TextModel, or one to be loaded, as lm-eval sees it."""

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
            asked = {"strength": strength, "tokens": tokens, "other_model": other_model or None}
            learned = _learned(intervention, asked)
            if pretrained is None and learned is not None and learned.base is not None:
                pretrained = learned.base.name
            self.read = loaded = _model(pretrained, {"dtype": dtype, "device": device, "revision": revision})
            tokenizer = copy.deepcopy(loaded.tokenizer)  # lm-eval gives it a padding token
            given = options | {"tokenizer": tokenizer, "backend": "causal", "batch_size": batch_size or BATCH}
            with _as_it_is(loaded.network):
                super().__init__(pretrained=loaded.network, **given)
            self._asked = {**options, "tokens": tokens or "all"}
            self._tokens, self._other_model, self._learned = tokens or "all", bool(other_model), learned
            self.live: Any = None
            self._steer(1.0 if strength is None or learned is None else as_strength(strength, learned))

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
            """The model of `--model_args`; what is given there goes before what lm-eval adds, such as a batch size."""
            more = {name: value for name, value in (additional_config or {}).items() if value is not None}
            return cls(**{**more, **arg_dict})

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
            """The same from one text, `key=value,key=value`."""
            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        def _steer(self, strength: float | torch.Tensor) -> None:
            if self._learned is not None:
                self.live = steer(self.read, self._learned, strength, self._tokens, self._other_model)  # pyright: ignore[reportArgumentType]

        def set_cache_hook(self, cache_hook: Any) -> None:
            """Keep answers (`--use_cache`) under everything that they depend on, the strength of the moment included.

            Raises:
                LineasError: when that cannot be known, or lm-eval keeps answers in a way that lineas does not know.
            """
            super().set_cache_hook(cache_hook)
            answers = cache_hook.dbdict
            if answers is None:
                return
            plain = getattr(answers, "encode_key", None)
            if plain is None:
                raise LineasError(
                    "this lm-eval keeps answers in a way that lineas does not know; leave out --use_cache."
                )
            about = self._depends_on()

            def key(request: str) -> str:
                strength = None if self.live is None else torch.as_tensor(self.live.strength).tolist()
                under = json.dumps([about, strength], sort_keys=True)
                return plain(f"{hashlib.sha256(under.encode()).hexdigest()}-{request}")

            answers.encode_key = key

        def _depends_on(self) -> dict[str, Any]:
            """Return what answers depend on beside the request and the strength."""
            strength = None if self.live is None else self.live.strength
            if self.live is not None:
                self.live.detach()  # so that what is left is somebody else's
            try:
                refuse_steered(self.read.network, "keeping answers")
                about = description(self.read)
            except Unknowable as error:
                raise LineasError(f"answers cannot be kept: {error} Leave out --use_cache.") from None
            finally:
                if strength is not None:
                    self._steer(strength)
            versions = {**packages(), "lm_eval": version_of("lm_eval")}
            learned = None if self._learned is None else self._learned.digest()
            return {**about, "intervention": learned, "asked": {k: repr(v) for k, v in self._asked.items()}, **versions}

        @property
        def tokenizer_name(self) -> str:
            """Return the key of prepared requests (`--cache_requests`): the tokenizer's name and what it does."""
            told = json.dumps(describe_part(self.read.tokenizer))
            return f"{super().tokenizer_name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            """Answer every (texts, context ids, continuation ids) of lm-eval; examples that many share run once."""
            if self._tokens != "all":
                raise LineasError(
                    f"tokens={self._tokens} is for tasks that generate; where likelihoods are compared, use tokens=all."
                )
            rows = override_bs or (self.batch_size if isinstance(self.batch_size, int) else BATCH)
            asked = [(context, continuation) for _, context, continuation in requests]
            with tqdm(total=len(asked), disable=disable_tqdm or self.rank != 0, desc="log-likelihoods") as bar:
                found = likelihoods(self.read, asked, self.max_length, rows, bar.update)
            for (texts, _, _), answer in zip(requests, found):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
            return found

    return LineasLM


@contextmanager
def _as_it_is(network: Any) -> Iterator[None]:
    """Within the block nobody ties a network's weights; lm-eval would undo a head that was given weights of its own."""
    vars(network)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(network)["tie_weights"]


def register() -> None:
    """Make the model type known to lm-eval in this process."""
    made = model_class()
    from lm_eval.api.registry import model_registry

    if MODEL_TYPE not in model_registry:
        model_registry.register(MODEL_TYPE, target=made)


def _learned(intervention: str | None, asked: dict[str, Any]) -> Intervention | None:
    """The intervention that is named; what is said of one needs one."""
    if intervention is None:
        alone = [name for name, value in asked.items() if value is not None]
        if alone:
            raise LineasError(f"the model argument {alone[0]} is of an intervention, and none is given.")
        return None
    if not isinstance(asked["other_model"] or False, bool):
        raise LineasError(f"the model argument other_model is True or False, not {asked['other_model']!r}.")
    return Intervention.load(str(intervention))


def _model(pretrained: Any, options: dict[str, Any]) -> TextModel:
    """The model that is named, loaded, or the one that is given."""
    given = {name: str(value) for name, value in options.items() if value is not None}
    if isinstance(pretrained, TextModel):
        if given:
            raise LineasError(f"the model is loaded already, so its {next(iter(given))} is what it is; leave that out.")
        return pretrained
    if pretrained is not None and not isinstance(pretrained, (str, int, Path)):
        raise LineasError(f"pretrained is a hub id, a folder or a TextModel, not a {type(pretrained).__name__}.")
    if given.get("device", "").startswith("cuda") and not torch.cuda.is_available():
        del given["device"]  # lm_eval's own default
    return load_text(None if pretrained is None else str(pretrained), **given)
