"""The logger of structlog that the service and its handlers have."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from structlog import BoundLoggerBase
from structlog.typing import BindableLogger

from tasksvc.logs.lines import Fields

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "msg": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}


def logger_class(least: int, on_failure: Callable[[], None]) -> type[BindableLogger]:
    """A bound logger of lines from this level on, whose methods raise nothing.

    Those of structlog raise where the arguments don't fit the text, and where a field has the name
    of one of their parameters.
    """

    def say(logger: Any, level: int, event: Any, args: tuple[Any, ...], fields: Any) -> None:
        try:
            if args:
                event = _with_args(event, args, fields)
            logger._logger.log(level, Fields({**logger._context, **fields, "event": event}))
        except BaseException:
            on_failure()

    def at(name: str, level: int) -> Callable[..., None]:
        def method(self: Any, event: Any = "", /, *args: Any, **fields: Any) -> None:
            if name == "exception":
                fields.setdefault("exc_info", True)
            if "event" in fields:
                fields["event_"] = fields.pop("event")
            say(self, level, event, args, fields)

        def nothing(self: Any, event: Any = "", /, *args: Any, **fields: Any) -> None:
            return None

        return method if level >= least else nothing

    def log(self: Any, level: int, event: Any = "", /, *args: Any, **fields: Any) -> None:
        if level >= least:
            say(self, level, event, args, fields)

    methods: dict[str, Any] = {name: at(name, level) for name, level in _LEVELS.items()}
    methods["log"] = log
    methods |= {f"a{name}": _awaitable(method) for name, method in methods.items()}
    methods["is_enabled_for"] = lambda self, level: level >= least
    methods["get_effective_level"] = lambda self: least
    return type("Logger", (BoundLoggerBase,), methods)


def _with_args(event: Any, args: tuple[Any, ...], fields: dict[str, Any]) -> Any:
    try:
        has_names = len(args) == 1 and isinstance(args[0], dict) and args[0]
        return event % (args[0] if has_names else args)
    except BaseException:  # they don't fit, or one of them can't be shown
        fields["args"] = args
        return event


def _awaitable(method: Callable[..., None]) -> Callable[..., Awaitable[None]]:
    async def call(*args: Any, **fields: Any) -> None:
        method(*args, **fields)

    return call
