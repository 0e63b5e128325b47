"""Requests that come by the thousand, answered without making a ``Request`` of each.

Clients send the same header fields with every heartbeat and every fetch. What the fields decide is
decided once for all requests that have them; what is left is to match a target and to call the
function that ``EurekaApi.answer`` would call.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping

from eureka_compat.actions import AskerOf
from eureka_compat.endpoints import OK, EurekaApi
from eureka_compat.negotiation import is_json_body, is_replication, list_fields, negotiated
from eureka_compat.refusals import REFUSALS, RefusalError, bodiless, refusal
from eureka_compat.routes import FETCH_INSTANCE, RENEW
from eureka_http.counting import SAMPLED, UNMEASURED
from eureka_http.exchange import Answer, Promise
from registry import NotYetError

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
        self._requests = api.requests
        # Where these are counted.
        self._numbers = api.requests.numbers
        self._renews = api.requests.place(RENEW)
        self._shows = api.requests.place(FETCH_INSTANCE)
        self._shown = api.requests.bytes_place(FETCH_INSTANCE)
        self._longest = api.settings.max_instance_bytes
        self._posts_json: bool | None = None
        if "content-encoding" not in headers:
            with contextlib.suppress(RefusalError):
                self._posts_json = is_json_body(headers)

    def answer(self, method: str, target: str, body: bytes) -> Answer | Promise | None:
        """The answer to a request; None where it is none of the usual ones. Never raises for it.

        None too where more than a lease is to be written: a store may have its callers wait.
        """
        try:
            if method == "PUT":
                beat = self._heartbeat(target)
                if beat is not None:
                    numbers, place = self._numbers, self._renews
                    began = 0.0 if numbers[place] & UNMEASURED else time.perf_counter()
                    app, instance_id, dirty = beat.groups()
                    answer = self._api.heartbeat(
                        app, instance_id, dirty, None, self._is_replication, self._media, True
                    )
                    if answer is OK:
                        numbers[place] += 1
                    else:
                        answer = bodiless(answer)
                        self._requests.count(place, answer.status)
                    if began:
                        self._took(place, began, answer)
                    return answer
            elif method == "GET":
                one = self._instance(target)
                if one is None:
                    # What is a list is answered so once; then its bytes are known.
                    read = self.reader(target)
                    if read is not None:
                        return read()
                else:
                    numbers, place = self._numbers, self._shows
                    began = 0.0 if numbers[place] & UNMEASURED else time.perf_counter()
                    answer = self._api.instance(one[1], one[2], self._media)
                    if answer.status == 200:
                        numbers[place] += 1
                    else:
                        self._requests.count(place, answer.status)
                    numbers[self._shown] += len(answer.body)
                    if began:
                        self._took(place, began, answer)
                    return answer
            elif method == "POST" and self._posts_json is not None:
                posted = self._application(target)
                if posted is not None and posted[1] != "delta" and len(body) <= self._longest:
                    return self._api.register_soon(
                        posted[1], body, self._posts_json, self._is_replication, self._by
                    )
        except NotYetError:
            return None
        except REFUSALS as error:
            answer = refusal(error, method, target)
            route = self._api.route(method, target[self._below :].partition("?")[0])
            self._requests.note(route, answer.status, None, answer.length)
            return answer
        return None

    def _took(self, place: int, began: float, answer: Answer) -> None:
        """Count how long it took: for many where it succeeded, of which one is measured."""
        weight = SAMPLED if answer.status == 200 else 1
        self._requests.took(place, time.perf_counter() - began, weight)

    def reader(self, target: str) -> Callable[[], Answer | None] | None:
        """What gives the list that a target stands for, once it was asked for."""
        if not target.startswith(self._base):
            return None
        return self._find_reader((target[self._below :], self._list_fields))
