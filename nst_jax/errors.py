"""The exception for wrong input. Standard library only."""


class InputError(Exception):
    """Input that the user can correct: a file, an option, an image size.

    The message is one line that says what was wrong, what was expected and what to do. The command
    line prints it and exits with code 2; any other exception is a bug. It does not derive from
    ``ValueError``, so that no handler for ``ValueError`` catches it by accident.
    """
