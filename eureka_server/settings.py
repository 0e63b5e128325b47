"""The settings of the server, read from environment variables: the one place that does.

What configures a Spring Cloud Eureka server configures this one: each property that has a meaning
here is read from its variable in both spellings that Spring accepts (``EUREKA_SERVER_DISABLEDELTA``
and ``EUREKA_SERVER_DISABLE_DELTA``). A property that has none is named in a warning, with the
reason, rather than ignored. Source: protocol section 10.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from catalogs import CatalogSettings, read_catalogs
from eureka_compat.settings import EurekaSettings
from eureka_http.shown import escaped, masked
from eureka_server import amalgam8
from eureka_server.access import AccessSettings, Network
from native_api.settings import NativeSettings
from registry.settings import RegistrySettings

_T = TypeVar("_T")


class SettingError(ValueError):
    """A setting that cannot be used; the text names it, its value and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Everything that is set from outside."""

    host: str
    port: int
    workers: int
    threads: int
    worker_class: str
    log_level: str
    access_log: bool
    actuator: bool
    store_url: str
    registry: RegistrySettings
    eureka: EurekaSettings
    native: NativeSettings
    access: AccessSettings
    tls: TlsSettings
    catalogs: tuple[CatalogSettings, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What gunicorn serves TLS with; plain HTTP without a certificate.

    With ``client_ca_file`` a client must show a certificate that it signed.
    """

    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None


def _boolean(text: str) -> bool:
    value = text.strip().lower()
    if value in ("true", "yes", "on", "1"):
        return True
    if value in ("false", "no", "off", "0"):
        return False
    raise ValueError("true or false")


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return read


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ValueError("a number above 0, up to 1")
    return value


def _choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.strip().lower() not in words:
            raise ValueError(" or ".join(words))
        return text.strip().lower()

    return read


def _store_url(text: str) -> str:
    if text == "memory:" or (text.startswith("lmdb:") and len(text) > len("lmdb:")):
        return text
    raise ValueError("memory: or lmdb:PATH")


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError("a file that can be read")
    return path


def _existing_path(text: str) -> Path:
    path = Path(text)
    if not text or not path.exists():
        raise ValueError("a file, or a folder of files, that can be read")
    return path


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("addresses or networks, such as 10.0.0.0/8, parted by commas") from None


def _network(text: str) -> Network:
    """A network, of IPv4 as such where it is written in IPv6's way: peers are compared so."""
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text.strip()


def _interval(text: str) -> int:
    """Seconds; the original takes 30 for a value that is not positive."""
    value = _whole(-(2**31), 2**31)(text)
    return value if value > 0 else 30


_MILLISECONDS = _whole(0, 2**53)
_POSITIVE = _whole(1, 2**53)

# Property (as Spring's relaxed names reduce to) → field of a settings class, and its reader.
_REGISTRY_PROPERTIES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "EUREKA_SERVER_ENABLESELFPRESERVATION": ("self_preservation", _boolean),
    "EUREKA_SERVER_RENEWALPERCENTTHRESHOLD": ("renewal_percent_threshold", _share),
    "EUREKA_SERVER_RENEWALTHRESHOLDUPDATEINTERVALMS": (
        "renewal_threshold_update_interval_ms",
        _POSITIVE,
    ),
    "EUREKA_SERVER_EXPECTEDCLIENTRENEWALINTERVALSECONDS": (
        "expected_client_renewal_interval_secs",
        _interval,
    ),
    "EUREKA_SERVER_EVICTIONINTERVALTIMERINMS": ("eviction_interval_ms", _POSITIVE),
    "EUREKA_SERVER_RETENTIONTIMEINMSINDELTAQUEUE": ("delta_retention_ms", _MILLISECONDS),
    "EUREKA_SERVER_DELTARETENTIONTIMERINTERVALINMS": (
        "delta_retention_timer_interval_ms",
        _POSITIVE,
    ),
    "EUREKA_INSTANCE_REGISTRY_DEFAULTOPENFORTRAFFICCOUNT": (
        "default_open_for_traffic_count",
        _whole(0, 2**31),
    ),
}
_EUREKA_PROPERTIES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "EUREKA_SERVER_DISABLEDELTA": ("delta_enabled", lambda text: not _boolean(text)),
    "EUREKA_SERVER_SYNCWHENTIMESTAMPDIFFERS": ("sync_when_timestamp_differs", _boolean),
    "EUREKA_ENVIRONMENT": ("environment", str),
}
_NATIVE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "REGISTRY_DEFAULT_TTL": ("default_ttl_secs", _whole(1, 86_400)),
    "REGISTRY_MIN_TTL": ("min_ttl_secs", _whole(1, 86_400)),
    "REGISTRY_MAX_TTL": ("max_ttl_secs", _whole(1, 86_400)),
    "REGISTRY_MAX_SERVICE_NAME": ("max_service_name", _whole(1, 200)),
    "REGISTRY_MAX_ENDPOINT": ("max_endpoint", _whole(1, 4096)),
    "REGISTRY_MAX_STATUS": ("max_status", _whole(14, 200)),
    "REGISTRY_MAX_TAGS": ("max_tags", _whole(0, 1000)),
    "REGISTRY_MAX_METADATA_BYTES": ("max_metadata_bytes", _whole(2, 65_536)),
}
_LIMITS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "REGISTRY_MAX_INSTANCES": ("max_instances", _whole(1, 2**31)),
    "REGISTRY_MAX_NAMESPACES": ("max_namespaces", _whole(1, 2**31)),
}
_ACCESS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "REGISTRY_AUTH": ("mode", _choice("none", "trusted", "jwt", "basic")),
    "REGISTRY_JWT_KEY": ("key", str),
    "REGISTRY_JWT_KEY_FILE": ("keys_path", _existing_path),
    "REGISTRY_JWT_AUDIENCE": ("audience", _words),
    "REGISTRY_JWT_ISSUER": ("issuer", _words),
    "REGISTRY_JWT_REQUIRE_EXP": ("require_expiry", _boolean),
    "REGISTRY_USERS_FILE": ("users_file", _existing_file),
    "REGISTRY_AUTH_READS": ("protect_reads", _boolean),
    "REGISTRY_AUTH_WRITES": ("protect_writes", _boolean),
    "REGISTRY_REQUIRE_HTTPS": ("require_https", _boolean),
    "REGISTRY_TRUSTED_PROXIES": ("trusted_proxies", _networks),
}
_TLS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "TLS_CERT_FILE": ("cert_file", _existing_file),
    "TLS_KEY_FILE": ("key_file", _existing_file),
    "TLS_CLIENT_CA_FILE": ("client_ca_file", _existing_file),
}


def _bare(name: str) -> str:
    """A name whose case and underscores do not count."""
    return name.upper().replace("_", "")


# Settings of one mode of accounts, which mean nothing in another.
_OF_MODE = {
    "jwt": (
        *("REGISTRY_JWT_KEY", "REGISTRY_JWT_KEY_FILE"),
        *(
            "REGISTRY_JWT_AUDIENCE",
            "REGISTRY_JWT_ISSUER",
            "REGISTRY_JWT_REQUIRE_EXP",
            "REGISTRY_JWT_REQUIRE_EXP",
        ),
    ),
    "basic": ("REGISTRY_USERS_FILE",),
}
_OTHERS = (
    *("HOST", "PORT", "SERVER_PORT", "WORKERS", "THREADS", "WORKER_CLASS", "STORE_URL"),
    *("LEASE_EXPIRY", "LOG_LEVEL", "ACCESS_LOG", "REGISTRY_CATALOGS", "REGISTRY_ACTUATOR"),
)
# What Kubernetes sets in every Pod for a Service that happens to be called "registry".
_SERVICE_LINK = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
# Those that close the server or encrypt its traffic, by their letters alone.
_PROTECTING = {_bare(name): name for name in (*_ACCESS, *_TLS)}
_SIMILAR, _ALMOST = 0.8, 0.85
# Never shown, not even where they are wrong.
_SECRET = frozenset({"REGISTRY_JWT_KEY", "REGISTRY_CATALOGS", amalgam8.CATALOGS})
_NO_CACHE = "answers always come from the current registry, so there is no cache to set"
_NO_PEERS = "this server does not replicate to peers"
_NO_REGIONS = "remote regions are not fetched"
_WITHOUT_MEANING: dict[str, str] = {
    "RESPONSECACHEAUTOEXPIRATIONINSECONDS": _NO_CACHE,
    "RESPONSECACHEUPDATEINTERVALMS": _NO_CACHE,
    "USEREADONLYRESPONSECACHE": _NO_CACHE,
    "SHOULDUSEREADONLYRESPONSECACHE": _NO_CACHE,
    "INITIALCAPACITYOFRESPONSECACHE": _NO_CACHE,
    "WAITTIMEINMSWHENSYNCEMPTY": "the store is loaded before the first answer",
    "NUMBERREGISTRYSYNCRETRIES": _NO_PEERS,
    "REGISTRYSYNCRETRIES": _NO_PEERS,
    "REGISTRYSYNCRETRYWAITMS": _NO_PEERS,
    "PEEREUREKANODESUPDATEINTERVALMS": _NO_PEERS,
    "PEEREUREKASTATUSREFRESHTIMEINTERVALMS": _NO_PEERS,
    "NUMBEROFREPLICATIONRETRIES": _NO_PEERS,
    "PEERNODECONNECTTIMEOUTMS": _NO_PEERS,
    "PEERNODEREADTIMEOUTMS": _NO_PEERS,
    "PEERNODETOTALCONNECTIONS": _NO_PEERS,
    "PEERNODETOTALCONNECTIONSPERHOST": _NO_PEERS,
    "PEERNODECONNECTIONIDLETIMEOUTSECONDS": _NO_PEERS,
    "MAXELEMENTSINPEERREPLICATIONPOOL": _NO_PEERS,
    "MAXELEMENTSINSTATUSREPLICATIONPOOL": _NO_PEERS,
    "MAXTHREADSFORPEERREPLICATION": _NO_PEERS,
    "MAXTHREADSFORSTATUSREPLICATION": _NO_PEERS,
    "MAXTIMEFORREPLICATION": _NO_PEERS,
    "BATCHREPLICATION": _NO_PEERS,
    "SHOULDBATCHREPLICATION": _NO_PEERS,
    "ENABLEREPLICATEDREQUESTCOMPRESSION": _NO_PEERS,
    "MINAVAILABLEINSTANCESFORPEERREPLICATION": _NO_PEERS,
    "PRIMEAWSREPLICACONNECTIONS": "nothing here is bound to AWS",
    "MYURL": _NO_PEERS,
    "REMOTEREGIONURLSWITHNAME": _NO_REGIONS,
    "REMOTEREGIONCONNECTTIMEOUTMS": _NO_REGIONS,
    "REMOTEREGIONREADTIMEOUTMS": _NO_REGIONS,
    "REMOTEREGIONREGISTRYFETCHINTERVAL": _NO_REGIONS,
    "REMOTEREGIONAPPWHITELIST": _NO_REGIONS,
    "DISABLETRANSPARENTFALLBACKTOOTHERREGION": _NO_REGIONS,
    "DISABLEDELTAFORREMOTEREGIONS": _NO_REGIONS,
    "RATELIMITERENABLED": "requests are not limited by rate",
    "RATELIMITERBURSTSIZE": "requests are not limited by rate",
    "RATELIMITERREGISTRYFETCHAVERAGERATE": "requests are not limited by rate",
    "RATELIMITERFULLFETCHAVERAGERATE": "requests are not limited by rate",
    "JSONCODECNAME": "there is one codec, the original's default",
    "XMLCODECNAME": "there is one codec, the original's default",
    "LOGIDENTITYHEADERS": "identity headers are not logged",
}


def load(environ: Mapping[str, str]) -> Environment:
    """Read and check every setting; ``SettingError`` with one line for the first that is wrong."""
    own = {_reduced(name): (name, value) for name, value in sorted(environ.items())}
    reduced = amalgam8.understood(environ) | own

    def read(name: str, reader: Callable[[str], _T], default: _T) -> _T:
        variable, value = reduced.get(name, (name, None))
        if value is None:
            return default
        try:
            return reader(value)
        except ValueError as error:
            shown = "…" if name in _SECRET else repr(value)
            told = f"{variable}={shown}: expected {error}"
            raise SettingError(escaped(masked(told))) from None

    def table(known: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
        return {
            field: read(name, reader, None)
            for name, (field, reader) in known.items()
            if name in reduced
        }

    def set_up(name: str) -> tuple[CatalogSettings, ...]:
        return read(name, read_catalogs, ())

    store_url = read("STORE_URL", _store_url, "lmdb:data")
    shared = store_url != "memory:"
    workers = read("WORKERS", _whole(1, 256), (os.cpu_count() or 1) if shared else 1)
    if workers > 1 and not shared:
        raise SettingError(f"WORKERS={workers}: expected 1, for STORE_URL=memory: is not shared")
    native = NativeSettings(**table(_NATIVE))
    if not native.min_ttl_secs <= native.default_ttl_secs <= native.max_ttl_secs:
        raise SettingError("expected REGISTRY_MIN_TTL <= REGISTRY_DEFAULT_TTL <= REGISTRY_MAX_TTL")
    access = AccessSettings(**table(_ACCESS))
    _check_accounts(access, reduced)
    if access.users_file is not None and shared:
        folder = Path(store_url.removeprefix("lmdb:"))
        access = replace(access, users_copy=folder / "users.last-good")
    tls = TlsSettings(**table(_TLS))
    if (tls.cert_file is None) != (tls.key_file is None):
        raise SettingError("expected TLS_CERT_FILE and TLS_KEY_FILE, both or neither")
    if tls.client_ca_file is not None and tls.cert_file is None:
        raise SettingError("TLS_CLIENT_CA_FILE: expected TLS_CERT_FILE and TLS_KEY_FILE too")
    expiry = read("LEASE_EXPIRY", _choice("exact", "genuine"), "exact")
    return Environment(
        host=read("HOST", str, "0.0.0.0"),
        port=read("PORT", _whole(1, 65535), read("SERVER_PORT", _whole(1, 65535), 8761)),
        workers=workers,
        threads=read("THREADS", _whole(1, 1024), 8),
        worker_class=read("WORKER_CLASS", str, "eureka_http.worker.EventLoopWorker"),
        log_level=read("LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info"),
        access_log=read("ACCESS_LOG", _boolean, False),
        actuator=read("REGISTRY_ACTUATOR", _boolean, True),
        store_url=store_url,
        registry=RegistrySettings(lease_expiry=expiry, **table(_REGISTRY_PROPERTIES | _LIMITS)),  # type: ignore[arg-type]  # a choice of the two words
        eureka=EurekaSettings(**table(_EUREKA_PROPERTIES)),
        native=native,
        access=access,
        tls=tls,
        catalogs=(*set_up("REGISTRY_CATALOGS"), *set_up(amalgam8.CATALOGS)),
        warnings=(
            *_warnings(own),
            *amalgam8.warnings(environ, {n: v for n, (_, v) in own.items()}),
        ),
    )


def _reduced(name: str) -> str:
    """A variable's name with Spring's optional underscores taken out behind its prefix."""
    upper = name.upper()
    for prefix in ("EUREKA_INSTANCE_REGISTRY_", "EUREKA_SERVER_"):
        if upper.startswith(prefix):
            return prefix + upper[len(prefix) :].replace("_", "")
    return name


def _check_accounts(access: AccessSettings, given: Mapping[str, Any]) -> None:
    """Refuse what asks for accounts without switching them on: the server would be open."""
    if access.mode == "jwt" and not access.key and access.keys_path is None:
        raise SettingError("REGISTRY_AUTH=jwt: expected REGISTRY_JWT_KEY or REGISTRY_JWT_KEY_FILE")
    if access.key and access.keys_path is not None:
        raise SettingError("expected REGISTRY_JWT_KEY or REGISTRY_JWT_KEY_FILE, not both")
    if access.mode == "basic" and access.users_file is None:
        raise SettingError("REGISTRY_AUTH=basic: expected REGISTRY_USERS_FILE")
    for mode, names in _OF_MODE.items():
        for name in names:
            if name in given and access.mode != mode:
                variable = given[name][0]
                raise SettingError(f"{variable}: expected REGISTRY_AUTH={mode}, not {access.mode}")
    for name in ("REGISTRY_AUTH_READS", "REGISTRY_AUTH_WRITES"):
        if name in given and access.mode == "none":
            raise SettingError(f"{name}: expected REGISTRY_AUTH=trusted, jwt or basic, not none")


def _warnings(reduced: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """A line for each variable that was meant for this server, and has no effect on it.

    ``SettingError`` where it looks like one that would close the server or encrypt its traffic: a
    letter that is missing must not open it.
    """
    found = []
    known = {*_NATIVE, *_LIMITS, *_ACCESS, *_TLS, *_OTHERS}
    for name, (variable, _) in reduced.items():
        if name in known or _SERVICE_LINK.fullmatch(variable) or name.startswith(amalgam8.PREFIX):
            continue
        if name.startswith(("EUREKA_SERVER_", "EUREKA_INSTANCE_REGISTRY_")):
            if name not in _REGISTRY_PROPERTIES and name not in _EUREKA_PROPERTIES:
                found.append(f"{variable} has no effect here: {_reason(name)}")
            continue
        meant = _PROTECTING.get(_bare(name))
        if meant is not None:
            raise SettingError(f"{variable} is not known: expected {meant}, or nothing")
        is_ours = name.startswith(("REGISTRY_", "TLS_"))
        near = difflib.get_close_matches(
            name.upper(), sorted(known), n=1, cutoff=_SIMILAR if is_ours else _ALMOST
        )
        if is_ours and near and near[0] in (*_ACCESS, *_TLS):
            raise SettingError(f"{variable} is not known: expected {near[0]}, or nothing")
        if is_ours or near:
            meant = f"; is {near[0]} meant?" if near else ""
            found.append(f"{variable} has no effect here: it is not known{meant}")
    return tuple(found)


def _reason(name: str) -> str:
    """Why a property of Spring's has no effect here."""
    if name == "EUREKA_INSTANCE_REGISTRY_EXPECTEDNUMBEROFCLIENTSSENDINGRENEWS":
        return "the number comes from the registry itself"
    short = name.removeprefix("EUREKA_SERVER_")
    if short in _WITHOUT_MEANING:
        return _WITHOUT_MEANING[short]
    known = [*_REGISTRY_PROPERTIES, *_EUREKA_PROPERTIES]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
    return f"it is not known; is {near[0]} meant?" if near else "it is not known"
