"""Why an instance is listed as it is, and when it goes: plain sentences, and the facts behind them.

Everything is read at one moment and nothing is decided here. The sentences come in this order: what
the status is and which rule decided; when it renewed last and through whom; when it goes and what
holds it; where it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from registry.errors import StoreError
from registry.history import HistoryEntry, HistoryKind, Wish
from registry.lease import eviction_limit
from registry.model import Change, Instance, InstanceKey, InstanceStatus, Lease
from registry.namespace import NamespaceRegistry
from registry.preservation import Preservation
from registry.status_rules import Situation, deciding_rule
from registry.view import NotYetError
from registry.words import counted, instant, span, who

# A renewal so much later than the client's own came from elsewhere.
_LATER_MS = 1_000
# A heartbeat is missed once it is half an interval late.
_LATE = 0.5
# A page of the history may be empty though more follow.
_PAGES = 20
# What the history calls what kept an instance.
_HELD_BY = {
    "self-preservation": "self-preservation",
    "eviction-budget": "the eviction limit",
    "peers": "a server that may know more",
}


@dataclass(frozen=True, slots=True)
class Why:
    """The paragraph, and what it is made of: JSON values, instants in epoch milliseconds."""

    sentences: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def text(self) -> str:
        """One paragraph."""
        return " ".join(self.sentences)


def explain(
    registry: NamespaceRegistry,
    instance_id: str,
    app: str | None = None,
    *,
    catalogs: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
    is_quick: bool = False,
) -> Why:
    """Why an instance is as it is, or why it is not listed; ``StoreError``.

    ``app`` (upper case) tells instances of one id apart; ``catalogs`` tells how each catalog is.
    ``NotYetError`` where it ``is_quick`` and the history or what has gone must be looked through.
    """
    if is_quick and registry.history is not None:
        raise NotYetError
    view = registry.view()
    gone = None
    with view.lock:
        apps = view.apps_with(instance_id)
        if app is None and apps:
            app = apps[0]
        instance = None if app is None else view.get(InstanceKey(app, instance_id))
        override = view.overrides.get(instance_id)
        if instance is None:
            if is_quick:
                raise NotYetError
            gone = _last_removal(view.recent(registry.clock.mono_ms()), instance_id, app)
    if instance is None:
        return _not_listed(registry, instance_id, app, gone, override)
    catalog = None
    if not instance.is_leased:
        catalog = next((each for each in catalogs() if each["source"] == instance.source), None)
    return _Listed(registry, instance, override, apps, catalog).why()


class _Listed:
    """What there is to say of a listed instance, gathered sentence by sentence."""

    def __init__(
        self,
        registry: NamespaceRegistry,
        instance: Instance,
        override: InstanceStatus | None,
        apps: Sequence[str],
        catalog: Mapping[str, Any] | None,
    ) -> None:
        self._registry = registry
        self._instance = instance
        self._override = override
        self._catalog = catalog
        self._apps = apps
        self._lease = registry.lease(instance.key) if instance.is_leased else None
        self._doubled = registry.settings.lease_expiry == "genuine"
        self._mono, self._wall = registry.clock.mono_ms(), registry.clock.wall_ms()
        self._sentences: list[str] = []
        self._facts: dict[str, Any] = {
            "id": instance.id,
            "application": instance.app,
            "namespace": registry.namespace,
            "listed": True,
            "revision": instance.revision,
        }

    def why(self) -> Why:
        self._tell_status()
        if self._lease is not None:
            self._tell_renewal(self._lease)
            self._tell_end(self._lease)
        elif self._instance.is_leased:
            # It was there a moment ago: the lease went between the two looks.
            self._sentences.append(
                "Its lease cannot be read: it is being removed, or the store does not answer."
            )
        else:
            self._tell_source()
        self._tell_origin()
        if len(self._apps) > 1:
            others = ", ".join(app for app in self._apps if app != self._instance.app)
            self._sentences.append(f"Instances of the same id are in {others}, too.")
        return Why(tuple(self._sentences), self._facts)

    # What its status is, and which rule decided

    def _tell_status(self) -> None:
        rule, text = self._status()
        instance = self._instance
        self._facts |= {
            "status": str(instance.status),
            "custom_status": instance.custom_status,
            "override": None if self._override is None else str(self._override),
            "rule": rule,
        }
        self._sentences.append(
            f"{instance.id} of {instance.app} is listed as {instance.status}: {text}."
        )
        if self._override is not None and instance.is_leased:
            self._tell_who_set(self._override)
        if instance.custom_status is not None and instance.status is InstanceStatus.UP:
            self._sentences.append(
                f"Its own word for that is {instance.custom_status!r}, which the native API shows."
            )

    def _tell_who_set(self, override: InstanceStatus) -> None:
        """Who set the override, and when, as far as the history knows."""
        instance = self._instance
        entry = _newest(self._registry, instance.app, instance.id, HistoryKind.OVERRIDE)
        if entry is None or entry.detail.get("override") != override:
            return
        by = _by(entry)
        self._facts |= {"override_set_ms": entry.at_ms, "override_set_by": by}
        ago = span(self._wall - entry.at_ms)
        self._sentences.append(
            f"The override was set {ago} ago, at {instant(entry.at_ms)}, by {by}."
        )

    def _status(self) -> tuple[str, str]:
        """The name of the rule that decided, and what it comes to."""
        instance, status, override = self._instance, self._instance.status, self._override
        if not instance.is_leased:
            return "source", f"its source {instance.source} alone says what it is"
        rule = deciding_rule(Situation(status, override, None, is_replication=False))
        if status is InstanceStatus.UNKNOWN:
            return rule, (
                "an override was removed without a status to be shown instead; its client's next"
                " heartbeat is answered that it must register again, and then it says what it is"
            )
        if rule == "down_or_starting":
            told = "it says so itself, and whoever cannot serve is believed"
            if override is not None:
                told += f", before the override {override} that is set for its id"
            return rule, f"{told} (rule {rule})"
        if override is status:
            return rule, f"an override says so, whatever it says itself (rule {rule})"
        if override is not None:
            return "reported", (
                f"so it was registered; the override {override} that another server told of is"
                " applied by its next heartbeat"
            )
        if status is InstanceStatus.OUT_OF_SERVICE and instance.source == "eureka":
            return "lease_exists", (
                "it registered so, without an override, and cannot put itself back by registering"
                " as UP (rule lease_exists); an override UP does, or registering after a cancel"
            )
        return rule, "it says so itself, and there is no override"

    # When it renewed last, and through whom

    def _tell_renewal(self, lease: Lease) -> None:
        instance = self._instance
        by, ago_ms = self._last_renewal(lease)
        interval_ms = instance.renewal_interval_secs * 1000
        told = {
            "client": f"Its client renewed its lease {span(ago_ms)} ago, at this server",
            "peer": f"Its client renewed its lease {span(ago_ms)} ago, at another server",
            "operator": f"A change of its status renewed its lease {span(ago_ms)} ago",
            "registration": f"It registered {span(ago_ms)} ago and has not renewed since",
        }[by]
        missed = 0
        if interval_ms > 0:
            told += f"; it says that it renews every {span(interval_ms)}"
            missed = int(ago_ms / interval_ms + _LATE) - 1 if ago_ms > interval_ms else 0
            if missed > 0:
                told += f", so {counted(missed, 'heartbeat')} did not come"
        self._sentences.append(f"{told}.")
        self._facts |= {
            "renewed_by": by,
            "renewed_ms_ago": ago_ms,
            "last_renewal_ms": self._wall - ago_ms,
            "renewal_interval_secs": instance.renewal_interval_secs,
            "missed_heartbeats": max(0, missed),
        }

    def _last_renewal(self, lease: Lease) -> tuple[str, int]:
        """Through whom it was: its client, a peer, an operator's change; or only registered."""
        instance = self._instance
        told = lease.last_renewal_ms
        if self._doubled and told > instance.registration_ms + _LATER_MS:
            told -= lease.duration_ms  # shown one duration ahead, as the genuine server does
        ago_ms = max(0, self._wall - told)
        if lease.client_mono_ms:
            by_client_ms_ago = max(0, self._mono - lease.client_mono_ms)
            if by_client_ms_ago <= ago_ms + _LATER_MS:
                return "client", by_client_ms_ago
        if abs(told - instance.registration_ms) <= _LATER_MS:
            return "registration", ago_ms
        if abs(told - instance.last_updated_ms) <= _LATER_MS and not instance.peers_know:
            return "operator", ago_ms
        return "peer", ago_ms

    # When it goes, and what holds it

    def _tell_end(self, lease: Lease) -> None:
        instance, settings = self._instance, self._registry.settings
        left_ms = lease.deadline_mono_ms - self._mono
        at = instant(self._wall + left_ms)
        length = span(lease.duration_ms)
        self._facts |= {
            "lease_secs": lease.duration_ms // 1000,
            "lease_ends_ms": self._wall + left_ms,
            "lease_ends_in_ms": left_ms,
            "lease_has_ended": left_ms < 0,
            "held_by": [],
        }
        if not instance.expires:
            self._facts["held_by"] = ["out-of-service"]
            self._sentences.append(
                "It is put aside and waits to return: while it is OUT_OF_SERVICE it needs no"
                " heartbeats and is not evicted."
            )
            return
        preservation = self._registry.preservation()
        if left_ms >= 0:
            self._sentences.append(f"Its lease of {length} ends in {span(left_ms)}, at {at}.")
            if preservation.holds(instance.app):
                self._sentences.append(f"It would be kept then: {preservation.sentence}")
            elif self._doubled:
                sweep = span(settings.eviction_interval_ms)
                self._sentences.append(
                    f"If no renewal comes, it goes with the next sweep then, one every {sweep}."
                )
            else:
                self._sentences.append(
                    "If no renewal comes, it is evicted within about a second then."
                )
            return
        self._sentences.append(f"Its lease of {length} ended {span(-left_ms)} ago, at {at}.")
        held = self._holders(lease, preservation)
        self._facts["held_by"] = list(held)
        self._sentences += held.values()
        if held:
            return
        if self._doubled:
            sweep = span(settings.eviction_interval_ms)
            told = f"Nothing holds it: it goes with the next sweep, one every {sweep}."
        else:
            told = "Nothing holds it: it goes with the evictor's next pass, within a second."
        self._sentences.append(told)

    def _holders(self, lease: Lease, preservation: Preservation) -> dict[str, str]:
        """What keeps the instance though its lease has ended, with a sentence for each."""
        held = {}
        if preservation.holds(self._instance.app):
            held["self-preservation"] = preservation.sentence
        reason = self._registry.held_back_reason(self._instance, lease)
        if reason:
            held["peer"] = reason
        gone = 0 if self._doubled else self._registry.evicted_lately()
        of = preservation.leases + gone
        limit = eviction_limit(of, self._registry.settings.renewal_percent_threshold)
        if gone >= limit:
            held["eviction-limit"] = (
                f"The eviction limit holds it: {gone} of {counted(of, 'instance')} were evicted in"
                f" the last 60 s, and no more than {limit} may be."
            )
        return held

    # What a catalog lists

    def _tell_source(self) -> None:
        source = self._instance.source
        self._facts["held_by"] = ["source"]
        self._sentences.append(
            f"It has no lease and needs no heartbeats: it goes when {source} no longer has it."
        )
        if self._catalog is None:
            self._sentences.append(
                f"No catalog {source} is set up here any more, so nothing keeps it up to date."
            )
            return
        self._facts["catalog"] = {
            name: self._catalog[name] for name in ("source", "state", "stale", "last_success_ms")
        }
        answered = self._catalog["last_success_ms"]
        if not answered:
            self._sentences.append("That source has not answered yet.")
            return
        ago = span(self._wall - answered)
        if self._catalog["state"] == "following":
            self._sentences.append("That source answers.")
        else:
            stale = ", and its entries are marked as stale" if self._catalog["stale"] else ""
            self._sentences.append(f"That source last answered {ago} ago{stale}.")

    # Where it came from

    def _tell_origin(self) -> None:
        instance = self._instance
        at = instant(instance.registration_ms)
        if not instance.is_leased:
            part = "" if instance.origin is None else f" ({instance.origin})"
            told = f"The catalog {instance.source}{part} listed it at {at}."
        else:
            api = "native API" if instance.source == "native" else "Eureka protocol"
            entry = _newest(self._registry, instance.app, instance.id, HistoryKind.REGISTERED)
            if instance.peers_know:
                told = f"Another server told of it by the {api}; it was last registered at {at}."
            elif entry is None or entry.by is None:
                told = f"It registered itself by the {api}, last at {at}."
            else:
                by = _by(entry)
                self._facts["registered_by"] = by
                told = f"It was registered by the {api}, last at {at}, by {by}."
        self._sentences.append(told)
        self._facts |= {
            "source": instance.source,
            "origin": instance.origin,
            "told_by_peer": instance.peers_know,
            "registered_ms": instance.registration_ms,
        }


def _last_removal(changes: Sequence[Change], instance_id: str, app: str | None) -> Change | None:
    """The last removal of an instance that the delta still tells of."""
    for change in reversed(changes):
        instance = change.instance
        if (
            change.removed
            and instance is not None
            and instance.id == instance_id
            and app in (None, instance.app)
        ):
            return change
    return None


def _newest(
    registry: NamespaceRegistry, app: str | None, instance_id: str, *kinds: HistoryKind
) -> HistoryEntry | None:
    """The newest entry of these kinds that the history has of an instance, if there is any."""
    if registry.history is None:
        return None
    wish = Wish(app=app, id=instance_id, kinds=frozenset(kinds), limit=1)
    for _ in range(_PAGES):
        try:
            page = registry.history.read(wish)
        except StoreError:
            return None
        if page.entries:
            return page.entries[0]
        if page.before is None:
            return None
        wish = wish._replace(before=page.before)
    return None


def _by(entry: HistoryEntry) -> str:
    """Who asked for what an entry tells of."""
    if entry.detail.get("peer"):
        return "another server"
    return "somebody" if entry.by is None else who(*entry.by)


class _Gone(NamedTuple):
    """How an instance went: by the history, or, as long as that lacks it, by the change log."""

    instance: Instance
    is_eviction: bool
    at_ms: int
    by: str | None = None
    detail: Mapping[str, Any] = {}


def _how_it_went(
    registry: NamespaceRegistry, app: str | None, instance_id: str, change: Change | None
) -> _Gone | None:
    entry = _newest(registry, app, instance_id, HistoryKind.EVICTED, HistoryKind.CANCELLED)
    logged = None if change is None else change.instance
    is_newest = change is None or (entry is not None and entry.revision >= change.revision)
    if entry is not None and entry.instance is not None and is_newest:
        is_eviction = entry.kind is HistoryKind.EVICTED
        by = None if entry.by is None else _by(entry)
        return _Gone(entry.instance, is_eviction, entry.at_ms, by, entry.detail)
    if change is None or logged is None:
        return None
    return _Gone(logged, change.evicted, logged.last_updated_ms)


def _not_listed(
    registry: NamespaceRegistry,
    instance_id: str,
    app: str | None,
    change: Change | None,
    override: InstanceStatus | None,
) -> Why:
    """Why an id is not listed: how it went, or that nothing is known of it."""
    facts: dict[str, Any] = {
        "id": instance_id,
        "application": app,
        "namespace": registry.namespace,
        "listed": False,
        "override": None if override is None else str(override),
        "gone": None,
    }
    of = "" if app is None else f" of {app}"
    gone = _how_it_went(registry, app, instance_id, change)
    if gone is None:
        sentences = [
            f"{instance_id}{of} is not listed in the namespace {registry.namespace}, and no such"
            f" instance {_since_when(registry)}"
        ]
    else:
        instance = gone.instance
        ago_ms = max(0, registry.clock.wall_ms() - gone.at_ms)
        facts |= {
            "application": instance.app,
            "gone": "evicted" if gone.is_eviction else "cancelled",
            "gone_ms": gone.at_ms,
            "gone_ms_ago": ago_ms,
            "gone_by": gone.by,
            "source": instance.source,
            "registered_ms": instance.registration_ms,
            "status": str(instance.status),
        }
        went = "was evicted" if gone.is_eviction else "went"
        at, registered = instant(gone.at_ms), instant(instance.registration_ms)
        sentences = [
            f"{instance_id} of {instance.app} is not listed: it {went} {span(ago_ms)} ago, at {at},"
            f" {_reason(gone)}.",
            *_kept_before(gone),
            f"It was {instance.status}, and last registered at {registered}.",
        ]
    if override is not None:
        sentences.append(f"An override {override} is set for its id, should it register again.")
    return Why(tuple(sentences), facts)


def _since_when(registry: NamespaceRegistry) -> str:
    """As far back as anything is known: what is remembered of an id that nobody has."""
    if registry.history is not None:
        with suppress(StoreError):
            earliest = registry.history.earliest_ms()
            if earliest is not None:
                return f"went since {instant(earliest)}, when the history begins."
    remembered = span(registry.settings.delta_retention_ms)
    return f"went in the last {remembered}; what was before that is not remembered."


def _reason(gone: _Gone) -> str:
    instance = gone.instance
    if gone.is_eviction:
        return f"because its lease of {span(instance.lease_secs * 1000)} had ended"
    if not instance.is_leased:
        return f"because {instance.source} no longer had it"
    if instance.peers_know:
        return "because it was cancelled at another server"
    if gone.by is not None:
        return f"because it was cancelled by {gone.by}"
    return "because its client or an operator cancelled it"


def _kept_before(gone: _Gone) -> list[str]:
    """When an evicted instance had renewed last, and what had kept it after its lease ended."""
    renewed_ms = gone.detail.get("last_renewal_ms")
    if renewed_ms is None:
        return []
    told = f"It was last heard of {span(gone.at_ms - renewed_ms)} before that"
    held_by = _HELD_BY.get(gone.detail.get("held_by", ""))
    if held_by is not None:
        told += f", and {held_by} had kept it for {span(gone.detail['ended_ms_before'])}"
    return [f"{told}."]
