"""What is wrong with clients: each with a sentence, examples, and the setting to change.

All of it is seen in what is listed anyway: instances, leases, and who reads. One look at a
namespace goes through its instances once, a few at a time, and is kept for some seconds; nothing is
noted for it when clients come, but which ids have changed their addresses (``View.moved``).

How often a client really renews is learnt from two looks: between them the instant of its last
renewal has moved on. It renews more often than it says where that is less than an interval. It
renews less often where it is much more than an interval, and the looks lie so close together that
no renewal between them can have been missed.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from registry import (
    Instance,
    InstanceKey,
    NamespaceRegistry,
    NotYetError,
    Reader,
)

_KEPT_MS = 5_000
_EXAMPLES = 5
_LOOKED_AT_AT_ONCE = 500
_MOST_RENEWALS = 100_000
# A clock that is no further off than this is no matter; a registration may take a while to come.
_AHEAD_MS, _BEHIND_MS = 30_000, 300_000
_OFTENER, _RARER = 0.6, 1.8
_FULLS = 3
_SPRING, _OTHERS = "Spring Cloud and Java", "others"


class Setting(NamedTuple):
    """What to change, as the clients of a kind call it."""

    client: str
    name: str


class Finding(NamedTuple):
    """Something that is wrong with some clients."""

    kind: str
    sentence: str
    settings: tuple[Setting, ...]
    cases: int
    """How many there are."""
    examples: list[dict[str, Any]]


_CLIENTS = (_SPRING, "Steeltoe", "eureka-js-client", "py-eureka-client")


def _as_called(*names: str) -> tuple[Setting, ...]:
    """A setting as each of the ``_CLIENTS`` calls it; the last of them may have none."""
    return tuple(map(Setting, _CLIENTS, names))


_INTERVAL = _as_called(
    "eureka.instance.lease-renewal-interval-in-seconds",
    "Eureka:Instance:LeaseRenewalIntervalInSeconds",
    "eureka.heartbeatInterval, and leaseInfo of the instance",
    "renewal_interval_in_secs",
)
_LEASE = _as_called(
    "eureka.instance.lease-expiration-duration-in-seconds",
    "Eureka:Instance:LeaseExpirationDurationInSeconds",
    "leaseInfo.durationInSecs of the instance",
    "duration_in_secs",
)
_IDS = _as_called(
    "eureka.instance.instance-id",
    "Eureka:Instance:InstanceId",
    "instance.instanceId",
    "instance_id",
)
_HOST = _as_called(
    "eureka.instance.hostname, or eureka.instance.prefer-ip-address=true",
    "Eureka:Instance:HostName, or Eureka:Instance:PreferIpAddress",
    "instance.hostName and instance.ipAddr",
    "instance_host and instance_ip",
)
_DELTA = _as_called(
    "eureka.client.disable-delta=false",
    "Eureka:Client:ShouldDisableDelta=false",
    "shouldUseDelta: true",
)
_SERVERS_DELTA = (Setting("this server", "EUREKA_SERVER_DISABLE_DELTA=false"),)
_CLOCK = (Setting("the machine", "time synchronisation, such as chrony or systemd-timesyncd"),)
_EXPECTED = (
    Setting("this server", "EUREKA_SERVER_EXPECTED_CLIENT_RENEWAL_INTERVAL_SECONDS"),
    *_INTERVAL,
)


class _Kinds:
    """Findings as they are collected: of each kind all are counted, and some are shown."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, tuple[Setting, ...], list[int], list[dict[str, Any]]]]
        self._found = {}

    def add(
        self, kind: str, sentence: str, settings: tuple[Setting, ...], example: dict[str, Any]
    ) -> None:
        _, _, count, examples = self._found.setdefault(kind, (sentence, settings, [0], []))
        count[0] += 1
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def all(self) -> list[Finding]:
        return [
            Finding(kind, sentence, settings, count[0], examples)
            for kind, (sentence, settings, count, examples) in self._found.items()
        ]


class Findings:
    """What is wrong with the clients of one namespace. Thread-safe."""

    def __init__(self, registry: NamespaceRegistry, *, delta_enabled: bool = True) -> None:
        """Nothing is looked at before it is asked for."""
        self._registry = registry
        self._delta_enabled = delta_enabled
        self._looking = threading.Lock()
        self._made: tuple[int, list[Finding]] | None = None
        # When each instance had last renewed at the look before, and when that look was.
        self._renewed: dict[InstanceKey, int] = {}
        self._renewed_at_ms = 0

    def all(self, *, is_quick: bool = False) -> list[Finding]:
        """What is wrong now, or was some seconds ago.

        ``NotYetError`` where it is to be quick and a look is due; ``StoreError``.
        """
        now = self._registry.clock.mono_ms()
        made = self._made
        if made is not None and 0 <= now - made[0] < _KEPT_MS:
            return made[1]
        if is_quick:
            raise NotYetError
        with self._looking:
            made = self._made
            if made is None or not 0 <= now - made[0] < _KEPT_MS:
                made = self._made = (now, self._look())
        return made[1]

    def _look(self) -> list[Finding]:
        kinds = _Kinds()
        instances = [each for each in self._instances() if each.source == "eureka"]
        self._look_at_leases(kinds, instances)
        self._look_at_addresses(kinds, instances)
        self._look_at_clocks(kinds, instances)
        self._look_at_readers(kinds)
        return kinds.all()

    def _instances(self) -> Iterator[Instance]:
        view = self._registry.view()
        with view.lock:
            applications = list(view.applications.values())
        for application in applications:
            with view.lock:
                instances = list(application.values())
            yield from instances

    # Leases

    def _look_at_leases(self, kinds: _Kinds, instances: Iterable[Instance]) -> None:
        registry = self._registry
        now = registry.clock.wall_ms()
        before, looked_ms = self._renewed, now - self._renewed_at_ms
        leases = registry.leases()
        expected = registry.settings.expected_client_renewal_interval_secs
        unlike, listed = 0, 0
        renewed: dict[InstanceKey, int] = {}
        for instance in instances:
            listed += 1
            interval, lease = instance.renewal_interval_secs, instance.lease_secs
            unlike += interval != expected
            if lease < 2 * interval:
                kinds.add(
                    "lease-too-short",
                    "The lease ends before two renewals are due, so one that is late or lost has"
                    " the instance evicted. A lease lasts three intervals as a rule: make it"
                    " longer, or renew more often.",
                    (*_LEASE, *_INTERVAL),
                    _of(instance, renews_every_secs=interval, lease_secs=lease),
                )
            held = leases.get(instance.key)
            if held is None:
                continue
            if len(renewed) < _MOST_RENEWALS:
                renewed[instance.key] = held.last_renewal_ms
            self._compare(kinds, instance, before, held.last_renewal_ms, looked_ms)
        self._renewed, self._renewed_at_ms = renewed, now
        if listed and unlike * 2 > listed:
            kinds.add(
                "interval-not-expected",
                "Most clients say that they renew at another interval than this server expects:"
                " self-preservation counts with the wrong number.",
                _EXPECTED,
                {"expected_secs": expected, "otherwise": unlike, "instances": listed},
            )

    def _compare(
        self,
        kinds: _Kinds,
        instance: Instance,
        before: Mapping[InstanceKey, int],
        renewed_ms: int,
        looked_ms: int,
    ) -> None:
        """Compare what a client says of its interval with when it renewed."""
        seen = before.get(instance.key)
        # A registration sets that instant too, and comes when it likes.
        if seen is None or renewed_ms <= seen or seen <= instance.registration_ms:
            return
        passed, said = renewed_ms - seen, instance.renewal_interval_secs * 1000
        if passed < _OFTENER * said:
            word = "more often"
        elif passed > _RARER * said and passed >= 2 * looked_ms:
            word = "less often"
        else:
            return
        kinds.add(
            f"renews-{word.replace(' ', '-')}",
            f"It renews {word} than its registration says. Both are to be the same, for"
            " self-preservation and whoever reads the registry count with what is said.",
            _INTERVAL,
            _of(
                instance,
                says_secs=instance.renewal_interval_secs,
                renewed_after_secs=round(passed / 1000, 1),
            ),
        )

    # Addresses

    def _look_at_addresses(self, kinds: _Kinds, instances: Iterable[Instance]) -> None:
        endpoints: dict[tuple[str, str, int], list[Instance]] = {}
        for instance in instances:
            port = instance.port if instance.port_enabled else instance.secure_port
            place = instance.app, instance.ip_addr or instance.host_name, port
            endpoints.setdefault(place, []).append(instance)
            if _is_loopback(instance.host_name) or _is_loopback(instance.ip_addr):
                kinds.add(
                    "loopback-host",
                    "It registers an address that means each caller's own machine: nobody else"
                    " reaches it there.",
                    _HOST,
                    _of(instance, host_name=instance.host_name, ip_addr=instance.ip_addr),
                )
        for (_, address, port), found in endpoints.items():
            if len(found) > 1:
                ids = sorted(each.id for each in found)
                kinds.add(
                    "endpoint-under-two-ids",
                    "One address and port is listed under several ids: callers take it for several"
                    " instances. Often an id is made anew at each start, and the former one stays"
                    " until its lease ends.",
                    _IDS,
                    _of(found[0], endpoint=f"{address}:{port}", ids=ids[:_EXAMPLES]),
                )
        view = self._registry.view()
        with view.lock:
            moved = [(key, each) for key, each in view.moved.items() if each.returns]
            now = [(view.get(key), each) for key, each in moved]
        for instance_, each in now:
            if instance_ is not None:
                kinds.add(
                    "id-from-two-addresses",
                    "Two processes register under one id and replace each other, so only one of"
                    " them is listed at a time.",
                    _IDS,
                    _of(instance_, addresses=sorted(each.addresses), replaced=each.returns),
                )

    # Clocks

    def _look_at_clocks(self, kinds: _Kinds, instances: Iterable[Instance]) -> None:
        for instance in instances:
            if instance.peers_know:
                continue  # another server has taken the registration
            ahead = instance.last_dirty_ms - instance.registration_ms
            if ahead > _AHEAD_MS or -ahead > _BEHIND_MS:
                kinds.add(
                    "clock-off",
                    "Its own instant of its last change is far from that at which it registered:"
                    " its clock is wrong, or what it sends there is no such instant. By it servers"
                    " decide which of two registrations is the later.",
                    _CLOCK,
                    _of(instance, seconds_ahead=round(ahead / 1000)),
                )

    # Readers

    def _look_at_readers(self, kinds: _Kinds) -> None:
        now = self._registry.clock.wall_ms()
        for reader in self._registry.readers():
            if reader.client.what != "all" or reader.fulls < _FULLS or not reader.is_live(now):
                continue
            example = {
                "address": reader.client.address,
                "client": reader.client.name,
                "fulls": reader.fulls,
                "deltas": reader.deltas,
            }
            if reader.fulls * 2 >= reader.deltas > 0:
                kinds.add(
                    "full-after-delta",
                    "It fetches everything after many of its deltas: what it makes of them has not"
                    " the hash that this server tells.",
                    (Setting(_OTHERS, "a newer version of the client"),),
                    example,
                )
            elif reader.deltas or not self._is_polling(reader):
                continue
            elif not self._delta_enabled:
                kinds.add(
                    "delta-switched-off-here",
                    "Clients fetch everything each time, because this server refuses deltas.",
                    _SERVERS_DELTA,
                    example,
                )
            elif reader.client.name.startswith("DefaultClient"):
                kinds.add(
                    "delta-switched-off",
                    "It fetches everything each time, though its kind knows deltas.",
                    _DELTA,
                    example,
                )
            else:
                kinds.add(
                    "full-fetch-each-time",
                    "It fetches everything each time. With many instances that is what costs most:"
                    " let it fetch the delta, or less often, or only the application that it"
                    " needs.",
                    _DELTA,
                    example,
                )

    @staticmethod
    def _is_polling(reader: Reader) -> bool:
        """Whether it comes at an interval as clients do, and not now and then."""
        return 0 < reader.interval_ms <= 300_000


def _of(instance: Instance, **detail: Any) -> dict[str, Any]:
    return {"service_name": instance.app, "id": instance.id, **detail}


def _is_loopback(host: str) -> bool:
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
