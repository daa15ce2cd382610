"""How much memory a plan needs, from config.json alone: parameter counts, and from them bytes of trainers and servers.

parameters(hf)  -> Parameters, or None for an architecture without a row in ARCHITECTURES
trainer_bytes(parameters, Layout(...), ...)  -> Memory of the rank that needs most
engine_bytes(parameters, Layout(...), ...)  -> Memory of one server's GPU, or of its processes on CPU
"""

from slime_launch.sizes.activations import Activations, Batch, activations
from slime_launch.sizes.architectures import ARCHITECTURES, Shape
from slime_launch.sizes.engine import DTYPES, engine_bytes, engine_weights, kv_bytes_per_token, pool_tokens
from slime_launch.sizes.measured import CPU_PROCESS_BYTES
from slime_launch.sizes.memory import PRECISIONS, Layout, Memory
from slime_launch.sizes.parameters import Counts, Parameters, parameters
from slime_launch.sizes.trainer import trainer_bytes

__all__ = [
    "ARCHITECTURES",
    "CPU_PROCESS_BYTES",
    "DTYPES",
    "PRECISIONS",
    "Activations",
    "Batch",
    "Counts",
    "Layout",
    "Memory",
    "Parameters",
    "Shape",
    "activations",
    "engine_bytes",
    "engine_weights",
    "kv_bytes_per_token",
    "parameters",
    "pool_tokens",
    "trainer_bytes",
]
