"""The typed errors of the launcher. All pickle, so they survive the way out of a Ray actor."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST_VALUE = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a config: where it stands, what it says, why that fails and what mends it."""

    key: str
    value: object
    reason: str
    mend: str

    def __str__(self) -> str:
        value = " ".join(str(self.value).split())
        shown = value if len(value) <= _LONGEST_VALUE else value[:_LONGEST_VALUE] + "..."
        return f"error: {self.key}={shown}: {self.reason}; {self.mend}"


class LaunchError(RuntimeError):
    """Root of the errors that end a run with a message instead of a traceback."""


class ConfigError(LaunchError, ValueError):
    """The config was refused; carries every problem found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class ComponentError(LaunchError):
    """A component failed while starting or running; the message names it, the cause and its log file."""


class DeadlineError(LaunchError, TimeoutError):
    """A wait ran past its deadline; the message says what was awaited and for how long."""


class LogprobGapError(LaunchError):
    """Trainer and engine disagree about the same tokens under the same weights by more than the bound."""
