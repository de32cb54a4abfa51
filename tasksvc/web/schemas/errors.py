"""What is wrong with a document, in the words of marshmallow, each with its JSON Pointer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from marshmallow.exceptions import SCHEMA

from tasksvc.web.schemas.fields import MAX_ERRORS

MAX_NAME_LENGTH = 50


def named_errors(document: Any, messages: Any, pointer: str = "") -> list[dict[str, str]]:
    """Each with its JSON Pointer (RFC 6901), below that of the document; few, and with the names
    cut short."""
    if not isinstance(document, dict):
        return [{"pointer": pointer, "detail": "Must be an object."}]
    if isinstance(messages, dict):
        # In the order of the document: marshmallow finds unknown fields in that of a set.
        named = {name: messages[name] for name in document if name in messages}
        messages = named | messages
    return list(islice(_flat(pointer, messages, document), MAX_ERRORS))


def pointer_to(name: object) -> str:
    """To a field of the whole document."""
    text = str(name)[:MAX_NAME_LENGTH].encode("utf-8", "replace").decode()
    return "/" + text.replace("~", "~0").replace("/", "~1")


def _flat(pointer: str, messages: Any, document: Any) -> Iterator[dict[str, str]]:
    if not isinstance(messages, dict):
        yield {"pointer": pointer, "detail": " ".join(map(str, messages))}
        return
    for name, details in messages.items():
        if name == SCHEMA and not (isinstance(document, dict) and name in document):
            yield from _flat(pointer, details, None)  # of the object itself
            continue
        try:
            inner = document[name]
        except (LookupError, TypeError):
            inner = None
        yield from _flat(pointer + pointer_to(name), details, inner)
