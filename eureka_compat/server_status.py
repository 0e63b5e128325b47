"""What the server tells of itself: ``GET status``, and the overrides by instance id."""

from __future__ import annotations

import os
import time

from eureka_compat import codecs
from eureka_compat.negotiation import JSON, XML
from eureka_compat.peers.seen import PeersSeen
from eureka_compat.settings import EurekaSettings
from eureka_http.exchange import Answer
from registry import View

_MEGABYTE = 1024 * 1024


class ServerStatus:
    """The status of this process since it was made."""

    def __init__(self, settings: EurekaSettings, peers: PeersSeen) -> None:
        self._peers = peers
        self._environment = settings.environment
        self._started = time.monotonic()

    def answer(self, media: str | None) -> Answer:
        """The original's ``StatusInfo``, in the media type that was negotiated."""
        if media is None:
            return Answer(406)
        tree = {
            "generalStats": self._general_stats(),
            "applicationStats": self._replicas(),
        }
        if media == JSON:
            return Answer(200, codecs.to_json({**tree, "healthy": True}), JSON)
        body = codecs.to_xml("com.netflix.eureka.util.StatusInfo", tree)
        return Answer(200, body.rstrip("\n").encode(), XML)

    def _replicas(self) -> dict[str, str]:
        """The peers, in the original's words and with its commas.

        It calls those available that are listed in the registry; here, those that answer.
        """
        peers = self._peers.report().get("peers", [])
        named = dict.fromkeys(("available", "unavailable"), "")
        for peer in peers:
            named["available" if peer["state"] == "up" else "unavailable"] += f"{peer['url']},"
        return {
            "registered-replicas": ", ".join(peer["url"] for peer in peers),
            "available-replicas": named["available"],
            "unavailable-replicas": named["unavailable"],
        }

    def _general_stats(self) -> dict[str, str]:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[1]) * page
        minutes = int(time.monotonic() - self._started) // 60
        days, hours = minutes // 1440, minutes // 60 % 24
        clock = f"{hours:02d}:{minutes % 60:02d}"
        return {
            "environment": self._environment,
            "num-of-cpus": str(os.cpu_count() or 1),
            "total-avail-memory": f"{total // _MEGABYTE}mb",
            "current-memory-usage": f"{used // _MEGABYTE}mb ({100 * used // total}%)",
            "server-uptime": clock if not days else f"{days} day{'s' * (days > 1)} {clock}",
        }


def status_overrides(view: View) -> Answer:
    """The status overrides of a namespace, by instance id."""
    with view.lock:
        overrides = {key: str(status) for key, status in view.overrides.items()}
    return Answer(200, codecs.to_json(overrides), JSON)
