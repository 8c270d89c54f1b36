"""Rules for every test: no network, and hypothesis examples that are the same on every machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small run slower on several threads, and much slower when the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
