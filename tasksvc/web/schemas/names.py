"""Ids and names, as they stand in paths, queries and documents."""

from __future__ import annotations

import re

from marshmallow.validate import Regexp

from tasksvc.domain.errors import TaskNotFound
from tasksvc.web.problems import wrong_shape

NAME = re.compile(r"(?!\.\.?\Z)[A-Za-z0-9._-]{1,100}\Z")
"""Of a queue or a schedule. `.` and `..` never arrive: clients take them out of a path."""

_RULE = "Must be 1 to 100 of A-Z, a-z, 0-9, dot, underscore and hyphen, but not . or .."

is_name = Regexp(NAME, error=_RULE)
"""A rule for marshmallow."""

_HEX = "[0-9a-fA-F]"
_UUID = re.compile(f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}")


def load_task_id(text: str) -> str:
    """Returns the id as the store knows it. Raises TaskNotFound: what is not a UUID is no task's
    id."""
    if not _UUID.fullmatch(text):
        raise TaskNotFound
    return text.lower()


def load_name(text: str, otherwise: type[Exception]) -> str:
    """Returns the name of something that exists. Raises `otherwise`: what is not a name names
    nothing."""
    if not NAME.match(text):
        raise otherwise
    return text


def load_new_name(text: str) -> str:
    """Returns the name of something that may not exist yet. Raises Problem, 422."""
    if not NAME.match(text):
        raise wrong_shape([{"pointer": "/name", "detail": _RULE}])
    return text
