"""SGLang servers: how they are started, extended, found healthy and given weights."""

SGLANG_VERSION = "0.5.23"
"""The release that the plugin and everything that reads an engine's answers are written for."""
