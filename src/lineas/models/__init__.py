"""The models that can be steered: text models, image models, and the default model."""

from lineas.models.loading import load, load_text

__all__ = ["load", "load_text"]
