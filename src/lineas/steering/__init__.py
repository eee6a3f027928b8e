"""Steering: an intervention applied to a live network, in the thread or task that called `steer`."""

from lineas.steering.steer import Steering, steer

__all__ = ["Steering", "steer"]
