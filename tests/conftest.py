"""Rules for every test: no network, and hypothesis examples that are the same on every machine."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection or a name look-up fails the test, whoever asks for it."""

    def refuse(*arguments: object, **named: object) -> NoReturn:
        raise AssertionError(f"a test asked for the network: {arguments[1:] or arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
