"""Folding: an intervention written into a network's own weights, so that the network no longer needs lineas."""

from lineas.folding.fold import DoesNotFoldError, fold

__all__ = ["DoesNotFoldError", "fold"]
