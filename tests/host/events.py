"""The host's websocket as the editor hears it: messages, preview pictures and progress texts with their times."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

TEXT, PREVIEW, PREVIEW_WITH_METADATA = 3, 1, 4  # the host's protocol.py


@dataclass(frozen=True)
class Event:
    """`kind` is the message's type, `preview` for a picture or `text` for a progress text.

    `time` is time.monotonic() at its arrival. A picture's `data` are its metadata (node, prompt), a text's
    {"node": id, "text": text}.
    """

    time: float
    kind: str
    data: dict[str, Any]
    image: Image.Image | None = None


class Events:
    """Listens from the first moment to the last of its context; what it heard stays readable after that."""

    def __init__(self, port: int) -> None:
        self.client_id = uuid.uuid4().hex
        self.address = f"ws://127.0.0.1:{port}/ws?clientId={self.client_id}"
        self.heard: list[Event] = []
        self.news = threading.Condition()
        self.open = ExitStack()

    def __enter__(self) -> Events:
        socket = self.open.enter_context(connect(self.address, proxy=None, max_size=None, compression=None))
        socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        thread = threading.Thread(target=self.listen, args=(socket,), daemon=True)
        thread.start()
        self.open.callback(thread.join, timeout=10)
        self.open.callback(socket.close)
        return self

    def __exit__(self, *exception: object) -> None:
        self.open.close()

    def __iter__(self) -> Iterator[Event]:
        """What was heard so far, in order."""
        with self.news:
            return iter(list(self.heard))

    def of(self, kind: str) -> list[Event]:
        return [event for event in self if event.kind == kind]

    def pictures_of(self, node: str) -> list[Image.Image]:
        """A node's previews."""
        return [event.image for event in self if event.image is not None and event.data.get("node_id") == node]

    def wait_for(self, wanted: str | Callable[[Event], Any], timeout: float = 60) -> Event:
        """The first event of a kind, or the first that a function is true of, whether it is here already or to come."""
        found = (lambda event: event.kind == wanted) if isinstance(wanted, str) else wanted
        with self.news:
            if self.news.wait_for(lambda: any(map(found, self.heard)), timeout):
                return next(filter(found, self.heard))
        raise TimeoutError(f"not heard within {timeout:.0f} s; heard: {[event.kind for event in self.heard]}")

    def listen(self, socket: ClientConnection) -> None:
        try:
            for message in socket:
                event = parse(message, time.monotonic())
                with self.news:
                    self.heard.append(event)
                    self.news.notify_all()
        except ConnectionClosed:
            pass


def parse(message: str | bytes, now: float) -> Event:
    if isinstance(message, str):
        content = json.loads(message)
        return Event(now, content["type"], content.get("data") or {})
    (kind,) = struct.unpack_from(">I", message)
    if kind == PREVIEW:
        (_format,) = struct.unpack_from(">I", message, 4)
        return Event(now, "preview", {}, Image.open(io.BytesIO(message[8:])))
    (length,) = struct.unpack_from(">I", message, 4)
    head, rest = message[8 : 8 + length], message[8 + length :]
    if kind == PREVIEW_WITH_METADATA:
        return Event(now, "preview", json.loads(head), Image.open(io.BytesIO(rest)))
    assert kind == TEXT, kind
    return Event(now, "text", {"node": head.decode(), "text": rest.decode()})
