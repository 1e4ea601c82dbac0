"""How a method of the client becomes one that waits for its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from billing.client.methods import Methods

P = ParamSpec("P")
R = TypeVar("R")


class Blocking(ABC):
    """Whoever has a client, and can wait for what it does."""

    _client: Methods

    @abstractmethod
    def _wait(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """The result of a coroutine of the client's."""


def blocking(
    method: Callable[Concatenate[Methods, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Blocking, P], R]:
    """The method of a client that waits."""

    @wraps(method)
    def call(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._wait(method(self._client, *args, **kwargs))

    return call
