"""Rules for every test: no network, and hypothesis examples that are the same on every machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture
def reachable() -> set[str]:
    """The addresses that a test may connect to: none. `tests/host` has its own answer."""
    return set()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, reachable: set[str]) -> None:
    """A connection or a name look-up fails the test, whoever asks for it."""

    def guarded(real: Callable[..., Any], target: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any, **named: Any) -> Any:
            if target(*arguments) not in reachable:
                raise AssertionError(f"a test asked for the network: {arguments}")
            return real(*arguments, **named)

        return ask

    for name in ("connect", "connect_ex"):
        of_socket = guarded(getattr(socket.socket, name), lambda _socket, address: address[0])
        monkeypatch.setattr(socket.socket, name, of_socket)
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host))
