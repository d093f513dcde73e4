"""Who may reach the pods of operator and page, and what they may reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.helm import of_kind, only, template

PEER = {"podSelector": {"matchLabels": {"app": "prometheus"}}}


Policy = Callable[..., dict[str, Any]]


def policy(component: str = "operator", **values: Any) -> dict[str, Any]:
    network = {"enabled": True, **values.pop("networkPolicy", {})}
    (made,) = [
        made
        for made in of_kind(template({"networkPolicy": network, **values}), "NetworkPolicy")
        if made["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == component
    ]
    spec: dict[str, Any] = made["spec"]
    return spec


def page_policy(**values: Any) -> dict[str, Any]:
    return policy("page", page={"enabled": True, **values.pop("page", {})}, **values)


def ports(rule: dict[str, Any]) -> list[Any]:
    return [port["port"] for port in rule["ports"]]


def test_empty_peers_admit_no_traffic() -> None:
    closed = policy(networkPolicy={"metricsFrom": []})
    assert "Ingress" in closed["policyTypes"]
    assert "ingress" not in closed


@pytest.mark.parametrize("of", [policy, page_policy], ids=["operator", "page"])
def test_named_peers_may_scrape(of: Policy) -> None:
    (rule,) = of(networkPolicy={"metricsFrom": [PEER]})["ingress"]
    assert (ports(rule), rule["from"]) == (["http"], [PEER])


def test_page_admits_named_peers_only() -> None:
    assert "ingress" not in page_policy()
    (rule,) = page_policy(page={"from": [PEER]})["ingress"]
    assert (ports(rule), rule["from"]) == (["page"], [PEER])


def test_operator_has_no_port_for_the_page() -> None:
    assert "ingress" not in policy(page={"enabled": True, "from": [PEER]})


@pytest.mark.parametrize("of", [policy, page_policy], ids=["operator", "page"])
def test_egress_is_unrestricted_by_default(of: Policy) -> None:
    assert of()["policyTypes"] == ["Ingress"]
    assert "egress" not in of()


@pytest.mark.parametrize("of", [policy, page_policy], ids=["operator", "page"])
def test_egress_admits_dns_api_server_brokers_and_workers(of: Policy) -> None:
    broker = {"ipBlock": {"cidr": "10.1.0.0/16"}}
    spec = of(networkPolicy={"egress": {"enabled": True, "brokers": [broker]}})
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns, api_server, brokers, workers = spec["egress"]
    assert ports(dns) == [53, 53, 5353, 5353]
    assert ports(api_server) == [443, 6443]
    assert (ports(brokers), brokers["to"]) == ([5672, 5671, 15672, 15671], [broker])
    assert ports(workers) == [8090]
    assert workers["to"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "workqueue-worker"}


def test_page_without_secrets_reaches_no_broker() -> None:
    spec = page_policy(page={"connectionSecrets": []}, networkPolicy={"egress": {"enabled": True}})
    assert [ports(rule) for rule in spec["egress"]] == [[53, 53, 5353, 5353], [443, 6443], [8090]]


@pytest.mark.parametrize("of", [policy, page_policy], ids=["operator", "page"])
def test_network_policy_rules_name_peers_except_dns(of: Policy) -> None:
    """An empty list of peers would admit all."""
    everything = of(networkPolicy={"metricsFrom": [PEER], "egress": {"enabled": True}})
    assert all(rule["from"] for rule in everything["ingress"])
    assert all(rule["to"] for rule in everything["egress"][1:])


@pytest.mark.parametrize(
    ("setting", "told"), [({}, False), ({"otherPorts": False}, True)], ids=["open", "closed"]
)
def test_operator_closes_other_ports_of_workers_on_request(setting: dict[str, bool], told: bool) -> None:
    made = only(template({"workerNetworkPolicy": {"enabled": True, **setting}}), "Deployment")
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert ({"name": "WORKQUEUE_WORKER_OTHER_PORTS", "value": "false"} in container["env"]) == told
