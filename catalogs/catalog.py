"""The contract of a catalog: it lists the instances of one source, and reports changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from registry import Instance, Namespace


class SourceError(Exception):
    """The source does not answer, or its answer makes no sense; the text says why.

    Its entries stay listed.
    """


class RelistError(Exception):
    """Changes since the last answer are lost (history compacted, index reset): list again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One instance of a source, complete except for what the reconciler adds.

    Its tags name the source. The reconciler sets ``source``. If ``ip_addr`` is empty, it is the
    address of ``host_name``, which the reconciler looks up periodically.
    """

    instance: Instance
    namespace: Namespace


Groups = Mapping[str, Sequence[Entry] | None]
"""Entries by group. A group is the unit in which a source changes: a file, a Service, an
application, a key. A change replaces a group as a whole, so nobody has to tell additions from
removals. An entry may be in several groups, and exists while any of them has it.

None means that the group exists and cannot be read (a broken file). It keeps its last entries; if
this worker has never read it, those that another worker has listed of it.
"""


QUIET_SECS = 60.0
"""The default of ``quiet_secs``: long enough for the longest list."""


class Catalog(Protocol):
    """One source. Only one thread calls it, except for ``close``.

    It knows neither the registry nor retries: after an error it simply raises, and the runner
    waits and calls ``list`` again. It may report what it has reported before, since the reconciler
    compares. ``catalogs.testing.CatalogSuite`` tests this contract.
    """

    source: str
    """``kind:name``, unique among the catalogs."""

    quiet_secs: float
    """The longest silence of a healthy source, ``watch`` yielding nothing; beyond it, it hangs."""

    prefers_local: bool
    """Whether this catalog's entries of an application are hidden while it registers itself."""

    problems: Sequence[str]
    """What in the source cannot be used, where and why, as of the last ``list`` or ``watch``.
    For the operator; the rest of the source is listed nevertheless."""

    def list(self) -> Groups:
        """All groups as they are now; ``watch`` continues from here.

        Raises ``SourceError`` if the source does not answer. Returns or raises within seconds.
        """
        ...

    def watch(self, stopping: threading.Event) -> Iterator[Groups]:
        """The groups that have changed since ``list`` or the last yield, each with all its entries.

        An empty group no longer exists. While nothing changes, an empty mapping is yielded every
        few seconds as a sign of life. Ends when it is time to list again (after its interval, for
        a source that cannot be watched), soon after ``stopping`` is set, or by raising
        ``SourceError`` or ``RelistError``.
        """
        ...

    def close(self) -> None:
        """Release everything; any thread may call it. A call that waits returns or raises soon."""
        ...
