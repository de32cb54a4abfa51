"""Where lines go: each place has a queue and a thread, so that none waits for another."""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from itertools import product
from typing import Protocol

QUEUE_LINES = 10_000
QUEUE_BYTES = 16 * 1024 * 1024

_BATCH_BYTES = 65_536
_GATHER_SECONDS = 0.005
"""A thread that writes takes the interpreter from the event loop: better once for many lines."""
_TICK_SECONDS = 1.0
_PIPE_BYTES = select.PIPE_BUF
"""Of one write to a pipe, so that lines of several processes don't mix."""


PLACES = ("file", "terminal")
REASONS = ("full", "failed", "unrenderable", "nested")
"""There was no room in the queue, or it could not be written, or made; or it was logged while too
many others were being rendered, each within the one before."""


class Dropped:
    """How many lines were lost, by where they should have gone and why."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a destructor may log in the middle of it
        self._counts = dict.fromkeys(product(PLACES, REASONS), 0)

    def add(self, place: str, reason: str, lines: int = 1) -> None:
        with self._lock:
            self._counts[place, reason] += lines

    def counts(self) -> dict[tuple[str, str], int]:
        with self._lock:
            return dict(self._counts)

    def of(self, place: str) -> int:
        return sum(count for (where, _), count in self.counts().items() if where == place)

    def forget_lock(self) -> None:
        """In a forked child: another thread may have held it."""
        self._lock = threading.RLock()


class Target(Protocol):
    """Writes lines, each with its end."""

    def write(self, lines: list[bytes]) -> int:
        """Writes what it can, and returns how many lines are lost. Raises nothing."""


class Sink:
    """A bounded queue of lines, and the thread that writes them."""

    def __init__(
        self,
        name: str,
        target: Target,
        dropped: Dropped,
        *,
        notice: Callable[[int], str],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        """`notice` makes the line that says how many lines are missing; `tick` is called about
        once a second by the thread."""
        self._name = name
        self._target = target
        self._dropped = dropped
        self._notice = notice
        self._tick = tick
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._bytes = 0
        self._missing_said = dropped.of(name)
        self._is_closing = False
        self._is_forked = False
        self._thread = threading.Thread(target=self._run, name=f"log-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, line: str) -> None:
        """Takes a line, or counts it where there is no room. Never waits."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if self._is_forked:
            self._write([data])
            return
        with self._lock:
            has_room = self._queue.qsize() < QUEUE_LINES and self._bytes + len(data) <= QUEUE_BYTES
            if has_room:
                self._bytes += len(data)
        if has_room:
            self._queue.put(data)
        else:
            self._dropped.add(self._name, "full")

    def flush(self, seconds: float) -> None:
        """Waits until what it has taken is written, at most so long."""
        until = time.monotonic() + seconds
        while self._bytes > 0 and self._thread.is_alive() and time.monotonic() < until:
            self._pause()

    def close(self, seconds: float) -> bool:
        """Waits until all is written, at most so long; whether it is."""
        self._is_closing = True
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @staticmethod
    def _pause() -> None:
        # Not time.sleep, which fails where a library moves the process's clock.
        threading.Event().wait(_GATHER_SECONDS)

    def write_at_once(self) -> None:
        """In a forked child, which has no thread that writes."""
        self._queue = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._is_forked = True

    def _run(self) -> None:
        ticked = time.monotonic()
        is_open = True
        while is_open:
            try:
                first = self._queue.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                batch: list[bytes] = []
            else:
                if not self._is_closing:
                    self._pause()
                batch, is_open = self._batch(first)
            if batch:
                self._write(batch)
                with self._lock:
                    self._bytes -= sum(map(len, batch))
            if time.monotonic() - ticked >= _TICK_SECONDS or not is_open:
                ticked = time.monotonic()
                self._say_what_is_missing()
                if is_open:
                    self._tick()

    def _batch(self, line: bytes | None) -> tuple[list[bytes], bool]:
        """This line and those that wait, and whether more may come."""
        batch: list[bytes] = []
        size = 0
        while line is not None:
            batch.append(line)
            size += len(line)
            if size >= _BATCH_BYTES:
                break
            try:
                line = self._queue.get_nowait()
            except queue.Empty:
                break
        return batch, line is not None

    def _write(self, batch: list[bytes]) -> int:
        lost = self._target.write(batch)
        if lost:
            self._dropped.add(self._name, "failed", lost)
        return lost

    def _say_what_is_missing(self) -> None:
        missing = self._dropped.of(self._name)
        if missing > self._missing_said:
            line = self._notice(missing - self._missing_said)
            if self._target.write([line.encode() + b"\n"]) == 0:
                self._missing_said = missing


class Terminal:
    """Standard error."""

    def __init__(self, on_trouble: Callable[[str], None]) -> None:
        self._on_trouble = on_trouble
        self._is_in_trouble = False
        self._waits = True

    def wait_for_nothing(self) -> None:
        """Drops a line rather than wait for a reader."""
        self._waits = False

    def write(self, lines: list[bytes]) -> int:
        """Writes what it can, and returns how many lines are lost. Raises nothing."""
        stream = sys.stderr
        if stream is None:
            return 0  # it was never used
        lost = 0
        for count, chunk in _chunks(lines, _PIPE_BYTES):
            try:
                try:
                    descriptor = stream.fileno()
                except (AttributeError, ValueError, OSError):  # something else takes its place
                    stream.write(chunk.decode())
                    stream.flush()
                else:
                    if not (self._waits or _takes(descriptor)):
                        lost += count
                        continue
                    # Not by the stream: it would keep its lock while there is no reader, and the
                    # interpreter could not end.
                    write_all(descriptor, chunk)
                self._is_in_trouble = False
            except Exception as error:
                lost += count
                if not self._is_in_trouble:
                    self._is_in_trouble = True
                    self._on_trouble(reason(error))
        return lost


def reason(error: Exception) -> str:
    """Why a write failed, without a path."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of it, and waits where the descriptor does not. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll(_TICK_SECONDS * 1000)


def _takes(descriptor: int) -> bool:
    """Whether it takes some bytes now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


def _chunks(lines: list[bytes], size: int) -> list[tuple[int, bytes]]:
    """Whole lines joined up to a size, or longer when one line is; with how many they are."""
    chunks: list[tuple[int, bytes]] = []
    part: list[bytes] = []
    length = 0
    for line in lines:
        if part and length + len(line) > size:
            chunks.append((len(part), b"".join(part)))
            part, length = [], 0
        part.append(line)
        length += len(line)
    if part:
        chunks.append((len(part), b"".join(part)))
    return chunks
