"""What clients and their servers do to an instance, whichever way the request comes.

These are the five actions of the protocol: register, heartbeat, cancel, status update and removal
of a status override. A client sends each as a request of its own (``endpoints``, ``lanes``), a peer
many of them in a batch (``batch``). Source: protocol sections 2.4 to 2.6, 2.8 and 7.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial

from eureka_compat import codecs, wire
from eureka_compat.refusals import parse_failure, plain, refusal
from eureka_compat.routes import REGISTER
from eureka_compat.settings import EurekaSettings
from eureka_http.counting import Requests
from eureka_http.exchange import Answer, Promise
from registry import (
    RENEWAL_REFUSED,
    RENEWAL_UNKNOWN,
    Asker,
    Instance,
    InstanceStatus,
    NamespaceRegistry,
    NotYetError,
    Registering,
    RegistryError,
    StoreError,
)

# Makes a named tuple without the Python function that its class would call.
_new = tuple.__new__
NO_CONTENT = Answer(204)
AskerOf = Callable[[str], Asker]
"""Who sent requests with certain header fields from an address."""


class Actions:
    """The actions on the instances of one namespace; most answer with a status code.

    They raise what the registry's verbs raise. Thread-safe but for ``register_soon``.
    """

    def __init__(
        self, registry: NamespaceRegistry, settings: EurekaSettings, requests: Requests
    ) -> None:
        """Count what was promised in ``requests``."""
        self._registry = registry
        self._counted = registry.counted
        self._requests = requests
        self._compares_timestamps = settings.sync_when_timestamp_differs
        self._promised: list[tuple[Promise, Registering]] = []

    def parsed(self, app: str, body: bytes, is_json: bool) -> Instance | Answer:
        """The instance that a body spells for an application, or the refusal (2.4)."""
        try:
            if is_json:
                tree = codecs.instance_tree_from_json(body)
            else:
                tree = codecs.instance_tree_from_xml(body)
            candidate = wire.read_candidate(tree)
        except wire.ParseError as error:
            return parse_failure(str(error), is_json)
        try:
            return self.validated(app, candidate)
        except wire.InvalidInstanceError as error:
            return plain(400, str(error))

    def validated(self, app: str, candidate: wire.Candidate) -> Instance:
        """The instance that was read; ``InvalidInstanceError`` where it is none."""
        return wire.validated(candidate, app, self._registry.clock.wall_ms())

    def register(self, instance: Instance, *, is_replication: bool) -> None:
        """List it with a new lease."""
        self._registry.register(instance, is_replication=is_replication)

    def register_soon(
        self, instance: Instance, is_replication: bool, by: AskerOf | None = None
    ) -> Promise:
        """As ``register``, in one commit with all that come before ``settle``.

        To be called, as ``settle``, in the event loop's thread. ``by`` tells who asks, of the
        address that the promise has by then.
        """
        promise = Promise()
        asking = None if by is None else partial(_asker, by, promise)
        self._promised.append((promise, _new(Registering, (instance, is_replication, asking))))
        return promise

    def settle_apart(self) -> Callable[[], None]:
        """Take what was promised; what is returned settles it, in any thread."""
        promised, self._promised = self._promised, []
        return partial(self._settle, promised)

    def settle(self) -> None:
        """Register what was promised, and answer each (group commit)."""
        promised, self._promised = self._promised, []
        self._settle(promised)

    def _settle(self, promised: list[tuple[Promise, Registering]]) -> None:
        began = time.perf_counter()
        wanted = [registering for _, registering in promised]
        outcomes: list[RegistryError | None]
        try:
            outcomes = self._registry.register_all(wanted)
        except StoreError as error:
            outcomes = [error] * len(wanted)
        # Each of them has waited for all.
        took = time.perf_counter() - began
        listed = 0
        for (promise, wish), outcome in zip(promised, outcomes, strict=True):
            if outcome is None:
                promise.answer = NO_CONTENT
                listed += 1
            else:
                answer = refusal(outcome, "POST", f"apps/{wish.instance.app}")
                promise.answer = answer
                self._requests.note(REGISTER, answer.status, took, answer.length)
        if listed:
            self._requests.note(REGISTER, NO_CONTENT.status, took, times=listed)

    def renew(
        self,
        app: str,
        instance_id: str,
        dirty: str | None,
        override: str | None,
        *,
        is_replication: bool,
        is_quick: bool = False,
    ) -> tuple[int, Instance | None]:
        """Renew the lease, then compare timestamps: a status, and the instance of a 409 (2.6).

        Counts what was not renewed; the rest, which is nearly all, is counted as answers with 200.

        ``dirty`` is the last change that the client knows of (epoch milliseconds), ``override`` the
        status override that a peer has; both as they were sent. Where it ``is_quick``, and more
        than a lease may have to be written, ``NotYetError``, and nothing was done.
        """
        registry = self._registry
        told = None
        if dirty is not None:
            told = _java_long(dirty)
            if told is None:
                # To the original, who cannot be renewed comes first.
                found = registry.instance(app, instance_id)
                is_known = found is not None and found.status is not InstanceStatus.UNKNOWN
                self._counted[RENEWAL_REFUSED if is_known else RENEWAL_UNKNOWN] += 1
                return (400 if is_known else 404), None
        if is_quick and override is not None and override != "UNKNOWN":
            raise NotYetError
        instance = registry.renew(
            app, instance_id, is_replication=is_replication, is_quick=is_quick
        )
        if instance is None:
            self._counted[RENEWAL_UNKNOWN] += 1
            return 404, None
        if told is None or not self._compares_timestamps:
            return 200, None
        if told > instance.last_dirty_ms:
            self._counted[RENEWAL_REFUSED] += 1
            # The client has changed since: it is to register again.
            if is_replication and override is not None and override != "UNKNOWN":
                status = _status_named(override)
                if status is None:
                    return 400, None
                registry.store_override(app, instance_id, status, last_dirty_ms=told)
            return 404, None
        if told < instance.last_dirty_ms and is_replication:
            self._counted[RENEWAL_REFUSED] += 1
            # The peer is behind. Where the instance is gone by now, it gets what was compared.
            return 409, registry.instance(app, instance_id) or instance
        return 200, None

    def cancel(self, app: str, instance_id: str, *, is_replication: bool) -> int:
        """Take it out."""
        gone = self._registry.cancel(app, instance_id, is_replication=is_replication)
        return 200 if gone else 404

    def update_status(
        self,
        app: str,
        instance_id: str,
        value: str | None,
        dirty: str | None,
        *,
        is_replication: bool,
    ) -> int:
        """Override its status with the named one (2.8)."""
        change = self._registry.set_override
        return self._override(change, app, instance_id, value, dirty, is_replication)

    def delete_override(
        self,
        app: str,
        instance_id: str,
        value: str | None,
        dirty: str | None,
        *,
        is_replication: bool,
    ) -> int:
        """Remove the override; the named status is what it has until its next heartbeat (2.8)."""
        change = self._registry.remove_override
        value = "UNKNOWN" if value is None else value
        return self._override(change, app, instance_id, value, dirty, is_replication)

    def _override(
        self,
        change: Callable[..., Instance | None],
        app: str,
        instance_id: str,
        value: str | None,
        dirty: str | None,
        is_replication: bool,
    ) -> int:
        registry = self._registry
        if registry.instance(app, instance_id) is None:
            return 404
        status = _status_named(value)
        told = 0 if dirty is None else _java_long(dirty)
        if status is None or told is None:
            return 400
        changed = change(
            app, instance_id, status, last_dirty_ms=told, is_replication=is_replication
        )
        return 404 if changed is None else 200

    def update_metadata(self, app: str, instance_id: str, metadata: dict[str, str]) -> int:
        """Add these entries to its metadata. No peer passes this on."""
        # An expired lease counts as unknown, as for every read of one instance.
        if self._registry.instance(app, instance_id) is None:
            return 404
        return 200 if self._registry.update_metadata(app, instance_id, metadata) else 404


def _status_named(text: str | None) -> InstanceStatus | None:
    try:
        return InstanceStatus(text) if text else None
    except ValueError:
        return None


_LONG = re.compile(r"[+-]?\d{1,100}")


def _java_long(text: str) -> int | None:
    """Digits and nothing beside them, as Java's ``Long.valueOf`` takes them."""
    if len(text) < 19 and text.isascii() and text.isdecimal():
        return int(text)  # what clients send, the shortest way
    if not _LONG.fullmatch(text):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def _asker(by: AskerOf, promise: Promise) -> Asker:
    return by(promise.peer)
