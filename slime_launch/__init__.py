"""slime-launch: a declarative launcher for RL post-training on Megatron-Core and SGLang."""

__version__ = "0.1.0"
