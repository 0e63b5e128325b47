"""Who the peers are: service URLs, without this server's own, one for each address of a name.

Source: protocol section 9.7. A genuine server compares host names alone, so two servers on one host
take each other for themselves unless ``myUrl`` tells them apart; here ports count as well. A name
with several addresses (a headless Service, a round-robin record) stands for several peers.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from eureka_http.shown import masked_url

Resolve = Callable[[str], Sequence[str]]
"""The addresses of a host's name, none where it has none at present."""


class Peer(NamedTuple):
    """One peer: the URL that names it, and which of its name's addresses is meant.

    ``address`` is None where the name has one address only: then the name is asked for each time a
    connection is made, as any client would.
    """

    scheme: str
    host: str
    port: int
    path: str
    credentials: tuple[str, str] | None = None
    address: str | None = None

    @property
    def name(self) -> str:
        """As it may be shown, unique among the peers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        at = f" ({self.address})" if self.address else ""
        return f"{self.scheme}://{host}:{self.port}{self.path}{at}"


def read_url(text: str) -> Peer:
    """The peer that a service URL names; ``ValueError`` shows no password."""
    text = text.strip()
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"not an http(s) URL: {masked_url(text)}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(f"not an http(s) URL: {masked_url(text)}")
    if parts.query or parts.fragment:
        raise ValueError(f"no query and no fragment can stand in {masked_url(text)}")
    credentials = None
    if parts.username is not None:
        credentials = (unquote(parts.username), unquote(parts.password or ""))
    default_port = 443 if parts.scheme == "https" else 80
    path = parts.path if parts.path.endswith("/") else parts.path + "/"
    return Peer(parts.scheme, host.lower(), port or default_port, path, credentials)


def addresses_of(host: str) -> list[str]:
    """What the system's resolver says."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_local(address: str) -> bool:
    """Whether an address is this machine's: one can bind only to one's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind((address, 0))
    except OSError:
        return False
    return True


def is_reached_by(address: str, listens: str, resolve: Resolve = addresses_of) -> bool:
    """Whether an address of this machine leads to a server that listens at ``listens``.

    Servers may share a port where each listens at an address of its own.
    """
    bound = ipaddress.ip_address(listens) if _is_literal(listens) else None
    if listens == "" or (bound is not None and bound.is_unspecified):
        return is_local(address)
    return address in ([str(bound)] if bound is not None else resolve(listens))


def others(
    urls: Iterable[str],
    *,
    my_url: str | None,
    host_name: str | None,
    port: int,
    resolve: Resolve = addresses_of,
    is_own: Callable[[str], bool] = is_local,
) -> list[Peer]:
    """All peers that the URLs name but this server itself, each once, in their order.

    Own is, in this order: what equals ``my_url``; else what has ``host_name`` (of several, that
    with ``port``); and always what listens at ``port`` on an address of this machine.
    """
    named = list(dict.fromkeys(read_url(url) for url in urls))
    if my_url is not None:
        own = _place(read_url(my_url))
        named = [peer for peer in named if _place(peer) != own]
    elif host_name is not None:
        same = [peer for peer in named if peer.host == host_name.lower()]
        if len(same) > 1:
            same = [peer for peer in same if peer.port == port] or same
        named = [peer for peer in named if peer not in same]
    found: list[Peer] = []
    for peer in named:
        addresses = [peer.host] if _is_literal(peer.host) else resolve(peer.host)
        if peer.port == port and my_url is None:
            kept = [address for address in addresses if not is_own(address)]
            if addresses and not kept:
                continue
        else:
            kept = list(addresses)
        families = {":" in address for address in addresses}
        if len(addresses) > 1 and len(families) == 1:
            found.extend(peer._replace(address=address) for address in kept)
        else:
            # One address, or one of each family: then it is one server with two ways to it.
            found.append(peer)
    return list(dict.fromkeys(found))


def _place(peer: Peer) -> tuple[str, str, int, str]:
    return peer.scheme, peer.host, peer.port, peer.path


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
