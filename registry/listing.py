"""Instances by application, in portions that keep what was made of them.

A list of thousands of instances must not be encoded again because one of them changed. So a
listing is cut into portions of about ``PORTION`` instances: several small applications, or a part
of a large one. Whoever encodes a list keeps the bytes in the ``kept`` of what they are of: a
portion, an application, or the whole listing. A change empties the ``kept`` of all that contain
the instance. For example:

    >>> listing = Listing(sample_instance("BIG", f"big:{number}") for number in range(192))
    >>> [portion.weight for portion, _ in listing.cut()]
    [64, 64, 64]
    >>> for portion, instances in listing.cut():
    ...     portion.kept["ids"] = ",".join(instance.id for instance in instances)
    >>> listing.put(sample_instance("BIG", "big:100", ip_addr="10.9.9.9"))
    >>> ["ids" in portion.kept for portion, _ in listing.cut()]
    [True, False, True]

So one portion of three is encoded again. What is kept needs no revision or instant to be found by,
and cannot be out of date: it goes with what it was made of.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from registry.model import Instance, InstanceKey, InstanceStatus

PORTION = 64
"""About so many instances are in one portion: never more than twice as many."""

_V = TypeVar("_V")
_NOBODY: Mapping[str, Instance] = {}


class Portion(Generic[_V]):
    """Some neighbouring members of a mapping. ``weight`` is how many instances they are."""

    __slots__ = ("kept", "members", "weight")

    def __init__(self) -> None:
        self.members: dict[str, _V] = {}
        self.weight = 0
        self.kept: dict[Any, Any] = {}


class Portions(Generic[_V]):
    """A mapping in the order in which its members came, cut into portions.

    A portion is heavier than twice ``PORTION`` only where it has a single member.
    """

    __slots__ = ("_weigh", "all", "of")

    def __init__(self, weigh: Callable[[_V], int]) -> None:
        """Start empty; ``weigh`` tells how many instances a member is."""
        self.all: list[Portion[_V]] = []
        self.of: dict[str, Portion[_V]] = {}
        """The portion of each member, by its name."""
        self._weigh = weigh

    def put(self, name: str, member: _V, step: int) -> None:
        """Add a member, or replace it in its place; it is ``step`` instances more than before."""
        portion = self.of.get(name)
        if portion is None:
            if not self.all or self.all[-1].weight + step > PORTION:
                self.all.append(Portion())
            portion = self.of[name] = self.all[-1]
        portion.members[name] = member
        if portion.kept:
            portion.kept.clear()
        if step:
            portion.weight += step
            if step < 0:
                self._settle(portion)
            elif portion.weight > 2 * PORTION and len(portion.members) > 1:
                self._part(portion)

    def remove(self, name: str, weight: int) -> None:
        """Take a member out that was so many instances."""
        portion = self.of.pop(name)
        del portion.members[name]
        portion.kept.clear()
        portion.weight -= weight
        self._settle(portion)

    def _settle(self, portion: Portion[_V]) -> None:
        """Join a portion that became light with the one after it, if both together are small."""
        if not portion.members:
            self.all.remove(portion)
        elif portion.weight < PORTION // 4:
            place = self.all.index(portion) + 1
            if place < len(self.all) and portion.weight + self.all[place].weight <= PORTION // 2:
                follower = self.all.pop(place)
                portion.members.update(follower.members)
                portion.weight += follower.weight
                portion.kept.clear()
                self.of.update(dict.fromkeys(follower.members, portion))

    def _part(self, portion: Portion[_V]) -> None:
        """Cut a portion that became too heavy into several, in its place."""
        members, portion.members, portion.weight = portion.members, {}, 0
        place = self.all.index(portion)
        for name, member in members.items():
            weight = self._weigh(member)
            if portion.weight and portion.weight + weight > PORTION:
                place += 1
                portion = Portion()
                self.all.insert(place, portion)
            portion.members[name] = member
            portion.weight += weight
            self.of[name] = portion


class Application(dict[str, Instance]):
    """The instances of one application by their ids.

    ``portions`` is None as long as it is small enough to be a part of one portion.
    """

    __slots__ = ("kept", "name", "portions")

    def __init__(self, name: str, instances: Mapping[str, Instance] = _NOBODY) -> None:
        super().__init__(instances)
        self.name = name
        self.kept: dict[Any, Any] = {}
        self.portions: Portions[Instance] | None = None
        self._cut_if_large()

    def cut(self) -> Iterator[tuple[Portion[Any], Iterable[Instance]]]:
        """The portions of a large application, each with its instances; none of a small one."""
        for portion in self.portions.all if self.portions is not None else ():
            yield portion, portion.members.values()

    def add(self, instance: Instance) -> None:
        """Add an instance that is not here yet."""
        self[instance.id] = instance
        if self.kept:
            self.kept.clear()
        if self.portions is not None:
            self.portions.put(instance.id, instance, 1)
        else:
            self._cut_if_large()

    def _cut_if_large(self) -> None:
        if len(self) > 2 * PORTION:
            self.portions = Portions(_one)
            for each in self.values():
                self.portions.put(each.id, each, 1)

    def remove(self, instance_id: str) -> None:
        """Take out an instance that is here."""
        del self[instance_id]
        self.kept.clear()
        if self.portions is not None:
            self.portions.remove(instance_id, 1)
            if len(self) <= PORTION:
                self.portions = None


class Listing:
    """Instances by application, all or some of a namespace's."""

    __slots__ = ("applications", "counts", "kept", "portions", "size")

    def __init__(self, instances: Iterable[Instance] = ()) -> None:
        """List these, in their order."""
        self.applications: dict[str, Application] = {}
        self.portions: Portions[Application] = Portions(len)
        self.counts: Counter[InstanceStatus] = Counter()
        self.size = 0
        self.kept: dict[Any, Any] = {}
        # All of an application at once: one by one takes ten times as long.
        members: dict[str, dict[str, Instance]] = defaultdict(dict)
        for instance in instances:
            members[instance.app][instance.id] = instance
        for name, by_id in members.items():
            application = self.applications[name] = Application(name, by_id)
            self.portions.put(name, application, len(by_id))
            self.size += len(by_id)
            for each in by_id.values():
                self.counts[each.status] += 1

    @property
    def is_large(self) -> bool:
        """Whether it takes more than one portion."""
        return self.size > 2 * PORTION

    def cut(self) -> Iterator[tuple[Portion[Any], Iterable[Instance]]]:
        """All portions, each with its instances."""
        for portion in self.portions.all:
            first = next(iter(portion.members.values()))
            if first.portions is None:
                yield portion, _instances_in(portion)
            else:  # a large application is alone in its portion, and has portions of its own
                yield from first.cut()

    def put(self, instance: Instance) -> None:
        """Add an instance, or replace the one that has its key, in its place."""
        app = instance.app
        application = self.applications.get(app)
        if application is None:
            application = self.applications[app] = Application(app)
        before = application.get(instance.id)
        if before is not None:
            if before.status is not instance.status:
                self.counts[before.status] -= 1
                self.counts[instance.status] += 1
            # Each registration comes here twice, so what is done to the application, and to the
            # portion that has it, is done without a call of theirs.
            application[instance.id] = instance
            if application.kept:
                application.kept.clear()
            if application.portions is not None:
                application.portions.put(instance.id, instance, 0)
            kept = self.portions.of[app].kept
            if kept:
                kept.clear()
        else:
            self.counts[instance.status] += 1
            self.size += 1
            application.add(instance)
            self.portions.put(app, application, 1)
        if self.kept:
            self.kept.clear()

    def remove(self, key: InstanceKey) -> None:
        """Take out an instance that is here."""
        application = self.applications[key.app]
        status = application[key.id].status
        application.remove(key.id)
        if application:
            self.portions.put(key.app, application, -1)
        else:
            del self.applications[key.app]
            self.portions.remove(key.app, 1)
        self.counts[status] -= 1
        self.size -= 1
        self.kept.clear()


def _instances_in(portion: Portion[Application]) -> Iterator[Instance]:
    # A generator, so that it tells of the portion as it is when it is read, which may be later.
    for application in portion.members.values():
        yield from application.values()


def _one(_: Instance) -> int:
    return 1
