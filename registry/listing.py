"""Instances by application, in portions that keep what was made of them.

Whoever spells a list keeps the bytes with what they are of: in the ``kept`` of a portion, of an
application, or of the whole listing. A change empties the ``kept`` of everything that it touches,
so what is kept is always of what is there, whatever revisions or instants come again; and it
touches one portion, however large an application or the listing is.
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
    """Some neighbours of an ordered mapping. ``weight`` is how many instances they are."""

    __slots__ = ("kept", "members", "weight")

    def __init__(self) -> None:
        self.members: dict[str, _V] = {}
        self.weight = 0
        self.kept: dict[Any, Any] = {}


class Portions(Generic[_V]):
    """A mapping in the order in which its members came, cut into portions.

    A portion is heavier than twice ``PORTION`` only where it has a single member.
    """

    __slots__ = ("_of", "_weigh", "all")

    def __init__(self, weigh: Callable[[_V], int]) -> None:
        """``weigh`` tells how many instances a member is."""
        self.all: list[Portion[_V]] = []
        self._of: dict[str, Portion[_V]] = {}
        self._weigh = weigh

    def put(self, name: str, member: _V, step: int) -> None:
        """Add a member or replace it; ``step`` is by how many instances there are more of it."""
        portion = self._of.get(name)
        if portion is None:
            if not self.all or self.all[-1].weight + step > PORTION:
                self.all.append(Portion())
            portion = self._of[name] = self.all[-1]
        portion.members[name] = member
        if portion.kept:
            portion.kept.clear()
        if step:
            portion.weight += step
            if step < 0:
                self._settle(portion)
            elif portion.weight > 2 * PORTION and len(portion.members) > 1:
                self._part(portion)

    def touch(self, name: str) -> None:
        """Forget what was made of a member that is another now, and as heavy."""
        kept = self._of[name].kept
        if kept:
            kept.clear()

    def remove(self, name: str, weight: int) -> None:
        """Take a member out that was so many instances."""
        portion = self._of.pop(name)
        del portion.members[name]
        portion.kept.clear()
        portion.weight -= weight
        self._settle(portion)

    def _settle(self, portion: Portion[_V]) -> None:
        """Join what became light with what follows it."""
        if not portion.members:
            self.all.remove(portion)
        elif portion.weight < PORTION // 4:
            place = self.all.index(portion) + 1
            if place < len(self.all) and portion.weight + self.all[place].weight <= PORTION // 2:
                follower = self.all.pop(place)
                portion.members.update(follower.members)
                portion.weight += follower.weight
                portion.kept.clear()
                self._of.update(dict.fromkeys(follower.members, portion))

    def _part(self, portion: Portion[_V]) -> None:
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
            self._of[name] = portion


class Application(dict[str, Instance]):
    """The instances of one application by their ids.

    ``portions`` is None while they fit into one.
    """

    __slots__ = ("kept", "name", "portions")

    def __init__(self, name: str, instances: Mapping[str, Instance] = _NOBODY) -> None:
        super().__init__(instances)
        self.name = name
        self.kept: dict[Any, Any] = {}
        self.portions: Portions[Instance] | None = None
        self._cut_if_large()

    def cut(self) -> Iterator[tuple[Portion[Any], Iterable[Instance]]]:
        """A large one in portions, with the instances of each."""
        for portion in self.portions.all if self.portions is not None else ():
            yield portion, portion.members.values()

    def replace(self, instance: Instance) -> None:
        """Put an instance in the place of the one that has its id."""
        self[instance.id] = instance
        if self.kept:
            self.kept.clear()
        if self.portions is not None:
            self.portions.put(instance.id, instance, 0)

    def add(self, instance: Instance) -> None:
        """Add an instance that is not here."""
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
        """Everything in portions, with the instances of each."""
        for portion in self.portions.all:
            first = next(iter(portion.members.values()))
            if first.portions is None:
                yield portion, _instances_in(portion)
            else:  # it stands alone
                yield from first.cut()

    def put(self, instance: Instance) -> None:
        """Add an instance, or replace the one that has its key, where that stands."""
        app = instance.app
        application = self.applications.get(app)
        if application is None:
            application = self.applications[app] = Application(app)
        before = application.get(instance.id)
        if before is not None:
            if before.status is not instance.status:
                self.counts[before.status] -= 1
                self.counts[instance.status] += 1
            application.replace(instance)
            self.portions.touch(app)
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
    # As they are when they are asked for, which may be later.
    for application in portion.members.values():
        yield from application.values()


def _one(_: Instance) -> int:
    return 1
