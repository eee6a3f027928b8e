"""LineasError: the one error type, a sentence for the user."""


class LineasError(ValueError):
    """What was given, what was expected, what to do, in one sentence."""
