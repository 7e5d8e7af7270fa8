"""Bodies that are one bare word, whatever Content-Type they come with (KvDB's clients send several)."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from flotta_runtime.errors import InvalidArgument

WORD_BYTES_MAX = 1_024


async def read_text(request: Request, field: str) -> str:
    """The body as text without the white space around it; InvalidArgument naming `field` when it is none."""
    body = await request.body()
    if len(body) > WORD_BYTES_MAX:
        raise InvalidArgument(f"{field}: it is longer than {WORD_BYTES_MAX} bytes", field=field, limit=WORD_BYTES_MAX)
    try:
        text = body.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{field}: it is not UTF-8 text", field=field) from error
    if not text:
        raise InvalidArgument(f"{field}: the body is empty; it must be the bare word", field=field)
    return text


def text_body(description: str, example: str) -> dict[str, Any]:
    """How OpenAPI describes such a body."""
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {"text/plain": {"schema": {"type": "string", "maxLength": WORD_BYTES_MAX}, "example": example}},
        }
    }
