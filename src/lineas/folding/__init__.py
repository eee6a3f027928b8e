"""Folding: an intervention written into a network's own weights, which then needs no lineas any more."""

from lineas.folding.fold import DoesNotFoldError, fold

__all__ = ["DoesNotFoldError", "fold"]
