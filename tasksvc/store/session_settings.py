"""What every session sets for itself.

In a statement of its own, and not when it connects: PgBouncer refuses `options` or leaves them out,
and the environment (PGOPTIONS, PGTZ) and the role's defaults have a word there.
"""

from __future__ import annotations

_HAS_TRANSACTION_TIMEOUT = 170_000
"""The first version of PostgreSQL that has the setting."""

ONLY_PID = "SELECT pg_backend_pid()"

_SQL = """
SET statement_timeout = {limit};
SELECT pg_backend_pid(),
    set_config('synchronous_commit', CASE
        WHEN {is_local} THEN 'local'
        WHEN current_setting('synchronous_commit') = 'off' THEN 'on'
        ELSE current_setting('synchronous_commit')
    END, false),
    {settings}
"""


def statement(seconds: float, *, version: int, schema: str | None, waits_for_standby: bool) -> str:
    """One row, whose first column is the backend's process id.

    The client gives up after `seconds`. The server's limits are for what the client leaves behind.
    A commit that is acknowledged is on disk, whatever the role says; more than that, as of a
    standby, stays as it is, but for a session that must not wait for one.
    """
    milliseconds = max(1, round(seconds * 1000))
    settings: dict[str, object] = {
        "TimeZone": "UTC",
        "default_transaction_isolation": "read committed",
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": milliseconds * 2,
        "client_connection_check_interval": 2000,
        # A client whose machine is gone, or cut off, says no goodbye.
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
        # Every statement finds its rows by an index. A young table without statistics must
        # not talk the planner into reading all of it.
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "enable_indexscan": "on",
        "enable_indexonlyscan": "on",
        "enable_nestloop": "on",
        "jit": "off",
        # What is looked up by a nullable key would be read whole, and kept, for each statement.
        "enable_material": "off",
        "plan_cache_mode": "force_generic_plan",
    }
    if version >= _HAS_TRANSACTION_TIMEOUT:
        settings["transaction_timeout"] = 0
    if schema is not None:
        settings["search_path"] = '"{}"'.format(schema.replace('"', '""'))
    return _SQL.format(
        limit=milliseconds * 2,  # where a role's own limit is too short for the next statement
        is_local=not waits_for_standby,
        settings=",\n    ".join(
            f"set_config('{name}', {_quoted(str(value))}, false)"
            for name, value in settings.items()
        ),
    )


def _quoted(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))
