"""Conversations as JSON, which is stored and exported, and as Markdown."""

from __future__ import annotations

import base64
import json
from typing import Any

from ui.chat.options import Options
from ui.client import Fault, LiveSlot, ServiceError
from ui.conversation import Conversation, Exchange, Question, Reply
from ui.picture import Picture

__all__ = ["from_json", "to_json", "to_markdown"]

SCHEMA = 1
REPLY_FIELDS = (
    "text",
    "reasoning",
    "reasoning_time",
    "finish_reason",
    "stopped",
    "first_token_time",
    "token_rate",
)


def to_json(conversation: Conversation, *, indent: int | None = None) -> bytes:
    """Return a conversation as UTF-8 JSON; pictures are in base64."""
    document = {
        "schema": SCHEMA,
        "id": conversation.id,
        "name": conversation.name,
        "options": conversation.options.document(),
        "exchanges": [
            {
                "question": _question(exchange.question),
                "reply": _reply(exchange.reply),
            }
            for exchange in conversation.exchanges
        ],
        "waiting": _question(conversation.waiting) if conversation.waiting else None,
    }
    return json.dumps(document, ensure_ascii=False, indent=indent).encode("utf-8", "surrogatepass")


def from_json(data: bytes) -> Conversation:
    """Return the conversation of `to_json`; a reply that had not ended is marked as interrupted.

    Raises ValueError, KeyError or TypeError for anything else.
    """
    document = json.loads(data.decode("utf-8", "surrogatepass"))
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']} is not supported")
    return Conversation(
        id=document["id"],
        name=document["name"],
        options=Options(**document["options"]),
        exchanges=[
            Exchange(_question_from(exchange["question"]), _reply_from(exchange["reply"]))
            for exchange in document["exchanges"]
        ],
        waiting=_question_from(document["waiting"]) if document["waiting"] else None,
    )


def to_markdown(conversation: Conversation, *, you: str, thought: str, picture: str) -> str:
    """Return a conversation as Markdown, pictures by name; `you`, `thought` and `picture` are labels."""
    parts = [f"# {conversation.title}"]
    if conversation.options.system:
        parts.append(f"> {conversation.options.system}".replace("\n", "\n> "))
    for exchange in conversation.exchanges:
        question, reply = exchange.question, exchange.reply
        parts.append(f"## {you}")
        parts += [f"*{picture}: {one.name}*" for one in question.pictures]
        parts += [question.text] * bool(question.text)
        parts.append(f"## {reply.live.version if reply.live and reply.live.version else 'GLM'}")
        if reply.reasoning:
            quoted = reply.reasoning.strip().replace("\n", "\n> ")
            parts.append(f"> **{thought}**\n>\n> {quoted}")
        parts += [reply.text] * bool(reply.text)
    return "\n\n".join(parts) + "\n"


def _question(question: Question) -> dict[str, Any]:
    pictures = [
        {"name": one.name, "media_type": one.media_type, "data": base64.b64encode(one.data).decode()}
        for one in question.pictures
    ]
    return {"text": question.text, "pictures": pictures}


def _question_from(document: dict[str, Any]) -> Question:
    pictures = tuple(
        Picture(one["name"], one["media_type"], base64.b64decode(one["data"])) for one in document["pictures"]
    )
    return Question(document["text"], pictures)


def _reply(reply: Reply) -> dict[str, Any]:
    live, error = reply.live, reply.error
    return {
        "complete": reply.complete,  # read first: then what follows is complete too
        **{name: getattr(reply, name) for name in REPLY_FIELDS},
        "version": live.version if live else "",
        "slot": live.slot if live else "",
        "error": {"fault": error.fault, "detail": error.detail} if error else None,
    }


def _reply_from(document: dict[str, Any]) -> Reply:
    reply = Reply.ended()
    for name in REPLY_FIELDS:
        setattr(reply, name, document[name])
    if document["version"] or document["slot"]:
        reply.live = LiveSlot(document["version"], document["slot"])
    if document["error"]:
        reply.error = ServiceError(Fault(document["error"]["fault"]), document["error"]["detail"])
    elif not document["complete"]:
        reply.error = ServiceError(Fault.INTERRUPTED)
    return reply
