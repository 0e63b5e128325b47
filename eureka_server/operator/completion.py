"""Completes the words of ``eureka-registry`` for a shell: commands, flags, choices, ids.

The shell's part is a few lines that ask this program (``words``), so there is one place that knows
what may come next, and a new version needs no new script. Ids and services are asked of the server
that the words name, or the environment; where it does not answer at once, nothing is completed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from eureka_server.operator.client import (
    DEFAULT_URL,
    GOOD,
    WRONG_USE,
    EndError,
    Server,
    Whom,
)
from eureka_server.operator.commands import COMMANDS, PROGRAM, Argument, arguments_of

_PATIENCE_SECS = 2.0
_MOST = 100
_OTHERS = ("serve", "completion", "conformance", "sidecar")
_SCRIPTS = {
    # A colon ends a word to bash, and ids have colons: so the line is parted at blanks here, and
    # what stands before the last colon is taken off what is found.
    "bash": r"""_eureka_registry() {
    local line="${COMP_LINE:0:COMP_POINT}" last words
    read -ra words <<<"$line"
    if [[ "$line" == *[[:space:]] ]]; then words+=(""); fi
    last="${words[${#words[@]} - 1]}"
    local IFS=$'\n'
    COMPREPLY=($(eureka-registry completion words "${words[@]:1}" 2>/dev/null))
    if [[ "$last" == *:* && "$COMP_WORDBREAKS" == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${last%"${last##*:}"}"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 0 ]]; then compopt -o default; fi
}
complete -F _eureka_registry eureka-registry
""",
    "zsh": """#compdef eureka-registry
_eureka_registry() {
    local -a found
    found=("${(@f)$(eureka-registry completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
compdef _eureka_registry eureka-registry
""",
    "fish": """function __eureka_registry
    set -l words (commandline -opc) (commandline -ct)
    eureka-registry completion words $words[2..-1] 2>/dev/null
end
complete -c eureka-registry -a '(__eureka_registry)'
""",
}
SHELLS = tuple(_SCRIPTS)
# What a client calls itself stands on the command line as if somebody had typed it: so it may mean
# nothing to any shell, and be no flag.
_is_plain = re.compile(r"[A-Za-z0-9_@%+:,./][A-Za-z0-9_@%+=:,./-]*").fullmatch


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Print a shell's script; or, with ``words`` and those behind the program, what may follow."""
    words = list(arguments)
    if words[:1] == ["words"]:
        for candidate in candidates(words[1:], environ):
            print(candidate)
        return GOOD
    if words in ([], ["-h"], ["--help"]) or len(words) > 1 or words[0] not in _SCRIPTS:
        usage = f"usage: {PROGRAM} completion {{{','.join(SHELLS)}}}"
        told = words in (["-h"], ["--help"])
        print(usage, file=sys.stdout if told else sys.stderr)
        return GOOD if told else WRONG_USE
    print(_SCRIPTS[words[0]], end="")
    return GOOD


def candidates(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """What the last of these words, which stand behind the program's name, may become."""
    *before, current = words or [""]
    if not before:
        found: Iterator[str] = iter((*COMMANDS, *_OTHERS, "--version", "--check", "--help"))
    elif before[0] in COMMANDS:
        found = _of_command(before[0], before[1:], current, environ)
    elif before[0] == "serve":
        found = _flags()
    elif before == ["completion"]:
        found = iter(SHELLS)
    else:
        found = iter(())
    return [word for word in found if word.startswith(current)]


def _flags() -> Iterator[str]:
    from eureka_server.settings import SETTINGS

    yield "--check"
    yield from (setting.flag for setting in SETTINGS if setting.flag)


def _of_command(
    name: str, before: Sequence[str], current: str, environ: Mapping[str, str]
) -> Iterator[str]:
    arguments = arguments_of(COMMANDS[name])
    flags = {flag: each for each in arguments for flag in each.names if flag.startswith("-")}
    asked = flags.get(before[-1]) if before else None
    if asked is not None and _takes_value(asked):
        yield from _values(asked, before, current, environ)
    elif current.startswith("-"):
        yield from flags
        yield "--help"
    else:
        for each in arguments:
            if not each.names[0].startswith("-"):
                yield from _values(each, before, current, environ)


def _takes_value(argument: Argument) -> bool:
    kwargs = argument.kwargs or {}
    return kwargs.get("action") is None and kwargs.get("nargs") != "?"


def _values(
    argument: Argument, before: Sequence[str], current: str, environ: Mapping[str, str]
) -> Iterator[str]:
    yield from (argument.kwargs or {}).get("choices", ())
    if argument.completes not in ("id", "service"):
        return
    told = {name: _told(name, before) for name in ("--url", "--user", "--token", "--namespace")}
    url = told["--url"] or environ.get("EUREKA_REGISTRY_URL") or DEFAULT_URL
    whom = Whom(url, told["--user"], told["--token"], told["--namespace"])
    is_id = argument.completes == "id"
    # Text in quotes is no term of another kind, whatever it looks like.
    sought = current.replace('"', "")
    search = f'{"id" if is_id else "app"}:"{sought}"' if sought else ""
    path = "/instances" if is_id else "/services"
    try:
        server = Server(whom, environ, patience_secs=_PATIENCE_SECS)
        page = server.get(path, q=search, limit=_MOST, **({"fields": "id"} if is_id else {}))
        found = [str(each["id" if is_id else "service_name"]) for each in page[path[1:]]]
        yield from filter(_is_plain, found)
    except (EndError, LookupError, TypeError):
        return


def _told(flag: str, words: Sequence[str]) -> str | None:
    """The value of a flag among words that may not be all yet."""
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None
