"""The client is tested against the doors of a worker: the same fixtures as those of the doors."""

from tests.api.conftest import harness

__all__ = ["harness"]
