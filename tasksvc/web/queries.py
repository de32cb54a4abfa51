"""The query string: each parameter once, and none that is not known."""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web
from marshmallow import Schema, ValidationError

from tasksvc.web.problems import wrong_shape
from tasksvc.web.schemas.errors import named_errors, pointer_to
from tasksvc.web.schemas.fields import MAX_ERRORS, Shape


class _Nothing(Shape):
    """The query of a route that takes none."""


_NOTHING = _Nothing()


def check_no_query(request: web.Request) -> None:
    """Raises Problem, 422, for any parameter."""
    if request.rel_url.raw_query_string:
        load_query(_NOTHING, request)


def load_query(schema: Schema, request: web.Request) -> dict[str, Any]:
    """The parameters, as the schema reads them. Raises Problem, 422."""
    query: dict[str, str] = {}
    errors = []
    for name, value in request.query.items():
        if name in query:
            errors.append({"pointer": pointer_to(name), "detail": "Must be given once."})
        elif not value.isascii() and not _is_text(value):
            errors.append({"pointer": pointer_to(name), "detail": "Must be UTF-8."})
        query[name] = value
        if len(errors) == MAX_ERRORS:
            break
    if not errors:
        try:
            loaded: dict[str, Any] = schema.load(query)
            return loaded
        except ValidationError as error:
            errors = named_errors(query, error.messages)
    raise wrong_shape(errors)


def next_link(request: web.Request, **parameters: str) -> dict[str, str]:
    """The header with the address of the next page: this one's, with other parameters."""
    url = request.rel_url.update_query(**parameters)
    return {hdrs.LINK: f'<{url}>; rel="next"'}


def _is_text(value: str) -> bool:
    """Whether it was UTF-8: what was not has become halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
