"""Evaluation: effect and damage together, for interventions, prompts and adapters."""

from lineas.evaluation.classifiers import classifier, fitted
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.results import Evaluation, Row
from lineas.evaluation.variants import Adapted, Prompted, Steered, Untouched

__all__ = [
    "Adapted",
    "Evaluation",
    "Plan",
    "Prompted",
    "Row",
    "Steered",
    "Untouched",
    "classifier",
    "evaluate",
    "fitted",
]
