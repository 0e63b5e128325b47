"""Follows another Eureka server as its clients do: a full fetch, then deltas with hash codes.

A server that has just restarted has forgotten its instances, until their clients register again.
So an instance that a full fetch lacks is kept for a grace period, and removed only after that.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from catalogs.bounds import LONGEST_SECS, in_bounds, shortened
from catalogs.catalog import QUIET_SECS, Entry, Groups, RelistError, SourceError
from catalogs.http import AccountUrl, Client, checked_files
from eureka_compat import wire
from registry import DEFAULT_NAMESPACE, Instance, InstanceKey, Namespace

_DELTA_SECS = 5.0
_UNREADABLE_SECS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EurekaCatalogSettings:
    """One Eureka cluster."""

    name: str
    """Of the catalog, as it appears in ``source``."""

    urls: tuple[AccountUrl, ...]
    """Its servers' service URLs, as clients have them (``http://host:8761/eureka``), with
    credentials where they need some. One that fails is left for the next."""

    namespace: Namespace = DEFAULT_NAMESPACE
    """Where its instances are listed."""

    interval_secs: float = 5.0
    """Between two deltas. A genuine server's cache changes every 30 s by default."""

    local_wins: Literal["application", "instance"] = "application"
    """Whether an instance that registers here itself hides the whole application's instances from
    there, or only its own entry: ``instance`` suits a fleet that moves over one by one."""

    applications: tuple[str, ...] = ()
    """Only these, in any case of letters; empty: all."""

    without: tuple[str, ...] = ()
    """All but these."""

    grace_secs: float = 90.0
    """How long to keep an instance that a full fetch lacks; by default a client's lease."""

    ca_file: Path | None = None
    """Whom to trust, where that is not a public authority."""

    def __post_init__(self) -> None:
        """Refuse what cannot work; ``ValueError``."""
        if not self.urls:
            raise ValueError("urls: at least one")
        in_bounds("interval_secs", self.interval_secs, 0.1, 3600)
        in_bounds("grace_secs", self.grace_secs, 0, LONGEST_SECS)

    def check(self) -> None:
        """Look at its files; ``ValueError``."""
        checked_files(self.ca_file)


class EurekaCatalog:
    """The catalog of one cluster; see ``catalogs.catalog.Catalog``. A group is an application."""

    def __init__(
        self, settings: EurekaCatalogSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is asked before ``list``."""
        self.source = f"eureka:{settings.name}"
        self.quiet_secs = QUIET_SECS + settings.interval_secs
        self.prefers_local = settings.local_wins == "application"
        self._settings = settings
        self._clock = clock
        self._client = Client(settings.urls, ca_file=settings.ca_file)
        self._only = {app.upper() for app in settings.applications}
        self._without = {app.upper() for app in settings.without}
        self._instances: dict[InstanceKey, Instance] = {}
        # Lacking in the last full fetch, and until when each is kept.
        self._missing: dict[InstanceKey, float] = {}
        self._problems: dict[str, str] = {}
        self._listed_at = 0.0
        self._closing = threading.Event()

    @property
    def problems(self) -> Sequence[str]:
        """Instances that cannot be read, and why."""
        return [f"{shortened(name)}: {text}" for name, text in sorted(self._problems.items())]

    def list(self) -> Groups:
        """All instances, and those kept for their grace period."""
        told, _ = self._fetched("/apps/", whole=True)
        self._listed_at = self._clock()
        fresh = {i.key: i for _, i in told}
        until = self._clock() + self._settings.grace_secs
        for key in self._instances.keys() - fresh.keys():
            self._missing.setdefault(key, until)
        kept = {k: i for k, i in self._instances.items() if k in self._missing and k not in fresh}
        self._instances = {**fresh, **kept}
        self._forget_missing(fresh)
        return self._groups({key.app for key in self._instances})

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The applications that each delta changes; ``RelistError`` where the hash codes differ."""
        while not self._closing.wait(self._settings.interval_secs) and not stopping.is_set():
            at = self._client.url
            told, hash_code = self._fetched("/apps/delta", read_secs=_DELTA_SECS)
            if self._client.url != at:
                raise RelistError(f"{at} does not answer, {self._client.url} does")
            changed = set()
            # A delta may have an instance several times, newest first at a genuine server; the
            # newest state counts.
            newest: dict[InstanceKey, tuple[str, Instance]] = {}
            for action, instance in told:
                known = newest.get(instance.key)
                if known is None or known[1].last_updated_ms <= instance.last_updated_ms:
                    newest[instance.key] = (action, instance)
            for key, (action, instance) in newest.items():
                if self._apply(key, action, instance):
                    changed.add(key.app)
            changed |= self._forget_missing({})
            if self._problems:
                # An instance that cannot be read counts in its hash code and not in ours, so they
                # always differ. Instead, everything is fetched again after a while.
                if self._clock() > self._listed_at + _UNREADABLE_SECS:
                    return
            elif hash_code is not None and hash_code != self._hash_code():
                raise RelistError(f"its hash code is {hash_code}, here it is {self._hash_code()}")
            yield self._groups(changed)

    def close(self) -> None:
        """End a ``watch`` that waits."""
        self._closing.set()
        self._client.close()

    def _apply(self, key: InstanceKey, action: str, instance: Instance) -> bool:
        if action == "DELETED":
            self._missing.pop(key, None)
            return self._instances.pop(key, None) is not None
        self._missing.pop(key, None)
        if self._instances.get(key) == instance:
            return False
        self._instances[key] = instance
        return True

    def _forget_missing(self, fresh: Any) -> set[str]:
        """Remove instances whose grace period is over; the applications that this changes."""
        now = self._clock()
        changed = set()
        for key, until in list(self._missing.items()):
            if key in fresh:
                del self._missing[key]
            elif now >= until:
                del self._missing[key]
                if self._instances.pop(key, None) is not None:
                    changed.add(key.app)
        return changed

    def _hash_code(self) -> str:
        there = (i.status for k, i in self._instances.items() if k not in self._missing)
        counts = Counter(map(str, there))
        return "".join(f"{status}_{counts[status]}_" for status in sorted(counts))

    def _fetched(
        self, path: str, *, read_secs: float | None = None, whole: bool = False
    ) -> tuple[Sequence[tuple[str, Instance]], str | None]:
        """Each instance with its action, and the hash code of the whole registry."""
        document = self._client.read("GET", path, read_secs=read_secs)
        try:
            told = wire.read_applications(document)
        except wire.ParseError as error:
            raise SourceError(
                f"{self._client.url} answers with what is no registry: {error}"
            ) from None
        found = []
        if whole:
            self._problems.clear()
        for item in told.instances:
            if isinstance(item, wire.Unreadable):
                self._problems[item.name] = item.reason
            else:
                found.append(item)
                self._problems.pop(f"{item[1].app}/{item[1].instance_id}", None)
        return found, told.hash_code

    def _groups(self, apps: set[str]) -> Groups:
        groups: dict[str, list[Entry]] = {app: [] for app in apps if self._is_wanted(app)}
        for key, instance in self._instances.items():
            if key.app in groups:
                entry = instance._replace(source=self.source, tags=(self.source,))
                groups[key.app].append(Entry(entry, self._settings.namespace))
        return groups

    def _is_wanted(self, app: str) -> bool:
        return app not in self._without and (not self._only or app in self._only)
