"""Evaluation: effect and damage of interventions, prompts and adapters."""

from lineas.evaluation.calibration import Calibration, calibrate
from lineas.evaluation.classifiers import classifier, fitted
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.goals import Goal
from lineas.evaluation.plan import Plan
from lineas.evaluation.results import Evaluation, Row
from lineas.evaluation.variants import Adapted, Prompted, Steered, Untouched

__all__ = [
    "Adapted",
    "Calibration",
    "Evaluation",
    "Goal",
    "Plan",
    "Prompted",
    "Row",
    "Steered",
    "Untouched",
    "calibrate",
    "classifier",
    "evaluate",
    "fitted",
]
