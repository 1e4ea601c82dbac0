"""The document that generators make clients of promises no narrower integers than the answers have."""

from __future__ import annotations

from billing.api.http.openapi import document


def test_what_is_available_may_be_wider_than_what_it_is_made_of() -> None:
    schemas = document()["components"]["schemas"]
    shown = {
        name: schema["properties"]
        for name, schema in schemas.items()
        if "available_nanos" in schema.get("properties", {})
    }
    assert {"Standing", "Account", "AccountRow", "BalanceAt", "Explained"} <= shown.keys()
    for properties in shown.values():
        assert "int64" not in str(properties["available_nanos"])
        assert "integer" in str(properties["available_nanos"])
        assert "int64" in str(properties["balance_nanos"])
