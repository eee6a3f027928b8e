"""Evaluation: effect and damage together, for interventions, prompts and adapters."""

from lineas.evaluation.classifiers import classifier, fitted
from lineas.evaluation.records import Evaluation, Plan, Row
from lineas.evaluation.run import evaluate
from lineas.evaluation.systems import Adapted, Prompted, Steered, Untouched

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
