"""The one exception a user is meant to read."""


class InputError(ValueError):
    """What the user gave cannot be used: one sentence naming the thing, what is wrong, and what to do.

    The command line prints the sentence and exits with code 2; the nodes show it in the error report.
    """
