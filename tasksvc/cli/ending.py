"""What SIGTERM, SIGINT and SIGHUP do, and how the process ends.

Python's own signal handler is written in C and writes each signal into a socket, whatever the main
thread does. A thread reads the socket. So signals count while a handler blocks the event loop,
before there is an event loop, and after it has ended. Only code that never releases Python's
interpreter lock keeps the thread from running; then only SIGKILL ends the process.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType
from typing import NoReturn, Self

FAILED = 1
"""The exit code of a process that did not stop in order."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_LAST_SIGNAL = 3
"""So many signals end the process at once."""

_EXIT_SECONDS = 1.0
"""For the functions that libraries have registered with `atexit`, and for the output."""


class StopRequested(BaseException):
    """A signal came before the event loop ran, or while it started."""


class Ending:
    """Counts the signals and bounds the time until the process has ended.

    As a context manager it takes the signals, and gives them back. Use it in the main thread.
    """

    def __init__(self, within_seconds: float) -> None:
        """`within_seconds` is the time from the first signal until the process is ended hard."""
        self._within_seconds = within_seconds
        self._count = 0
        self._deadline: float | None = None
        self._code = FAILED
        self._is_last = False
        self._on_signal: Callable[[int], object] | None = None
        self._raises = True
        self._lock = threading.Lock()
        self._loops_socket: int | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._reader, self._writer = socket.socketpair()
            stack.callback(self._writer.close)
            self._writer.setblocking(False)
            self._null = stack.enter_context(open(os.devnull, "w"))
            stack.callback(faulthandler.cancel_dump_traceback_later)
            threading.Thread(target=self._watch, name="signals", daemon=True).start()
            before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            stack.callback(signal.set_wakeup_fd, before)
            for number in _SIGNALS:
                # nohup ignores SIGHUP, a shell SIGINT for what it starts in the background.
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    stack.callback(signal.signal, number, signal.getsignal(number))
                    stack.callback(_taken.discard, number)
                    signal.signal(number, self._in_main_thread)
                    _taken.add(number)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._raises = False
        self._stack.close()

    def tell(self, on_signal: Callable[[int], object]) -> None:
        """Calls `on_signal` with each signal's number, 1 for the first one, from another thread.

        Use it within the running event loop.
        """
        with self._lock:
            self._on_signal = on_signal
            self._raises = False
            for number in range(1, self._count + 1):
                self._notify(number)
        # The event loop has just put a socket of its own in the place of ours. It still gets every
        # signal, for its own signal handlers; but not from the same descriptor, which it closes.
        loops_own = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if loops_own not in (-1, self._writer.fileno()):
            self._loops_socket = os.dup(loops_own)
            self._stack.callback(os.close, self._loops_socket)

    def is_in_order(self) -> None:
        """What must be written is written: the exit code is 0 even if the rest hangs."""
        self._code = 0

    def end(self, code: int) -> NoReturn:
        """Ends the process, whatever threads there are: the interpreter would wait for them."""
        self._raises = False
        self._is_last = True
        self._code = code
        self._end_within(_EXIT_SECONDS)
        if processes := sys.modules.get("multiprocessing"):
            for child in processes.active_children():
                child.terminate()  # a pool's processes outlive us otherwise, and hold our port
        _end_fork_server()
        with suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        """Interrupts what the main thread does before there is an event loop."""
        if self._raises:
            self._raises = False  # what is closed then must not be interrupted
            raise StopRequested

    def _watch(self) -> None:
        """Reads until the writer is closed."""
        with self._reader:
            while data := self._read():
                for number in data:
                    if number in _SIGNALS:
                        self._take_signal()
                self._pass_on(data)

    def _read(self) -> bytes:
        while True:
            try:
                self._reader.settimeout(self._remaining_seconds())
                return self._reader.recv(64)
            except TimeoutError:
                self._give_up()

    def _take_signal(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._end_within(self._within_seconds)
            elif self._count >= _LAST_SIGNAL:
                os._exit(FAILED)
            self._notify(self._count)

    def _notify(self, number: int) -> None:
        if self._on_signal is not None:
            with suppress(RuntimeError):  # the event loop is closed
                self._on_signal(number)

    def _pass_on(self, data: bytes) -> None:
        if self._loops_socket is not None:
            with suppress(OSError):  # the loop has closed its end
                os.write(self._loops_socket, data)

    def _end_within(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        # A thread in C, for code that does not release the interpreter lock.
        faulthandler.dump_traceback_later(seconds + 1.0, exit=True, file=self._null)
        with suppress(OSError):
            self._writer.send(b"\0")  # the thread looks at the deadline again

    def _remaining_seconds(self) -> float | None:
        return None if self._deadline is None else max(0.001, self._deadline - time.monotonic())

    def _give_up(self) -> NoReturn:
        if self._code and not self._is_last:
            _say(f"tasksvc did not stop within {self._within_seconds:g} s and was ended.\n")
        os._exit(self._code)


def _end_fork_server() -> None:
    """It would end by itself, but waits for threads that a module has started at its import."""
    server = sys.modules.get("multiprocessing.forkserver")
    pid = getattr(getattr(server, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


_taken: set[int] = set()
"""The signals that an `Ending` has in this process."""

_forking = threading.local()


def _before_fork() -> None:
    """Keeps a signal to the new process waiting until the process has its own handlers. Ours would
    write it into our socket."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _taken)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if _taken:
        signal.set_wakeup_fd(-1)
        for number in _taken:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
        _taken.clear()
    _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)


def _say(text: str) -> None:
    """Writes to the terminal, unless it has no reader."""
    with suppress(OSError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode())
