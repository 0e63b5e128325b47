"""What every catalog is: a source that says which instances there are, and tells of changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from registry import DEFAULT_NAMESPACE, Instance, Namespace


class SourceError(Exception):
    """The source does not answer, or not as it should; what it brought stays. Says why."""


class RelistError(Exception):
    """The source cannot go on from where it was (history compacted, index reset): list again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance as its source tells of it: complete, but for what the reconciler adds.

    Its tags name the source. The reconciler sets ``source``, and looks up ``ip_addr`` where it is
    empty, again and again: the address of ``host_name``.
    """

    instance: Instance
    namespace: Namespace = DEFAULT_NAMESPACE


Groups = Mapping[str, Sequence[Entry] | None]
"""Entries by group. A group is what a source changes as a whole, in its own words: a file, an
endpoint slice, a service, a key. An entry may be in several groups, and is there while any has it.

None stands for a group that is there but cannot be read (a broken file): it holds what it held, and
that is what is listed of it where another worker was the last to read it.
"""


QUIET_SECS = 60.0
"""Enough for the longest list, where nothing else is known."""


class Catalog(Protocol):
    """One source. Only one thread calls it, but for ``close``.

    ``registry`` and time are none of its business: it neither waits before it tries again nor
    remembers what it has told. ``catalogs.testing.CatalogSuite`` is this contract, executable.
    """

    source: str
    """``kind:name``, unique among the catalogs."""

    quiet_secs: float
    """How long it may be between two words of it, though all is well; after that it hangs."""

    prefers_local: bool
    """Whether an application that registers here itself hides this catalog's entries of it."""

    problems: Sequence[str]
    """What in the source cannot be used, as of the last ``list`` or ``watch``, for the operator:
    where and why. The rest of the source is not held up by it."""

    def list(self) -> Groups:
        """All groups as they are now; ``watch`` goes on from here.

        ``SourceError`` where the source does not answer. Always ends, in seconds.
        """
        ...

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The groups that have changed since ``list`` or the last that was given, each whole.

        An empty group is gone. An empty mapping is a sign of life, to be given every few seconds
        while nothing changes. Ends where it is time to list again (a source without a watch ends
        after its interval), soon after ``stopping`` is set, and with ``SourceError`` or
        ``RelistError``.
        """
        ...

    def close(self) -> None:
        """Let go of everything, from any thread; a call that waits ends soon, in whatever way."""
        ...
