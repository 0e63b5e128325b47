"""Opening a store: what a start makes of the files that it finds, after whatever happened to them.

It is done by one process at a time. Which file it begins on, and what becomes of older formats, is
in ``folder.py`` and ``formats.py``. Here is what follows for the records: after a reboot no
deadline holds, and after a loss another life begins.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from registry.errors import StoreError
from registry.model import Revision
from registry.store import PAUSE_MS, another_life
from registry.stores.lmdb import formats
from registry.stores.lmdb.environment import I64, Environment
from registry.stores.lmdb.folder import Folder
from registry.stores.lmdb.leases import LeaseFile
from registry.stores.lmdb.offering import BASED, FORMER, leave_own_life
from registry.stores.lmdb.places import Places
from registry.stores.lmdb.records import ENTRY, LEASED, TOUCHED, U64, packed_entry


class Opened(NamedTuple):
    """A store's files, ready for use."""

    files: Folder
    env: Environment
    live: LeaseFile
    identity: tuple[int, int]
    """Which file the data are in."""
    whole: str
    """The state of the data where it is sure to be whole; see ``Folder.leave_whole``."""


def open_folder(folder: Path, boot_id: str | None, first_life: Revision | None) -> Opened:
    """Open or create the files; ``StoreError`` where the folder cannot be used.

    A new store begins with a life of its own, unless it is given one.
    """
    try:
        files = Folder(folder, None if boot_id is None else boot_id.encode())
        folder.mkdir(parents=True, exist_ok=True)
        with files.locked("opening.lock"):
            return _open(files, another_life(Revision(0)) if first_life is None else first_life)
    except (OSError, lmdb.Error) as error:
        raise StoreError(f"cannot open the store in {folder}: {error}") from error


def _open(files: Folder, first_life: Revision) -> Opened:
    """Open what is there, or what can be made of it; alone among those who open."""
    leases = files.leases
    is_known = files.is_of_this_boot()
    is_as_left = files.is_as_left() and is_known
    if not is_known:
        leases.unlink(missing_ok=True)
    is_alone = not LeaseFile.is_open(leases)
    begins_again = files.choose(is_known=is_known, is_alone=is_alone, is_as_left=is_as_left)
    live = LeaseFile(leases)
    try:
        env = Environment(files.path)
        begins_again = env.write(lambda txn: _begin(env, txn, first_life)) or begins_again
        if begins_again or not (is_as_left or _renewals_are_whole(env, live)):
            live.close()
            leases.unlink(missing_ok=True)
            live = LeaseFile(leases)
            env.write(lambda txn: _forget_clock(env, txn))
        if begins_again:
            env.write(lambda txn: _begin_again(env, txn))
        # The file may be new; the store knows how many slots.
        slots = env.read(lambda txn: env.number(txn, b"slots")) or 0
        live.reserve(max(0, slots - 1))
        env.read(lambda txn: _show_clock(env, txn, live))
        if live.is_alone():
            live.skip_to(env.read(Places(env, live).last_freed))
        data = os.stat(files.data)
        identity = (data.st_dev, data.st_ino)
        whole = files.state_of_data() if is_alone else ""
    except BaseException:
        live.close()
        raise
    if not is_known:
        files.note_boot()
    return Opened(files, env, live, identity, whole)


def _begin(env: Environment, txn: Any, first_life: Revision) -> bool:
    """State the format of a new store; whether another life is to begin on an older one."""
    found = txn.get(formats.KEY, db=env.meta)
    if found is None and txn.stat(env.record)["entries"] == 0:
        txn.put(formats.KEY, formats.STATED, db=env.meta)
        txn.put(b"life", U64.pack(first_life), db=env.meta)
    elif found != formats.STATED:
        raise StoreError(f"the store in {env.folder} is in use by another version")
    return txn.get(formats.BEGINS, db=env.meta) is not None


def _renewals_are_whole(env: Environment, live: LeaseFile) -> bool:
    """Whether the lease file says of each lease what can be; not looked at beside others."""
    if not live.is_alone():
        return True
    env.read(lambda txn: _show_clock(env, txn, live))
    with Places(env, live).alone():
        return env.read(
            lambda txn: all(
                live.is_plausible(*LEASED.unpack(value)[:4])
                for value in txn.cursor(env.leased).iternext(keys=False)
            )
        )


def _forget_clock(env: Environment, txn: Any) -> None:
    """After a reboot the monotonic clock begins again: nothing written by it holds."""
    for key, value in list(txn.cursor(env.leased)):
        slot, generation, _, duration, renewed = LEASED.unpack(value)
        packed = LEASED.pack(slot, generation, 0, duration, renewed)
        txn.put(key, packed, db=env.leased)
    for key, _ in list(txn.cursor(env.meta)):
        if key.startswith((b"lock\0", b"window\0")):
            txn.delete(key, db=env.meta)
    # An instant before every pause: the next ``resume`` gives the leases their time back. So
    # that it gives the log its own, running time stands there where it stood.
    alive = env.signed(txn, b"alive")
    ran = alive - (env.signed(txn, b"outages") or 0) if alive is not None else None
    if ran is None:
        ran = max([ENTRY.unpack_from(v)[0] for _, v in txn.cursor(env.log)], default=0)
    txn.put(b"alive", I64.pack(-PAUSE_MS - 1), db=env.meta)
    txn.put(b"outages", I64.pack(-1 - ran), db=env.meta)


def _begin_again(env: Environment, txn: Any) -> None:
    """Begin another life, in which all that is listed counts as just changed."""
    revisions = [
        (key, U64.unpack(value)[0])
        for key, value in txn.cursor(env.meta)
        if key.startswith(b"revision\0")
    ]
    before = env.life(txn)
    greatest = max([before, *(r for _, r in revisions)])
    life = U64.pack(another_life(Revision(greatest)))
    leave_own_life(env, txn)
    # A copy is in a life of its own from now on, as if it had been written alone.
    txn.put(FORMER, U64.pack(before), db=env.meta, overwrite=False)
    txn.put(b"life", life, db=env.meta)
    for key, revision in revisions:
        based = BASED + key.partition(b"\0")[2]
        txn.put(based, U64.pack(revision), db=env.meta, overwrite=False)
        txn.put(key, life, db=env.meta)
        txn.put(b"trimmed\0" + key.partition(b"\0")[2], life, db=env.meta)
    at = (env.signed(txn, b"alive") or 0) + PAUSE_MS - (env.signed(txn, b"outages") or 0)
    for key, value in txn.cursor(env.record):
        namespace, _, name = key.partition(b"\0")
        txn.put(namespace + b"\0" + value[:8], packed_entry(at, TOUCHED, name), db=env.log)
    txn.delete(formats.BEGINS, db=env.meta)


def _show_clock(env: Environment, txn: Any, live: LeaseFile) -> None:
    """Bring into the lease file, which may be new, what the store says of running time."""
    live.show_clock(env.signed(txn, b"alive"), env.signed(txn, b"outages") or 0)
