"""What the document's own formats mean, for Schemathesis: JSON Schema can say neither bytes nor cursors."""

from __future__ import annotations

import re
from typing import Any

import requests
import schemathesis
from hypothesis import strategies as st

from billing.api.http.openapi import document
from billing.api.http.reading import cursor_of

UTF8_BYTES = sorted(int(limit) for limit in set(re.findall(r"utf8-([0-9]+)", repr(document()))))


def text_within(bytes_max: int) -> st.SearchStrategy[str]:
    """Text of so many bytes in UTF-8."""
    texts = st.text(st.characters(codec="utf-8"), max_size=min(bytes_max, 40))
    return texts.filter(lambda text: len(text.encode()) <= bytes_max)


for each in UTF8_BYTES:
    schemathesis.openapi.format(f"utf8-{each}", text_within(each))
schemathesis.openapi.format("cursor-user_id", text_within(128).filter(bool).map(cursor_of))
schemathesis.openapi.format("cursor-text", text_within(40).map(cursor_of))  # of a place that nobody was told
schemathesis.openapi.format("cursor-integer", st.integers(0, 2**63 - 1).map(cursor_of))


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Takes `int64` out of requests: their bounds say the same, and what breaks the one may keep the other."""

    def without(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("format") == "int64" and "minimum" in node:
                del node["format"]
            node = list(node.values())
        if isinstance(node, list):
            for each in node:
                without(each)

    without(raw_schema["paths"])


@schemathesis.hook
def after_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], response: schemathesis.Response
) -> None:
    """Ends a backup that was begun: while one is made no bucket moves, and a call that moves one waits for its end."""
    if case.operation.definition.raw["operationId"] == "backup" and response.status_code == 200:
        assert response.request.url is not None
        requests.post(response.request.url, json={"step": "end"}, timeout=60)
