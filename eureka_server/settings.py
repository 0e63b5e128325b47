"""The settings of the server: one table, from which all that knows of them comes.

Each row is a variable of the environment and a flag of ``eureka-registry serve``. What configures a
Spring Cloud Eureka server configures this one: its properties that have a meaning here are rows,
and are read in both spellings that Spring accepts (``EUREKA_SERVER_DISABLEDELTA`` and
``EUREKA_SERVER_DISABLE_DELTA``). Source: protocol section 10. Variables of other servers are
understood too (``foreign_settings``), and so is the file that configured a Spring server
(``spring_config``). What has no effect is named in a warning, not ignored.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from catalogs import CatalogSettings
from eureka_compat.peers.settings import PeersSettings
from eureka_compat.settings import EurekaSettings
from eureka_http.shown import escaped, masked
from eureka_server import amalgam8, readers, regions, spring_config
from eureka_server.access import AccessSettings
from eureka_server.amalgam8 import AMALGAM8
from eureka_server.foreign_settings import DEFAULT_ZONE, SPRING, is_region, is_zone, reduced
from eureka_server.readers import Spelling, choice, whole
from native_api.settings import NativeSettings
from registry import folder_of
from registry.settings import HistorySettings, RegistrySettings


class SettingError(ValueError):
    """A setting that cannot be used; the text names it, its value and what was expected."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What gunicorn serves TLS with; plain HTTP without a certificate.

    With ``client_ca_file`` a client must show a certificate that it signed.
    """

    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None


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
    dashboard: bool
    dashboard_path: str
    metrics_applications: int
    store_url: str
    writes_while_away: Literal["refuse", "accept"]
    registry: RegistrySettings
    history: HistorySettings
    eureka: EurekaSettings
    native: NativeSettings
    peers: PeersSettings
    access: AccessSettings
    tls: TlsSettings
    catalogs: tuple[CatalogSettings, ...] = ()
    spring_config: tuple[str, ...] = ()
    spring_profiles: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether several workers can have the same registry."""
        return self.store_url != "memory:"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: where a value comes from, how it is read, and where it goes."""

    variable: str
    field: str
    """Of ``Environment``, or of one of its parts: ``native.max_tags``."""

    reader: Spelling
    default: str
    """As an operator would write it; empty where there is none."""

    help: str
    mode: str = ""
    """The mode of accounts (``REGISTRY_AUTH``) that it belongs to; it is refused in the others."""

    is_secret: bool = False
    """Whether a value is never shown, and no flag takes it: ``ps`` shows everybody's flags."""

    may_be_file: bool = False
    """Whether a secret may also be the path of the file that holds it: that a flag may take."""

    flag_name: str = ""
    """What the command line calls it where that is not what the variable's name says."""

    @property
    def flag(self) -> str:
        """What the command line calls it; empty for a secret that only the environment may hold."""
        if self.flag_name:
            return self.flag_name
        name = _PREFIX.sub("", self.variable).lower().replace("_", "-")
        if self.is_secret:
            return f"--{name}-file" if self.may_be_file else ""
        return f"--{name}"

    @property
    def form(self) -> str:
        """What the flag's value looks like."""
        return readers.FILE.form if self.is_secret else self.reader.form

    @property
    def is_switch(self) -> bool:
        """Whether the value may only be true or false."""
        return self.reader.form == readers.BOOLEAN.form

    def check_flag(self, text: str) -> None:
        """``ValueError`` for what the flag's value cannot be."""
        if self.is_secret:
            readers.FILE.read(text)
        self.reader.read(text)

    @property
    def key(self) -> str:
        """The variable's name, with nothing in it that may be left out."""
        return reduced(self.variable)

    @property
    def closes(self) -> bool:
        """Whether it closes the server or encrypts its traffic: no mistyped one may be ignored."""
        return self.field.startswith(("access.", "tls."))


_PREFIX = re.compile(
    r"\A(?:REGISTRY|EUREKA_(?:SERVER|CLIENT|INSTANCE_REGISTRY|INSTANCE)|EUREKA|SPRING)_"
)

# A table: a row has two or three lines, not one for each of its words.
# fmt: off
SUBJECTS: dict[str, tuple[Setting, ...]] = {
    "Listening and processes": (
        Setting("HOST", "host", readers.TEXT, "0.0.0.0",
            "the address to listen on; :: for all of IPv4 and IPv6 (SERVER_ADDRESS counts where"
            " HOST is not set)"),
        Setting("PORT", "port", whole(1, 65535), "8761",
            "the port to listen on (SERVER_PORT counts where PORT is not set)"),
        Setting("WORKERS", "workers", whole(1, 256), "",
            "worker processes; without it one per core, and 1 with the store memory:"),
        Setting("THREADS", "threads", whole(1, 1024), "8", "threads in each process"),
        Setting("WORKER_CLASS", "worker_class",
            Spelling("CLASS", str), "eureka_http.worker.EventLoopWorker",
            "gunicorn's worker; gthread works too, with fewer requests a second and a thread for"
            " each watch"),
        Setting("REGISTRY_ACTUATOR", "actuator", readers.BOOLEAN, "true",
            "whether /actuator/health and the like, and /health answer"),
        Setting("EUREKA_DASHBOARD_ENABLED", "dashboard", readers.BOOLEAN, "true",
            "whether there is a page for operators"),
        Setting("EUREKA_DASHBOARD_PATH", "dashboard_path", readers.PAGE_PATH, "/",
            "where it is"),
    ),
    "Store": (
        Setting("STORE_URL", "store_url", readers.STORE_URL, "lmdb:data",
            "lmdb:PATH, shared by all workers and kept; redis://, redis+sentinel:// or"
            " redis+cluster:// (rediss for TLS), shared by many machines; memory:, one worker and"
            " nothing kept"),
        Setting("REGISTRY_WRITES_WHILE_AWAY", "writes_while_away", choice("refuse", "accept"),
            "refuse",
            "whether each machine takes registrations while Redis does not answer, and offers them"
            " to the others when it does"),
    ),
    "History": (
        Setting("REGISTRY_HISTORY", "history.keep_ms", readers.DURATION, "7d",
            "for how long what happened is kept, as 30m, 12h or 7d; 0: not at all"),
        Setting("REGISTRY_HISTORY_BYTES", "history.most_bytes", readers.SIZE, "256MiB",
            "how much of the disk it takes at most (of memory, with the store memory:)"),
    ),
    "Log": (
        Setting("LOG_LEVEL", "log_level", choice("debug", "info", "warning", "error"), "info",
            "how much is logged"),
        Setting("ACCESS_LOG", "access_log", readers.BOOLEAN, "false",
            "a line for each request, tokens masked; clients' text escaped"),
    ),
    "Metrics": (
        Setting("REGISTRY_METRICS_APPLICATIONS", "metrics_applications", whole(0, 100_000), "500",
            "applications whose instances /metrics tells one by one, the largest; all others"
            " together, as other"),
    ),
    "Leases and self-preservation": (
        Setting("LEASE_EXPIRY", "registry.lease_expiry", choice("exact", "genuine"), "exact",
            "genuine: leases doubled by a renewal, a sweep each interval, timestamps ahead"),
        Setting("EUREKA_SERVER_ENABLE_SELF_PRESERVATION", "registry.self_preservation",
            readers.BOOLEAN, "true",
            "whether evictions stop while renewals fall below the threshold"),
        Setting("SELF_PRESERVATION", "registry.self_preservation_by",
            choice("genuine", "by-application"), "genuine",
            "by-application: each application by its leases' own intervals; recommended"),
        Setting("SELF_PRESERVATION_MINIMUM", "registry.self_preservation_minimum",
            whole(1, 2**31), "10",
            "by application: those with fewer instances are not preserved"),
        Setting("EUREKA_SERVER_RENEWAL_PERCENT_THRESHOLD", "registry.renewal_percent_threshold",
            readers.SHARE, "0.85",
            "the share of expected renewals below which self-preservation begins"),
        Setting("EUREKA_SERVER_RENEWAL_THRESHOLD_UPDATE_INTERVAL_MS",
            "registry.renewal_threshold_update_interval_ms",
            readers.POSITIVE_MILLISECONDS, "900000",
            "how often the number of expected clients is set to that of registered ones"),
        Setting("EUREKA_SERVER_EXPECTED_CLIENT_RENEWAL_INTERVAL_SECONDS",
            "registry.expected_client_renewal_interval_secs", readers.INTERVAL, "30",
            "how often a client is expected to renew"),
        Setting("EUREKA_SERVER_EVICTION_INTERVAL_TIMER_IN_MS", "registry.eviction_interval_ms",
            readers.POSITIVE_MILLISECONDS, "60000",
            "the time between two sweeps, with the lease expiry genuine"),
        Setting("EUREKA_INSTANCE_REGISTRY_DEFAULT_OPEN_FOR_TRAFFIC_COUNT",
            "registry.default_open_for_traffic_count", whole(0, 2**31), "1",
            "expected clients of an empty registry"),
    ),
    "Eureka protocol": (
        Setting("EUREKA_SERVER_DISABLE_DELTA", "eureka.delta_enabled", readers.INVERTED, "false",
            "whether apps/delta answers 403, so that clients fetch everything each time"),
        Setting("EUREKA_SERVER_RETENTION_TIME_IN_MS_IN_DELTA_QUEUE", "registry.delta_retention_ms",
            readers.MILLISECONDS, "180000", "how long the delta tells of a change"),
        Setting("EUREKA_SERVER_DELTA_RETENTION_TIMER_INTERVAL_IN_MS",
            "registry.delta_retention_timer_interval_ms", readers.POSITIVE_MILLISECONDS, "30000",
            "how often older changes are dropped from the store"),
        Setting("EUREKA_SERVER_SYNC_WHEN_TIMESTAMP_DIFFERS", "eureka.sync_when_timestamp_differs",
            readers.BOOLEAN, "true",
            "whether a heartbeat's dirty timestamp is compared with the registered one"),
        Setting("EUREKA_SERVER_DISABLE_TRANSPARENT_FALLBACK_TO_OTHER_REGION", "eureka.falls_back",
            readers.INVERTED, "false",
            "whether remote regions are shown only to who asks for them (?regions=)"),
        Setting("EUREKA_ENVIRONMENT", "eureka.environment", readers.TEXT, "test",
            "the environment's name in the status"),
    ),
    "Peers": (
        Setting("EUREKA_CLIENT_SERVICE_URL_DEFAULT_ZONE", "peers.urls", readers.URLS, "",
            "the other servers' service URLs, parted by commas; this server's own is left out",
            is_secret=True, may_be_file=True),
        Setting("EUREKA_SERVER_MY_URL", "peers.my_url", readers.URL, "",
            "which of these is this server's; otherwise host and port tell"),
        Setting("EUREKA_INSTANCE_HOSTNAME", "peers.host_name", readers.WORDS, "",
            "the host under which the others know this server"),
        Setting("SPRING_APPLICATION_NAME", "peers.app_name", readers.WORDS, "EUREKA",
            "the application under which it lists itself there"),
        Setting("EUREKA_CLIENT_REGISTER_WITH_EUREKA", "peers.register", readers.BOOLEAN, "true",
            "whether it lists itself there"),
        Setting("EUREKA_CLIENT_FETCH_REGISTRY", "peers.fetch", readers.BOOLEAN, "true",
            "whether it takes what they have and it lacks"),
        Setting("PEERS_MODE", "peers.mode", choice("replicate", "shadow"), "replicate",
            "shadow: receive and compare, send nothing"),
        Setting("PEERS_SEND_NATIVE", "peers.sends_native", readers.BOOLEAN, "true",
            "whether they are told of instances of the native API"),
        Setting("PEERS_SEND_CATALOGS", "peers.sends_catalogs", readers.BOOLEAN, "false",
            "whether they are told of what catalogs list"),
        Setting("EUREKA_SERVER_PEER_NODE_CONNECT_TIMEOUT_MS", "peers.connect_timeout_ms",
            readers.POSITIVE_MILLISECONDS, "1000", "how long a connection to a peer may take"),
        Setting("EUREKA_SERVER_PEER_NODE_READ_TIMEOUT_MS", "peers.read_timeout_ms",
            readers.POSITIVE_MILLISECONDS, "5000", "how long its answer to a batch may take"),
        Setting("EUREKA_SERVER_PEER_EUREKA_NODES_UPDATE_INTERVAL_MS", "peers.resolve_interval_ms",
            readers.POSITIVE_MILLISECONDS, "600000", "how often names are looked up again"),
        Setting("EUREKA_SERVER_MAX_ELEMENTS_IN_PEER_REPLICATION_POOL", "peers.most_pending",
            whole(1, 2**31), "10000",
            "instances that a peer may lag behind; beyond, the two registries are compared"),
        Setting("EUREKA_SERVER_ENABLE_REPLICATED_REQUEST_COMPRESSION", "peers.gzip",
            readers.BOOLEAN, "false", "whether batches are compressed; Spring cannot read those"),
        Setting("PEERS_START_WAIT_MS", "peers.start_wait_ms", readers.MILLISECONDS, "30000",
            "how long a server with an empty store waits for a peer before it serves"),
        Setting("PEERS_COMPARE_INTERVAL_MS", "peers.compare_interval_ms",
            readers.POSITIVE_MILLISECONDS, "60000", "the time between two comparisons"),
        Setting("PEERS_HOLD_MS", "peers.hold_ms", readers.MILLISECONDS, "600000",
            "how long who was renewed at a peer that does not answer is kept beyond the lease"),
        Setting("PEERS_MAX_LIST_BYTES", "peers.most_list_bytes",
            whole(1 << 20, 1 << 32, "BYTES"), "134217728",
            "the longest list that is taken from a peer; 1.3 KB is an ordinary instance"),
    ),
    "Limits": (
        Setting("REGISTRY_MAX_INSTANCES", "registry.max_instances", whole(1, 2**31), "100000",
            "instances in one namespace, whoever registered them; one more is refused with 403"),
        Setting("REGISTRY_MAX_NAMESPACES", "registry.max_namespaces", whole(1, 2**31), "1000",
            "namespaces with an instance, besides the default one; one more is refused with 403"),
        Setting("REGISTRY_DEFAULT_TTL", "native.default_ttl_secs",
            whole(1, 86_400, "SECONDS"), "30",
            "the lease of a native registration that names none"),
        Setting("REGISTRY_MIN_TTL", "native.min_ttl_secs", whole(1, 86_400, "SECONDS"), "10",
            "the shortest lease that one may ask for"),
        Setting("REGISTRY_MAX_TTL", "native.max_ttl_secs", whole(1, 86_400, "SECONDS"), "600",
            "the longest lease that one may ask for"),
        Setting("REGISTRY_MAX_SERVICE_NAME", "native.max_service_name", whole(1, 200), "64",
            "characters of a native registration's service name"),
        Setting("REGISTRY_MAX_ENDPOINT", "native.max_endpoint", whole(1, 4096), "128",
            "characters of a native registration's endpoint"),
        Setting("REGISTRY_MAX_STATUS", "native.max_status", whole(14, 200), "32",
            "characters of a native registration's status"),
        Setting("REGISTRY_MAX_TAGS", "native.max_tags", whole(0, 1000), "128",
            "tags of a native registration, each as long as a service name may be"),
        Setting("REGISTRY_MAX_METADATA_BYTES", "native.max_metadata_bytes",
            whole(2, 65_536, "BYTES"), "1024",
            "metadata of a native registration, as compact JSON"),
    ),
    "Accounts": (
        Setting("REGISTRY_AUTH", "access.mode", choice("none", "trusted", "jwt", "basic"), "none",
            "how callers are told apart: not at all; by the token, in closed networks; by signed"
            " tokens; by name and password"),
        Setting("REGISTRY_JWT_KEY", "access.key", readers.TEXT, "",
            "what signatures are checked with: a secret for HS256, public keys in PEM, a "
            "JWKS", mode="jwt", is_secret=True),
        Setting("REGISTRY_JWT_KEY_FILE", "access.keys_path", readers.PATH, "",
            "the same in a file, or in a folder of files; read again when it changes", mode="jwt"),
        Setting("REGISTRY_JWT_AUDIENCE", "access.audience", readers.WORDS, "",
            "the aud that a token must have; otherwise any", mode="jwt"),
        Setting("REGISTRY_JWT_ISSUER", "access.issuer", readers.WORDS, "",
            "the iss that a token must have; otherwise any", mode="jwt"),
        Setting("REGISTRY_JWT_REQUIRE_EXP", "access.require_expiry", readers.BOOLEAN, "true",
            "whether a token without exp is refused", mode="jwt"),
        Setting("REGISTRY_USERS_FILE", "access.users_file", readers.FILE, "",
            "names, namespaces, roles and password hashes; read again when it changes",
            mode="basic"),
        Setting("REGISTRY_AUTH_READS", "access.protect_reads", readers.BOOLEAN, "true",
            "whether reading needs credentials"),
        Setting("REGISTRY_AUTH_WRITES", "access.protect_writes", readers.BOOLEAN, "true",
            "whether writing needs credentials"),
    ),
    "TLS and proxies": (
        Setting("TLS_CERT_FILE", "tls.cert_file", readers.FILE, "",
            "the certificate that TLS is served with, in PEM"),
        Setting("TLS_KEY_FILE", "tls.key_file", readers.FILE, "", "the certificate's key, in PEM"),
        Setting("TLS_CLIENT_CA_FILE", "tls.client_ca_file", readers.FILE, "",
            "the authorities of clients: each client must show a certificate signed by one"),
        Setting("REGISTRY_REQUIRE_HTTPS", "access.require_https", readers.BOOLEAN, "false",
            "whether plain HTTP is refused"),
        Setting("REGISTRY_TRUSTED_PROXIES", "access.trusted_proxies", readers.NETWORKS, "",
            "proxies whose X-Forwarded-Proto, -Host and -For count"),
    ),
    "Catalogs": (
        Setting("REGISTRY_CATALOGS", "catalogs", readers.CATALOGS, "",
            "sources to follow, as YAML or JSON, or the path of a file",
            is_secret=True, may_be_file=True),
    ),
    "From a Spring Cloud server": (
        Setting("SPRING_CONFIG_LOCATION", "spring_config", readers.SPRING_CONFIG, "",
            "its application.yml or .properties, or the folder of it; several parted by commas",
            flag_name="--spring-config"),
        Setting("SPRING_PROFILES_ACTIVE", "spring_profiles", readers.NAMES, "",
            "the profiles that count there", flag_name="--spring-profiles"),
    ),
}
# fmt: on
SETTINGS = tuple(setting for rows in SUBJECTS.values() for setting in rows)

_PARTS = {
    "registry": RegistrySettings,
    "history": HistorySettings,
    "eureka": EurekaSettings,
    "native": NativeSettings,
    "peers": PeersSettings,
    "access": AccessSettings,
    "tls": TlsSettings,
}
_KNOWN = {setting.key: setting for setting in SETTINGS}
# What a mistyped name is compared with, and what it is where underscores and case do not count.
_SPELLED = sorted(name for name in (*_KNOWN, *SPRING.meant) if not name.startswith(SPRING.prefixes))
_CLOSING = {s.variable.replace("_", ""): s.variable for s in SETTINGS if s.closes}
# What Kubernetes sets in every Pod for a Service that happens to be called "registry".
_SERVICE_LINK = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
# How alike a mistyped name is: less is asked of one that begins as only ours do.
_SIMILAR, _ALMOST = 0.8, 0.85


def with_flags(environ: Mapping[str, str], flags: Mapping[str, str]) -> dict[str, str]:
    """The environment, with these settings (by variable) in place of what it says of them."""
    keys = {reduced(variable) for variable in flags}
    others = {name: value for name, value in environ.items() if reduced(name) not in keys}
    return others | dict(flags)


def load(environ: Mapping[str, str]) -> Environment:
    """Read and check every setting; ``SettingError`` with one line for the first that is wrong."""
    own = {reduced(name): (name, value) for name, value in sorted(environ.items())}
    config = _spring_config(environ, own)
    given = config.given | SPRING.understood(environ) | AMALGAM8.understood(environ) | own
    values: dict[str, dict[str, Any]] = {part: {} for part in ("", *_PARTS)}
    for setting in SETTINGS:
        part, _, name = setting.field.rpartition(".")
        if setting.key in given:
            values[part][name] = _value(setting, *given[setting.key])
        elif not part and setting.default:
            values[part][name] = setting.reader.read(setting.default)
    of_regions = {name: told for name, told in (config.given | own).items() if is_region(name)}
    values["eureka"]["regions"] = regions.sources_of(of_regions)
    values["peers"]["urls"] = values["peers"].get("urls", ()) + _urls_of_zones(config.given | own)
    server = values[""]
    is_shared = server["store_url"] != "memory:"
    workers = server.setdefault("workers", (os.cpu_count() or 1) if is_shared else 1)
    if workers > 1 and not is_shared:
        raise SettingError(f"WORKERS={workers}: expected 1, for STORE_URL=memory: is not shared")
    native = NativeSettings(**values["native"])
    if not native.min_ttl_secs <= native.default_ttl_secs <= native.max_ttl_secs:
        raise SettingError("expected REGISTRY_MIN_TTL <= REGISTRY_DEFAULT_TTL <= REGISTRY_MAX_TTL")
    access = AccessSettings(**values["access"])
    _check_accounts(access, given)
    folder = folder_of(server["store_url"])
    if access.users_file is not None and folder is not None:
        access = replace(access, users_copy=folder / "users.last-good")
    tls = TlsSettings(**values["tls"])
    if (tls.cert_file is None) != (tls.key_file is None):
        raise SettingError("expected TLS_CERT_FILE and TLS_KEY_FILE, both or neither")
    if tls.client_ca_file is not None and tls.cert_file is None:
        raise SettingError("TLS_CLIENT_CA_FILE: expected TLS_CERT_FILE and TLS_KEY_FILE too")
    catalogs: tuple[CatalogSettings, ...] = server.pop("catalogs", ())
    if amalgam8.CATALOGS in given:
        catalogs += _value(_KNOWN["REGISTRY_CATALOGS"], *given[amalgam8.CATALOGS])
    catalogs += _regions(of_regions, {each.source for each in catalogs})
    return Environment(
        **server,
        registry=RegistrySettings(**values["registry"], names_are_secret=access.mode == "trusted"),
        history=HistorySettings(**values["history"]),
        eureka=EurekaSettings(**values["eureka"]),
        native=native,
        peers=PeersSettings(listens=server["host"], port=server["port"], **values["peers"]),
        access=access,
        tls=tls,
        catalogs=catalogs,
        warnings=(*_warnings(environ, own), *config.warnings),
    )


def _spring_config(
    environ: Mapping[str, str], own: Mapping[str, tuple[str, str]]
) -> spring_config.SpringConfig:
    """What the files of the server that is replaced say."""
    words: dict[str, tuple[str, ...]] = {}
    for variable in ("SPRING_CONFIG_LOCATION", "SPRING_PROFILES_ACTIVE"):
        words[variable] = _value(_KNOWN[variable], *own[variable]) if variable in own else ()
    places, profiles = words.values()
    try:
        return spring_config.read_config(places, profiles, environ, own, _KNOWN)
    except ValueError as error:
        raise SettingError(escaped(masked(str(error)))) from None


def _regions(
    given: Mapping[str, tuple[str, str]], taken: Collection[str]
) -> tuple[CatalogSettings, ...]:
    """The catalogs of remote regions."""
    try:
        found = regions.catalogs_of(given)
    except ValueError as error:
        raise SettingError(escaped(masked(str(error)))) from None
    for each in found:
        if each.source in taken:
            raise SettingError(f"{each.source}: expected either a catalog or a remote region")
    return found


def _urls_of_zones(given: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """The service URLs of all zones but the default one: all of them are peers."""
    urls: tuple[str, ...] = ()
    for name in sorted(given):
        if is_zone(name) and name not in _KNOWN:
            urls += _value(_KNOWN[DEFAULT_ZONE], *given[name])
    return urls


def _value(setting: Setting, variable: str, text: str) -> Any:
    try:
        return setting.reader.read(text)
    except ValueError as error:
        shown = "…" if setting.is_secret else repr(text)
        told = f"{variable}={shown}: expected {error}"
        raise SettingError(escaped(masked(told))) from None


def _check_accounts(access: AccessSettings, given: Mapping[str, tuple[str, str]]) -> None:
    """Refuse what asks for accounts without switching them on: the server would be open."""
    if access.mode == "jwt" and not access.key and access.keys_path is None:
        raise SettingError("REGISTRY_AUTH=jwt: expected REGISTRY_JWT_KEY or REGISTRY_JWT_KEY_FILE")
    if access.key and access.keys_path is not None:
        raise SettingError("expected REGISTRY_JWT_KEY or REGISTRY_JWT_KEY_FILE, not both")
    if access.mode == "basic" and access.users_file is None:
        raise SettingError("REGISTRY_AUTH=basic: expected REGISTRY_USERS_FILE")
    for setting in SETTINGS:
        if setting.mode not in ("", access.mode) and setting.key in given:
            variable = given[setting.key][0]
            raise SettingError(
                f"{variable}: expected REGISTRY_AUTH={setting.mode}, not {access.mode}"
            )
    for name in ("REGISTRY_AUTH_READS", "REGISTRY_AUTH_WRITES"):
        if name in given and access.mode == "none":
            raise SettingError(f"{name}: expected REGISTRY_AUTH=trusted, jwt or basic, not none")


def _warnings(environ: Mapping[str, str], own: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """A line for each variable that was meant for this server, and has no effect on it."""
    unknown = {
        variable: value
        for variable, value in environ.items()
        if reduced(variable) not in _KNOWN
        and not is_zone(reduced(variable))
        and not is_region(reduced(variable))
        and not _is_link(variable)
    }
    mistyped = (_mistyped(variable) for variable in sorted(unknown))
    return (
        *(line for line in mistyped if line),
        *SPRING.warnings(unknown, own, _KNOWN),
        *AMALGAM8.warnings(unknown, own),
    )


def _is_link(variable: str) -> bool:
    """Whether Kubernetes has set it, and nobody."""
    is_setting = variable in SPRING.meant or variable.startswith(AMALGAM8.prefixes)
    return not is_setting and _SERVICE_LINK.fullmatch(variable) is not None


def _mistyped(variable: str) -> str:
    """The warning for a variable that begins as ours do, or is almost one of ours; else empty.

    ``SettingError`` where it looks like one that would close the server or encrypt its traffic: a
    letter that is missing must not open it.
    """
    name = variable.upper()
    if reduced(variable).startswith(SPRING.prefixes) or variable in SPRING.meant:
        return ""
    if variable.startswith(AMALGAM8.prefixes):
        return ""
    is_ours = variable.startswith(("REGISTRY_", "TLS_"))
    cutoff = _SIMILAR if is_ours else _ALMOST
    near = "".join(difflib.get_close_matches(name, _SPELLED, n=1, cutoff=cutoff))
    meant = _CLOSING.get(name.replace("_", "")) or (
        near if is_ours and near in _CLOSING.values() else None
    )
    if meant is not None:
        raise SettingError(f"{variable} is not known: expected {meant}, or nothing")
    if not is_ours and not near:
        return ""
    told = f"{variable} has no effect here: it is not known"
    return f"{told}; is {near} meant?" if near else told
