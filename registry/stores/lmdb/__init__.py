"""One machine, many workers: an LMDB environment that all processes map.

**Format** (its number, and what becomes of older ones: ``formats.py``). The databases of
``data.mdb``; parts of a key are joined by NUL, which no part can hold:

| database | key | value |
| --- | --- | --- |
| ``record`` | namespace, application, id | revision, instance |
| ``leased`` | the same | the lease's place in the lease file, and the lease as registered |
| ``free`` | version of the lease file, slot | generation: a slot that was let go of then |
| ``override`` | namespace, id | status |
| ``log`` | namespace, revision | the key of the instance that was listed or changed so |
| ``removal`` | namespace, revision | a removed instance's last state; or whose override changed |
| ``removed`` | namespace, application, id | the revision of its removal |
| ``meta`` | a name, often with a namespace | counters, locks, notes |

``log`` and ``removal`` have the last change of each instance alone. Renewals are in the lease file
(``leases.py``), and nowhere else. The values are packed in ``records.py``.

**Validity** (``upkeep.py``). The data are trusted on the boot of the machine that wrote them, and
another boot starts from the last checkpoint. Instances stand behind their checksums, and a start
has every file looked through by another process before it maps it (``files.py``, ``folder.py``;
what follows for the records: ``opening.py``).

**Reading** (``log.py``). A transaction (``environment.py``) sees one state, whatever is committed
meanwhile. What is kept in memory (places, revisions) is kept with the lease file's version before
it was read, and counts as long as that version stands.

**Writing** (``commits.py``). Under the lease file's lock: its version odd, one transaction, the
slots in line (``places.py``), its version even. A machine's copy of what a store elsewhere decides
is written in the same way (``copying.py``).

**Crashes.** A killed process leaves no half transaction; its locks (``coordination.py``) are taken
back by the system, its reader slot is cleared by the next who looks, and where it left the version
odd the next writer brings the slots in line with what was committed.
"""

from __future__ import annotations

from registry.stores.lmdb.copying import Contents, TakenUp
from registry.stores.lmdb.offering import Held, State
from registry.stores.lmdb.places import Renewed
from registry.stores.lmdb.store import LmdbStore

__all__ = ["Contents", "Held", "LmdbStore", "Renewed", "State", "TakenUp"]
