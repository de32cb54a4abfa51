"""Reads the URLs of PostgreSQL and Redis before anything connects. No error repeats a URL."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlencode, urlsplit

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn

_SCHEMES = (
    "postgresql",
    "postgres",
    "postgresql+asyncpg",
    "postgresql+aiopg",
    "postgresql+psycopg2",
)

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_SSL_WORDS = {"true": "require", "false": "disable"}

_HOST = re.compile(r"[\w.:-]+")

MAX_PORT = 65_535

_OF_OTHER_DRIVERS = frozenset(
    {
        "async_fallback",
        "charset",
        "command_timeout",
        "connection_limit",
        "echo",
        "encoding",
        "max_cached_statement_lifetime",
        "max_overflow",
        "max_size",
        "maxsize",
        "min_size",
        "minsize",
        "pool_pre_ping",
        "pool_recycle",
        "pool_size",
        "pool_timeout",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "statement_cache_size",
        "timeout",
    }
)
"""What SQLAlchemy, asyncpg and others read from such a URL, and libpq refuses to know. It tunes
those drivers, and has no effect here."""

_TARGETS = ("any", "read-write", "primary")
"""Of `target_session_attrs`: the service writes."""

_MAX_SCHEMA_BYTES = 63

_REDIS_DATABASE = re.compile(r"/?|/\d+")


class UrlError(Exception):
    """Says in one sentence what is wrong. It never holds the URL, which may hold a password."""


def database_url(url: str) -> tuple[str, str | None]:
    """Returns the URL as libpq understands it, whichever driver it was written for, and the schema
    that it names. Raises UrlError."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UrlError("Not a valid URL.") from None
    if parts.scheme not in _SCHEMES or "://" not in url:
        raise UrlError(f"Must begin with one of: {', '.join(_SCHEMES)}, and ://.")
    rest = f"{parts.path}?{parts.query}#{parts.fragment}"
    if parts.fragment or ("@" in rest and "@" not in parts.netloc):
        raise UrlError("Write the #, / and ? of a password as %23, %2F and %3F.")
    parameters = _parameters(parts.query)
    if ssl := parameters.pop("ssl", None):  # asyncpg's word
        parameters.setdefault("sslmode", _SSL_WORDS.get(ssl.lower(), ssl))
    schema = parameters.pop("schema", None)  # Prisma's word
    if schema is not None and not 0 < len(schema.encode()) <= _MAX_SCHEMA_BYTES:
        raise UrlError("schema must be the name of a schema.")
    if parameters.pop("pgbouncer", "false").lower() != "false":  # Prisma's too
        raise UrlError(
            "pgbouncer=true means a pooler in transaction mode, which can't be used."
            " Set it to pool_mode = session, and leave the parameter out."
        )
    kept = {name: value for name, value in parameters.items() if name not in _OF_OTHER_DRIVERS}
    for name in kept:
        if _parse_dsn(f"postgresql:///?{quote(name)}=0") is None:
            raise UrlError(f"PostgreSQL knows no parameter {name[:40]!r}.")
    # By hand: urlunsplit leaves out the slashes of a URL without a host.
    cleaned = f"postgresql://{parts.netloc}{parts.path}"
    if kept:
        cleaned += f"?{urlencode(kept, quote_via=quote)}"
    dsn = _parse_dsn(cleaned)
    if dsn is None:
        raise UrlError("Not a valid PostgreSQL URL.")
    _check_dsn(dsn)
    return cleaned, schema


def _parameters(query: str) -> dict[str, str]:
    """As libpq reads them: a plus is a plus."""
    pairs = [part.partition("=") for part in query.split("&") if part]
    return {unquote(name): unquote(value) for name, _, value in pairs}


def _parse_dsn(url: str) -> dict[str, str] | None:
    try:
        return dict(parse_dsn(url))
    except (ProgrammingError, ValueError):  # its message may repeat the password
        return None


def _check_dsn(dsn: dict[str, str]) -> None:
    """What libpq finds out only when it connects."""
    if "," in dsn.get("host", "") + dsn.get("hostaddr", ""):
        raise UrlError("Must name one host alone.")
    port = dsn.get("port", "5432")
    if not (port.isdecimal() and 0 < int(port) <= MAX_PORT):
        raise UrlError(f"The port must be a number from 1 to {MAX_PORT}.")
    if dsn.get("sslmode", "prefer") not in _SSL_MODES:
        raise UrlError(f"sslmode must be one of: {', '.join(_SSL_MODES)}.")
    if dsn.get("target_session_attrs", "any") not in _TARGETS:
        raise UrlError(f"target_session_attrs must be one of: {', '.join(_TARGETS)}.")
    timeout = dsn.get("connect_timeout", "0")
    if not (timeout.isdecimal() and len(timeout) < 6):
        raise UrlError("connect_timeout must be a number of seconds.")
    if "replication" in dsn:
        raise UrlError("replication can't be used.")
    if dsn.get("client_encoding", "auto").lower() not in ("auto", "utf8", "utf-8", "unicode"):
        raise UrlError("client_encoding must be UTF8.")


def redis_url(url: str) -> str:
    """Returns the URL. Raises UrlError."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise UrlError("Must begin with redis://, rediss:// or unix://.")
    if not _is_redis_url(url):
        raise UrlError("Not a valid Redis URL.")
    parts = urlsplit(url)
    if parts.scheme != "unix" and not _REDIS_DATABASE.fullmatch(unquote(parts.path)):
        raise UrlError("The path must be the number of a database, as in /0.")
    if _parameters(parts.query).get("protocol", "2") != "2":
        raise UrlError("protocol must be 2.")
    return url


def redis_url_of(host: str, port: int, password: str) -> str:
    """Returns the URL of a host. Raises UrlError."""
    credentials = f":{quote(password, safe='')}@" if password else ""
    url = f"redis://{credentials}{f'[{host}]' if ':' in host else host}:{port}/0"
    if not (_HOST.fullmatch(host) and _is_redis_url(url)):
        raise UrlError("Must be the name or the address of a host.")
    return url


def _is_redis_url(url: str) -> bool:
    """Whether a connection can be made of it; none is opened."""
    # Here, so that a command which needs no Redis does not wait for its client.
    from redis.asyncio import ConnectionPool
    from redis.exceptions import RedisError

    try:
        connection = ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
        getattr(connection, "host", "").encode("idna")  # as the resolver will
    except (ValueError, TypeError, RedisError):  # its message may repeat the password
        return False
    return True
