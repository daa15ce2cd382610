"""LaunchPlan -> Ray actors, phase by phase, along the edges; and every later call to them, each with a deadline."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_launch import signals
from slime_launch.answers import Answers, answer
from slime_launch.cluster.seats import Seats
from slime_launch.errors import ComponentError, DeadlineError, LaunchError
from slime_launch.plan import Actor, LaunchPlan, bare, fill_in
from slime_launch.progress import Progress
from slime_launch.reuse import ONE_SHOT, SERVERS, reusable

_TICK_S = 0.25
_HEALTH_EVERY_S = 2.0
_GRACE_S = 1.0
"""For actors that failed with the first one or because of it."""
_CREATE_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0
_HAND_OVER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Member:
    """A running actor: its Ray handle, and what its component provided when it started."""

    handle: Any
    provided: dict[str, Any]


class Fleet:
    """The running actors of one plan, on the seats reserved for it."""

    def __init__(
        self, plan: LaunchPlan, seats: Seats, run_dir: Path, progress: Progress, start_timeout_s: float
    ) -> None:
        self.plan = plan
        self._seats = seats
        self._run_dir = run_dir
        self._progress = progress
        self._start_timeout_s = start_timeout_s
        self._handles: dict[str, Any] = {}
        self._provided: dict[str, dict[str, Any]] = {}
        self._watched: list[str] = []
        self._stuck: set[str] = set()

    def start(self, kept: Mapping[str, Member] | None = None) -> None:
        """Start every phase; actors of one phase start side by side.

        kept: running servers of the fleet before, from its ``hand_over``, which are neither created nor started, only
            told that another run begins.
        Raises ComponentError when one fails, DeadlineError when one is late.
        """
        for name, member in (kept or {}).items():
            self._handles[name], self._provided[name] = member.handle, member.provided
            self._watched.append(name)
        renewed = {name: self._handles[name].renew.remote() for name in kept or {}}
        self._wait(renewed, "readying kept servers", self._start_timeout_s)
        for phase in self.plan.phases():
            self._start_phase([actor for actor in phase if actor.name not in self._handles])

    def _start_phase(self, actors: Sequence[Actor]) -> None:
        import ray

        if not actors:
            return
        for actor in actors:
            self._create(actor)
        calls = {actor.name: self._handles[actor.name].start.remote(self._needs(actor)) for actor in actors}
        began = time.monotonic()
        what = "starting " + ", ".join(calls)
        results = self._wait(calls, what, self._start_timeout_s + _CREATE_TIMEOUT_S)
        self._progress.line(f"  {', '.join(calls)} up in {time.monotonic() - began:.0f} s")
        self._provided |= dict(zip(calls, results, strict=True))
        self._watched += [actor.name for actor in actors if actor.kind in SERVERS]
        for actor in actors:
            if actor.kind in ONE_SHOT:
                ray.kill(self._handles.pop(actor.name))

    def _create(self, actor: Actor) -> None:
        import ray

        from slime_launch.host import Host

        options = ray.remote(Host).options(
            # a name is free again only some time after its actor is gone
            name=f"{actor.name}-{uuid.uuid4().hex[:8]}",
            max_restarts=0,
            # a second thread answers health checks; torch state elsewhere wants one
            max_concurrency=2 if actor.kind in SERVERS else 1,
            **self._seats.options(actor.node),
        )
        args = fill_in(actor.args, self._seats.addresses)
        site = self._seats.site(actor)
        self._handles[actor.name] = options.remote(actor.name, actor.component, args, str(self._run_dir), site)

    def _needs(self, actor: Actor) -> dict[str, list[Any]]:
        """By bare name (``encoder_url`` of ``actor/encoder_url``) what the providers gave, in plan order."""
        needs: dict[str, list[Any]] = {}
        for name in actor.needs:
            given = [self._provided[other.name] for other in self.plan.actors if name in other.provides]
            needs.setdefault(bare(name), []).extend(provided[bare(name)] for provided in given)
        return needs

    def provided(self, name: str) -> list[Any]:
        """Everything that the running actors gave under a bare name, in plan order."""
        running = [self._provided.get(actor.name, {}) for actor in self.plan.actors]
        return [given[name] for given in running if name in given]

    def call(self, names: Sequence[str], method: str, *args: Any, what: str, timeout_s: float) -> list[Any]:
        """Call one method of several actors at once and wait for all answers, in order.

        The first failure ends the wait, whatever the others do. Raises what the component raised, ComponentError when
        an actor or server died, DeadlineError after ``timeout_s``; the message names the actors.
        """
        calls = {name: self._handles[name].call.remote(method, *args) for name in names}
        return self._wait(calls, what, timeout_s)

    def _wait(self, calls: Mapping[str, Any], what: str, timeout_s: float) -> list[Any]:
        """Wait for Ray calls by actor, watching the servers meanwhile."""
        answers = Answers(calls, what)
        try:
            with self._progress.waiting(what):
                self._watch(answers, what, timeout_s)
        except LaunchError:
            self._stuck |= answers.owed.keys()  # for one, peers of a rank that failed wait for it in a collective
            raise
        return answers.values()

    def _watch(self, answers: Answers, what: str, timeout_s: float) -> None:
        began = time.monotonic()
        next_health = began + _HEALTH_EVERY_S
        while answers.owed:
            signals.check()
            if not answers.look(_TICK_S):
                time.sleep(_TICK_S)  # the guard of a server that was killed needs a moment to tell
                answers.look(_GRACE_S, everyone=True)
                self.check_servers()  # one that has just died explains it better than who asked it
                raise answers.failure()
            now = time.monotonic()
            if answers.owed and now > next_health:
                next_health = now + _HEALTH_EVERY_S
                self.check_servers()
            if answers.owed and now - began > timeout_s:
                raise answers.late(f"not done after {timeout_s:.0f} s; the logs are in {self._run_dir / 'logs'}")
            self._progress.tick()

    def check_servers(self) -> None:
        """Raise ComponentError when a server that was up is not any more."""
        for broken in self._failures().values():
            if broken is not None:
                raise broken

    def _failures(self) -> dict[str, ComponentError | None]:
        """By watched server what broke, None where all is well."""
        import ray

        asked = {name: self._handles[name].failure.remote() for name in self._watched}
        done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=5.0) if asked else ([], [])
        return {name: _failure(call, name) if call in done else None for name, call in asked.items()}

    def hand_over(self, plan: LaunchPlan) -> dict[str, Member]:
        """End what the next plan does not have exactly so, and give away what it does; this fleet is done then.

        Both plans must sit on the same seats. Raises DeadlineError when an actor does not go.
        """
        alive = [name for name, broken in self._failures().items() if broken is None]
        kept = {
            name: Member(self._handles.pop(name), self._provided[name]) for name in reusable(self.plan, plan, alive)
        }
        self._watched = []
        self.stop(_HAND_OVER_TIMEOUT_S)
        self._end_actors()
        return kept

    def _end_actors(self) -> None:
        import ray

        gone = []
        for handle in self._handles.values():
            ray.kill(handle)
            gone.append(handle.ready.remote())  # answers, with an error, once Ray has seen it die
        self._handles = {}
        if gone and len(ray.wait(gone, num_returns=len(gone), timeout=_HAND_OVER_TIMEOUT_S)[1]):
            raise DeadlineError(f"actors of {self.plan.name} did not end within {_HAND_OVER_TIMEOUT_S:.0f} s")

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Ask every component to stop; what does not in time ends with its seats.

        One that is stuck in a call would not hear it: it ends now, but for servers, which hear it meanwhile.
        """
        import ray

        if not ray.is_initialized():
            return
        kinds = {actor.name: actor.kind for actor in self.plan.actors}
        for name in [name for name in self._stuck & self._handles.keys() if kinds[name] not in SERVERS]:
            ray.kill(self._handles.pop(name))
        calls = [handle.stop.remote() for handle in reversed(self._handles.values())]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=timeout_s)


def _failure(call: Any, name: str) -> ComponentError | None:
    """What a server answered to the question whether it is broken, or how its actor ended instead of answering."""
    try:
        broken = answer(call, "asking for its health", name)
    except ComponentError as error:
        return error
    return None if broken is None else ComponentError(broken)
