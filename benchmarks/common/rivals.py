"""Rivals: the methods that are compared at equal damage, what each learns, and the systems that it becomes.

Each is given the best of the sites that its authors use and the sites of LinEAS (`WAYS`, chosen by `comparison.ways` on
prompts that judge nothing).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common import record
from benchmarks.common.contest import learn_at_some_rate
from benchmarks.common.methods import relative

if TYPE_CHECKING:
    from benchmarks.common.concepts import Sides
    from lineas.evaluation.classifiers import Classifier
    from lineas.evaluation.variants import System
    from lineas.sites import Site

Learned = Callable[[float], "System"]
"""Function from a strength to the system that was learned."""
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
    source = sides.prompts if isinstance(method, lineas.LoFITRL) else sides.source
    learn = partial(learn_at_some_rate, model, source, sides.target, method, where(model), seed)
    learned = record.load_or_learn(folder, learn)
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


def authors(model: lineas.TextModel) -> None:
    """Return None: the method's own sites."""


def all_norms(model: lineas.TextModel) -> list[str]:
    """Return the norms before the MLPs of all blocks."""
    return _patterns(model.default_sites(None))


def upper(model: lineas.TextModel, pattern: Callable[[], str | None] = lambda: None) -> list[str]:
    """Return the sites of a pattern in the upper two thirds of the blocks; by default those of LinEAS."""
    from lineas.sites import upper_sites

    return _patterns(upper_sites(model.network, model.default_sites(pattern())))


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
        "upper norms": _maps(lambda unwanted: lineas.CAA(layers="all"), upper),
    },
    "iti-c": {
        "attention": _maps(lambda unwanted: lineas.ITIc(), authors),
        "upper norms": _maps(lambda unwanted: lineas.ITIc(), upper),
    },
    "mean-act": {
        "attention": _maps(lambda unwanted: lineas.MeanAcT(), authors),
        "upper norms": _maps(lambda unwanted: lineas.MeanAcT(), upper),
    },
    "lin-act": {
        "attention": _maps(lambda unwanted: lineas.LinAcT(), authors),
        "upper norms": _maps(lambda unwanted: lineas.LinAcT(), upper),
    },
    "aura": {
        "MLP linears": _maps(lambda unwanted: lineas.AurA(), authors),
        "upper MLP linears": _maps(
            lambda unwanted: lineas.AurA(), partial(upper, pattern=lambda: lineas.AurA.default_sites)
        ),
    },
    "austeer": {
        "MLPs": _maps(lambda unwanted: _austeer(), authors),
        "upper MLPs": _maps(lambda unwanted: _austeer(), partial(upper, pattern=lambda: _austeer().default_sites)),
        "upper norms": _maps(lambda unwanted: _austeer(), upper),
    },
    "gaussian": {
        "one block": partial(gaussian, depths=(0.5,)),
        "two blocks": partial(gaussian, depths=(0.4, 0.6)),
    },
    "lora": {"all linears": lora},
    "lineas-paper": {"upper norms": _maps(lambda unwanted: lineas.LinEAS.paper(), upper)},
    "lineas-relative": {
        "norms": _maps(lambda unwanted: relative(), all_norms),
        "upper norms": _maps(lambda unwanted: relative(), upper),
    },
    "lineas": {"upper norms": _maps(lambda unwanted: lineas.LinEAS(), authors)},
    "lofit-rl": {"upper norms": _maps(lambda unwanted: lineas.LoFITRL(unwanted), upper)},
}
"""By method, in the order of tables, and by site: what learns it."""
