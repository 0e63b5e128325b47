"""Environment variables of the servers that this one replaces.

Some mean what one of this server's own means. The others change nothing here, which the log says of
each that is set, with the reason. Spring's server is below; ``amalgam8.py`` has another one's.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

_ALMOST = 0.9

Understood = dict[str, tuple[str, str]]
"""A variable of this server → the foreign one that stands for it, and the value in our spelling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSettings:
    """One server's variables: what they mean here, and why others mean nothing."""

    prefixes: tuple[str, ...]
    """What its variables begin with: one that is in no table is known for one of its own."""

    meant: Mapping[str, tuple[str, Callable[[str], str]]]
    """Its variable → this server's, and how a value is spelled there."""

    without_meaning: Mapping[str, str]
    """Its variable → why it has no effect here."""

    families: Mapping[str, str] = field(default_factory=dict)
    """What several of its variables begin with → why none of them has an effect here."""

    several: Callable[[Mapping[str, str]], tuple[Understood, frozenset[str]]] = field(
        default=lambda _: ({}, frozenset())
    )
    """For what more than one of its variables say together: that, and which of them count."""

    reduced: Callable[[str], str] = str
    """A variable's name as the tables have it, where it may be spelled in several ways."""

    def understood(self, environ: Mapping[str, str]) -> Understood:
        """What is set for that server, as settings of this one. An empty variable is none."""
        given = self._given(environ)
        found = {
            meant: (name, spelled(given[name]))
            for name, (meant, spelled) in self.meant.items()
            if name in given
        }
        return found | self.several(given)[0]

    def warnings(
        self, environ: Mapping[str, str], own: Collection[str], known: Collection[str] = ()
    ) -> tuple[str, ...]:
        """A line for each of its variables that has no effect here.

        ``own`` are the settings of this server that are set themselves: they count before these.
        ``known`` are names of this server's that a mistyped one may have been meant for.
        """
        found = []
        counted = self.several(self._given(environ))[1]
        for variable, value in sorted(environ.items()):
            name = self.reduced(variable)
            if name in self.meant:
                meant = self.meant[name][0]
                if value and meant in own:
                    found.append(f"{variable} has no effect here: {meant} is set too")
            elif value and name.startswith(self.prefixes) and name not in counted:
                found.append(f"{variable} has no effect here: {self.reason(name, known)}")
        return tuple(found)

    def reason(self, name: str, known: Collection[str]) -> str:
        """Why one of its variables (as ``reduced``) has no effect here."""
        if name in self.without_meaning:
            return self.without_meaning[name]
        for beginning, reason in self.families.items():
            if name.startswith(beginning):
                return reason
        meant = difflib.get_close_matches(name, [*known, *self.meant], n=1, cutoff=_ALMOST)
        return f"it is not known; is {meant[0]} meant?" if meant else "it is not known"

    def _given(self, environ: Mapping[str, str]) -> dict[str, str]:
        named = {self.reduced(variable): value for variable, value in environ.items() if value}
        return {
            name: value
            for name, value in named.items()
            if name in self.meant or name.startswith(self.prefixes)
        }


# Spring Cloud's server

_SERVER, _INSTANCE = "EUREKA_SERVER_", "EUREKA_INSTANCE_REGISTRY_"
_CLIENT, _OWN_ENTRY = "EUREKA_CLIENT_", "EUREKA_INSTANCE_"
ZONES = f"{_CLIENT}SERVICEURL"
"""What the properties that name other servers begin with, each with a zone behind it."""
DEFAULT_ZONE = f"{ZONES}DEFAULTZONE"
"""The property that names the other servers, as ``reduced`` has it."""
_REGIONS = f"{_SERVER}REMOTEREGIONURLSWITHNAME"
_WHITELISTS = f"{_SERVER}REMOTEREGIONAPPWHITELIST"


def reduced(name: str) -> str:
    """A variable's name, without the underscores that Spring lets one leave out behind a prefix.

    ``EUREKA_SERVER_DISABLE_DELTA`` and ``EUREKA_SERVER_DISABLEDELTA`` are one property.
    """
    upper = name.upper()
    for prefix in (_INSTANCE, _SERVER, _CLIENT, _OWN_ENTRY):
        if upper.startswith(prefix):
            return prefix + upper[len(prefix) :].replace("_", "")
    return name


def is_zone(name: str) -> bool:
    """Whether a reduced name is the property of a zone's service URLs."""
    return name.startswith(ZONES) and name != ZONES


def is_region(name: str) -> bool:
    """Whether a reduced name is the property of a remote region: its URL, or its whitelist."""
    return name.startswith((_REGIONS, _WHITELISTS))


_NO_CACHE = "answers always come from the current registry, so there is no cache to set"
_ASKED = "peers are asked until one answers, for PEERS_START_WAIT_MS at most"
_ONE_BATCH = "each peer has one connection and one batch under way"
_RETRIED = "a peer that does not answer is tried again, at growing intervals"
_BY_ANSWERS = "whether a peer is available its last answer says"
_EACH_ZONE = "each zone that has service URLs is a peer"
_REGION = "a remote region is followed as a catalog, which looks every five seconds"
_OF_SERVER: dict[str, str] = {
    "RESPONSECACHEAUTOEXPIRATIONINSECONDS": _NO_CACHE,
    "RESPONSECACHEUPDATEINTERVALMS": _NO_CACHE,
    "USEREADONLYRESPONSECACHE": _NO_CACHE,
    "SHOULDUSEREADONLYRESPONSECACHE": _NO_CACHE,
    "INITIALCAPACITYOFRESPONSECACHE": _NO_CACHE,
    "NUMBERREGISTRYSYNCRETRIES": _ASKED,
    "REGISTRYSYNCRETRIES": _ASKED,
    "REGISTRYSYNCRETRYWAITMS": _ASKED,
    "PEEREUREKASTATUSREFRESHTIMEINTERVALMS": _BY_ANSWERS,
    "NUMBEROFREPLICATIONRETRIES": _RETRIED,
    "PEERNODETOTALCONNECTIONS": _ONE_BATCH,
    "PEERNODETOTALCONNECTIONSPERHOST": _ONE_BATCH,
    "PEERNODECONNECTIONIDLETIMEOUTSECONDS": _ONE_BATCH,
    "MAXELEMENTSINSTATUSREPLICATIONPOOL": _ONE_BATCH,
    "MAXTHREADSFORPEERREPLICATION": _ONE_BATCH,
    "MAXTHREADSFORSTATUSREPLICATION": _ONE_BATCH,
    "MAXTIMEFORREPLICATION": _RETRIED,
    "BATCHREPLICATION": "replication always comes in batches",
    "SHOULDBATCHREPLICATION": "replication always comes in batches",
    "MINAVAILABLEINSTANCESFORPEERREPLICATION": _BY_ANSWERS,
    "PRIMEAWSREPLICACONNECTIONS": "nothing here is bound to AWS",
    "DISABLEDELTAFORREMOTEREGIONS": _REGION,
    "RATELIMITERENABLED": "requests are not limited by rate",
    "RATELIMITERBURSTSIZE": "requests are not limited by rate",
    "RATELIMITERREGISTRYFETCHAVERAGERATE": "requests are not limited by rate",
    "RATELIMITERFULLFETCHAVERAGERATE": "requests are not limited by rate",
    "JSONCODECNAME": "there is one codec, the original's default",
    "XMLCODECNAME": "there is one codec, the original's default",
    "LOGIDENTITYHEADERS": "identity headers are not logged",
}
_NO_CLIENT = "this server is nobody's client but its peers', which it asks in its own time"
_OF_CLIENT: dict[str, str] = {
    "REGION": _EACH_ZONE,
    "PREFERSAMEZONEEUREKA": _EACH_ZONE,
    "USEDNSFORFETCHINGSERVICEURLS": "peers are named by service URLs",
    "HEALTHCHECKENABLED": "its own entry is UP while it runs",
    "REGISTRYFETCHINTERVALSECONDS": _NO_CLIENT,
    "INSTANCEINFOREPLICATIONINTERVALSECONDS": _NO_CLIENT,
    "INITIALINSTANCEINFOREPLICATIONINTERVALSECONDS": _NO_CLIENT,
    "EUREKASERVERCONNECTTIMEOUTSECONDS": _NO_CLIENT,
    "EUREKASERVERREADTIMEOUTSECONDS": _NO_CLIENT,
}
_OWN = "its own entry is made of its host, port and application"
_OF_OWN_ENTRY = (
    "PREFERIPADDRESS",
    "IPADDRESS",
    "INSTANCEID",
    "APPNAME",
    "NONSECUREPORT",
    "SECUREPORT",
    "VIRTUALHOSTNAME",
    "LEASERENEWALINTERVALINSECONDS",
    "LEASEEXPIRATIONDURATIONINSECONDS",
    "STATUSPAGEURL",
    "HEALTHCHECKURL",
    "HOMEPAGEURL",
)
SPRING = ForeignSettings(
    prefixes=(_SERVER, _CLIENT, _OWN_ENTRY),
    meant={
        "SERVER_PORT": ("PORT", str),
        "SERVER_ADDRESS": ("HOST", str),
        f"{_SERVER}WAITTIMEINMSWHENSYNCEMPTY": ("PEERS_START_WAIT_MS", str),
    },
    without_meaning={
        f"{_INSTANCE}EXPECTEDNUMBEROFCLIENTSSENDINGRENEWS": (
            "the number comes from the registry itself"
        ),
        **{_SERVER + name: reason for name, reason in _OF_SERVER.items()},
        **{_CLIENT + name: reason for name, reason in _OF_CLIENT.items()},
    },
    families={
        f"{_SERVER}REMOTEREGION": _REGION,
        f"{_CLIENT}AVAILABILITYZONES": _EACH_ZONE,
        f"{_OWN_ENTRY}METADATAMAP": _OWN,
        **{_OWN_ENTRY + name: _OWN for name in _OF_OWN_ENTRY},
    },
    reduced=reduced,
)
"""Its properties that this server has are settings of its own, under the same names."""
