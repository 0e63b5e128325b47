"""The catalog of a prefix in a genuine etcd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalogs import RelistError, SourceError, Terms
from catalogs.etcd import EtcdCatalog, EtcdSettings
from catalogs.testing import Followed, RemoteCatalogSuite, until
from conformance.programs import free_port
from tests.sources.etcd import EtcdSource

ONE = '{"endpoint": {"type": "http", "value": "10.0.0.1:80"}}'


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdSource]:
    source = EtcdSource(tmp_path_factory.mktemp("etcd"))
    yield source
    source.kill()


@pytest.fixture
def source(member: EtcdSource) -> Iterator[EtcdSource]:
    yield member
    member.clear()


class TestEtcdCatalog(RemoteCatalogSuite):
    """On a genuine etcd, one for all."""


@pytest.fixture
def followed(source: EtcdSource) -> Iterator[Followed]:
    followed = Followed(source, Terms(stale_after_secs=1))
    followed.start()
    yield followed
    followed.runner.stop()


def test_a_key_names_the_namespace_and_the_service(source: EtcdSource) -> None:
    source.put_value("registry/blue/web/x", ONE)
    (entry,) = source.catalog().list()["registry/blue/web/x"]
    assert (entry.namespace, entry.instance.app) == ("blue", "WEB")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("registry/default/web/x", "{", "not JSON"),
        ("registry/default/web/x", "[]", "not a JSON object"),
        ("registry/default/web/x", ONE[:-1] + ', "metadata": {"a": NaN}}', "JSON has no NaN"),
        ("registry/default/web/x", ONE[:-1] + ', "metadata": {"a": "\\ud800"}}', "not JSON: "),
        ("registry/default/web/x", ONE[:-1] + ', "tags": [], "tags": []}', "tags stands twice"),
        ("registry/default/web/x", "[" * 100_000, "too deep"),
        ("registry/bad%20ns!/web/x", ONE, "bad ns! is no namespace's name"),
        ("registry/default/" + "n" * 300 + "/x", ONE, "service_name: "),
        ("registry/default/web/x", "{}", "endpoint: Missing data"),
        ("registry/default/web", ONE, "expected a key registry/namespace/service/id"),
        ("registry/default/web/x", ONE[:-1] + ', "service_name": "api"}', "api stands below web"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_and_holds_up_nothing(
    source: EtcdSource, key: str, value: str, told: str
) -> None:
    source.put_value(key, value)
    source.put_value("registry/default/web/good", ONE)
    catalog = source.catalog()
    held = {name: entries and len(entries) for name, entries in catalog.list().items()}
    assert held == {"registry/default/web/good": 1, key: None}
    (problem,) = catalog.problems
    assert problem.startswith(f"{key}: ")
    assert told in problem


def test_a_number_beyond_64_bits_is_its_digits(source: EtcdSource) -> None:
    digits = "12345678901234567890123"
    source.put_value(
        "registry/default/web/x", ONE[:-1] + f', "metadata": {{"account": {digits}}}}}'
    )
    ((entry,),) = (group or () for group in source.catalog().list().values())
    assert entry.instance.metadata["account"] == digits


def test_a_broken_value_leaves_the_keys_last_good_one(
    source: EtcdSource, followed: Followed
) -> None:
    source.put("web", "10.0.0.1", 80)
    until(lambda: followed.instances())
    source.put_value("registry/default/web/10.0.0.1-80", "{")
    until(lambda: followed.report().problems)
    assert set(followed.instances()) == {("10.0.0.1", 80)}


def test_a_lease_that_ends_there_ends_the_entry_here(
    source: EtcdSource, followed: Followed
) -> None:
    lease = source.ask("lease/grant", {"TTL": "1"})["ID"]
    source.put_value("registry/default/web/x", ONE, lease=lease)
    until(lambda: followed.instances())
    until(lambda: not followed.instances())


def test_a_compacted_history_is_listed_again(source: EtcdSource) -> None:
    catalog = source.catalog()
    catalog.list()
    for number in range(3):
        source.put("web", "10.0.0.1", 80, metadata={"n": str(number)})
    source.ask("kv/compaction", {"revision": str(source.revision()), "physical": True})
    with pytest.raises(RelistError, match="compacted"):
        list(catalog.watch(threading.Event()))
    assert len(catalog.list()) == 1


def test_more_keys_than_a_page_are_listed_at_one_revision(source: EtcdSource) -> None:
    source.put_many([("web", f"10.1.{n // 250}.{n % 250}", 80) for n in range(2500)])
    assert len(source.catalog().list()) == 2500


def test_a_member_that_is_down_is_left_for_the_next(source: EtcdSource) -> None:
    source.put("web", "10.0.0.1", 80)
    down = f"http://127.0.0.1:{free_port()}"
    catalog = EtcdCatalog(EtcdSettings(name="test", endpoints=(down, source.url)))
    assert len(catalog.list()) == 1
    alone = EtcdCatalog(EtcdSettings(name="test", endpoints=(down,)))
    with pytest.raises(SourceError, match="cannot be reached: Connection refused"):
        alone.list()


@pytest.fixture
def with_accounts(tmp_path: Path) -> Iterator[EtcdSource]:
    source = EtcdSource(tmp_path)
    source.put("web", "10.0.0.1", 80)
    yield source
    source.kill()


@pytest.mark.programs
def test_an_account_is_used_and_its_token_renewed(
    with_accounts: EtcdSource, tmp_path: Path
) -> None:
    source = with_accounts
    source.ask("auth/user/add", {"name": "root", "password": "s3cret"})
    source.ask("auth/user/grant", {"user": "root", "role": "root"})
    source.ask("auth/enable", {})
    password = tmp_path / "password"
    password.write_text("s3cret\n")

    def catalog(file: Path) -> EtcdCatalog:
        settings = EtcdSettings(
            name="test", endpoints=(source.url,), username="root", password_file=file
        )
        return EtcdCatalog(settings)

    good = catalog(password)
    assert len(good.list()) == 1
    good._token = "outlived"
    assert len(good.list()) == 1
    wrong = tmp_path / "wrong"
    wrong.write_text("no")
    with pytest.raises(SourceError, match="does not authenticate root") as caught:
        catalog(wrong).list()
    assert "s3cret" not in str(caught.value)


def test_a_thousand_changes_in_a_row_are_all_seen(source: EtcdSource, followed: Followed) -> None:
    source.put("web", "10.0.0.1", 80)
    until(lambda: followed.instances())
    for n in range(1000):
        source.put(f"web-{n}", f"10.2.{n // 250}.{n % 250}", 80, metadata={"n": str(n)})
    wanted = {str(n) for n in range(1000)}
    until(lambda: wanted <= {i.metadata.get("n", "") for i in followed.instances().values()})
