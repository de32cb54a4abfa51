"""Fields that take JSON's own types and no others, and the base of all that is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from typing import Any

from marshmallow import Schema, ValidationError, fields, pre_load

from tasksvc.web.schemas.moments import RULE, read_moment

MAX_ERRORS = 10
"""The most errors that one answer names."""

_DIGITS = re.compile(r"[0-9]{1,9}")


class Number(fields.Float):
    """marshmallow's own takes `"5"` for 5."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> float:
        if not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        number: float = super()._deserialize(value, *args, **kwargs)
        return number


class Truth(fields.Boolean):
    """marshmallow's own takes 1 for true."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Digits(fields.Integer):
    """A whole number in a query string, where all is text."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        if not _DIGITS.fullmatch(value):
            raise self.make_error("invalid", input=value)
        return int(value)


class Moment(fields.Field[datetime]):
    """RFC 3339; a date alone, and a time without its offset, are read as UTC."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        try:
            return read_moment(value)
        except (TypeError, ValueError):
            raise ValidationError(RULE) from None


class Shape(Schema):
    """Null for an optional field is the same as no such field, unless the field has a use for it.

    Of the fields that it does not know it looks at as many as an answer names.
    """

    @pre_load
    def _take_what_is_given(self, data: Any, **kwargs: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = self.load_fields
        given = {
            name: data[name]
            for name, field in known.items()
            if name in data and (data[name] is not None or field.required or field.allow_none)
        }
        # A client that has one type for all tasks sends null, too, for what is left out here.
        unknown = (
            name
            for name, value in data.items()
            if name not in known and not (value is None and name in self.declared_fields)
        )
        return given | dict.fromkeys(islice(unknown, MAX_ERRORS))
