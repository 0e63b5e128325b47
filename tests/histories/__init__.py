"""What clients of several workers or nodes saw, searched for an order that explains it.

Clients call and read a few instances at once, each call on a connection of its own, so that it is
any worker's, or any node's. A *history* is what they called and were answered, with the instants at
which each call was sent and its answer had come. It is right if some order of its calls, in which
none comes after one that began when it had ended, gives these answers on a small model (it is
*linearizable*): whatever was acknowledged is there, in some order. The search is Wing's and Gong's
with Lowe's memory of what was tried; instances are independent, and each is searched for itself.

A call that was cut off has no answer: it may have been done, at any time since, or never. So it is
with one that was answered 503: the store may not have said whether it wrote it.

**Nodes on one Redis** promise less of their reads, and the same of their writes. What is true is in
Redis, in one order. A node shows what was true at some instant: never earlier than what it showed
or acknowledged before, and never later than now. It refuses a call by what it shows, and writes
only where that is still true. In the end, when every fault is healed, all nodes show the truth.
How far a node may be behind is not judged here, for that is a matter of speed.

**Nodes that accept writes while Redis is away** agree in the end too. Then there are two kinds of
instances. Of one that one client alone writes, always at the same node, the same holds as above: no
other changed it. Its timestamps grow, as those of clients do: the write that was on its way when
Redis stopped answering is older than all that come after it, and may be done late. A *contested*
instance is registered everywhere, each time as another state with a timestamp that no other has,
and in every second history cancelled too. Whatever a node showed or acknowledged, it shows nothing
older by the timestamps afterwards; in the end all show what is at least as new as all that was
acknowledged anywhere. Only a cancel explains that something older is shown, or nothing: one that
comes later, or one of a newer state, for a cancel has the timestamp of what it removes.

    python -m tests.histories 5000                      # over four workers that it starts
    python -m tests.histories 5000 10.0.0.1:8761 10.0.0.2:8761
    python -m tests.histories 672 --store redis redis+sentinel redis+cluster --workers 2 \\
        --faults all
    python -m tests.histories 352 --store redis --workers 2 --faults all --accepting
"""
