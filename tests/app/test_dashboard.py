"""The dashboard and the alerts in `deploy/`, asked of a Prometheus that scrapes a node."""

import asyncio
import json
import os
import pathlib
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from tests.app.test_node import started, subscribe
from tests.app.test_telemetry import TRACE, free_port
from tests.architecture.repository import ROOT, python_files, text
from tests.docs.pages import page
from tests.pipeline.rig import Receiver
from tests.waiting import until

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "hookline.json"
_GROUPING = re.compile(r"\bby \([^)]*\)|\$labels\.\w+")
_METRIC = re.compile(r"\b(?:hookline|rpc|db|http|process)_\w+(?=[\[{\s)]|$)")


@pytest.fixture
def prometheus() -> pathlib.Path:
    """The Prometheus that `make test` unpacked. Without one: skipped, and said."""
    path = ROOT / ".tools" / "bin" / "prometheus"
    if not path.exists():
        pytest.skip(f"no {path.relative_to(ROOT)}: `make prometheus` has it where apt is")
    return path


def queries() -> list[str]:
    """What the dashboard asks."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


@contextmanager
def scraping(prometheus: pathlib.Path, node: int, folder: pathlib.Path) -> Iterator[str]:
    """The address of a Prometheus that asks the node's port every second."""
    settings = folder / "prometheus.yml"
    settings.write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: hookline\n"
        f'    static_configs: [{{targets: ["127.0.0.1:{node}"]}}]\n',
        encoding="utf-8",
    )
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            prometheus,
            f"--config.file={settings}",
            f"--storage.tsdb.path={folder / 'series'}",
            f"--web.listen-address={address}",
        ],
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            yield address
        finally:
            process.kill()


async def answered(address: str, path: str, **parameters: str) -> list[object]:
    """What Prometheus says; nothing while it is not there yet."""

    def ask() -> list[object]:
        url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url) as answer:
                data = json.load(answer)["data"]
        except OSError:
            return []
        return list(data["result"] if isinstance(data, dict) else data)

    return await asyncio.to_thread(ask)


async def publish(client: HooklineClient, url: str) -> None:
    await subscribe(client, url)
    await client.publish("default", [Event(type="a.b", json_data="{}", traceparent=TRACE)])


async def test_every_panel_and_alert_has_data(
    database_url: str, prometheus: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    port = free_port()
    variables = {
        "HOOKLINE_PROMETHEUS_LISTEN": f"127.0.0.1:{port}",
        "OTEL_TRACES_EXPORTER": "console",
    }
    async with Receiver() as target, started(database_url, **variables) as (_, client):
        await publish(client, target.url)
        with scraping(prometheus, port, tmp_path) as address:
            for query in queries():
                rated = query.replace("$__rate_interval", "1m")

                async def has_answer(asked: str = rated) -> bool:
                    return await answered(address, "query", query=asked) != []

                await until(has_answer, f"an answer to {query}")
            known = set(await answered(address, "label/__name__/values"))
    alerted = set(_METRIC.findall(_GROUPING.sub("", ALERTS.read_text(encoding="utf-8"))))
    assert len(alerted) > 5
    assert alerted - known == set()


def test_every_alert_and_panel_is_documented() -> None:
    observability = page("docs/observability.md")
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8"))
    assert [row[0] for row in observability.table("The alerts")] == alerts
    documented = " ".join(row[1] for row in observability.table("The dashboard"))
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    titles = {one["title"].partition(", p99")[0] for one in panels if one["type"] != "row"}
    assert {title for title in titles if title not in documented} == set()


def test_log_events_in_runbooks_are_logged() -> None:
    service = "\n".join(text(path) for path in python_files() if path.parts[0] == "service")
    runbooks = re.findall(r'runbook: "(.*)"', ALERTS.read_text(encoding="utf-8"))
    events = {name for book in runbooks for name in re.findall(r"`(\w+_\w+)`", book)}
    assert events
    assert {event for event in events if f'"{event}"' not in service} == set()
