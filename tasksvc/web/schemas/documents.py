"""Reads a body as JSON, by a schema."""

from __future__ import annotations

from typing import Any

import orjson
from marshmallow import Schema, ValidationError

from tasksvc.web.problems import bad_json, wrong_shape
from tasksvc.web.schemas.errors import named_errors


def load(schema: Schema, body: bytes | bytearray) -> Any:
    """Returns what the schema makes of the body.

    Raises Problem: 400 for what is not JSON, 422 for the wrong shape.
    """
    document = read_document(body)
    try:
        return schema.load(document)
    except ValidationError as error:
        raise wrong_shape(named_errors(document, error.messages)) from None


def read_document(body: bytes | bytearray) -> Any:
    """Returns the value of the JSON. Raises Problem, 400."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # One type for all: syntax, bad UTF-8, a lone surrogate, NaN, nesting too deep.
        raise bad_json() from None
