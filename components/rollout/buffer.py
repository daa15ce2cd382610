"""Where a step's prompts come from: first those that an earlier step did not finish, then the data source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from components.rollout.groups import Group, from_plain, to_plain
from components.rollout.prompts import Rendered
from slime_launch.errors import ComponentError
from slime_launch.interfaces import DataSource
from slime_launch.types import Prompt


class Buffer:
    """Hands out groups, each prompt in one, and takes back those that were not used: no prompt is lost.

    render: makes a prompt ready for engine and trainer.
    """

    def __init__(self, data: DataSource, render: Callable[[Prompt], Rendered]) -> None:
        self._data, self._render = data, render
        self._held: list[Group] = []
        self._next = 0

    @property
    def held(self) -> Sequence[Group]:
        """The groups that go first, by number."""
        return tuple(self._held)

    def take(self, count: int) -> list[Group]:
        """The next groups, those that came back first.

        Raises ComponentError when the data source gives fewer prompts than it was asked for.
        """
        taken, self._held = self._held[:count], self._held[count:]
        if wanted := count - len(taken):
            prompts = self._data.take(wanted)
            if len(prompts) != wanted:
                raise ComponentError(f"data: {len(prompts)} prompts came where {wanted} were asked for")
            taken += [Group(self._next + number, self._render(prompt)) for number, prompt in enumerate(prompts)]
            self._next += wanted
        return taken

    def give_back(self, groups: Sequence[Group]) -> None:
        """Let these go first in the next step, with what there is of them."""
        self._held = sorted([*self._held, *groups], key=lambda group: group.number)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values: the data source's position, the next group's number, and the groups that came back.

        Raises ComponentError for a source that cannot tell its position, and for groups that cannot be made plain.
        """
        if not isinstance(self._data, DataSource):
            raise ComponentError(
                f"data: {type(self._data).__name__} has no state_dict and load_state_dict, so a run could not go on "
                "where it was; add them, or leave trainer.checkpoint.interval=0"
            )
        return {"data": self._data.state_dict(), "next_group": self._next, "held": list(map(to_plain, self._held))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises ComponentError for a state that is not of this kind.
        """
        if state.keys() != {"data", "next_group", "held"}:
            raise ComponentError(f"the checkpoint's rollout state has the parts {sorted(state)}; it is of other code")
        self._data.load_state_dict(state["data"])
        self._next = int(state["next_group"])
        self._held = [from_plain(group, self._render) for group in state["held"]]
