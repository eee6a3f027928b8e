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


def kind_of(value: object) -> str:
    """Return the type of a value with its article.

    >>> kind_of([]), kind_of(1), kind_of(None)
    ('a list', 'an int', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def shown(value: object, most: int = 80) -> str:
    """Return the beginning of a value as one writes it in Python; its type where that cannot be written.

    >>> shown("calm"), shown("x" * 10**7, 5), shown(10**5000)
    ("'calm'", "'xxxx...", 'an int')
    """
    try:
        text = repr(value[:most] if isinstance(value, (str, bytes)) else value)
    except Exception:  # numbers of too many digits, and whatever a foreign class raises
        return kind_of(value)
    text = " ".join(text.split())  # tensors are written over several lines
    return text if len(text) <= most else f"{text[:most]}..."
