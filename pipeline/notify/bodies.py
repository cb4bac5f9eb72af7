"""A notice as the bodies that chat services take."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Any

from pipeline.notify.notice import Notice


def text(notice: Notice) -> dict[str, Any]:
    """`{"text": ...}`: Slack's incoming webhooks, Mattermost, Teams' older connectors."""
    lines = [notice.title, *(f"{name}: {value}" for name, value in _facts(notice))]
    return {"text": _escaped("\n".join(lines))}


def _escaped(said: str) -> str:
    # Slack reads <...> as links and as calls of everybody; a server's words must not become either.
    return said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def adaptive_card(notice: Notice) -> dict[str, Any]:
    """A message with an Adaptive Card: Teams' workflows ("when a webhook request is received")."""
    body = [_run_of_text(notice.title, weight="Bolder", size="Medium")]
    body += [_run_of_text(f"{name}: {value}") for name, value in _facts(notice)]
    return {
        "type": "message",
        "attachments": [
            {
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": None,
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.2",
                    "body": body,
                },
            }
        ],
    }


def _run_of_text(said: str, **style: str) -> dict[str, Any]:
    # Not a TextBlock: that one reads Markdown, and a server's words would become links.
    return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": said, **style}]}


def members(notice: Notice) -> dict[str, Any]:
    """Every member by its name, for programs."""
    return notice.as_json()


BODIES: dict[str, Callable[[Notice], dict[str, Any]]] = {
    "text": text,
    "adaptive-card": adaptive_card,
    "json": members,
}


def _facts(notice: Notice) -> list[tuple[str, str]]:
    found = [
        ("reason", notice.reason),
        ("next", notice.next_step),
        ("run", notice.run_id or ""),
        ("at", f"{notice.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
    ]
    return [(name, value) for name, value in found if value]
