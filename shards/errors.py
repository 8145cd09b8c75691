"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """A mistake in what the user gave us: a path, a value, a file.

    The message is one line that names the offending value, where it stands and how to mend it. The command line prints
    it without a traceback and exits with status 2, so raise it before anything is written.
    """


class OwnError(InputError):
    """An InputError that one process of a run may find alone; it reports it whatever its rank."""


def one_line(error: InputError) -> str:
    """The message; from a data worker it arrives under a traceback, and its last line is ours."""
    text = str(error)
    return text.strip().splitlines()[-1].split("Error: ", 1)[-1] if "\n" in text else text
