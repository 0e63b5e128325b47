"""The catalog of a folder: what is understood, what is noticed, what is said of broken files."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalogs import SourceError
from catalogs.file import FileCatalog, FileSettings
from catalogs.reconciler import STALE
from catalogs.runner import Terms
from catalogs.testing import CatalogSuite, Followed, until
from registry import Instance, Namespace
from tests.sources.files import FolderSource


@pytest.mark.slow
class TestFileCatalog(CatalogSuite):
    @pytest.fixture
    def source(self, tmp_path: Path) -> FolderSource:
        return FolderSource(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def catalog(folder: Path) -> FileCatalog:
    return FileCatalog(FileSettings(name="test", folder=folder))


def listed(catalog: FileCatalog) -> dict[str, Instance]:
    entries = [e for group in catalog.list().values() for e in group or ()]
    return {e.instance.endpoint_value or "": e.instance for e in entries}


def one(value: str) -> str:
    return f"instances: [{{service_name: web, endpoint: '{value}'}}]"


def test_an_external_api_has_its_name_path_tags_and_metadata(
    catalog: FileCatalog, folder: Path
) -> None:
    (folder / "default.yaml").write_text(
        """
instances:
  - service_name: social
    endpoint: https://api.example.com/v1
    tags: [v2, external]
    metadata: {weight: 3, zone: eu}
    status: OUT_OF_SERVICE
  - service_name: database
    endpoint: {type: tcp, value: "10.0.0.9:5432"}
"""
    )
    found = listed(catalog)
    social, database = found["api.example.com/v1"], found["10.0.0.9:5432"]
    assert (social.app, social.vip_address) == ("SOCIAL", "social")
    assert (social.host_name, social.ip_addr) == ("api.example.com", "")
    assert (social.secure_port, social.secure_port_enabled) == (443, True)
    assert social.home_page_url == "https://api.example.com:443/v1/"
    assert social.status == "OUT_OF_SERVICE"
    assert social.tags == ("v2", "external", "file:test")
    assert social.metadata["weight"] == "3"
    assert social.metadata["zone"] == "eu"
    assert (database.ip_addr, database.port, database.endpoint_type) == ("10.0.0.9", 5432, "tcp")


def test_a_files_name_is_its_namespace(catalog: FileCatalog, folder: Path) -> None:
    (folder / "blue.json").write_text('{"instances": [{"service_name": "w", "endpoint": "a:1"}]}')
    (folder / "green.yml").write_text(one("b:1"))
    groups = catalog.list()
    assert {e.namespace for e in groups["blue.json"]} == {"blue"}
    assert {e.namespace for e in groups["green.yml"]} == {"green"}


def test_what_editors_leave_is_left_alone(catalog: FileCatalog, folder: Path) -> None:
    for name in (".default.yaml.swp", "default.yaml~", "#default.yaml#", ".hidden.yaml", "4913"):
        (folder / name).write_text(one("a:1"))
    (folder / "folder.yaml").mkdir()
    assert catalog.list() == {}


def odd(value: str) -> str:
    """A file whose fourth line has such a value in its metadata."""
    return f"instances:\n- service_name: web\n  endpoint: a:1\n  metadata: {{a: {value}}}"


BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghijk")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("instances: [", "line 2: "),
        ("instances:\n  - service_name: web\n   endpoint: x\n", "line 3: "),
        (
            '{"instances": [\n {"service_name": "web",\n "endpoint": }]}',
            "line 2: instance 1: endpoint: ",
        ),
        ("", "line 1: it is empty"),
        ("- 1", "line 1: expected one key, instances"),
        ("instances: 7", "line 1: instances is not a list"),
        ("instances:\n- 1", "line 2: instance 1: not a mapping"),
        (
            "instances:\n- service_name: a\n  endpoint: a:1\n- service_name: b",
            "line 4: instance 2: ",
        ),
        ("instances:\n- {service_name: a, endpoint: a:1, colour: red}", "colour: Unknown field"),
        ("instances:\n- {service_name: a, endpoint: 'http://'}", "endpoint.value: "),
        ("instances: !!python/object:os.system {}", "line 1: could not determine a constructor"),
        (odd("!!binary aGk="), "line 4: could not determine a constructor for !!binary"),
        (odd("!!set {x}"), "line 4: could not determine a constructor for !!set"),
        (odd("!!int x"), "line 4: x is no int"),
        (odd("&a [*a]"), "line 4: *a stands inside itself"),
        (odd("*unknown"), "line 4: *unknown is not known before it"),
        (odd('"\\ud800"'), "line 4: found invalid Unicode"),
        (odd(".nan"), "line 4: .nan is no float that JSON has"),
        (odd("-.inf"), "line 4: -.inf is no float that JSON has"),
        (odd("{7: x}"), "line 4: the key 7 is no text: quote it"),
        (odd("{on: x}"), "line 4: the key on is no text: quote it"),
        (odd("{x: 1, x: 2}"), "line 4: x stands twice"),
        (odd("9" * 5000), "line 4: a number of 5000 characters"),
        (odd("a\tb\0"), "line 4: a character that YAML does not have"),
        (odd("1\n\tb: c"), "line 5: "),
        (odd("[" * 200_000), "line 4: more than 100 lists and mappings"),
        (odd("1") + "\n---\ninstances: []", "line 5: a second document"),
        (BOMB, "aliases of aliases"),
        (
            "instances:\n- service_name: " + "n" * 3000 + "\n  endpoint: a:1",
            "(service " + "n" * 80 + "… (3000 characters))",
        ),
        (
            "instances:\n- {service_name: web, endpoint: 'a:99999'}",
            "line 2: instance 1: endpoint.value: ",
        ),
    ],
)
def test_a_broken_file_keeps_its_last_content_and_says_where_it_is_broken(
    catalog: FileCatalog, folder: Path, text: str, told: str
) -> None:
    file = folder / "default.yaml"
    file.write_text(one("a:1"))
    assert set(listed(catalog)) == {"a:1"}
    file.write_text(text)
    assert set(listed(catalog)) == {"a:1"}
    (problem,) = catalog.problems
    assert problem.startswith("default.yaml: line ")
    assert told in problem
    (folder / "other.yaml").write_text(one("other:1"))
    assert set(listed(catalog)) == {"a:1", "other:1"}
    (folder / "other.yaml").unlink()
    file.write_text(one("b:1"))
    assert set(listed(catalog)) == {"b:1"}
    assert catalog.problems == []


def test_what_a_broken_file_held_outlives_the_worker_that_read_it(tmp_path: Path) -> None:
    """Another worker, or the server after a restart, has never seen it whole."""
    source = FolderSource(tmp_path)
    source.put("web", "10.0.0.1", 80)
    (source.folder / "other.yaml").write_text(one("10.0.0.9:80"))
    followed = Followed(source, Terms())
    followed.start()
    other = followed.whole.in_namespace(Namespace("other"))
    until(lambda: followed.registry.view().size() == 1 and other.view().size() == 1)
    followed.runner.stop()
    revision = followed.revision()

    (source.folder / "default.yaml").write_text("instances: [")
    (source.folder / "other.yaml").unlink()
    second = followed.another()
    second.start()
    until(lambda: other.view().size() == 0)
    assert set(followed.instances()) == {("10.0.0.1", 80)}
    assert followed.revision() == revision
    until(lambda: followed.report().problems)

    source.put("web", "10.0.0.2", 80)
    source.remove("web", "10.0.0.1", 80)
    until(lambda: set(followed.instances()) == {("10.0.0.2", 80)})
    second.stop()


@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_source_that_is_silent_at_a_restart_is_marked_and_its_limit_holds(
    tmp_path: Path, limit: float | None
) -> None:
    source = FolderSource(tmp_path)
    source.put("web", "10.0.0.1", 80)
    followed = Followed(source, Terms(stale_after_secs=0.3, remove_after_secs=limit))
    followed.start()
    until(followed.instances)
    followed.runner.stop()

    source.kill()
    second = followed.another()
    second.start()
    marked = {("10.0.0.1", 80): "true"}

    def marks() -> dict[tuple[str, int], str | None]:
        return {k: i.metadata.get(STALE) for k, i in followed.instances().items()}

    if limit is None:
        until(lambda: marks() == marked)
    else:
        until(lambda: marks() == {})
    source.start()
    until(lambda: marks() == {("10.0.0.1", 80): None})
    second.stop()


def test_a_file_that_is_not_utf_8_is_a_problem_of_its_own(
    catalog: FileCatalog, folder: Path
) -> None:
    (folder / "good.yaml").write_text(one("a:1"))
    (folder / "bad.yaml").write_bytes(b"instances: [\xff]")
    assert set(listed(catalog)) == {"a:1"}
    assert catalog.problems == ["bad.yaml: line 1: not UTF-8"]
    (folder / "bad.yaml").write_bytes(one("b:1").encode("utf-16"))
    assert set(listed(catalog)) == {"a:1"}
    assert catalog.problems == ["bad.yaml: line 1: not UTF-8"]
    (folder / "bad.yaml").write_bytes(one("b:1").encode("utf-8-sig"))
    assert set(listed(catalog)) == {"a:1", "b:1"}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("12345678901234567890123", "12345678901234567890123"),
        ("-9223372036854775809", "-9223372036854775809"),
        ("18446744073709551615", "18446744073709551615"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("12:30", "12:30"),
        ("=", "="),
        ('"\U0001f600"', "\U0001f600"),
        ("*shared", "v"),
    ],
)
def test_what_yaml_means_otherwise_is_listed_as_it_is_written(
    catalog: FileCatalog, folder: Path, value: str, wanted: str
) -> None:
    (folder / "default.yaml").write_text(
        "instances:\n- service_name: web\n  endpoint: a:1\n"
        f"  metadata: {{v: &shared v, <<: {{w: 1}}, a: {value}}}"
    )
    (instance,) = listed(catalog).values()
    assert catalog.problems == []
    assert (instance.metadata["a"], instance.metadata["w"]) == (wanted, "1")


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ('"a": "\\ud800"', "line 3: "),
        ('"a": NaN', "line 3: JSON has no NaN"),
        ('"a": 1e999', "line 3: 1e999 is more than a number can be"),
        ('"a": 1, "a": 2', "line 3: a stands twice"),
        ('"a": 1,', "line 3: "),
        ('"a": ' + "[" * 100_000, "line 1: lists and mappings too deep"),
    ],
)
def test_json_is_read_as_json_and_says_its_line_too(
    catalog: FileCatalog, folder: Path, item: str, told: str
) -> None:
    def text(metadata: str) -> str:
        first = '{"service_name": "web", "endpoint": {"type": "tcp", "value": "a:1"}}'
        second = first.replace("a:1", "b:1")[:-1] + f',\t"metadata": {{{metadata}}}}}'
        return f'{{"instances": [\n {first},\n {second}]}}'

    file = folder / "default.json"
    file.write_text(text('"a": "\\ud83d\\ude00", "b": 12345678901234567890123'))
    metadata = listed(catalog)["b:1"].metadata
    assert (metadata["a"], metadata["b"]) == ("\U0001f600", "12345678901234567890123")
    file.write_text(text(item))
    assert set(listed(catalog)) == {"a:1", "b:1"}
    (problem,) = catalog.problems
    assert problem.startswith(f"default.json: {told}")


def test_an_amalgam8_registrys_files_are_read(catalog: FileCatalog, folder: Path) -> None:
    for name in ("blue.conf", "green.json"):
        (folder / name).write_text(
            """{"instances": [{
                "service_name": "Database",
                "endpoint": {"type": "tcp", "value": "10.0.0.9:5432"},
                "status": "OUT_OF_SERVICE",
                "ttl": 300,
                "tags": ["primary"],
                "metadata": {"rack": {"row": 3}}
            }]}"""
        )
    groups = catalog.list()
    for name in ("blue.conf", "green.json"):
        (entry,) = groups[name] or ()
        instance = entry.instance
        assert entry.namespace == Path(name).stem
        assert (instance.app, instance.vip_address) == ("DATABASE", "database")
        assert (instance.endpoint_type, instance.endpoint_value) == ("tcp", "10.0.0.9:5432")
        assert instance.status == "OUT_OF_SERVICE"
        assert instance.tags == ("primary", "file:test")
        assert instance.metadata["rack"] == '{"row":3}'


def test_a_file_that_cannot_be_looked_at_or_whose_name_is_no_namespace_is_a_problem_of_its_own(
    catalog: FileCatalog, folder: Path
) -> None:
    (folder / "good.yaml").write_text(one("a:1"))
    (folder / "itself.yaml").symlink_to("itself.yaml")
    (folder / "bad ns!.yaml").write_text(one("b:1"))
    (folder / ("n" * 65 + ".yaml")).write_text(one("c:1"))
    assert set(listed(catalog)) == {"a:1"}
    first, second, third = catalog.problems
    assert first.startswith("bad ns!.yaml: its name is not that of a namespace")
    assert second == "itself.yaml: it cannot be read: Too many levels of symbolic links"
    assert third.startswith("n" * 65 + ".yaml: its name is not that of a namespace")


def test_a_broken_file_is_told_in_the_log_and_the_report_and_takes_nobodys_entries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the limit of the source's silence is: it is not silent."""
    source = FolderSource(tmp_path)
    source.put("web", "10.0.0.1", 80)
    followed = Followed(source, Terms(stale_after_secs=0.2, remove_after_secs=0.4))
    followed.start()
    try:
        until(followed.instances)
        (source.folder / "teams.yaml").write_text(odd("!!binary aGk="))
        (problem,) = until(lambda: followed.report().problems)
        assert problem.startswith("teams.yaml: line 4: ")
        source.put("web", "10.0.0.2", 80)
        until(lambda: len(followed.instances()) == 2)
        assert not followed.report().last_error
    finally:
        followed.runner.stop()
    assert len([r for r in caplog.records if "teams.yaml: line 4: " in r.getMessage()]) == 1


def test_a_folder_that_is_not_there_is_a_silent_source(folder: Path) -> None:
    catalog = FileCatalog(FileSettings(name="test", folder=folder / "none"))
    with pytest.raises(SourceError, match="No such file"):
        catalog.list()


class Watched:
    """A thread that keeps what a watch yields."""

    def __init__(self, catalog: FileCatalog) -> None:
        self.seen: list[set[str]] = []
        self.stopping = threading.Event()
        self.error: Exception | None = None
        self._catalog = catalog
        catalog.list()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for groups in self._catalog.watch(self.stopping):
                if groups:
                    self.seen.append(
                        {e.instance.endpoint_value or "" for g in groups.values() for e in g}
                    )
        except SourceError as error:
            self.error = error

    def end(self) -> None:
        self.stopping.set()
        self._catalog.close()
        self._thread.join()


@pytest.fixture
def watched(catalog: FileCatalog, folder: Path) -> Iterator[Watched]:
    (folder / "default.yaml").write_text(one("a:1"))
    watched = Watched(catalog)
    yield watched
    watched.end()


def test_a_change_is_seen_however_it_is_written(watched: Watched, folder: Path) -> None:
    file = folder / "default.yaml"

    def replaced(text: str) -> None:
        (folder / ".new").write_text(text)
        (folder / ".new").rename(file)

    def moved_aside(text: str) -> None:
        file.rename(folder / "default.yaml~")
        file.write_text(text)

    for number, write in enumerate((file.write_text, replaced, moved_aside)):
        wanted = {f"b:{number + 1}"}
        write(one(*wanted))
        until(lambda w=wanted: w in watched.seen)
    file.unlink()
    until(lambda: watched.seen[-1] == set())


def test_a_swapped_link_is_seen(folder: Path, tmp_path: Path) -> None:
    """As a ConfigMap's: the files are links into a folder that is a link itself."""
    mount = tmp_path / "mount"
    for name in ("one", "two"):
        (mount / name).mkdir(parents=True)
        (mount / name / "default.yaml").write_text(one(f"{name}:1"))
    (mount / "data").symlink_to("one")
    (mount / "default.yaml").symlink_to("data/default.yaml")
    watched = Watched(FileCatalog(FileSettings(name="test", folder=mount)))
    (mount / "fresh").symlink_to("two")
    (mount / "fresh").rename(mount / "data")
    until(lambda: watched.seen and watched.seen[-1] == {"two:1"})
    watched.end()


def test_half_a_file_removes_nothing(watched: Watched, folder: Path) -> None:
    whole = "instances:\n" + "".join(
        f"- {{service_name: web, endpoint: 'a:{n}'}}\n" for n in range(1, 100)
    )
    with (folder / "default.yaml").open("w") as file:
        file.write("instances:\n- {service_name: web, endp")
        file.flush()
        time.sleep(0.8)
        file.seek(0)
        file.write(whole)
    until(lambda: watched.seen and len(watched.seen[-1]) == 99)
    assert all(seen >= {"a:1"} for seen in watched.seen)


def test_ten_thousand_entries_load(catalog: FileCatalog, folder: Path) -> None:
    lines = [
        f"- {{service_name: s{n % 100}, endpoint: '10.0.{n // 250}.{n % 250}:80'}}\n"
        for n in range(10_000)
    ]
    (folder / "default.yaml").write_text("instances:\n" + "".join(lines))
    assert len(listed(catalog)) == 10_000


def test_one_endpoint_in_four_spellings_is_one_instance(catalog: FileCatalog, folder: Path) -> None:
    spellings = ("10.0.0.1:80", "http://10.0.0.1:80", "http://10.0.0.1:80/", "10.0.0.1")
    for number, spelling in enumerate(spellings):
        (folder / f"n{number}.yaml").write_text(one(spelling))
    found = {e.instance.id for group in catalog.list().values() for e in group or ()}
    assert len(found) == 1
