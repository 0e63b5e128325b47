"""``eureka-registry``: serves, checks what is set, and runs the programs that ship with the server.

Each subcommand imports what it needs when it is run: the sidecar stays light.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from eureka_http.shown import escaped, masked_url

if TYPE_CHECKING:
    from eureka_server.settings import Setting

PROGRAM = "eureka-registry"
_WRONG_FLAGS = 2


@dataclass(frozen=True, slots=True)
class _Command:
    """A subcommand: its line in the help, and what runs it with the words behind its name."""

    summary: str
    run: Callable[[Sequence[str]], int]


class _Parser(argparse.ArgumentParser):
    """Refuses in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_WRONG_FLAGS, f"{self.prog}: {escaped(message)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these words; the exit code. 2 where they are wrong."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and words[0] in _PROGRAMS:
        return _PROGRAMS[words[0]].run(words[1:])
    if words and words[0] == "--check":
        return serve(words)
    known = commands()
    if words and words[0] in known:
        return known[words[0]].run(words[1:])
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [--version | --check | COMMAND …]",
        description="A drop-in Netflix Eureka v2 server. Each command has a --help of its own.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<14}{command.summary}" for name, command in known.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version()}")
    parser.add_argument("--check", action="store_true", help="the same as serve --check")
    _, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(f"neither a command nor a flag: {unknown[0]}; there are {', '.join(known)}")
    parser.print_help(sys.stderr)
    return _WRONG_FLAGS


def version() -> str:
    """The version that is installed; ``unknown`` where the server runs from its sources."""
    try:
        return importlib.metadata.version(PROGRAM)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# Serving


def serve(arguments: Sequence[str]) -> int:
    """Serve in this process, or with ``--check`` only say whether that would succeed.

    Flags become variables of this process's environment: workers and reloads find them there.
    """
    own, options = _parted(arguments)
    flags, only_check = parsed_flags(own)
    from eureka_server.settings import with_flags

    environ = with_flags(os.environ, flags)
    if only_check:
        return check(environ)
    os.environ.clear()
    os.environ.update(environ)
    # What gunicorn runs again where it is told to replace itself (SIGUSR2). Of ``python -m`` Python
    # keeps a file's path here, with which this package would not be found.
    sys.argv = sys.orig_argv[1:]
    from eureka_server.gunicorn_settings import Server

    Server(options).run()
    return 0


def check(environ: Mapping[str, str]) -> int:
    """Say whether a server with these settings would start: 0, or 1 with the reason."""
    from eureka_server import checks
    from eureka_server.settings import SettingError

    try:
        environment = checks.check(environ)
    except SettingError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1
    for warning in environment.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    url = environment.store_url
    shown = masked_url(url) if "://" in url else url
    print(
        f"it would serve on {environment.host}:{environment.port}"
        f" with accounts {environment.access.mode!r}, {shown}"
        f" and {len(environment.catalogs)} catalogs"
    )
    return 0


def _parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The server's own flags, and gunicorn's options behind ``--``."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def parsed_flags(arguments: list[str]) -> tuple[dict[str, str], bool]:
    """The flags that are set, by their variables; and whether nothing is to be served."""
    from eureka_server.settings import SETTINGS, SUBJECTS

    parser = _Parser(
        prog=f"{PROGRAM} serve",
        usage=f"{PROGRAM} serve [--check] [--FLAG VALUE …] [-- GUNICORN'S OPTIONS …]",
        description="Serves until it is told to stop (SIGTERM). Each flag is an environment"
        " variable too, and counts before it. SIGHUP reads files again and replaces the workers,"
        " SIGTTIN and SIGTTOU add and take one.",
        # Variables' names are long: what a flag means stands below it.
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=8),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say what is wrong with settings, users, keys, catalogs and store; serve nothing",
    )
    for subject, rows in SUBJECTS.items():
        secret = [setting.variable for setting in rows if not setting.flag]
        told = f"{', '.join(secret)}: in the environment alone, for ps shows flags to everybody"
        group = parser.add_argument_group(subject, told if secret else None)
        for setting in rows:
            if setting.flag:
                group.add_argument(
                    setting.flag,
                    dest=setting.variable,
                    metavar=setting.form,
                    # A switch that is named without a word is on.
                    nargs="?" if setting.is_switch else None,
                    const="true" if setting.is_switch else None,
                    help=_help(setting),
                )
    found, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unknown(unknown[0]))
    given = {s.variable: getattr(found, s.variable) for s in SETTINGS if s.flag}
    flags = {variable: value for variable, value in given.items() if value is not None}
    for setting in SETTINGS:
        if setting.variable in flags:
            try:
                setting.check_flag(flags[setting.variable])
            except ValueError as error:
                shown = "…" if setting.is_secret else repr(flags[setting.variable])
                parser.error(f"{setting.flag}={shown}: expected {error}")
    return flags, found.check


def _help(setting: Setting) -> str:
    default = f"default {setting.default}; " if setting.default else ""
    return f"{setting.help} ({default}{setting.variable})".replace("%", "%%")


def _unknown(word: str) -> str:
    """Why a word is refused. Its value is not shown: it may be a secret."""
    from eureka_server.settings import SETTINGS

    flag = word.partition("=")[0]
    if not flag.startswith("--"):
        return "every value stands behind its flag; --help lists them"
    near = difflib.get_close_matches(flag, [s.flag for s in SETTINGS if s.flag], n=1)
    return f"no flag {flag}" + (f"; is {near[0]} meant?" if near else "; --help lists them")


# Asking a server that runs


def commands() -> Mapping[str, _Command]:
    """All commands by their names: the programs, and what operators ask a server that runs."""
    from eureka_server.operator import commands as operators

    def asking(name: str) -> Callable[[Sequence[str]], int]:
        return lambda arguments: operators.run(name, arguments, os.environ)

    return _PROGRAMS | {
        name: _Command(command.summary, asking(name))
        for name, command in operators.COMMANDS.items()
    }


def completion(arguments: Sequence[str]) -> int:
    """Print what has a shell complete the words of this command."""
    from eureka_server.operator import completion as shells

    return shells.main(arguments)


# Programs that ship with the server


def conformance(arguments: Sequence[str]) -> int:
    """``python -m conformance``, with its flags and exit codes."""
    try:
        from conformance.__main__ import main as run
    except ModuleNotFoundError as error:
        if error.name not in ("jinja2", "rich"):
            raise
        print(
            f"{PROGRAM} conformance: {error.name} is missing;"
            f" it comes with pip install '{PROGRAM}[conformance]'",
            file=sys.stderr,
        )
        return 2
    return run(arguments)


def sidecar(arguments: Sequence[str]) -> int:
    """``python -m native_api.sidecar``, with its flags and exit codes."""
    from native_api.sidecar.__main__ import main as run

    return run(arguments, os.environ)


_PROGRAMS = {
    "serve": _Command("serve; a flag for each setting", serve),
    "conformance": _Command(
        "say what the Eureka server at a URL does and does not do", conformance
    ),
    "sidecar": _Command("register, check and renew for a program that speaks no Eureka", sidecar),
    "completion": _Command("print what has a shell complete these commands", completion),
}
