"""What can be steered: text models, and the default model."""

from lineas.models.loading import load

__all__ = ["load"]
