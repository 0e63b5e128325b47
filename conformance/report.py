"""What a run found: a summary for the terminal, JUnit XML, a page, and the coverage document."""

from __future__ import annotations

import datetime
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from rich.table import Table

from conformance.programs import KINDS
from conformance.requirements import CONTRADICTIONS, REQUIREMENTS
from conformance.run import Outcome, Result

WIRE_COLUMNS = ("json", "xml", "json compact", "xml compact", "gzip", "any")
TITLES = {kind.name: kind.title for kind in KINDS}
_SHOWN = 4000


@dataclass(frozen=True)
class Cell:
    """The results of one operation in one column."""

    results: tuple[Result, ...] = ()

    def count(self, outcome: Outcome) -> int:
        return sum(r.outcome is outcome for r in self.results)

    @property
    def kind(self) -> str:
        """``empty``, ``failed``, ``beyond`` (nothing but offers not made) or ``passed``."""
        if not self.results:
            return "empty"
        if self.count(Outcome.FAILED):
            return "failed"
        return "passed" if self.count(Outcome.PASSED) else "beyond"

    def __str__(self) -> str:
        if not self.results:
            return ""
        text = f"{self.count(Outcome.PASSED)}"
        if self.count(Outcome.FAILED):
            text += f" ✗{self.count(Outcome.FAILED)}"
        if self.count(Outcome.BEYOND):
            text += f" ○{self.count(Outcome.BEYOND)}"
        return text


@dataclass(frozen=True)
class Run:
    """Everything that one run found about one server."""

    url: str
    results: Sequence[Result]
    seconds: float
    began: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    def having(self, outcome: Outcome) -> list[Result]:
        return [r for r in self.results if r.outcome is outcome]

    @property
    def unsteady(self) -> list[Result]:
        """What passed at a second try only."""
        return [r for r in self.having(Outcome.PASSED) if r.unsteady]

    @property
    def conforms(self) -> bool:
        """Whether every required case passed, and there were some."""
        return bool(self.results) and not self.having(Outcome.FAILED)

    @property
    def wire(self) -> dict[str, dict[str, Cell]]:
        """Operations by wire forms."""
        found = [r for r in self.results if r.case.column in WIRE_COLUMNS]
        forms = [c for c in WIRE_COLUMNS if any(r.case.column == c for r in found)]
        return _matrix(found, lambda r: r.case.operation, lambda r: r.case.column, forms)

    @property
    def clients(self) -> dict[str, dict[str, Cell]]:
        """Clients by operations."""
        found = [r for r in self.results if r.case.column not in WIRE_COLUMNS]
        operations = list(dict.fromkeys(r.case.operation for r in found))
        return _matrix(
            found, lambda r: TITLES[r.case.column], lambda r: r.case.operation, operations
        )


def _matrix(
    results: Sequence[Result],
    row: Callable[[Result], str],
    column: Callable[[Result], str],
    columns: Sequence[str],
) -> dict[str, dict[str, Cell]]:
    made: dict[str, dict[str, Cell]] = {}
    for result in results:
        cells = made.setdefault(row(result), dict.fromkeys(columns, Cell()))
        cells[column(result)] = Cell((*cells[column(result)].results, result))
    return made


def summary(run: Run) -> list[Table]:
    """The matrices for the terminal."""
    styles = {"passed": "green", "failed": "bold red", "beyond": "yellow"}
    tables = []
    for corner, rows in (("operation", run.wire), ("client", run.clients)):
        if not rows:
            continue
        table = Table(title=run.url, title_justify="left")
        for name in (corner, *next(iter(rows.values()))):
            table.add_column(name)
        for name, cells in rows.items():
            marked = (f"[{styles[c.kind]}]{c}[/]" if c.results else "" for c in cells.values())
            table.add_row(name, *marked)
        tables.append(table)
    return tables


def junit(run: Run) -> str:
    """The run in the XML that build servers read; a case not required counts as skipped."""
    suite = ElementTree.Element(
        "testsuite",
        name="eureka conformance",
        tests=str(len(run.results)),
        failures=str(len(run.having(Outcome.FAILED))),
        skipped=str(len(run.having(Outcome.BEYOND))),
        time=f"{run.seconds:.3f}",
        timestamp=run.began.isoformat(timespec="seconds"),
    )
    for result in run.results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{result.case.operation}.{result.case.column}",
            name=result.case.name,
            time=f"{result.seconds:.3f}",
        )
        if result.outcome is Outcome.FAILED:
            failure = ElementTree.SubElement(case, "failure", message=_clean(result.message))
            failure.text = _clean(_told(result))
        elif result.outcome is Outcome.BEYOND:
            ElementTree.SubElement(case, "skipped", message=_clean(result.case.beyond))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _told(result: Result) -> str:
    lines = [f"expected: {result.message}", f"reference: {result.case.reference}"]
    if result.exchange is not None:
        exchange = result.exchange
        lines += [
            f"{exchange.method} {exchange.path}",
            *(f"{name}: {value}" for name, value in exchange.sent_headers.items()),
            (exchange.sent or "")[:_SHOWN],
            f"answer: {exchange.status}",
            *(f"{name}: {value}" for name, value in exchange.headers.items()),
            exchange.body[:_SHOWN],
        ]
    return "\n".join(lines)


def _clean(text: str) -> str:
    """Text without what XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def page(run: Run) -> str:
    """A page that needs nothing but itself: the matrices, then each case that did not pass."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / "report.html.j2").read_text())
    return template.render(run=run, Outcome=Outcome, requirements=REQUIREMENTS, shown=_SHOWN)


def coverage(runs: dict[str, Run], notes: Sequence[str]) -> str:
    """What is covered and what each of the named servers came to, in Markdown."""
    lines = [
        "# What the conformance suite covers",
        "",
        "Made by a run of the suite; not edited by hand. Each number is how many cases passed; `✗`",
        "are failures, `○` cases beyond what a genuine server does, required of none.",
        "",
    ]
    for name, run in runs.items():
        passed, beyond = len(run.having(Outcome.PASSED)), len(run.having(Outcome.BEYOND))
        failed = len(run.having(Outcome.FAILED))
        unsteady = run.unsteady
        lines += [
            f"## {name}",
            "",
            f"{len(run.results)} cases in {run.seconds:.0f} s: {passed} passed, {failed} failed, "
            f"{beyond} not offered.",
            "",
        ]
        for corner, rows in (("operation", run.wire), ("client", run.clients)):
            if rows:
                head = (corner, *next(iter(rows.values())))
                lines += _table(head, [(k, *map(str, row.values())) for k, row in rows.items()])
        if unsteady:
            lines += ["Passed at the second try only:", ""]
            lines += [f"- {r.case.operation}: {r.case.name}: {r.unsteady}" for r in unsteady] + [""]
        if beyond:
            lines += ["Not offered:", ""]
            lines += [
                f"- {r.case.operation}: {r.case.name}"
                + (f" ({r.case.column})" if r.case.column in WIRE_COLUMNS[:-1] else "")
                + f" — {r.case.beyond}"
                for r in run.having(Outcome.BEYOND)
            ]
            lines.append("")
    lines += ["## What real clients need, and how many cases hold a server to it", ""]
    every = next(iter(runs.values())).results
    needs = []
    for number, text in REQUIREMENTS.items():
        cases = sum(number in _numbers(r.case.reference) for r in every)
        needs.append((number, text, str(cases) if cases else "none: needs a setting or an account"))
    lines += _table(("", "a server must give", "cases"), needs)
    lines += ["## What no server can give to all clients", ""]
    lines += [f"- {text}" for text in CONTRADICTIONS]
    lines += ["", "## Side by side", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _numbers(reference: str) -> set[str]:
    """The requirements that a reference names; ``R21 to R23`` names three."""
    found = set(re.findall(r"R\d+", reference))
    for first, last in re.findall(r"R(\d+) to R(\d+)", reference):
        found |= {f"R{n}" for n in range(int(first), int(last) + 1)}
    return found


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def write(run: Run, folder: Path) -> None:
    """Leave ``report.html`` and ``junit.xml`` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(page(run), encoding="utf-8")
    (folder / "junit.xml").write_text(junit(run), encoding="utf-8")
