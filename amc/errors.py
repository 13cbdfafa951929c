"""The one exception that is shown to a person instead of a traceback."""


class UserError(Exception):
    """Bad input: one sentence that says what was wrong and what would be right.

    Scripts print the sentence and exit with code 2; nothing has been written when it is raised.
    """
