"""The errors a user can mend.

Everything that is raised as a `UserError` reaches the terminal as its one sentence and a non-zero exit code, without a
traceback; any other exception is a defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and what would be valid.

    Attributes:
        agreed: every process of the run raises it, at the same place.
    """

    agreed = False


class AlreadyRunningError(UserError):
    """Another process holds the run directory."""


class GaveUpError(UserError):
    """The run died too often."""


class DivergedError(UserError):
    """The loss is not finite; retrying the same run would give the same result."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `"; did you mean 'x'? Valid: a, b, x."`: the tail of a sentence about an unknown `name`.

    Args:
        name: what the user wrote.
        valid: every name that would have been accepted.
    """
    choices = sorted(valid)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"{hint} Valid: {', '.join(choices)}."
