"""One of several servers: what this one tells its peers, and what it takes from them.

Source: protocol section 9. Nothing here decides what is true: what a peer says goes through the
registry like anything else, marked as a peer's word so that it is told to nobody else.
"""

from eureka_compat.peers.replicator import Replicator
from eureka_compat.peers.settings import PeersSettings

__all__ = ["PeersSettings", "Replicator"]
