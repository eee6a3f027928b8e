"""Rivals: the methods that are compared at equal damage, what each learns, and the systems that it becomes.

Each is given the best of the sites that its authors use and the sites of LinEAS (`WAYS`, chosen by `comparison.ways` on
prompts that judge nothing).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common.methods import relative

if TYPE_CHECKING:
    from benchmarks.common.concepts import Sides
    from lineas.evaluation.classifiers import Classifier
    from lineas.evaluation.variants import System
    from lineas.sites import Site

Learned = Callable[[float], "System"]
"""What was learned, as a function from a strength to a system."""
Way = Callable[["lineas.TextModel", "Sides", "Classifier", int, Path], Learned]
"""Learns on a model from the sides of a draw, given what the oracle avoids, the seed and a folder to keep it in."""
Where = Callable[["lineas.TextModel"], "list[str] | None"]
"""Names of sites; None for those of the method's authors."""


def maps(
    model: lineas.TextModel, sides: Sides, unwanted: Classifier, seed: int, folder: Path, make: Any, where: Where
) -> Learned:
    """Learn affine maps by a method at some sites, or read them where they were learned before."""
    from lineas.evaluation.variants import Steered

    method = make(unwanted)
    if not folder.exists():
        source = sides.prompts if isinstance(method, lineas.LoFITRL) else sides.source
        _learned_at_some_rate(model, source, sides.target, method, where(model), seed).save(folder)
    learned = lineas.Intervention.load(folder)
    return lambda strength: Steered("maps", learned, strength, other_model=True)


def gaussian(
    model: lineas.TextModel,
    sides: Sides,
    unwanted: Classifier,
    seed: int,
    folder: Path,
    depths: Sequence[float],
    k: int = 16,
) -> Learned:
    """Learn Gaussian optimal transport on blocks at some depths, in the first k principal components."""
    from benchmarks.common.gaussian import Transported, transport

    learned = transport(model, sides.source, sides.target, depths, k)
    return lambda strength: Transported("gaussian", learned, strength)


def lora(model: lineas.TextModel, sides: Sides, unwanted: Classifier, seed: int, folder: Path) -> Learned:
    """Fine-tune a LoRA adapter on the target, or take the one that is there."""
    from lineas.evaluation.variants import Adapted
    from lineas.learning.lora import LoRA

    if not (folder / "adapter_model.safetensors").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        LoRA().fine_tune(model, sides.target, folder, seed=seed)
    return lambda strength: Adapted("lora", folder, strength)


def _learned_at_some_rate(
    model: lineas.TextModel, source: Sequence[str], target: Sequence[str], method: Any, sites: Any, seed: int
) -> lineas.Intervention:
    """Return what a method learns; where its rate blows up, with a tenth of it, and so on, as the error says."""
    try:
        return lineas.learn(model, source, target, method, sites, seed=seed, progress=False)
    except lineas.DivergedError as error:
        print(error, flush=True)
        slower = replace(method, learning_rate=error.suggestion)
        return _learned_at_some_rate(model, source, target, slower, sites, seed)


def authors(model: lineas.TextModel) -> None:
    """Return None: the method's own sites."""


def norms(model: lineas.TextModel) -> list[str]:
    """Return the norms before the MLPs in the upper two thirds of the blocks, which LinEAS takes."""
    return _upper(model, None)


def all_norms(model: lineas.TextModel) -> list[str]:
    """Return the norms before the MLPs of all blocks."""
    return _patterns(model.default_sites(None))


def upper_mlps(model: lineas.TextModel) -> list[str]:
    """Return the outputs of the MLPs in the upper two thirds of the blocks."""
    return _upper(model, _austeer().default_sites)


def upper_linears(model: lineas.TextModel) -> list[str]:
    """Return the linears of the MLPs in the upper two thirds of the blocks."""
    return _upper(model, lineas.AurA.default_sites)


def _upper(model: lineas.TextModel, pattern: str | None) -> list[str]:
    """Return the sites of a pattern in the upper two thirds of the blocks."""
    from lineas.sites import upper_sites

    return _patterns(upper_sites(model.network, model.default_sites(pattern)))


def _patterns(sites: Sequence[Site]) -> list[str]:
    return [site.name.replace(".", r"\.") for site in sites]


def _austeer() -> Any:
    from benchmarks.common.austeer import AUSteer

    return AUSteer()


def _maps(make: Callable[[Classifier], Any], where: Where) -> Way:
    return partial(maps, make=make, where=where)


WAYS: dict[str, dict[str, Way]] = {
    "caa": {
        "middle block": _maps(lambda unwanted: lineas.CAA(), authors),
        "all blocks": _maps(lambda unwanted: lineas.CAA(layers="all"), authors),
        "upper norms": _maps(lambda unwanted: lineas.CAA(layers="all"), norms),
    },
    "iti-c": {
        "attention": _maps(lambda unwanted: lineas.ITIc(), authors),
        "upper norms": _maps(lambda unwanted: lineas.ITIc(), norms),
    },
    "mean-act": {
        "attention": _maps(lambda unwanted: lineas.MeanAcT(), authors),
        "upper norms": _maps(lambda unwanted: lineas.MeanAcT(), norms),
    },
    "lin-act": {
        "attention": _maps(lambda unwanted: lineas.LinAcT(), authors),
        "upper norms": _maps(lambda unwanted: lineas.LinAcT(), norms),
    },
    "aura": {
        "MLP linears": _maps(lambda unwanted: lineas.AurA(), authors),
        "upper MLP linears": _maps(lambda unwanted: lineas.AurA(), upper_linears),
    },
    "austeer": {
        "MLPs": _maps(lambda unwanted: _austeer(), authors),
        "upper MLPs": _maps(lambda unwanted: _austeer(), upper_mlps),
        "upper norms": _maps(lambda unwanted: _austeer(), norms),
    },
    "gaussian": {
        "one block": partial(gaussian, depths=(0.5,)),
        "two blocks": partial(gaussian, depths=(0.4, 0.6)),
    },
    "lora": {"all linears": lora},
    "lineas-paper": {"upper norms": _maps(lambda unwanted: lineas.LinEAS.paper(), norms)},
    "lineas-relative": {
        "norms": _maps(lambda unwanted: relative(), all_norms),
        "upper norms": _maps(lambda unwanted: relative(), norms),
    },
    "lineas": {"upper norms": _maps(lambda unwanted: lineas.LinEAS(), authors)},
    "lofit-rl": {"upper norms": _maps(lambda unwanted: lineas.LoFITRL(unwanted), norms)},
}
"""By method, in the order of tables, and by site: what learns it."""
