"""The same world outside as that of the other doors."""

from tests.api.conftest import harness

__all__ = ["harness"]
