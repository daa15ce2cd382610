"""LaunchPlan -> Ray actors, phase by phase, along the edges; and every later call to them, each with a deadline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_launch import signals
from slime_launch.errors import ComponentError, DeadlineError, LaunchError
from slime_launch.plan import Actor, LaunchPlan, bare
from slime_launch.progress import Progress

_TICK_S = 0.25
_HEALTH_EVERY_S = 2.0
_SERVERS = ("encoder", "regular", "prefill", "decode", "follower", "external", "router")
_ONE_SHOT = ("checkpoint",)  # their work is done once they have started
_CREATE_TIMEOUT_S = 120.0


class Fleet:
    """The running actors of one plan."""

    def __init__(self, plan: LaunchPlan, run_dir: Path, progress: Progress, start_timeout_s: float) -> None:
        self.plan = plan
        self._run_dir = run_dir
        self._progress = progress
        self._start_timeout_s = start_timeout_s
        self._handles: dict[str, Any] = {}
        self._provided: dict[str, dict[str, Any]] = {}
        self._watched: list[str] = []

    def start(self) -> None:
        """Start every phase; actors of one phase start side by side.

        Raises ComponentError when one fails, DeadlineError when one is late.
        """
        import ray

        for phase in self.plan.phases():
            for actor in phase:
                self._create(actor)
            calls = {actor.name: self._handles[actor.name].start.remote(self._needs(actor)) for actor in phase}
            began = time.monotonic()
            what = "starting " + ", ".join(calls)
            results = self.wait(list(calls.values()), what, self._start_timeout_s + _CREATE_TIMEOUT_S)
            self._progress.line(f"  {', '.join(calls)} up in {time.monotonic() - began:.0f} s")
            self._provided |= dict(zip(calls, results, strict=True))
            self._watched += [actor.name for actor in phase if actor.kind in _SERVERS]
            for actor in phase:
                if actor.kind in _ONE_SHOT:
                    ray.kill(self._handles.pop(actor.name))

    def _create(self, actor: Actor) -> None:
        import ray

        from slime_launch.host import Host

        watched = actor.kind in _SERVERS
        options = ray.remote(Host).options(
            name=actor.name,
            num_cpus=actor.resources.cpu,
            num_gpus=actor.resources.gpu,
            max_restarts=0,
            # a second thread answers health checks; torch state elsewhere wants one
            max_concurrency=2 if watched else 1,
        )
        self._handles[actor.name] = options.remote(actor.name, actor.component, actor.args, str(self._run_dir))

    def _needs(self, actor: Actor) -> dict[str, list[Any]]:
        """By bare name (``encoder_url`` of ``actor/encoder_url``) what the providers gave, in plan order."""
        needs: dict[str, list[Any]] = {}
        for name in actor.needs:
            given = [self._provided[other.name] for other in self.plan.actors if name in other.provides]
            needs.setdefault(bare(name), []).extend(provided[bare(name)] for provided in given)
        return needs

    def call(self, names: Sequence[str], method: str, *args: Any, what: str, timeout_s: float) -> list[Any]:
        """Call one method of several actors at once and wait for all answers, in order.

        Raises what the component raised, ComponentError when an actor or server died, DeadlineError after
        ``timeout_s``.
        """
        return self.wait([self._handles[name].call.remote(method, *args) for name in names], what, timeout_s)

    def wait(self, calls: list[Any], what: str, timeout_s: float) -> list[Any]:
        """Wait for Ray calls, watching the servers meanwhile."""
        import ray

        began = time.monotonic()
        next_health = began + _HEALTH_EVERY_S
        with self._progress.waiting(what):
            left = calls
            while left:
                signals.check()
                done, left = ray.wait(left, timeout=_TICK_S)
                for call in done:
                    self._raise_failure(call, what)
                now = time.monotonic()
                if left and now > next_health:
                    next_health = now + _HEALTH_EVERY_S
                    self.check_servers()
                if left and now - began > timeout_s:
                    raise DeadlineError(
                        f"{what}: not done after {timeout_s:.0f} s; the logs are in {self._run_dir / 'logs'}"
                    )
                self._progress.tick()
        return [_get(call, what) for call in calls]

    def _raise_failure(self, call: Any, what: str) -> None:
        """Raise what a finished call raised; a server that has just died explains it better than who asked it."""
        try:
            _get(call, what)
        except ComponentError:
            time.sleep(_TICK_S)  # the guard of a server that was killed needs a moment to tell
            self.check_servers()
            raise

    def check_servers(self) -> None:
        """Raise ComponentError when a server that was up is not any more."""
        import ray

        asked = {name: self._handles[name].failure.remote() for name in self._watched}
        done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=5.0) if asked else ([], [])
        for name, call in asked.items():
            broken = _get(call, f"asking {name}") if call in done else None
            if broken:
                raise ComponentError(broken)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask every component to stop; what does not in time is ended with the cluster."""
        import ray

        calls = [handle.stop.remote() for handle in reversed(self._handles.values())]
        if calls and ray.is_initialized():
            ray.wait(calls, num_returns=len(calls), timeout=timeout_s)


def _get(call: Any, what: str) -> Any:
    import ray

    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LaunchError):
            raise cause from None
        raise ComponentError(f"{what}: {cause!r}") from error
    except ray.exceptions.RayActorError as error:
        raise ComponentError(f"{what}: an actor died ({' '.join(str(error).split())[:500]})") from None
