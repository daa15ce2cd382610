"""Keeps an engine's tokens out of what it tells: its info would hand the admin token to whoever may generate."""

from __future__ import annotations

from typing import Any

INFO_TARGET = "sglang.srt.entrypoints.http_server.redact_watermark_secrets"
_TOKENS = ("api_key", "admin_api_key")


def redact_tokens(info: Any, *_: Any, **__: Any) -> Any:
    """Replace tokens, however deep they lie."""
    if isinstance(info, dict):
        return {key: "***" if key in _TOKENS and value else redact_tokens(value) for key, value in info.items()}
    if isinstance(info, list):
        return [redact_tokens(item) for item in info]
    return info
