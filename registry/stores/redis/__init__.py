"""Many machines, one registry: the truth is in Redis, and each machine has a copy of it.

**The copy** is an LMDB store in a folder of the machine (``registry.stores.lmdb``), which all of
its workers share. All reads are of the copy, so they cost no call and go on while Redis is away;
all that one worker knows all workers of the machine know. It survives them: a machine that is
started while Redis is away serves what it last had.

**Writing** is Redis' to decide (``store.py``), and others' changes are followed (``following.py``).
Renewals stay in the copy and are told in batches (``renewals.py``). Where Redis lost something, the
machines give it back (``lives.py``). What is said to Redis and heard from it is in ``records.py``
and ``scripts.py``; the connections and the clock are in ``server.py``.

**Time.** Callers speak of this machine's monotonic clock. What leaves the machine is translated
into Redis' time (``server.py``), what comes is translated back. Nobody's wall clock matters; where
Redis' own is set, machines go on from their copies' leases.

**Pauses.** That the server runs is noted in the copy where Redis answers (``resume``). So while it
is away running time stands still on every machine, and when it is back the copy's leases get their
whole duration, before anybody can be evicted.
"""

from __future__ import annotations

from registry.stores.redis.address import read_address
from registry.stores.redis.store import RedisStore

__all__ = ["RedisStore", "read_address"]
