"""LineasError: the one error type, a sentence for the user; and how others' errors become part of one."""


class LineasError(ValueError):
    """What was given, what was expected, what to do, in one sentence."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, without its full stop; its type's name where it says nothing.

    >>> first_line(ValueError("no such key: 'a'.\\nIf you ...")), first_line(KeyError())
    ("no such key: 'a'", 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__
