"""The ways to the web page from outside of the cluster: an Ingress or an HTTPRoute, both disabled by default."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.test_notes import notes
from tests.support.helm import HelmError, of_kind, only, template

HOST = "queues.example.com"
TLS = [{"secretName": "queues-tls", "hosts": [HOST]}]
GATEWAY = [{"name": "public", "namespace": "gateways", "sectionName": "https"}]


def ingress(**settings: Any) -> dict[str, Any]:
    return {"enabled": True, "ingress": {"enabled": True, "hosts": [HOST], **settings}}


def route(**settings: Any) -> dict[str, Any]:
    return {"enabled": True, "httpRoute": {"enabled": True, "parentRefs": GATEWAY, **settings}}


def test_page_has_no_way_from_outside_by_default() -> None:
    objects = template({"page": {"enabled": True}})
    assert not of_kind(objects, "Ingress") + of_kind(objects, "HTTPRoute")


def test_ingress_leads_to_the_page() -> None:
    objects = template({"page": ingress(className="nginx", tls=TLS, annotations={"a": "b"})})

    made = only(objects, "Ingress")
    assert made["metadata"]["annotations"] == {"a": "b"}
    assert (made["spec"]["ingressClassName"], made["spec"]["tls"]) == ("nginx", TLS)
    (rule,) = made["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["pathType"]) == (HOST, "/", "Prefix")
    service = path["backend"]["service"]
    assert service["port"]["name"] in ports_of_service(objects, service["name"])


def test_http_route_leads_to_the_page() -> None:
    objects = template({"page": route(hostnames=[HOST], annotations={"a": "b"})})

    made = only(objects, "HTTPRoute")
    assert made["metadata"]["annotations"] == {"a": "b"}
    assert (made["spec"]["parentRefs"], made["spec"]["hostnames"]) == (GATEWAY, [HOST])
    ((backend,),) = [rule["backendRefs"] for rule in made["spec"]["rules"]]
    assert backend["port"] in ports_of_service(objects, backend["name"]).values()


def ports_of_service(objects: list[dict[str, Any]], name: str) -> dict[str, int]:
    (service,) = [made for made in of_kind(objects, "Service") if made["metadata"]["name"] == name]
    return {port["name"]: port["port"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        pytest.param(
            {"page": {"ingress": {"enabled": True, "hosts": [HOST]}}},
            "page.ingress leads to the web page, which is disabled: set page.enabled to true",
            id="ingress-without-page",
        ),
        pytest.param(
            {"page": {"httpRoute": {"enabled": True, "parentRefs": GATEWAY}}},
            "page.httpRoute leads to the web page, which is disabled: set page.enabled to true",
            id="route-without-page",
        ),
        pytest.param(
            {"page": ingress(hosts=[])},
            "page.ingress has no host: list at least one in page.ingress.hosts",
            id="ingress-without-host",
        ),
        pytest.param(
            {"page": route(parentRefs=[])},
            "page.httpRoute has no Gateway: list at least one in page.httpRoute.parentRefs",
            id="route-without-gateway",
        ),
        pytest.param(
            {"page": ingress(), "networkPolicy": {"enabled": True}},
            "networkPolicy.enabled keeps the pods behind page.ingress away from the web page: list them in page.from",
            id="network-policy-without-the-controller",
        ),
    ],
)
def test_route_that_cannot_work_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(HelmError) as refused:
        template(values)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("page", [ingress(tls=TLS), route(hostnames=[HOST])], ids=["ingress", "route"])
def test_notes_say_who_authenticates(page: dict[str, Any]) -> None:
    said = notes({"page": page})

    assert f"https://{HOST}. The page asks every user for a token of the cluster." in said


def test_notes_warn_of_an_ingress_without_tls() -> None:
    warning = "tokens cross the network unencrypted"

    assert warning in notes({"page": ingress()})
    assert warning not in notes({"page": ingress(tls=TLS)})
