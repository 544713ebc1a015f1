"""The one exception type for mistakes a user can mend, and the warning that an answer means little."""


class UserError(Exception):
    """Bad input, settings or environment.

    The message names the file, row or key at fault and says what to do next. The command line prints it
    without a traceback and exits with 2.
    """


class OutsideWarning(UserWarning):
    """An image is outside what the model was trained on: its answers mean little."""
