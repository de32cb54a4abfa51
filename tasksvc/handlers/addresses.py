"""Where the kind `http` may go: URLs, host names and addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

import idna

_URL = re.compile(r"(?i:(http|https))://([^/?#\\]*)([^#]*)(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@\[\]]+)(?::([0-9]{0,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_UNSENDABLE = re.compile("[\0-\x1f\x7f]")
_NOT_IN_A_URL = re.compile(r"[^\x21-\x7e]")

_MAX_HOST_LENGTH = 253
_PORTS = {"http": 80, "https": 443}

_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # services of Azure for its own machines
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
"""https://www.iana.org/assignments/iana-ipv4-special-registry: also what older versions of Python
take for global."""

_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
"""What is given out to hosts. All else is reserved, local, or has an IPv4 address in it."""

_NOT_PUBLIC_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo and others
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
]


class WrongTarget(ValueError):
    """A URL or a host that can't be asked."""


def is_public(address: str) -> bool:
    """Whether it is neither private, nor of this machine or link, nor reserved, nor leads to an
    IPv4 address within it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _NOT_PUBLIC_V4)
    return ip in _PUBLIC_V6 and not any(ip in network for network in _NOT_PUBLIC_V6)


class Target(NamedTuple):
    """Where a URL leads."""

    is_https: bool
    host: str
    """A name in ASCII, or an address."""
    port: int
    authority: str
    """As the `Host` header has it."""
    path: str
    """With the query, as it was written; what a URL can't have is percent-encoded."""

    @classmethod
    def of(cls, url: str) -> Target:
        """Raises WrongTarget."""
        if (found := _URL.fullmatch(url)) is None or _UNSENDABLE.search(url):
            raise WrongTarget("The url must be one of http or https, without control characters.")
        scheme, (host, port) = found[1].lower(), _host_and_port(found[2])
        usual = _PORTS[scheme]
        port = usual if port is None else port
        shown = f"[{host}]" if ":" in host else host
        try:
            path = _NOT_IN_A_URL.sub(_percent, found[3])
        except UnicodeEncodeError:
            raise WrongTarget("The url has half of a surrogate pair, which is no text.") from None
        return cls(
            scheme == "https",
            host,
            port,
            shown if port == usual else f"{shown}:{port}",
            path if path.startswith("/") else f"/{path}",
        )


class Allowed:
    """Hosts, each with a port if it is not the usual one; `*.` stands for every name below."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises ValueError when one of them is no host."""
        self._entries: set[tuple[str, int | None]] = set()
        for entry in entries:
            wildcard = "*." if entry.startswith("*.") else ""
            try:
                host, port = _host_and_port(entry.removeprefix("*."))
            except WrongTarget as error:
                raise ValueError(f"{entry!r}: {error}") from None
            self._entries.add((wildcard + host, port))

    def __contains__(self, target: object) -> bool:
        if not isinstance(target, Target):
            return False
        ports = {target.port}
        labels = target.host.split(".")
        names = {target.host, *(f"*.{'.'.join(labels[at:])}" for at in range(1, len(labels)))}
        is_usual = target.port == _PORTS["https" if target.is_https else "http"]
        return not self._entries.isdisjoint(
            {(name, port) for name in names for port in (*ports, *([None] if is_usual else []))}
        )


def _host_and_port(authority: str) -> tuple[str, int | None]:
    """Raises WrongTarget."""
    if "@" in authority:
        raise WrongTarget("The url must be without a user.")
    if (found := _AUTHORITY.fullmatch(authority)) is None:
        raise WrongTarget("The url's host or port is not valid.")
    port = int(found[2]) if found[2] else None
    if port is not None and not 0 < port < 65_536:
        raise WrongTarget("The url's port is not valid.")
    return _host(found[1]), port


def _host(text: str) -> str:
    """An address, or a name in lower case and ASCII. Raises WrongTarget."""
    try:
        if text.startswith("["):
            return str(ipaddress.IPv6Address(text[1:-1]))
        name = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode()
    except (ValueError, UnicodeError):
        raise WrongTarget("The url's host is not valid.") from None
    name = name.removesuffix(".")
    labels = name.split(".")
    if len(name) > _MAX_HOST_LENGTH or not all(map(_LABEL.fullmatch, labels)):
        raise WrongTarget("The url's host is not valid.")
    if _NUMBER.fullmatch(labels[-1]):
        # Resolvers take all kinds of numbers for addresses: 2130706433, 0x7f.1, 127.1.
        try:
            ipaddress.IPv4Address(name)
        except ValueError:
            raise WrongTarget("The url's host is not valid.") from None
    return name


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode())
