"""A scheduler of SGLang in this process, without HTTP: each forward pass of ours beside SGLang's own.

    python stock.py CHECKPOINT

Prints, as JSON, for each pass: kind, requests, tokens, and the largest difference of the hidden states.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections.abc import Callable
from typing import Any

import torch

from components.sglang import attention, cpu, dense, plugin

PASSES: list[dict[str, Any]] = []
PROMPTS = [[20 + j * step % 71 for j in range(length)] for step, length in ((3, 9), (5, 34), (7, 40))]
SAMPLES, TOKENS = 8, 6


def prepare() -> None:
    """The environment of an engine on CPU, with SGLang's own attention; before anything of SGLang is imported."""
    os.environ |= cpu.environment({}) | {
        plugin.KIND_ENV: "regular",
        plugin.WITHOUT_ENV: f"{attention.DECODE_TARGET},{attention.EXTEND_TARGET}",
        "TORCHDYNAMO_DISABLE": "1",
        "SGLANG_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    sys.path.insert(0, str(cpu.KERNELS))
    for skipped in os.environ["SLIME_LAUNCH_SKIP_IMPORTS"].split(","):
        sys.modules[skipped] = None  # type: ignore[assignment]


def both(
    original: Callable[..., Any], model: Any, ids: Any, positions: Any, batch: Any, *rest: Any, **more: Any
) -> Any:
    """Our hidden states, which must not come from the original, and the original's, on the same cache."""

    def never(*_: Any) -> None:
        raise AssertionError("the original was called")

    ours = dense.plain_forward(never, model, ids, positions, batch, *rest, **more)
    theirs = original(model, ids, positions, batch, *rest, **more)
    kind, gap = batch.forward_mode.name, (ours - theirs).abs().max().item()
    PASSES.append({"kind": kind, "requests": batch.batch_size, "tokens": len(ids), "gap": gap})
    return theirs


def start(checkpoint: str) -> Any:
    import sglang.srt.managers.scheduler as scheduling
    import zmq
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import PortArgs, ServerArgs

    from tests.servers import ARGS

    plugin._process = lambda _: plugin.SCHEDULER  # type: ignore[assignment]
    hook = next(hook for hook in plugin.HOOKS if hook.target == dense.FORWARD_TARGET)
    object.__setattr__(hook, "change", both)
    load_plugins()
    args = ServerArgs(model_path=checkpoint, host="127.0.0.1", random_seed=0, **ARGS["regular"])
    ports = PortArgs.init_new(args)
    listeners = [zmq.Context.instance().socket(zmq.PULL) for _ in range(2)]
    for listener, name in zip(listeners, (ports.detokenizer_ipc_name, ports.tokenizer_ipc_name), strict=True):
        listener.bind(name)
    ranks = scheduling.SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0)
    scheduling.publish(args, role="scheduler", ranks=ranks)
    return scheduling.Scheduler(args, ports), listeners


def ask(scheduler: Any, prompt: list[int], seed: int) -> None:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    sampling = SamplingParams(max_new_tokens=TOKENS, ignore_eos=True, sampling_seed=seed)
    sampling.normalize(None)
    unused = dict.fromkeys(("input_text", "input_embeds", "mm_inputs", "token_type_ids", "token_ids_logprob"))
    request = TokenizedGenerateReqInput(
        **unused, input_ids=array("q", prompt), sampling_params=sampling, return_logprob=True,
        logprob_start_len=-1, top_logprobs_num=0, stream=False,
    )  # fmt: skip
    request.rid = f"{seed}"
    scheduler.handle_generate_request(request)


def main(checkpoint: str) -> None:
    prepare()
    scheduler, _listeners = start(checkpoint)
    for number, prompt in enumerate(prompt for prompt in PROMPTS for _ in range(SAMPLES)):
        ask(scheduler, prompt, number)
    with torch.inference_mode():
        while True:
            plan = scheduler.get_next_batch_to_run(scheduler.running_batch, scheduler.last_batch)
            scheduler.running_batch, scheduler.last_batch = plan.running_batch, plan.batch_to_run
            if not plan.batch_to_run:
                break
            scheduler.process_batch_result(plan.batch_to_run, scheduler.run_batch(plan.batch_to_run))
    print(json.dumps(PASSES), flush=True)
    os._exit(0)  # SGLang's threads would not end


if __name__ == "__main__":
    main(sys.argv[1])
