"""Who may reach the operator's pods, and what they may reach."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.helm import of_kind, template

PEER = {"podSelector": {"matchLabels": {"app": "prometheus"}}}


def policy(**values: Any) -> dict[str, Any]:
    network = {"enabled": True, **values.pop("networkPolicy", {})}
    (made,) = of_kind(template({"networkPolicy": network, **values}), "NetworkPolicy")
    spec: dict[str, Any] = made["spec"]
    return spec


def ports(rule: dict[str, Any]) -> list[Any]:
    return [port["port"] for port in rule["ports"]]


def test_empty_peers_admit_no_traffic() -> None:
    assert policy(networkPolicy={"metricsFrom": []})["ingress"] == []


def test_named_peers_may_scrape() -> None:
    (rule,) = policy(networkPolicy={"metricsFrom": [PEER]})["ingress"]
    assert (ports(rule), rule["from"]) == (["http"], [PEER])


@pytest.mark.parametrize("peers", [[], [PEER]], ids=["nobody", "one peer"])
def test_page_admits_standbys_and_named_peers(peers: list[Any]) -> None:
    (rule,) = policy(page={"enabled": True, "from": peers})["ingress"]
    assert ports(rule) == ["page"]
    operator, *others = rule["from"]
    assert operator["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "workqueue-operator"
    assert others == peers


def test_egress_is_unrestricted_by_default() -> None:
    assert policy()["policyTypes"] == ["Ingress"]
    assert "egress" not in policy()


def test_egress_admits_dns_api_server_brokers_and_workers() -> None:
    broker = {"ipBlock": {"cidr": "10.1.0.0/16"}}
    spec = policy(networkPolicy={"egress": {"enabled": True, "brokers": [broker]}}, page={"enabled": True})
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns, api_server, brokers, workers, page = spec["egress"]
    assert ports(dns) == [53, 53]
    assert ports(api_server) == [443, 6443]
    assert (ports(brokers), brokers["to"]) == ([5672, 5671, 15672, 15671], [broker])
    assert ports(workers) == [8090]
    assert workers["to"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "workqueue-worker"}
    assert ports(page) == ["page"]


def test_network_policy_rules_name_peers_except_dns() -> None:
    """An empty list of peers would admit all."""
    everything = policy(
        networkPolicy={"metricsFrom": [PEER], "egress": {"enabled": True}}, page={"enabled": True}
    )
    assert all(rule["from"] for rule in everything["ingress"])
    assert all(rule["to"] for rule in everything["egress"][1:])
