"""Interventions: maps by site, their gates and facts, and the folder they are stored in."""

from lineas.intervention.intervention import Intervention, mix

__all__ = ["Intervention", "mix"]
