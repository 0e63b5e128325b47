"""The contract of catalogs as a test suite, with real sources and the real runner.

Shipped with the package, so that a catalog kept elsewhere can be held to the same contract.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from catalogs.catalog import Catalog
from catalogs.reconciler import STALE
from catalogs.runner import Report, Runner, Terms
from registry import (
    DEFAULT_NAMESPACE,
    Instance,
    InstanceStatus,
    Registry,
    RegistrySettings,
    SystemClock,
    open_store,
)


class Source(Protocol):
    """A source that can be changed, killed and brought back."""

    def put(
        self,
        service: str,
        host: str,
        port: int,
        *,
        status: str = "UP",
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Add or change an instance; ``host`` is an IPv4 address, ``status`` UP or DOWN."""
        ...

    def put_many(self, instances: Sequence[tuple[str, str, int]]) -> None:
        """Add all of these, in the fastest way."""
        ...

    def remove(self, service: str, host: str, port: int) -> None:
        """Remove that instance."""
        ...

    def kill(self) -> None:
        """End at once, as by ``kill -9``."""
        ...

    def start(self) -> None:
        """Start again, with the same instances."""
        ...

    def disturb(self) -> None:
        """Make every follower list again."""
        ...

    def catalog(self) -> Catalog:
        """A fresh catalog of this source."""
        ...


class RemoteSource(Source, Protocol):
    """A source behind connections, which stay open while it hangs."""

    def suspend(self) -> None:
        """Hang: answer nothing, and keep every connection open."""
        ...

    def resume(self) -> None:
        """Continue after ``suspend``."""
        ...


# What takes longer hangs; no verdict on how fast a source or a catalog is.
HANG_SECS = 180.0

# However long a source takes to start: one that stays away for so long is not marked.
NEVER_SECS = 86_400.0


def until(condition: Callable[[], Any]) -> Any:
    """The condition's first true answer; ``AssertionError`` where it does not come about at all."""
    end = time.monotonic() + HANG_SECS
    while not (found := condition()):
        assert time.monotonic() < end, _what_is_there(condition)
        time.sleep(0.01)
    return found


def _what_is_there(condition: Callable[[], Any]) -> str:
    """What a condition that did not come about looks at."""
    told = f"it did not come about within {HANG_SECS:.0f} s"
    for cell in getattr(condition, "__closure__", None) or ():
        if isinstance(cell.cell_contents, Followed):
            found = cell.cell_contents
            told += f"; {found.report()}; listed are {sorted(found.instances())}"
    return told


class Followed:
    """A registry in memory that a runner fills from one source."""

    def __init__(self, source: Source, terms: Terms) -> None:
        """Nothing is followed before ``start``."""
        self.source = source
        self.whole = Registry(open_store("memory:"), SystemClock(), RegistrySettings())
        self.whole.start()
        self.registry = self.whole.in_namespace(DEFAULT_NAMESPACE)
        self._terms = terms
        self._made: list[Catalog] = []
        self.name = source.catalog().source
        self.runner = self._runner()

    def _runner(self) -> Runner:
        return Runner(self.whole, [(self.source.catalog, self.name, self._terms)])

    def start(self) -> None:
        """Follow the source."""
        self.runner.start()

    def another(self) -> Runner:
        """As a second worker's."""
        return self._runner()

    def instances(self) -> dict[tuple[str, int], Instance]:
        """What is listed, by address and port."""
        view = self.registry.view()
        with view.lock:
            found = [i for a in view.applications.values() for i in a.values()]
        return {(i.ip_addr, i.secure_port if i.secure_port_enabled else i.port): i for i in found}

    def revision(self) -> int:
        """How many changes there have been."""
        return self.registry.view().revision

    def report(self) -> Report:
        """What is told of the catalog."""
        (report,) = self.runner.reports()
        return report

    def settle(self) -> int:
        """Wait until nothing has changed for a second; the revision."""
        quiet, seen = time.monotonic(), self.revision()
        while time.monotonic() < quiet + 1.0:
            time.sleep(0.02)
            if self.revision() != seen:
                quiet, seen = time.monotonic(), self.revision()
        return seen


class CatalogSuite:
    """Subclass it with a fixture ``source`` that gives a running, empty ``Source``."""

    @pytest.fixture
    def followed(self, source: Source) -> Iterator[Followed]:
        """A registry that follows the source."""
        followed = Followed(source, Terms(stale_after_secs=NEVER_SECS))
        followed.start()
        yield followed
        followed.runner.stop()

    def test_an_entry_is_a_complete_instance(self, source: Source, followed: Followed) -> None:
        """Whatever a Eureka client looks for is there."""
        source.put("Billing", "10.1.2.3", 8080)
        instance = until(lambda: followed.instances().get(("10.1.2.3", 8080)))
        assert instance.app == "BILLING"
        assert instance.vip_address is not None
        assert instance.vip_address == instance.vip_address.lower() == "billing"
        assert str(ipaddress.ip_address(instance.ip_addr)) == "10.1.2.3"
        assert instance.status is InstanceStatus.UP
        assert instance.host_name
        assert 0 < instance.port < 65536
        assert 0 < instance.secure_port < 65536
        assert instance.source == followed.name
        assert followed.name in instance.tags
        assert not instance.is_leased

    def test_changes_and_removals_are_followed(self, source: Source, followed: Followed) -> None:
        """Without a relist, and one change each."""
        source.put("web", "10.1.0.1", 80)
        source.put("web", "10.1.0.2", 80)
        until(lambda: len(followed.instances()) == 2)
        source.put("web", "10.1.0.1", 80, status="DOWN")
        until(lambda: followed.instances()["10.1.0.1", 80].status is InstanceStatus.DOWN)
        source.put("web", "10.1.0.1", 80)
        until(lambda: followed.instances()["10.1.0.1", 80].status is InstanceStatus.UP)
        source.remove("web", "10.1.0.2", 80)
        until(lambda: set(followed.instances()) == {("10.1.0.1", 80)})

    def test_what_was_there_before_is_listed(self, source: Source) -> None:
        """The first list brings it."""
        source.put_many([("web", f"10.2.0.{n}", 80) for n in range(1, 21)])
        followed = Followed(source, Terms())
        followed.start()
        try:
            until(lambda: len(followed.instances()) == 20)
        finally:
            followed.runner.stop()

    def test_every_one_of_many_changes_is_seen(self, source: Source, followed: Followed) -> None:
        """However fast they come."""
        wanted = {(f"10.3.{n // 100}.{n % 100 + 1}", 80) for n in range(300)}
        source.put_many([("burst", host, port) for host, port in sorted(wanted)])
        until(lambda: set(followed.instances()) == wanted)

    def test_a_relist_of_the_unchanged_changes_nothing(
        self, source: Source, followed: Followed
    ) -> None:
        """No delta comes of it."""
        source.put_many([("web", f"10.4.0.{n}", 80) for n in range(1, 11)])
        until(lambda: len(followed.instances()) == 10)
        before = followed.settle()
        source.disturb()
        source.put("other", "10.4.1.1", 80)
        until(lambda: ("10.4.1.1", 80) in followed.instances())
        assert followed.settle() == before + 1

    def test_a_source_that_is_soon_back_changes_nothing(
        self, source: Source, followed: Followed
    ) -> None:
        """A restart that is over before anything is marked causes no change."""
        source.put_many([("web", f"10.5.1.{n}", 80) for n in range(1, 6)])
        until(lambda: len(followed.instances()) == 5)
        before = followed.settle()
        source.kill()
        until(lambda: followed.report().state == "failing")
        source.start()
        until(lambda: followed.report().state == "following")
        assert followed.settle() == before

    def test_a_source_that_is_gone_leaves_its_entries_marked(self, source: Source) -> None:
        """When it returns, the marks go; nothing is lost, and nothing is there twice."""
        followed = Followed(source, Terms(stale_after_secs=1.0))
        followed.start()
        try:
            self._goes_and_returns(source, followed)
        finally:
            followed.runner.stop()

    def _goes_and_returns(self, source: Source, followed: Followed) -> None:
        source.put_many([("web", f"10.5.0.{n}", 80) for n in range(1, 6)])
        until(lambda: len(followed.instances()) == 5)
        before = followed.settle()
        source.kill()
        until(lambda: all(STALE in i.metadata for i in followed.instances().values()))
        assert len(followed.instances()) == 5
        until(lambda: followed.report().stale)
        assert followed.report().last_error
        assert followed.settle() == before + 5
        source.start()
        until(lambda: not any(STALE in i.metadata for i in followed.instances().values()))
        assert len(followed.instances()) == 5
        assert followed.settle() == before + 10
        assert not followed.report().stale

    def test_entries_go_where_the_source_stays_away_too_long(self, source: Source) -> None:
        """Only where the operator has set a limit."""
        followed = Followed(source, Terms(stale_after_secs=0.5, remove_after_secs=2.0))
        followed.start()
        try:
            source.put("web", "10.6.0.1", 80)
            until(lambda: len(followed.instances()) == 1)
            source.kill()
            until(lambda: not followed.instances())
            source.start()
            until(lambda: len(followed.instances()) == 1)
        finally:
            followed.runner.stop()

    def test_another_worker_takes_over_without_a_change(
        self, source: Source, followed: Followed
    ) -> None:
        """What it finds listed is compared, not written again."""
        source.put_many([("web", f"10.7.0.{n}", 80) for n in range(1, 6)])
        until(lambda: len(followed.instances()) == 5)
        before = followed.settle()
        second = followed.another()
        second.start()
        try:
            followed.runner.stop()
            source.put("web", "10.7.0.9", 80)
            until(lambda: len(followed.instances()) == 6)
            assert followed.settle() == before + 1
        finally:
            second.stop()

    def test_it_touches_nothing_of_others(self, source: Source, followed: Followed) -> None:
        """An instance that registered itself stays, whatever the source does."""
        own = Instance(
            app="WEB", id="own", instance_id="own", host_name="own", ip_addr="10.8.9.9", port=80
        )
        followed.registry.register(own)
        source.put("web", "10.8.0.1", 80)
        until(lambda: ("10.8.0.1", 80) in followed.instances() or followed.report().shadowed)
        source.remove("web", "10.8.0.1", 80)
        until(lambda: ("10.8.0.1", 80) not in followed.instances())
        assert ("10.8.9.9", 80) in followed.instances()


class RemoteCatalogSuite(CatalogSuite):
    """The additional tests of a catalog whose source is a ``RemoteSource``."""

    def test_a_source_that_hangs_is_noticed_and_costs_nothing(self, source: RemoteSource) -> None:
        """Its connections stay open, and nothing comes any more."""
        followed = Followed(source, Terms(stale_after_secs=NEVER_SECS))
        followed.start()
        try:
            source.put("web", "10.5.9.1", 80)
            until(followed.instances)
            until(lambda: followed.report().state == "following")
            before = followed.settle()
            source.suspend()
            until(lambda: followed.report().state == "failing")
            error = str(followed.report().last_error)
            assert "in time" in error or "silent" in error
            source.resume()
            until(lambda: followed.report().state == "following")
            assert followed.settle() == before
        finally:
            source.resume()
            followed.runner.stop()
