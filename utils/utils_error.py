"""The one exception for what the user can mend: wrong options, wrong data, a folder in use."""


class UserError(ValueError):
    """The options or the data are wrong; the message says what, where, what is allowed and what to do.

    The entry points print it without a traceback and exit with status 2.
    """
