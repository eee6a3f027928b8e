"""Options of learning: those that several verbs share, and one for each field of a method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import Field, fields
from importlib import import_module
from typing import Annotated, Any, get_type_hints

import typer

from lineas.cli.number_options import number
from lineas.errors import LineasError, first_line
from lineas.learning import CAA, AurA, GaussianAcT, ITIc, LinAcT, LinEAS, MeanAcT, Method

METHODS: dict[str, type[Method]] = {
    "lineas": LinEAS,
    "mean-act": MeanAcT,
    "gaussian-act": GaussianAcT,
    "lin-act": LinAcT,
    "caa": CAA,
    "iti-c": ITIc,
    "aura": AurA,
}


def method_options(*only: str) -> dict[str, Any]:
    """Return annotations of parameters by the name of the field, for these fields of all methods, or all fields."""
    first_field: dict[str, Any] = {}
    methods: dict[str, list[str]] = {}
    for method, kind in METHODS.items():
        hints, described = get_type_hints(kind), _descriptions(kind)
        for one in fields(kind):
            methods.setdefault(one.name, []).append(method)
            if not only or one.name in only:
                first_field.setdefault(one.name, (one, hints[one.name], described.get(one.name, "")))
    return {name: _option(one, hint, text, methods[name]) for name, (one, hint, text) in first_field.items()}


def with_method_options(*only: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a verb the options of the methods, as a dict in its argument `settings`."""
    options = method_options(*only)

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        signature, kind = inspect.signature(verb, eval_str=True), inspect.Parameter.KEYWORD_ONLY
        at = list(signature.parameters).index("settings")
        own = [one.replace(kind=kind) for one in signature.parameters.values()]
        added = [inspect.Parameter(name, kind, default=None, annotation=option) for name, option in options.items()]
        parameters = [*own[:at], *added, *own[at + 1 :]]

        def with_settings(**arguments: Any) -> None:
            settings = {name: arguments.pop(name) for name in options}
            verb(**arguments, settings=settings)

        with_settings.__doc__, with_settings.__name__ = verb.__doc__, verb.__name__
        with_settings.__annotations__ = {one.name: one.annotation for one in parameters}
        vars(with_settings)["__signature__"] = signature.replace(parameters=parameters)
        return with_settings

    return decorate


def method_of(name: str, settings: dict[str, Any]) -> Method:
    """Return the method of a name (a key of METHODS, or MODULE:CLASS) with its settings; None leaves a default."""
    kind = _class_of(name)
    settings = {key: value for key, value in settings.items() if value is not None}
    names = [one.name for one in fields(kind)]
    foreign = [key for key in settings if key not in names]
    if foreign:
        raise LineasError(f"the method {name} does not take {_flag(foreign[0])}; leave it out.")
    return kind(**settings)


def _class_of(name: str) -> Any:
    if name in METHODS:
        return METHODS[name]
    module, colon, kind = name.partition(":")
    if not colon:
        raise LineasError(f"the method is one of {', '.join(METHODS)}, or MODULE:CLASS, not '{name}'.")
    try:
        imported = getattr(import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise LineasError(f"the method {name} could not be imported: {first_line(error)}.") from None
    if not (isinstance(imported, type) and hasattr(imported, "fit") and hasattr(imported, "__dataclass_fields__")):
        raise LineasError(
            f"{name} is no method of learning; name a dataclass with a function fit (see lineas.learning.Method)."
        )
    return imported


def _option(one: Field[Any], hint: Any, description: str, methods: list[str]) -> Any:
    """Return the annotation of the parameter for a field."""
    usual = "" if one.default is None or hint is bool else f"; default: {one.default}"
    help_text = f"{description} (method {', '.join(methods)}{usual})."
    bounds = one.metadata.get("bounds")
    if bounds is not None:
        kind = int if bounds.whole else float
        return Annotated[kind | None, number(_flag(one.name), bounds, help_text)]
    if hint is bool:
        return Annotated[bool | None, typer.Option(_flag(one.name), help=help_text)]
    return Annotated[str | None, typer.Option(_flag(one.name), help=help_text)]


def _flag(name: str) -> str:
    """Return the option of a field on the command line."""
    options = (one.metadata.get("option") for kind in METHODS.values() for one in fields(kind) if one.name == name)
    return next(filter(None, options), f"--{name.replace('_', '-')}")


def _descriptions(kind: type) -> dict[str, str]:
    """Return the first sentence about each field in the docstring of a class."""
    entries = re.findall(r"^    (?: {4})?(\w+): (.+(?:\n {8,}.+)*)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    return {name: _sentence(text) for name, text in texts.items()}


def _sentence(text: str) -> str:
    first = re.split(r"(?<=[a-z)\"])\. |[;:] (?!/)", text)[0].rstrip(".")
    return first[0].upper() + first[1:]
