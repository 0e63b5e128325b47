"""The table of an operator's commands: their help, their arguments, and what they ask the server.

``COMMANDS`` is the one place that names them; the help, the completion of shells and the test that
compares the documentation are made of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

from eureka_http.shown import escaped
from eureka_server.operator.client import (
    DEFAULT_URL,
    GOOD,
    NOT_GOOD,
    UNREACHABLE,
    WRONG_USE,
    EndError,
    Server,
    Whom,
    segment,
)
from eureka_server.operator.tables import (
    FORMS,
    Shown,
    ago,
    duration,
    epoch_ms,
    pairs,
    spelled,
    table,
)

PROGRAM = "eureka-registry"
_EXIT_CODES = (
    "exit codes: 0 as it should be, 1 not so (the command's own help says when), 2 wrong words, or"
    " credentials that do not suffice, 3 no answer of a registry"
)
_CLEAR = "\x1b[H\x1b[2J"
_INTERRUPTED = 130
_AGAIN_SECS = 1.0
_NAMED = 5
_MOST_READERS = 1000
_PAGE = 500
_HISTORY_PAGE = 1000
# Another instant has other ones of these.
_ALWAYS_OTHER = frozenset({"revision", "last_heartbeat"})
_LISTED = "service_name,status,override,zone,source,expires"
_ALL = (
    "service_name,status,override,zone,address,host,endpoint,vips,secure_vips,tags,metadata,source,"
    "ttl,renewal_interval,last_heartbeat,expires,registered,changed,revision,urls"
)
_NO_QUERY: Mapping[str, str | None] = {}
_Options = argparse.Namespace


@dataclass(frozen=True, slots=True)
class Argument:
    """A word of a command, as ``argparse`` takes it, and what a shell may complete it with."""

    names: tuple[str, ...]
    help: str
    completes: str = ""
    """``id``, ``service`` or ``file``; a choice completes itself."""

    kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its line in the help, when its code is 1, its words, and what it does.

    ``run`` gives one answer, or several one after the other (``is_stream``).
    """

    summary: str
    run: Callable[[Server, _Options], Shown | Iterator[Shown]]
    arguments: tuple[Argument, ...] = ()
    code_1: str = ""
    is_stream: bool = False
    is_read: bool = True
    """Whether it only looks, and so can be repeated (``--watch``)."""

    @property
    def can_repeat(self) -> bool:
        """Whether ``--watch`` has a meaning."""
        return self.is_read and not self.is_stream


def run(name: str, words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one of ``COMMANDS`` with these words; the exit code."""
    command = COMMANDS[name]
    parser = parser_of(name, environ)
    options = parser.parse_args(list(words))
    try:
        server = Server(Whom(options.url, options.user, options.token, options.namespace), environ)
        return _printed(command, server, options)
    except (LookupError, TypeError, AttributeError) as error:
        print(
            f"{parser.prog}: {server.shown} answers what this version cannot read: {error!r}",
            file=sys.stderr,
        )
        return UNREACHABLE
    except EndError as end:
        print(f"{parser.prog}: {escaped(str(end))}", file=sys.stderr)
        return end.code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever reads has enough (head, say); nothing more may be written at the end either.
        sys.stdout = None
        return GOOD


def _printed(command: Command, server: Server, options: _Options) -> int:
    every = getattr(options, "watch", None)
    while True:
        answer = command.run(server, options)
        if isinstance(answer, Shown):
            if every is not None and sys.stdout.isatty():
                print(_CLEAR, end="")
            _print(answer, options.output)
            good = answer.good
        else:
            good = True
            for each in answer:
                _print(each, options.output, in_one_line=True)
                good = each.good
        if every is None:
            return GOOD if good else NOT_GOOD
        time.sleep(every)


def _print(shown: Shown, form: str, *, in_one_line: bool = False) -> None:
    for line in shown.printed(form, in_one_line=in_one_line):
        print(line)
    sys.stdout.flush()


# Words


class _Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USE, f"{self.prog}: {escaped(message)}\n")


def parser_of(name: str, environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """What reads the words of a command, and has its help."""
    command = COMMANDS[name]
    told = f"{command.summary[0].upper()}{command.summary[1:]}."
    if command.code_1:
        told += f" The exit code is 1 where {command.code_1}."
    parser = _Parser(
        prog=f"{PROGRAM} {name}", description=told, epilog=_EXIT_CODES, allow_abbrev=False
    )
    for argument in arguments_of(command):
        kwargs = dict(argument.kwargs or {})
        if argument.names == ("--url",):
            kwargs["default"] = environ.get("EUREKA_REGISTRY_URL") or DEFAULT_URL
        parser.add_argument(*argument.names, help=argument.help.replace("%", "%%"), **kwargs)
    return parser


def arguments_of(command: Command) -> tuple[Argument, ...]:
    """All words that a command takes: its own, and those that all have."""
    return (*command.arguments, *_OUTPUT, *(_REPEAT if command.can_repeat else ()), *_WHOM)


def _seconds(text: str) -> float:
    """A length of time such as ``90``, ``90s`` or ``2m``, in seconds."""
    number, factor = (
        (text[:-1], {"s": 1, "m": 60, "h": 3600}[text[-1]])
        if text[-1:] in ("s", "m", "h")
        else (text, 1)
    )
    try:
        seconds = float(number) * factor
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError("expected a length of time such as 90s or 2m")
    return seconds


def _instant(text: str) -> str:
    """An instant in RFC 3339, or how long ago it was (``90s``, ``2h``, ``1d``), as RFC 3339."""
    if epoch_ms(text) is not None and "T" in text.upper():
        return text
    try:
        ago_secs = float(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[text[-1:]]
        at = datetime.fromtimestamp(time.time() - ago_secs, UTC)
    except (KeyError, ValueError, OverflowError):
        expected = "expected an instant such as 2026-01-31T12:00:00Z, or how long ago, such as 2h"
        raise argparse.ArgumentTypeError(expected) from None
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(text: str) -> str:
    """As ``_instant``, or a revision."""
    return text if text.isascii() and text.isdigit() else _instant(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError("expected a whole number above 0")
    return int(text)


_OUTPUT = (
    Argument(
        ("-o", "--output"),
        "a table for people; JSON or YAML for programs; names for other commands",
        kwargs={"choices": FORMS, "default": "table"},
    ),
)
_REPEAT = (
    Argument(
        ("--watch",),
        "show it again each so many seconds (default 2)",
        kwargs={"nargs": "?", "type": _seconds, "const": 2.0, "metavar": "SECONDS"},
    ),
)
_WHOM = (
    Argument(
        ("--url",),
        f"the server (default {DEFAULT_URL}; EUREKA_REGISTRY_URL). It may hold an account",
    ),
    Argument(
        ("--user",),
        "an account, whose password is in EUREKA_REGISTRY_PASSWORD",
        kwargs={"metavar": "NAME"},
    ),
    Argument(
        ("--token",),
        "a token (EUREKA_REGISTRY_TOKEN, which ps does not show)",
        kwargs={"metavar": "TOKEN"},
    ),
    Argument(
        ("--namespace",),
        "another namespace than the account's, for administrators",
        kwargs={"metavar": "NAME"},
    ),
)
_FILE: Mapping[str, Any] = {"metavar": "FILE", "nargs": "?"}
_ID = Argument(("id",), "the instance", "id", {"metavar": "ID"})
_IDS = Argument(("id",), "the instances", "id", {"metavar": "ID", "nargs": "*"})
_SEARCH = Argument(
    ("search",),
    "terms that an instance has to answer, such as app:shop zone=eu-1 status=DOWN meta.version=2;"
    " a - (behind --) before a term: those that do not",
    kwargs={"metavar": "TERM", "nargs": "*"},
)
_OF_SERVICE = Argument(
    ("--service",),
    "which service is meant, where an id is in several",
    "service",
    {"metavar": "NAME"},
)
_ALL_OF = Argument(
    ("--service",),
    "all instances of this service; with ids, the one that they are in",
    "service",
    {"metavar": "NAME"},
)
_SERVICE = Argument(
    ("service",), "only this service", "service", {"metavar": "SERVICE", "nargs": "?"}
)
_SERVICE_TO_LOSE = Argument(
    ("service",), "of this service", "service", {"metavar": "SERVICE", "nargs": "?"}
)


# Looking


def _server_status(server: Server, _: _Options) -> Shown:
    told = server.get("/status")
    counts = {k: n for k, n in told["instances"].items() if n and k != "total"}
    instances = f"{told['instances']['total']}"
    if counts:
        instances += f" ({', '.join(f'{n} {status}' for status, n in counts.items())})"
    renewals, preservation = told["renewals"], told["self_preservation"]
    store, peers = told["store"], told["peers"]
    lines = pairs(
        (
            ("version", told["version"]),
            ("namespace", told["namespace"]),
            ("revision", told["revision"]),
            ("applications", told["applications"]),
            ("instances", instances),
            (
                "renewals",
                renewals
                and f"{renewals['last_minute']} in the last minute, of {renewals['expected']}"
                f" expected; {renewals['threshold']} are too few",
            ),
            ("self-preservation", preservation and preservation["sentence"]),
            ("workers", told["workers"]),
            ("up for", duration(told["uptime_ms"])),
            ("store", store and store["url"]),
            ("peers", peers and peers["verdict"]),
            ("catalogs", {each["source"]: each["state"] for each in told["catalogs"]}),
        )
    )
    lines += [f"warning: {text}" for text in told["warnings"]]
    return Shown(told, lines, [told["namespace"]], not told["warnings"])


def _why(server: Server, options: _Options) -> Shown:
    told = server.get(f"/instances/{segment(options.id)}/why", service_name=options.service)
    return Shown(told, [told["why"]], [options.id])


def _history(server: Server, options: _Options) -> Shown:
    path = "/history" if options.id is None else f"/instances/{segment(options.id)}/history"
    entries: list[Any] = []
    after: str | None = None
    while True:
        page = server.get(
            path,
            since=options.since,
            until=options.until,
            service_name=options.service,
            kind=options.kind,
            limit=min(_HISTORY_PAGE, options.limit - len(entries)),
            after=after,
        )
        entries += page["entries"]
        after = page["next"]
        if after is None or len(entries) >= options.limit:
            break
    # The newest stand where one looks first: at the end.
    entries.reverse()
    rows = [
        (
            each["at"],
            each["kind"],
            each["service_name"],
            each["id"],
            _asker(each["by"]),
            _what(each),
        )
        for each in entries
    ]
    head = ("AT", "WHAT", "SERVICE", "ID", "BY", "MORE")
    document = {"entries": entries, "earliest": page["earliest"]}
    return Shown(document, table(head, rows), [each["id"] for each in entries])


def _asker(by: Mapping[str, str] | None) -> str:
    """Who asked for something: the account, else where from."""
    if by is None:
        return ""
    return f"{by['account']} at {by['address']}" if by["account"] else by["address"]


def _what(entry: Mapping[str, Any]) -> str:
    told = [entry["rule"]] if entry["rule"] else []
    told += [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in entry["detail"].items()
    ]
    return " ".join(told)


def _diff(server: Server, options: _Options) -> Shown:
    told = server.get("/diff", **{"from": options.first, "to": options.to})
    lines = [f"+ {_named(each)}  {each['status']}" for each in told["added"]]
    lines += [f"- {_named(each)}  {each['status']}" for each in told["removed"]]
    for each in told["changed"]:
        before, after = each["from"], each["to"]
        lines.append(f"~ {_named(each)}")
        lines += [
            f"    {name}: {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}"
            for name in after
            if before.get(name) != after.get(name) and name not in _ALWAYS_OTHER
        ]
    ids = [each["id"] for word in ("added", "removed", "changed") for each in told[word]]
    return Shown(told, lines or ["nothing differs"], ids, not ids)


def _named(instance: Mapping[str, Any]) -> str:
    return f"{instance['service_name']}  {instance['id']}"


def _pages(server: Server, path: str, **query: str | None) -> list[Any]:
    """All that a search finds, page by page."""
    found: list[Any] = []
    after: str | None = None
    while True:
        page = server.get(path, limit=_PAGE, after=after, **query)
        found += page[path[1:]]
        after = page["next"]
        if after is None:
            return found


def _apps(server: Server, options: _Options) -> Shown:
    services = _pages(server, "/services", q=" ".join(options.search))
    rows = [
        (
            each["service_name"],
            each["instances"],
            each["statuses"].get("UP", 0),
            {status: n for status, n in sorted(each["statuses"].items()) if status != "UP"},
            each["zones"],
            each["sources"],
        )
        for each in services
    ]
    head = ("SERVICE", "INSTANCES", "UP", "OTHERS", "ZONES", "SOURCES")
    names = [each["service_name"] for each in services]
    return Shown({"services": services}, table(head, rows), names)


def _instances(server: Server, options: _Options) -> Shown:
    listed = _pages(
        server,
        "/instances",
        q=" ".join(options.search),
        service_name=options.service,
        fields=_LISTED,
    )
    rows = [
        (
            each["id"],
            each["service_name"],
            _status(each),
            each["endpoint"]["value"],
            each["zone"],
            each["source"],
            _left(server, each["expires"]),
        )
        for each in listed
    ]
    head = ("ID", "SERVICE", "STATUS", "ENDPOINT", "ZONE", "SOURCE", "LEASE ENDS")
    return Shown({"instances": listed}, table(head, rows), [each["id"] for each in listed])


def _status(instance: Mapping[str, Any]) -> str:
    """Its status, and whether an operator has set it."""
    return f"{instance['status']} (set)" if instance["override"] else str(instance["status"])


def _left(server: Server, expires: str | None) -> str:
    """How long a lease has to go."""
    at = None if expires is None else epoch_ms(expires)
    if at is None:
        return "never"
    left = at - server.now_ms
    return f"in {duration(left)}" if left >= 0 else f"ended {duration(-left)} ago"


def _show(server: Server, options: _Options) -> Shown:
    told = server.get(
        f"/instances/{segment(options.id)}", service_name=options.service, fields=_ALL
    )
    shown = {**told, "endpoint": f"{told['endpoint']['type']} {told['endpoint']['value']}"}
    for name in ("last_heartbeat", "registered", "changed"):
        shown[name] = f"{told[name]} ({ago(server.now_ms, told[name])})"
    if told["expires"] is not None:
        shown["expires"] = f"{told['expires']} ({_left(server, told['expires'])})"
    lines = pairs((name.replace("_", " "), value) for name, value in shown.items())
    return Shown(told, lines, [told["id"]])


def _watch(server: Server, options: _Options) -> Iterator[Shown]:
    """Each change as it comes; where the connection breaks, from there on."""
    since: str | None = None
    left = options.count
    while True:
        try:
            for event in server.events("/watch", since, service_name=options.service):
                since = event.id or since
                if event.name == "snapshot":
                    if not options.changes_only:
                        yield from (_change(since, "listed", each) for each in _listed(event.data))
                    continue
                yield _change(since, event.name, event.data)
                left = None if left is None else left - 1
                if left == 0:
                    return
        except EndError as end:
            # A server that has answered once is waited for.
            if since is None or end.code != UNREACHABLE:
                raise
            print(f"{escaped(str(end))}; it is asked again", file=sys.stderr)
        time.sleep(1)


def _listed(snapshot: Any) -> list[Any]:
    found: list[Any] = snapshot["instances"] if isinstance(snapshot, dict) else snapshot
    return found


def _change(revision: str | None, what: str, instance: Mapping[str, Any]) -> Shown:
    line = (
        f"{revision or '-':>8}  {what:<8}  {instance['service_name']}  {instance['id']}"
        f"  {instance['status']}"
    )
    document = {"revision": int(revision or 0), "event": what, "instance": instance}
    return Shown(document, [line], [instance["id"]])


def _readers(server: Server, options: _Options) -> Shown:
    told = server.get("/readers", limit=_MOST_READERS, behind="true" if options.behind else None)
    rows = [
        (
            each["client"],
            each["address"],
            each["what"],
            ago(server.now_ms, each["last_fetch"]),
            "yes" if each["behind"] else "no",
            [instance["id"] for instance in each["instances"]],
        )
        for each in told["readers"]
    ]
    head = ("CLIENT", "ADDRESS", "READS", "LAST FETCH", "BEHIND", "INSTANCES THERE")
    lines = table(head, rows)
    if told["total"] > len(rows):
        lines.append(f"and {told['total'] - len(rows)} more")
    return Shown(told, lines, [each["address"] for each in told["readers"]])


def _findings(server: Server, _: _Options) -> Shown:
    told = server.get("/findings")
    found = told["findings"]
    lines = []
    for each in found:
        lines.append(f"{each['kind']} ({each['count']}): {each['sentence']}")
        lines += [f"    change {one['name']} ({one['client']})" for one in each["settings"]]
        lines += [f"    such as {spelled(one)}" for one in each["examples"]]
    kinds = [each["kind"] for each in found]
    return Shown(told, lines or ["nothing is wrong with the clients"], kinds, not found)


def _catalogs(server: Server, _: _Options) -> Shown:
    told = server.get("/catalogs")
    catalogs = told["catalogs"]
    rows = [
        (
            each["source"],
            each["state"],
            each["entries"],
            ago(server.now_ms, each["last_success_ms"]),
            each["last_error"] or "; ".join(each["problems"]) or "none",
        )
        for each in catalogs
    ]
    head = ("CATALOG", "STATE", "ENTRIES", "LAST SUCCESS", "PROBLEM")
    good = all(each["state"] == "following" and not each["problems"] for each in catalogs)
    return Shown(told, table(head, rows), [each["source"] for each in catalogs], good)


def _peers(server: Server, options: _Options) -> Shown:
    from eureka_server.operator import peers

    return peers.shown(server, is_difference=options.what == "diff")


# Moving


def _export(server: Server, options: _Options) -> Iterator[Shown]:
    from eureka_server.operator import transfer

    return transfer.export(server, options)


def _import(server: Server, options: _Options) -> Shown:
    from eureka_server.operator import transfer

    return transfer.take(server, options)


# Changing


def _accept_loss(server: Server, options: _Options) -> Shown:
    if (options.service is None) == (not options.all):
        raise EndError(WRONG_USE, "expected a service, or --all")
    body = {} if options.service is None else {"service_name": options.service}
    told = server.send("POST", "/self-preservation/accept-loss", body)
    return Shown(told, [told["sentence"]])


def _up(server: Server, options: _Options) -> Shown:
    status = None if options.ask else "UP"
    return _each(server, options, "DELETE", "/override", query={"status": status})


def _down(server: Server, options: _Options) -> Shown:
    return _each(server, options, "PUT", "/override", {"status": options.status})


def _rm(server: Server, options: _Options) -> Shown:
    return _each(server, options, "DELETE", "")


def _drain(server: Server, options: _Options) -> Shown:
    """Out of service, and wait until everybody who reads has fetched since; or say who has not."""
    paths = [f"/instances/{segment(each)}/drain" for each in options.id]
    if not paths:
        if options.service is None:
            raise EndError(WRONG_USE, "expected ids, or --service for all of a service")
        paths = [f"/services/{segment(options.service)}/drain"]
    query: dict[str, str | None] = {"service_name": options.service if options.id else None}
    until = time.monotonic() + options.timeout
    told: dict[str, Any] = {}
    said = ""
    while True:
        for path in paths:
            before = told.get(path)
            if before is None or not before["safe"]:
                since = None if before is None else str(before["since"])
                told[path] = server.send("POST", path, query={**query, "since": since})
        late = [each for each in told.values() if not each["safe"]]
        if not late or time.monotonic() >= until:
            break
        now_said = _who(late)
        if now_said not in (said, ""):
            print(f"waiting for {escaped(now_said)}", file=sys.stderr, flush=True)
            said = now_said
        time.sleep(_AGAIN_SECS)
    if not late:
        time.sleep(options.grace)
    sentences = dict.fromkeys(each["sentence"] for each in late or told.values())
    document = {"safe": not late, "drained": list(told.values())}
    names = [each for one in told.values() if one["safe"] for each in one["drained"]]
    return Shown(document, list(sentences), names, not late)


def _who(late: Sequence[Mapping[str, Any]]) -> str:
    """Who has not fetched."""
    found = {
        f"{each['client'] or '?'} at {each['address']}"
        for one in late
        for each in one["waiting_for"]
    }
    return ", ".join(sorted(found)[:_NAMED]) + (" …" if len(found) > _NAMED else "")


def _each(
    server: Server,
    options: _Options,
    method: str,
    path: str,
    body: Any = None,
    query: Mapping[str, str | None] = _NO_QUERY,
) -> Shown:
    """Do it to each instance that is named, or to all of a service; what was refused is told."""
    done: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    if not options.id:
        if options.service is None:
            raise EndError(WRONG_USE, "expected ids, or --service for all of a service")
        told = server.send(method, f"/services/{segment(options.service)}{path}", body, query=query)
        done += ({"id": each} for each in told["done"])
        refused += told["refused"]
    for instance_id in options.id:
        try:
            target = f"/instances/{segment(instance_id)}{path}"
            told = server.send(
                method, target, body, query={"service_name": options.service, **query}
            )
        except EndError as end:
            if end.code != NOT_GOOD:
                raise
            refused.append({"id": instance_id, "detail": str(end)})
        else:
            done.append({"id": instance_id, "status": told["status"] if told else "removed"})
    word = "removed" if method == "DELETE" and not path else "done"
    lines = [f"{each['id']}  {each.get('status', word)}" for each in done]
    lines += [f"{each['id']}  refused: {each['detail']}" for each in refused]
    return Shown({"done": done, "refused": refused}, lines, [d["id"] for d in done], not refused)


_NOT_DONE = "an instance is not listed, or a catalog's"

_SINCE = "such as 2026-01-31T12:00:00Z, or how long ago (90s, 2h, 1d)"

COMMANDS: Mapping[str, Command] = {
    "status": Command(
        "how the server is: figures, self-preservation, warnings",
        _server_status,
        code_1="there is a warning",
    ),
    "apps": Command("the services, and how many instances each has", _apps, (_SEARCH,)),
    "instances": Command(
        "the instances, all of them or those that a search finds",
        _instances,
        (
            _SEARCH,
            Argument(("--service",), "only those of this service", "service", {"metavar": "NAME"}),
        ),
    ),
    "show": Command("an instance", _show, (_ID, _OF_SERVICE), code_1="there is no such instance"),
    "why": Command(
        "why an instance is as it is, or why it is gone, in sentences",
        _why,
        (_ID, _OF_SERVICE),
        code_1="nothing is known of it",
    ),
    "history": Command(
        "what happened, to one instance or to all, and who asked for it",
        _history,
        (
            Argument(("id",), "only of this instance", "id", {"metavar": "ID", "nargs": "?"}),
            Argument(
                ("--service",), "only what concerns this service", "service", {"metavar": "NAME"}
            ),
            Argument(
                ("--since",), f"from then on: {_SINCE}", kwargs={"type": _instant, "metavar": "AT"}
            ),
            Argument(("--until",), "until then", kwargs={"type": _instant, "metavar": "AT"}),
            Argument(
                ("--kind",),
                "only of this kind, such as evicted; several are parted by commas",
                kwargs={"metavar": "KIND"},
            ),
            Argument(
                ("--limit",),
                "the last so many (default 100)",
                kwargs={"type": _count, "default": 100, "metavar": "N"},
            ),
        ),
        code_1="nothing is known of it",
    ),
    "diff": Command(
        "what was listed otherwise at another moment than now, or than at a third",
        _diff,
        (
            Argument(
                ("first",),
                f"the earlier moment: {_SINCE}, or a revision",
                kwargs={"type": _moment, "metavar": "FROM"},
            ),
            Argument(
                ("to",),
                "the later one; without it, now",
                kwargs={"type": _moment, "metavar": "TO", "nargs": "?"},
            ),
        ),
        code_1="something differs",
    ),
    "watch": Command(
        "changes as they come, until it is interrupted",
        _watch,
        (
            _SERVICE,
            Argument(
                ("--changes-only",),
                "not what is listed when it begins",
                kwargs={"action": "store_true"},
            ),
            Argument(
                ("--count",),
                "end after so many changes",
                kwargs={"type": _count, "metavar": "N"},
            ),
        ),
        is_stream=True,
    ),
    "up": Command(
        "take an operator's status away: the instance is in service again",
        _up,
        (
            _IDS,
            _ALL_OF,
            Argument(
                ("--ask",),
                "show UNKNOWN until the client has told its own status, with its next heartbeat",
                kwargs={"action": "store_true"},
            ),
        ),
        code_1=_NOT_DONE,
        is_read=False,
    ),
    "down": Command(
        "set an instance out of service, whatever it says of itself",
        _down,
        (
            _IDS,
            _ALL_OF,
            Argument(
                ("--status",),
                "the status to set (default OUT_OF_SERVICE)",
                kwargs={
                    "choices": ("OUT_OF_SERVICE", "DOWN", "STARTING", "UP"),
                    "default": "OUT_OF_SERVICE",
                },
            ),
        ),
        code_1=_NOT_DONE,
        is_read=False,
    ),
    "drain": Command(
        "set an instance out of service, and wait until it is safe to stop: until every client"
        " that reads from this server has fetched since",
        _drain,
        (
            _IDS,
            _ALL_OF,
            Argument(
                ("--timeout",),
                "wait so long at most (default 120s)",
                kwargs={"type": _seconds, "default": 120.0, "metavar": "TIME"},
            ),
            Argument(
                ("--grace",),
                "and then for so long: what clients make of their copies may be older, such as a"
                " load balancer's cache (default 0s)",
                kwargs={"type": _seconds, "default": 0.0, "metavar": "TIME"},
            ),
        ),
        code_1="somebody has not fetched in time, or there is no such instance",
        is_read=False,
    ),
    "rm": Command(
        "take an instance out; one that still lives registers again",
        _rm,
        (_IDS, _ALL_OF),
        code_1=_NOT_DONE,
        is_read=False,
    ),
    "accept-loss": Command(
        "let go what self-preservation keeps though its lease has ended",
        _accept_loss,
        (
            _SERVICE_TO_LOSE,
            Argument(("--all",), "of all services", kwargs={"action": "store_true"}),
        ),
        code_1="there is no such service",
        is_read=False,
    ),
    "export": Command(
        "write all that is listed, with overrides and leases, to be imported elsewhere",
        _export,
        (Argument(("file",), "where to; else it is printed", "file", _FILE),),
        code_1="the file cannot be written",
        is_stream=True,
    ),
    "import": Command(
        "list what an export says, where nothing as new is listed",
        _import,
        (
            Argument(
                ("file",), "the export; else it is read from the standard input", "file", _FILE
            ),
            Argument(
                ("--into",),
                "the namespace to list it in, instead of its own",
                kwargs={"metavar": "NAME"},
            ),
        ),
        code_1="something was refused, or the export is cut off",
        is_read=False,
    ),
    "readers": Command(
        "who reads lists from this server, and who has not fetched the last change",
        _readers,
        (
            Argument(
                ("--behind",),
                "only those who have not fetched the last change",
                kwargs={"action": "store_true"},
            ),
        ),
    ),
    "findings": Command(
        "what is wrong with clients, and the setting to change",
        _findings,
        code_1="something is wrong",
    ),
    "catalogs": Command(
        "how each catalog is", _catalogs, code_1="one does not follow its source, or has a problem"
    ),
    "peers": Command(
        "how the server's peers are; with the word diff, what differs",
        _peers,
        (
            Argument(
                ("what",),
                "show what differs between its instances and theirs",
                kwargs={"nargs": "?", "choices": ("diff",)},
            ),
        ),
        code_1="a peer does not answer, or (diff) something differs or is not compared",
    ),
}
