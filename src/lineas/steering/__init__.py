"""Steering: an intervention applied to a live network, in the thread or task that asked for it."""

from lineas.steering.steer import Steering, steer

__all__ = ["Steering", "steer"]
