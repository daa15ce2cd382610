"""What actors answer to calls that were made at once. The first failure is seen as soon as it is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from slime_launch.errors import ComponentError, DeadlineError, LaunchError

_MOST_NAMES = 4


class Answers:
    """Ray calls under way, by the name of the actor that owes the answer. what: what they are for."""

    def __init__(self, calls: Mapping[str, Any], what: str) -> None:
        self.owed = dict(calls)
        self._order = list(calls)
        self._what = what
        self._came: dict[str, Any] = {}
        self._failed: dict[str, LaunchError] = {}

    def look(self, timeout_s: float, everyone: bool = False) -> bool:
        """Take what is there; wait for one more answer, or for all, at most ``timeout_s``. Whether all are well."""
        import ray

        if self.owed:
            count = len(self.owed) if everyone else 1
            done = set(ray.wait(list(self.owed.values()), num_returns=count, timeout=timeout_s)[0])
            for name in [name for name, call in self.owed.items() if call in done]:
                try:
                    self._came[name] = answer(self.owed.pop(name), self._what, name)
                except LaunchError as error:
                    self._failed[name] = error
        return not self._failed

    def values(self) -> list[Any]:
        """All answers, in the order of the calls; to be asked for when none is owed any more."""
        return [self._came[name] for name in self._order]

    def failure(self) -> LaunchError:
        """The first failure, telling what every actor that failed had to say, and who owes its answer still.

        A death comes first: what others say is often no more than that somebody is gone.
        """
        failed = sorted(self._failed.items(), key=lambda item: not isinstance(item[1], ActorDied))
        who: dict[str, list[str]] = {}
        for name, error in failed:
            who.setdefault(str(error), []).append(name)
        told = [_said(sorted(names, key=self._order.index), text) for text, names in who.items()]
        if self.owed:
            told.append(f"no answer yet from {_listed(self.owed)}")
        error = failed[0][1]
        error.args = ("; ".join(told),)  # its type says more than ours would
        return error

    def late(self, text: str) -> DeadlineError:
        """The error of a wait that was too long; names who is late."""
        return DeadlineError(f"{self._what}: {_listed(self.owed)}: {text}")


class ActorDied(ComponentError):
    """An actor's process is gone."""


def answer(call: Any, what: str, name: str) -> Any:
    """What a finished call of an actor returned; raises a LaunchError, ActorDied among them, where it raised."""
    import ray

    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LaunchError):
            raise cause from None
        raise ComponentError(f"{what}: {name}: {cause!r}") from error
    except ray.exceptions.RayActorError as error:
        raise ActorDied(f"{what}: {name} died ({' '.join(str(error).split())[:500]})") from None


def _said(names: list[str], text: str) -> str:
    """A message and who it is from, where it does not say so itself."""
    known = len(names) == 1 and re.search(rf"(?<![\w-]){re.escape(names[0])}(?![\w-])", text)
    return text if known else f"{_listed(names)}: {text}"


def _listed(names: Iterable[str]) -> str:
    """A few of them, and how many more."""
    some = list(names)
    more = len(some) - _MOST_NAMES
    return ", ".join(some[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
