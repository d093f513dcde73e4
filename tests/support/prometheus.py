"""A Prometheus that scrapes the cluster under test through the API server, so that pods need not be reachable.

Debian's Prometheus lacks Kubernetes discovery, so this module finds the pods and passes them on with the labels of
that discovery.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from hack.cluster.prometheus import prometheus
from tests.support.kubernetes import PROGRAMS, kubeconfig
from tests.support.ports import free_port
from tests.support.wait import eventually

Object = dict[str, Any]

STEP_SECONDS: Final = 1
"""Seconds between two scrapes, two rule evaluations, and two points of a result."""

DISCOVERY_SECONDS: Final = 0.5

_POD: Final = "__meta_kubernetes_pod"
_PORT: Final = f"{_POD}_container_port"
_NAMESPACE: Final = "__meta_kubernetes_namespace"


class Prometheus:
    """A running Prometheus.

    Args:
        url: its address.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def over_time(self, expr: str, start: float, end: float) -> list[tuple[Object, list[float]]]:
        """The series of a query in a time span (Unix seconds): labels and values, without NaN."""
        answer = self._get("query_range", query=expr, start=start, end=end, step=STEP_SECONDS)
        series = [(one["metric"], [float(value) for _, value in one["values"]]) for one in answer["result"]]
        numbers = [
            (labels, [value for value in values if not math.isnan(value)]) for labels, values in series
        ]
        return [(labels, values) for labels, values in numbers if values]

    def alerts(self) -> dict[str, Object]:
        """All alerting rules with their `state`, `health` and `lastError`, by name."""
        groups = self._get("rules", type="alert")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=30):
                return True
        except OSError:
            return False

    def _get(self, what: str, **parameters: object) -> Any:
        return _json(f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}")["data"]


@contextlib.contextmanager
def scraping(
    scrape_configs: list[Object], rules: Path, namespaces: list[str], folder: Path
) -> Iterator[Prometheus]:
    """A Prometheus with these scrape configurations, written for Kubernetes, while the context lasts.

    Args:
        rules: a file with rules.
        namespaces: the namespaces of the pods.
        folder: for its data.
    """
    every = f"{STEP_SECONDS}s"
    with _api_server() as api, _discovering(api, namespaces, folder / "pods.json") as pods:
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(rules)],
            "scrape_configs": [_by_way_of(api, pods, scrape) for scrape in scrape_configs],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        command = [
            str(prometheus()),
            f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
        ]
        log = folder / "prometheus.log"
        with log.open("w") as output, _running(command, stdout=output, stderr=output) as process:
            made = Prometheus(f"http://{address}")
            eventually(lambda: made.is_ready() or process.poll() is not None, 60, "Prometheus answers")
            assert process.poll() is None, log.read_text()
            yield made


def _by_way_of(api: str, pods: Path, scrape: Object) -> Object:
    """The same scrape through the API server."""
    path = {
        "source_labels": [_NAMESPACE, f"{_POD}_name", f"{_PORT}_number"],
        "separator": "/",
        "regex": "(.+)/(.+)/(.+)",
        "target_label": "__metrics_path__",
        "replacement": "/api/v1/namespaces/$1/pods/$2:$3/proxy/metrics",
    }
    rest = {name: value for name, value in scrape.items() if name != "kubernetes_sd_configs"}
    return {
        **rest,
        "file_sd_configs": [{"files": [str(pods)]}],
        "relabel_configs": [
            *scrape["relabel_configs"],
            {"source_labels": ["__address__"], "target_label": "instance"},
            path,
            {"target_label": "__address__", "replacement": api},
        ],
    }


@contextlib.contextmanager
def _discovering(api: str, namespaces: list[str], file: Path) -> Iterator[Path]:
    """Keep a Prometheus target file up to date with the ports of all pods."""
    enough = threading.Event()

    def follow() -> None:
        while not enough.wait(DISCOVERY_SECONDS):
            try:
                found = [target for namespace in namespaces for target in _targets(api, namespace)]
            except OSError:  # the API server is busy
                continue
            unfinished = file.with_suffix(".new")
            unfinished.write_text(json.dumps(found))
            unfinished.rename(file)

    file.write_text("[]")
    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield file
    finally:
        enough.set()
        thread.join(120)


def _targets(api: str, namespace: str) -> Iterator[Object]:
    for pod in _json(f"http://{api}/api/v1/namespaces/{namespace}/pods")["items"]:
        address = pod["status"].get("podIP")
        labels = {
            f"{_POD}_label_{re.sub(r'[^A-Za-z0-9_]', '_', name)}": value
            for name, value in pod["metadata"]["labels"].items()
        }
        for port in (port for container in pod["spec"]["containers"] for port in container.get("ports", ())):
            if address and pod["status"]["phase"] == "Running":
                yield {
                    "targets": [f"{address}:{port['containerPort']}"],
                    "labels": {
                        **labels,
                        _NAMESPACE: namespace,
                        f"{_POD}_name": pod["metadata"]["name"],
                        f"{_PORT}_name": port.get("name", ""),
                        f"{_PORT}_number": str(port["containerPort"]),
                    },
                }


@contextlib.contextmanager
def _api_server() -> Iterator[str]:
    """The API server at a local address without credentials, through `kubectl proxy`."""
    command = [str(PROGRAMS / "kubectl"), f"--kubeconfig={kubeconfig()}", "proxy", "--port=0"]
    with _running(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found, f"kubectl proxy said {line!r}"
        yield found[0]


@contextlib.contextmanager
def _running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)
