"""The same world outside as that of the other doors."""

from tests.api.conftest import house

__all__ = ["house"]
