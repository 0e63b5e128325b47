"""How this server stands among its peers, with the reason for each default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersSettings:
    """Units are in the names. Source of the names: protocol sections 9.7 and 10."""

    urls: tuple[str, ...] = ()
    """The peers' service URLs, this server's own among them or not, credentials in the URL."""

    my_url: str | None = None
    """Which of them is this server's; without it that is found out by host and port."""

    host_name: str | None = None
    """The host under which others know this server."""

    listens: str = "0.0.0.0"
    port: int = 8761
    """Where this server listens: the address, or all of this machine's, and the port."""

    app_name: str = "EUREKA"
    """The application under which this server lists itself in its peers."""

    register: bool = True
    """Whether it lists itself there; their dashboards count only such servers as available."""

    fetch: bool = True
    """Whether it takes what its peers have and it lacks, at the start and each minute."""

    mode: Literal["replicate", "shadow"] = "replicate"
    """``shadow`` receives and compares, and sends nothing: peers take nothing of it either."""

    sends_native: bool = True
    """Whether instances of the native API go to the peers."""

    sends_catalogs: bool = False
    """Whether what catalogs list goes to the peers: they would show it as their own, and keep it
    only as long as this server renews it."""

    connect_timeout_ms: int = 1000
    read_timeout_ms: int = 5000
    """Netflix's defaults. Spring's 200 ms take a garbage collector's pause for a peer's end."""

    resolve_interval_ms: int = 600_000
    """How often names are looked up again."""

    most_pending: int = 10_000
    """How many instances a peer may lag behind; beyond, the two are compared instead."""

    most_list_bytes: int = 128 << 20
    """The longest list that is taken from a peer: 100,000 instances of 1.3 KB. While it is read it
    takes about five times that in memory."""

    gzip: bool = False
    """Whether batches are compressed; a Spring server cannot read those that are."""

    start_wait_ms: int = 30_000
    """How long a server with an empty store is not ready while no peer answers. The genuine server
    has five minutes, in which its clients have nothing."""

    compare_interval_ms: int = 60_000
    """Between two comparisons with each peer."""

    hold_ms: int = 600_000
    """How long an instance that a peer renewed outlives its lease while a peer does not answer.
    Longer than a peer's restart, or a network's fault that somebody sees to at once; an instance
    that died meanwhile is listed for so long."""

    heartbeat_interval_ms: int = 1000
    """How often the peers are told who renewed: at most one heartbeat for each instance."""

    def active(self) -> bool:
        """Whether there is anybody to exchange anything with."""
        return bool(self.urls)
