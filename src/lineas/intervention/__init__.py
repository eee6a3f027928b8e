"""Interventions: maps by site, the gates and facts that go with them, and the folder they are stored in."""

from lineas.intervention.intervention import Intervention, mix

__all__ = ["Intervention", "mix"]
