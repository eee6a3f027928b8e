"""Switching off the progress bars of other libraries."""

from __future__ import annotations

from importlib.util import find_spec


def no_bars() -> None:
    """Switch off the progress bars of transformers and, if installed, diffusers in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if find_spec("diffusers") is not None:
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
