"""The API reference of the service: at /docs, without the internet."""

import re

import httpx


def test_the_reference_loads_everything_from_the_service(shared_service: str) -> None:
    page = httpx.get(f"{shared_service}/docs", timeout=60)
    assert page.status_code == 200
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(addresses) >= 2  # the script and the style sheet
    for address in addresses:
        assert address.startswith("/")
        assert httpx.get(f"{shared_service}{address}", timeout=60).status_code == 200
    assert "/openapi.json" in page.text


def test_a_browser_at_the_root_is_led_to_the_pages(shared_service: str) -> None:
    found = httpx.get(shared_service, follow_redirects=True, timeout=60)
    assert found.url.path == "/pages/"


def test_the_reference_offers_to_enter_a_key(shared_service: str) -> None:
    document = httpx.get(f"{shared_service}/openapi.json", timeout=60).json()
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert document["paths"]["/v1/scores"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_operations_have_names_that_suit_an_sdk(shared_service: str) -> None:
    paths = httpx.get(f"{shared_service}/openapi.json", timeout=60).json()["paths"]
    operations = [operation for methods in paths.values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {"score", "create_rubric", "induce_rubric", "list_rubrics"} <= set(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    assert all(operation["tags"] and operation["summary"] for operation in operations)
