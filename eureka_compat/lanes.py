"""Requests that come by the thousand, answered without making a ``Request`` of each.

Clients send the same header fields with every heartbeat and every fetch. What the fields decide is
decided once for all requests that have them; what is left is to match a target and to call the
function that ``EurekaApi.answer`` would call.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping

from eureka_compat.actions import AskerOf
from eureka_compat.endpoints import EurekaApi
from eureka_compat.negotiation import is_json_body, is_replication, list_fields, negotiated
from eureka_compat.refusals import REFUSALS, RefusalError, bodiless, refusal
from eureka_http.exchange import Answer, Promise

_SEGMENT = "([^/%?#;]+)"
# What clients send with each heartbeat.
_TOLD = r"(?:\?status=[A-Z_]+&lastDirtyTimestamp=([0-9]{1,18}))?"


class EurekaLane:
    """The usual requests of clients that send the same header fields.

    Unusual ones, such as those with an escaped id, are left to ``EurekaApi.answer``.
    """

    def __init__(
        self,
        api: EurekaApi,
        base: str,
        headers: Mapping[str, str],
        by: AskerOf | None = None,
    ) -> None:
        """``base`` is the path that the protocol is served below, with a slash at its end.

        ``by`` tells the history who sends requests with these fields.
        """
        self._api = api
        self._base = base
        self._by = by
        application = rf"{re.escape(base)}(?:v2/)?apps/{_SEGMENT}"
        self._application = re.compile(application).fullmatch
        self._instance = re.compile(f"{application}/{_SEGMENT}").fullmatch
        self._heartbeat = re.compile(f"{application}/{_SEGMENT}{_TOLD}").fullmatch
        self._below = len(base)
        self._list_fields = list_fields(headers)
        self._find_reader = api.list_readers.get
        self._media = negotiated(headers.get("accept"))
        self._is_replication = is_replication(headers)
        self._longest = api.settings.max_instance_bytes
        self._posts_json: bool | None = None
        if "content-encoding" not in headers:
            with contextlib.suppress(RefusalError):
                self._posts_json = is_json_body(headers)

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        """The answer to a request; None where it is none of the usual ones. Never raises for it."""
        try:
            if method == "PUT":
                beat = self._heartbeat(target)
                if beat is not None:
                    app, instance_id, dirty = beat.groups()
                    return bodiless(
                        self._api.heartbeat(
                            app, instance_id, dirty, None, self._is_replication, self._media
                        )
                    )
            elif method == "GET":
                if target.startswith(self._base):
                    read = self._find_reader((target[self._below :], self._list_fields))
                    if read is not None:
                        return read()
                one = self._instance(target)
                if one is not None:
                    return self._api.instance(one[1], one[2], self._media)
            elif method == "POST" and self._posts_json is not None:
                posted = self._application(target)
                if posted is not None and posted[1] != "delta" and len(body) <= self._longest:
                    return self._api.register_soon(
                        posted[1], body, self._posts_json, self._is_replication, self._by
                    )
        except REFUSALS as error:
            return refusal(error, method, target)
        return None

    def reader(self, target: str) -> Callable[[], Answer | None] | None:
        """What gives the list that a target stands for, once it was asked for."""
        if not target.startswith(self._base):
            return None
        return self._find_reader((target[self._below :], self._list_fields))
