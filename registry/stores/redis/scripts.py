"""What Redis runs: each script is one atomic operation on the keys of one part of a registry.

A part is the *root*, or a namespace. All keys of a part begin with its tag in braces, so that they
are in one slot of a Cluster, and the namespaces are spread over its servers. Every script has two
keys: the tag, which is never a key itself, and the part's ``life``. While a slot is being moved one
of the two is missing wherever it is asked for, so that a Cluster refuses (``TRYAGAIN``) until it is
moved as a whole.

| key of the root, ``{PREFIX}:`` | kind | content |
| --- | --- | --- |
| ``life`` | hash | ``number``; ``run``: the server's in which it began, and the format; ``begin`` |
| ``namespaces`` | hash | namespace → the life in which it was last begun, and its begin; or empty |
| ``claims`` | hash | namespace → the number of its claim: of those that may hold instances |
| ``claimed`` | string | the last number of a claim |
| ``tokens``, ``locks`` | hashes | lock → the last token; its owner, end and length |
| ``notes`` | hash | name → what was noted |
| ``nodes`` | hash | node → the instant up to which it told its renewals |
| ``far`` | hash | namespace → its revision and its last batch of renewals, as nodes told |
| ``news`` | sorted set | namespace, by the number of the last news of it in ``far`` |
| ``newest`` | string | the number of the last news |
| ``awaited`` | hash | the nodes that have not taken up the life; for a few seconds |

| key of a namespace, ``{PREFIX:NAMESPACE}:`` | kind | content |
| --- | --- | --- |
| ``life`` | hash | as of the root: which of its lives this part is in; ``open`` |
| ``meta`` | hash | ``revision``, ``trimmed``, ``expected``, ``size``, ``claim``; ``taken`` |
| ``record`` | hash | instance → revision, a blank, the instance |
| ``lease`` | hash | instance → a lease (below) |
| ``override`` | hash | id → status |
| ``log`` | sorted set | instance, by the revision of its last change |
| ``change`` | hash | instance → instant, kind, a removed one's last state or when it had changed |
| ``was`` | hash | instance → revision now, as it was given back, when written, alone after which |
| ``evicted`` | hash | second → how many were evicted in it |
| ``fences`` | hash | lock → the greatest token that was told of |
| ``renewed`` | stream | the latest batches of renewals, by their numbers |
| ``told`` | string | the number of the last batch |
| ``done:ID`` | string | the outcome of a group of commits, for a minute |
| ``awaited`` | hash | as of the root: nothing is committed before they have given back |

**Opening.** A namespace is listed at the root, then begun in its own slot, then noted as begun at
the root, and then opened in its slot; what it holds is neither read nor written before. Each
*begin* is another one, as it has the instant in it; the root keeps the first of a life. So where
the slot has another or none, it has lost something, whichever requests came to it since, again or
late; and what they began is not open. Nor does a life begin twice: its number is its instant. A
*claim* allows a namespace to hold instances: the root counts
claims, and a namespace that is found empty gives its claim back when room is wanted.

An instance's name is its application and id, joined by NUL; an override that changed alone has the
name of its instance and another NUL. A lease is its deadline, duration, last renewal, the client's
own last renewal, the number of the batch that last renewed it, and the revision with which it
began. Instants are Redis' time in milliseconds. Lua's numbers are
doubles: they hold each revision exactly, but are to be written in full.

The scripts are in ``lua/``, and the functions that they have in common, each in a file of its own.

All of this, and the messages, have a *format*, which is a number. It stands behind the run, so
that what another version with another format asks is refused, as in another run.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

from registry.model import Instance

FORMAT = 2
"""To be another one wherever a key, a value or a message gets another meaning."""


class Script(NamedTuple):
    """A script, and the name by which Redis knows it once it was loaded."""

    text: str
    sha: str


_LUA = resources.files(__package__) / "lua"


def _script(*names: str) -> Script:
    """The script of the last name, behind the functions of the others."""
    parts = ["\n" + (_LUA / f"{name}.lua").read_text(encoding="utf-8") for name in names]
    text = "".join(parts).replace("AHEAD", str(AHEAD_MS)).replace("DIRTY", _DIRTY)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


AHEAD_MS = 5_000
"""By how much a lease may seem to end later than its whole duration from now."""
# At which place an instance's record has its own timestamp, as Lua counts.
_DIRTY = str(1 + Instance._fields.index("last_dirty_ms"))

COMMIT = _script("begin", "changes", "write", "tell_moved", "commit")
"""Write the commits whose guards hold, and tell what its node had not followed before them.

Refused as long as another node is awaited, which may know of a later state than all others.
"""

FETCH = _script("begin", "changes", "fetch")
"""What changed in a namespace after a revision, or that it was forgotten."""

PAGE = _script("begin", "page")
"""A part of what is listed, with its leases."""

TELL = _script("begin", "tell")
"""Tell others of a node's renewals in a namespace, and hear of theirs and of how far it is."""

TOLD = _script("begin", "told")
"""Note until when a node told its renewals, and how far the namespaces are.

Until when all told; the nodes that did in the last five seconds; the number of the last news, and
the namespaces of which there are any that the node does not know, with how far each is.
"""

TRIM = _script("begin", "trim")
"""Forget the oldest changes."""

LIFE = _script("begin", "await", "tell_moved", "life")
"""Which life a part is in, its run and the server's, its revision and size, its begin, and whether
it is open; and begin another.

It begins where all is still as the caller saw it. What is listed counts as changed in it. Locks and
claims begin anew.
"""

NAMESPACES = _script("begin", "namespaces")
"""The namespaces that the root lists, and how each was last begun."""

OPEN = _script("begin", "open")
"""List a namespace, and claim; in which life it was begun, its claim, and the locks' tokens.

Last come the nodes that are awaited yet.

Where there is no room for another it has no claim, and those that have one are named.
"""

OPENED = _script("begin", "opened")
"""Open a namespace that was begun as the root has it. Tell it of its claim, and of tokens: what is
fenced with an earlier one is refused.
"""

BEGUN = _script("begin", "begun")
"""Note that a namespace was begun in the present life.

Its first begin in it, whether that was noted now, the locks' tokens and the nodes that are awaited.
"""

YIELD = _script("begin", "yield")
"""Take the claim from a namespace that is empty, and return it."""

YIELDED = _script("begin", "yielded")
"""Note that a claim was taken, unless there is a later one by now."""

LISTING = _script("begin", "await", "packed", "listing")
"""Which states are in the log of a namespace, by their revisions.

From each: its revision, and where it was given back under another, that. All are empty while
another node gives back, which is then to be waited for; else the asking node is the one.
"""

NAMED = _script("begin", "packed", "changes", "named")
"""The entries of the log under some names, six values each."""

OFFER = _script("begin", "await", "packed", "write", "tell_moved", "offer")
"""Give back what a node knows of an earlier life, or wrote while Redis was away.

As long as no node has taken up the life, a state keeps its revision, so that who has it already has
nothing to do.
"""

GIVEN = _script("begin", "given")
"""Note that a node has taken up the life, and gave back before whatever the others may lack."""

ACQUIRE = _script("begin", "acquire")
"""Take or keep a lock; its token, or nothing. Tokens grow with the lives too."""

RELEASE = _script("begin", "release")
"""Give a lock back, if it is this owner's."""
