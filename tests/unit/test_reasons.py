"""Why a store is away: the kind of failure, without addresses and secrets."""

from __future__ import annotations

import socket
import ssl

import psycopg2
import pytest
from redis import exceptions as redis

from tasksvc.store import reasons as of_postgres
from tasksvc.stream import reasons as of_redis

SERVER = 'connection to server at "canary.example" (192.0.2.1), port 5432 failed: '
SOCKET = 'connection to server on socket "/canary/.s.PGSQL.5432" failed: '


@pytest.mark.parametrize(
    ("text", "reason", "is_lasting"),
    [
        (
            f"{SERVER}Connection refused\n\tIs the server running on that host?\n",
            "Connection refused",
            False,
        ),
        (f"{SOCKET}No such file or directory\n", "No such file or directory", False),
        (
            'could not translate host name "canary.example" to address: Name or service not known',
            "the name of its host can't be resolved: Name or service not known",
            False,
        ),
        (
            f"{SERVER}server does not support SSL, but SSL was required",
            "server does not support SSL, but SSL was required",
            True,
        ),
        (
            f"{SERVER}SSL error: certificate verify failed",
            "SSL error: certificate verify failed",
            True,
        ),
        (
            f'{SERVER}FATAL:  password authentication failed for user "app"\n',
            'password authentication failed for user "app"',
            True,
        ),
        (f"{SERVER}fe_sendauth: no password supplied", "fe_sendauth: no password supplied", True),
        (
            f'{SERVER}SSL error: x\n{SERVER}FATAL:  database "d" does not exist',
            'database "d" does not exist',
            True,
        ),
        (
            f"{SERVER}FATAL:  the database system is starting up",
            "the database system is starting up",
            False,
        ),
        (
            f"{SERVER}FATAL:  sorry, too many clients already",
            "sorry, too many clients already",
            False,
        ),
        ('definition of service "x" not found', 'definition of service "x" not found', True),
        ("", None, False),
    ],
)
def test_postgres_refuses(text: str, reason: str | None, is_lasting: bool) -> None:
    error = psycopg2.OperationalError(text)

    assert of_postgres.reason_of(error) == reason
    assert of_postgres.is_lasting(error) == is_lasting


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "no answer in time"),
        (of_postgres.NoConnection(), "no connection in time"),
        (
            socket.gaierror(-2, "Name or service not known"),
            "the name of its host can't be resolved: Name or service not known",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (RuntimeError("canary"), None),
    ],
)
def test_postgres_is_away(error: BaseException, reason: str | None) -> None:
    assert of_postgres.reason_of(error) == reason
    assert not of_postgres.is_lasting(error)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason", "is_lasting"),
    [
        (
            redis.AuthenticationError("invalid username-password pair or user is disabled."),
            "invalid username-password pair or user is disabled.",
            True,
        ),
        (
            redis.NoPermissionError("this user has no permissions to run the 'xadd' command"),
            "this user has no permissions to run the 'xadd' command",
            True,
        ),
        (redis.ResponseError("DB index is out of range"), "DB index is out of range", True),
        (redis.ResponseError("OOM command not allowed"), "OOM command not allowed", False),
        (
            redis.ResponseError("unknown command `AUTH`, with args beginning with: `canary`, "),
            "unknown command `AUTH`",
            False,
        ),
        (redis.ResponseError("MOVED 3999 10.0.0.1:6381"), "MOVED 3999", False),
        (redis.TimeoutError("Timeout reading from canary:6379"), "no answer in time", False),
        (
            caused(
                redis.ConnectionError("Error 111 connecting to canary:6379."),
                ConnectionRefusedError(111, "Connect call failed ('192.0.2.1', 6379)"),
            ),
            "Connection refused",
            False,
        ),
        (
            caused(redis.ConnectionError("x"), socket.gaierror(-2, "Name or service not known")),
            "the name of its host can't be resolved: Name or service not known",
            False,
        ),
        (
            caused(redis.ConnectionError("x"), ssl.SSLError(1, "[SSL] wrong version number")),
            "TLS: failed",
            False,
        ),
        (redis.InvalidResponse("Protocol Error: canary"), "what answers is no Redis", False),
        (redis.ConnectionError("Connection closed by server."), None, False),
    ],
)
def test_redis_is_away(error: BaseException, reason: str | None, is_lasting: bool) -> None:
    assert of_redis.reason_of(error) == reason
    assert of_redis.is_lasting(error) == is_lasting
