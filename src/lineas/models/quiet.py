"""The progress bars of other libraries, off: loading is told in one line."""

from __future__ import annotations

from importlib.util import find_spec


def no_bars() -> None:
    """Switch off the bars of transformers and, where it is installed, of diffusers, in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    if find_spec("diffusers") is not None:
        from diffusers.utils import logging as of_diffusers

        of_diffusers.disable_progress_bar()
