"""What is shipped for Prometheus and Grafana: it parses, knows these metrics, and alerts fire."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import ROOT, RegistryServer

DASHBOARD = ROOT / "deploy" / "grafana" / "eureka-registry.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = PROMETHEUS / "alerts.yaml"
TRIED = PROMETHEUS / "alerts.test.yaml"
NAME = re.compile(r"\b(?:registry|process)_[a-z_]+\b")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [p for p in json.loads(DASHBOARD.read_text())["panels"] if p["type"] != "row"]


def expressions() -> list[str]:
    """Those of the dashboard, with what Grafana would put in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [each.replace("$__rate_interval", "5m").replace("$instance", ".*") for each in found]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all metrics, with what is added to those that are not plain numbers."""
    with RegistryServer(tmp_path_factory.mktemp("monitoring"), workers=1) as server:
        server.register("WEB", "web:1")
        text = server.send("GET", "/metrics").body.decode()
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        found.add(name)
        if kind in ("histogram", "summary"):
            found |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")}
    return found


def test_the_dashboard_shows_metrics_that_there_are(families: set[str]) -> None:
    used = {name for each in expressions() for name in NAME.findall(each)}
    assert len(used) > 20
    assert used - families == set()


def test_alerts_watch_metrics_that_there_are(families: set[str]) -> None:
    used = {name for rule in rules() for name in NAME.findall(rule["expr"])}
    assert used - families == set()


def test_the_page_about_metrics_tells_of_each_and_of_no_other(families: set[str]) -> None:
    text = (ROOT / "docs" / "operate" / "observing.md").read_text()
    told = set(NAME.findall(text))
    assert told - families == set()
    parts = {name for name in families if name.endswith(("_bucket", "_sum", "_count"))}
    assert families - parts - told == set()


def test_what_an_alert_tells_to_look_at_is_there(families: set[str]) -> None:
    told = " ".join(text for rule in rules() for text in rule["annotations"].values())
    named = set(NAME.findall(told))
    assert named - families == set()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].endswith(".")
    assert len(re.split("[.;] ", rule["annotations"]["description"])) > 1
    tests = yaml.safe_load(TRIED.read_text())["tests"]
    tried = [each for test in tests for each in test["alert_rule_test"]]
    outcomes = {
        bool(each.get("exp_alerts")) for each in tried if each["alertname"] == rule["alert"]
    }
    assert outcomes == {True, False}, "it is tried where it is to fire, and where it is not"


def test_panels_lie_beside_each_other_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert all(panel["title"] for panel in panels())


@pytest.mark.programs
def test_promtool_accepts_the_rules_and_they_fire_as_they_should() -> None:
    assert _promtool("check", "rules", str(ALERTS)) == 0
    assert _promtool("test", "rules", str(TRIED)) == 0


@pytest.mark.programs
def test_promtool_accepts_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [{"record": f"panel:{at}", "expr": e} for at, e in enumerate(expressions())]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert _promtool("check", "rules", str(path)) == 0


def _promtool(*arguments: str) -> int:
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    print(ended.stdout, ended.stderr)
    return ended.returncode
