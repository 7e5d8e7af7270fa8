"""Pretty-printed JSON, as KvDB sends it; its readers are people with curl as often as programs."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse


class PrettyJson(JSONResponse):
    """Two spaces, nulls written, non-ASCII text as it is."""

    def render(self, content: Any) -> bytes:
        return (json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode("utf-8")
