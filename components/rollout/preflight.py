"""What the rollout can tell before it runs: whether data, rewards and tokenizer fit together; a few prompts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from components.rollout.callables import make_callable
from components.rollout.elsewhere import Elsewhere, check_sendable
from components.rollout.evaluation import named_sets
from components.rollout.prompts import Rendered, Renderer
from components.rollout.sampling import check_evaluation, check_training
from components.rollout.sources import open_source
from slime_launch.errors import ComponentError, LaunchError, Problem
from slime_launch.hf_folder import TOKENIZERS
from slime_launch.interfaces import DataSource, Findings, Images, OfFiles, Reports, Routes
from slime_launch.targets import instantiate
from slime_launch.types import Prompt

_SHOWN_PROMPTS = 2
_SHOWN_IDS = 24
_PROBE_S = 20.0
_SHOWN_MODELS = 8


def preflight(args: Mapping[str, Any]) -> Findings:
    """Draw and render a few prompts; build rewards, filters and the generate function. ``args``: RolloutWorker's."""
    asked = asyncio.run(_elsewhere(args))
    problems = [*_unbuildable(args), *asked.problems]
    folder = Path(args["hf_checkpoint"])
    renderer, unreadable = _renderer(folder)
    problems += unreadable
    try:
        sources: list[DataSource] = []

        def open_node(node: Mapping[str, Any]) -> DataSource:
            sources.append(open_source(node, args["seed"], renderer))
            return sources[-1]

        data = open_node(args["data"])
        prompts = data.take(_SHOWN_PROMPTS)
        problems += _unrouted("reward.parts", args["reward"], prompts)
        for prompt in prompts:
            check_training(prompt, args["sampling"])
        sets = named_sets(data, args["eval_sets"], open_node)
        problems += _trained_on(data, sources)
        for name, (held, node) in sets.items():
            own, key = node.get("reward"), f"rollout.eval_sets.{node.get('entry', name)}.reward.parts"
            found = _unrouted(key, own["node"], held) if own else _unrouted("reward.parts", args["reward"], held)
            problems += [problem for problem in found if problem not in problems]
        for held, node in sets.values():
            check_evaluation(held[0])
            if node.get("endpoint"):  # our tokenizer need not know them
                check_sendable(node["entry"], node["endpoint"]["fields"], held[0])
            else:
                prompts.append(held[0])
    except (LaunchError, OSError) as error:
        mend = "mend what it names"
        return Findings([*problems, Problem("data", args["data"]["_target_"], str(error), mend)], asked.lines)
    asked.lines.extend(_left_out(sources))
    if renderer is None:
        told = [] if unreadable else ["no prompts rendered: there is no tokenizer; give model.hf_checkpoint"]
        return Findings(problems, asked.lines + told)
    try:
        lines = [line for prompt in prompts for line in _show(renderer, prompt)]
    except (LaunchError, OSError, ValueError) as error:
        reason = f"its tokenizer cannot render the data's prompts ({error})"
        return Findings([*problems, Problem("model.hf_checkpoint", str(folder), reason, "use data that fits it")], [])
    return Findings(problems, asked.lines + lines)


def _left_out(sources: Sequence[DataSource]) -> Iterator[str]:
    """Held-out rows that give no prompt; of a source beside the run's nothing else tells."""
    for source in sources:
        for name, count in source.metrics().items() if isinstance(source, Reports) else ():
            if "/eval_dropped_" in name:
                yield f"held-out rows left out, {name}: {count:g}"


def _unbuildable(args: Mapping[str, Any]) -> Iterator[Problem]:
    """Rewards, filters and a generate function that cannot be made."""
    own = {name: one["reward"]["node"] for name, one in args["eval_sets"].items() if one["reward"]}
    rewards = {"reward": args["reward"]} | {f"rollout.eval_sets.{name}.reward": node for name, node in own.items()}
    called = {f"rollout.filters.{name}": node for name, node in args["filters"].items()}
    called["rollout.generate"] = args["generate"]
    read = {"rollout.media": args["media"]} if args.get("media") else {}
    for key, node in (rewards | called | read).items():
        try:
            made = make_callable(key, node) if key in called else instantiate(node)
            if key in read and not isinstance(made, Images):
                raise ComponentError("it has no load(ref)")
        except (LaunchError, ValueError, TypeError) as error:
            yield Problem(key, node["_target_"], str(error), "mend the part it names")


async def _elsewhere(args: Mapping[str, Any]) -> Findings:
    """Servers of held-out sets that do not answer /models; a line of what the others list, which need not be all."""
    found = Findings()
    for name, node in args["eval_sets"].items():
        if not (given := node.get("endpoint")):
            continue
        try:
            server = Elsewhere(name, **given | {"retries": 0, "timeout_s": min(given["timeout_s"], _PROBE_S)})
            try:
                models = await server.models()
            finally:
                await server.close()
        except LaunchError as error:
            key = f"rollout.eval_sets.{name}.endpoint.base_url"
            found.problems.append(Problem(key, given["base_url"], str(error), "mend what it names"))
            continue
        lists = (
            "it lists the model" if given["model"] in models else f"it lists only {', '.join(models[:_SHOWN_MODELS])}"
        )
        found.lines.append(f"{server.title}: {lists}")
    return found


def _unrouted(key: str, node: Mapping[str, Any], prompts: Sequence[Prompt]) -> Iterator[Problem]:
    """Prompts of data sources that no part of the reward scores."""
    try:
        reward = instantiate(node)
    except LaunchError:
        return  # told already
    for source in reward.unserved([prompt.source for prompt in prompts]) if isinstance(reward, Routes) else ():
        mend = "name it in the sources of a part, or give a part without sources"
        yield Problem(key, node["_target_"], f"no part scores samples of {source}", mend)


def _trained_on(data: DataSource, sources: Sequence[DataSource]) -> Iterator[Problem]:
    """Held-out rows of any source that the run trains on."""
    trained = data.trained_rows() if isinstance(data, OfFiles) else []
    held = [pair for source in sources if isinstance(source, OfFiles) for pair in source.held_rows().items()]
    for name, parts in held:
        for part in parts:
            for rows in filter(None, (part.shared(mine) for mine in trained)):
                reason = f"rows {rows[0]} to {rows[-1]} of the held-out set {name} are trained on too"
                mend = "take slices that do not meet, e.g. [0:-100] and [-100:]"
                yield Problem("data", str(part.file), reason, mend)


def _renderer(folder: Path) -> tuple[Renderer | None, list[Problem]]:
    """The checkpoint's, None where there is no tokenizer, or where it cannot be loaded, which is a problem."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None, []
    try:
        return Renderer(str(folder)), []
    except (LaunchError, OSError, ValueError) as error:
        reason = f"its tokenizer or processor cannot be loaded ({error})"
        return None, [Problem("model.hf_checkpoint", str(folder), reason, "name a whole checkpoint")]


def _show(renderer: Renderer, prompt: Prompt) -> Iterator[str]:
    rendered = renderer.render(prompt)
    yield f"prompt of {prompt.source}, label {prompt.label!r}: {len(rendered.ids)} tokens"
    yield f"  text: {rendered.text!r}"
    dots = " ..." if len(rendered.ids) > _SHOWN_IDS else ""
    yield f"  ids: {' '.join(map(str, rendered.ids[:_SHOWN_IDS]))}{dots}"
    if prompt.images:
        yield f"  images: {len(prompt.images)}, {', '.join(_media(rendered))}; {_placeholders(renderer, rendered)}"


def _media(rendered: Rendered) -> Iterator[str]:
    for name, value in rendered.media.items():
        yield f"{name} {list(value.shape)}" + (f" {value.tolist()}" if value.size <= 12 else "")


def _placeholders(renderer: Renderer, rendered: Rendered) -> str:
    """How often each special token that comes in runs, as expanded placeholders do, stands in the prompt."""
    special = set(chain(renderer.tokenizer.all_special_ids, renderer.tokenizer.added_tokens_decoder))
    runs = Counter(a for a, b in zip(rendered.ids, rendered.ids[1:], strict=False) if a == b and a in special)
    counts = Counter(rendered.ids)
    named = [f"{counts[token]} x {renderer.tokenizer.convert_ids_to_tokens(token)}" for token in sorted(runs)]
    return "placeholders: " + (", ".join(named) or "none")
