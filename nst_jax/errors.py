"""The one exception for wrong input. Standard library only."""


class InputError(Exception):
    """Input that a person can correct: a file, an option, an image's size.

    The message is one line: what was wrong, what was expected, what to do. The command line
    prints it and ends with exit code 2; any other exception is a fault of the program. It is no
    ``ValueError``, so that nothing takes it for one on its way to the person.
    """
