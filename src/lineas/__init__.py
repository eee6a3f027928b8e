"""Steer generative models by small, sparse maps on their activations, learned from a handful of unpaired examples."""

from lineas.errors import LineasError
from lineas.folding import fold
from lineas.intervention import Intervention, mix
from lineas.learning import CAA, AurA, GaussianAcT, ITIc, LinAcT, LinEAS, LoFITRL, MeanAcT, learn
from lineas.maps import AffineMap
from lineas.models import load
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.steering import steer

__all__ = [
    "CAA",
    "AffineMap",
    "AurA",
    "GaussianAcT",
    "ITIc",
    "ImageModel",
    "Intervention",
    "LinAcT",
    "LinEAS",
    "LineasError",
    "LoFITRL",
    "MeanAcT",
    "TextModel",
    "fold",
    "learn",
    "load",
    "mix",
    "steer",
]
