"""Errors of a request, as RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson

from tasksvc.web.answers import Answer

MEDIA_TYPE = "application/problem+json"

RETRY_AFTER_SECONDS = 1


class Problem(Exception):
    """An answer that is an error. `detail` is for people; it never repeats the request.

    `closes` ends the connection after it: where the next request begins is anybody's guess.
    """

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        closes: bool = False,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}
        self.closes = closes
        self.extensions = extensions

    def body(self) -> bytes:
        return orjson.dumps(
            {
                "type": "about:blank",
                "title": self.status.phrase,
                "status": self.status.value,
                "detail": str(self),
                **self.extensions,
            }
        )

    def response(self) -> Answer:
        response = Answer(
            self.body(), status=self.status, content_type=MEDIA_TYPE, headers=self.headers
        )
        if self.closes:
            response.force_close()
        return response


def bad_json() -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "The body is not valid JSON.")


def wrong_shape(errors: Sequence[Mapping[str, str]]) -> Problem:
    """Each error with the JSON Pointer (RFC 6901) of what is wrong."""
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "The body does not have the right shape.", errors=errors
    )


def unavailable(detail: str, *, closes: bool = False) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        detail,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        closes=closes,
    )
