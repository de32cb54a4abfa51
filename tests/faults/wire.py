"""A network between the services and their servers whose packets can be dropped.

It is a network namespace that only this process holds, so that it is gone with it, a pair of
virtual interfaces, and rules of iptables within the namespace alone. It needs root, iproute2 and
iptables.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

_NEW_NETWORK = 0x40000000
"""CLONE_NEWNET of <sched.h>."""

_BLOCKS = 16_384
"""Of four addresses each, in 198.18.0.0/16, which is for tests alone (RFC 2544)."""

_FAR = "far"
"""The name of the interface that the proxies listen on, within its own network."""

_ATTEMPTS = 100
"""How many blocks are tried before it gives up."""


class WireError(Exception):
    """This machine allows no network like this."""


class Wire:
    """The services are at one end, in the network that everybody has; the proxies listen at the
    other."""

    def __init__(self) -> None:
        self._inside = ThreadPoolExecutor(1)

    def __enter__(self) -> Wire:
        """Raises WireError."""
        try:
            self._lay()
        except (OSError, subprocess.CalledProcessError) as error:
            self._inside.shutdown()
            raise WireError(str(error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._inside.shutdown()  # with its last thread and socket the network is gone

    def listener(self) -> socket.socket:
        """A socket at the far end, on a port that is free there."""

        def bind() -> socket.socket:
            listener = socket.socket()
            # As a server would: it forgets a client that says nothing any more.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            listener.bind((self.address, 0))
            return listener

        return self._inside.submit(bind).result()

    def drop(self, port: int) -> None:
        """Every packet to and from this port is lost from now on."""
        self._run_inside("iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP")
        self._run_inside(
            "iptables", "-A", "OUTPUT", "-p", "tcp", "--sport", str(port), "-j", "DROP"
        )

    def heal(self) -> None:
        """No packet is lost any more."""
        self._run_inside("iptables", "-F")

    def _lay(self) -> None:
        if os.geteuid() or not (shutil.which("ip") and shutil.which("iptables")):
            raise OSError("no root, no iproute2 or no iptables")
        where = self._inside.submit(_leave_for_a_new_network).result()
        block = _take_block(where)
        near = _interface(block)
        _run("ip", "addr", "add", f"{_address(block, 1)}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        self.address = _address(block, 2)
        self._run_inside("ip", "addr", "add", f"{self.address}/30", "dev", _FAR)
        self._run_inside("ip", "link", "set", _FAR, "up")
        self.heal()  # whether iptables works, too

    def _run_inside(self, *command: str) -> None:
        self._inside.submit(_run, *command).result()


def _leave_for_a_new_network() -> str:
    """Gives the calling thread a network of its own; where others find it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"


def _take_block(where: str) -> int:
    """Adds the pair of interfaces and returns the number of the block that is theirs alone.

    The kernel refuses a name that exists. So two processes never share a block, and a block is free
    only once the kernel has removed the network that had it.
    """
    for block in random.SystemRandom().sample(range(_BLOCKS), _ATTEMPTS):
        with contextlib.suppress(subprocess.CalledProcessError):
            _run(
                *("ip", "link", "add", _interface(block), "type", "veth"),
                *("peer", "name", _FAR, "netns", where),
            )
            return block
    raise OSError(f"no pair of virtual interfaces after {_ATTEMPTS} attempts")


def _interface(block: int) -> str:
    return f"tasksvc{block}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _address(block: int, host: int) -> str:
    number = 4 * block + host
    return f"198.18.{number // 256}.{number % 256}"
