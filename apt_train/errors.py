"""The one exception whose message is written for users."""


class InputError(ValueError):
    """The user's input cannot be used. The message is one sentence: which input, what is wrong, what to do.

    The command line prints it and exits with code 2; the nodes show it in the error report.
    """
