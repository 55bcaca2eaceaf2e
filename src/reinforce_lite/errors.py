"""Errors for the user: one line of cause, one of remedy, and an exit status.

Only faults that a user can cause or fix are raised as these. A bug raises whatever it raises and
keeps its traceback.
"""


class ReinforceLiteError(Exception):
    """Shown without a traceback: `cause` says what failed and where, `remedy` what to do."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}" if self.remedy else self.cause


class UsageError(ReinforceLiteError):
    """Bad usage, config or data."""

    exit_code = 2


class DoesNotFitError(ReinforceLiteError):
    """The run does not fit into the available memory."""

    exit_code = 3


class NotFiniteError(ReinforceLiteError):
    """Weights, gradients or log-probabilities held NaN or infinity, again after going back once."""


class StoppedError(ReinforceLiteError):
    """A signal ended the run after a checkpoint was saved. `exit_code` is 128 + the signal's number."""

    def __init__(self, signum: int, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.exit_code = 128 + signum


def missing_extra(extra: str, what: str) -> UsageError:
    """The error for a feature whose optional dependency is not installed."""
    return UsageError(
        f"{what} needs an optional dependency that is not installed",
        f'install it with: pip install "reinforce-lite[{extra}]"',
    )
