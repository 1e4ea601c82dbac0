"""Makes blocking methods of the client's coroutines: such a method returns when its answer is there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from billing.client.methods import Methods

P = ParamSpec("P")
R = TypeVar("R")


class Blocking(ABC):
    """A class with blocking methods: it has a client, and can wait for the client's coroutines."""

    _client: Methods

    @abstractmethod
    def _wait(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine of the client; returns its result."""


def blocking(
    method: Callable[Concatenate[Methods, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Blocking, P], R]:
    """Returns the blocking form of a client's method."""

    @wraps(method)
    def call(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._wait(method(self._client, *args, **kwargs))

    return call
