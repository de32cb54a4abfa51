"""A schema's quick reader, for where it is hot: whatever it takes, the schema takes too.

It is made of the schema: marshmallow keeps the rules, and names what is wrong. msgspec
only reads what is right, in a thirtieth of the time.
https://jcristharif.com/msgspec/constraints.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from marshmallow import Schema, ValidationError, fields
from marshmallow.validate import Length, Range, Regexp

from tasksvc.web.schemas.fields import Moment

_NUL = rb"\u0000"
"""As it stands in JSON."""

_TYPES = {
    fields.String: str,
    fields.Integer: int,
    fields.Float: float,
    Moment: str,
}
"""A moment is left as it is written: msgspec accepts more than RFC 3339 does."""


def without_nul(value: str) -> None:
    """A rule for marshmallow: PostgreSQL keeps no text with a NUL in it."""
    if "\0" in value:
        raise ValidationError("Must not contain NUL.")


class Reader:
    """Reads the JSON of an object that has no NUL in it."""

    def __init__(self, schema: Schema, names: Sequence[str]) -> None:
        """The schema's fields, all of them, in the order in which they are wanted.

        Raises TypeError for a rule that msgspec does not have.
        """
        assert set(names) == set(schema.fields)
        struct = msgspec.defstruct(
            "Document",
            [
                (name, _type(field)) if field.required else (name, _type(field) | None, None)
                for name, field in ((name, schema.fields[name]) for name in names)
            ],
            forbid_unknown_fields=True,
        )
        self._decode = msgspec.json.Decoder(struct).decode

    def read(self, body: bytes | bytearray) -> tuple[Any, ...] | None:
        """The values of the fields, None for those that are not given, moments as they are written;
        None for a body that is to be read by the schema: it is invalid or uncommon."""
        if _NUL in body:
            return None
        try:
            return msgspec.structs.astuple(self._decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


def _type(field: fields.Field[Any]) -> Any:
    if isinstance(field, fields.Enum):
        return field.enum
    rules: dict[str, Any] = {}
    for validator in field.validators:
        match validator:
            case Length():
                rules |= {"min_length": validator.min, "max_length": validator.max}
            case Range():
                rules["ge" if validator.min_inclusive else "gt"] = validator.min
                rules["le" if validator.max_inclusive else "lt"] = validator.max
            case Regexp():
                rules["pattern"] = f"^(?:{validator.regex.pattern!s})"
            case _ if validator is not without_nul:
                raise TypeError(f"A rule of {field.name} is not known here.")
    for known, kind in _TYPES.items():
        if isinstance(field, known):
            return Annotated[kind, msgspec.Meta(**rules)]
    raise TypeError(f"The type of {field.name} is not known here.")
