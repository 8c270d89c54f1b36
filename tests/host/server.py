"""An unmodified ComfyUI as a process of its own, spoken to over HTTP and websocket.

In: starting it on a folder that it may fill, queueing prompts, reading what comes of them, its events as they happen.
Not in: prompts (`workflows`), model files (`checkpoints`), where the host is (`dev.find_host`).
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

import dev

from ..signals import hearing
from .events import Events

ARGUMENTS = (
    *("--cpu", "--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"),
    *("--listen", "127.0.0.1"),
)


class HostError(Exception):
    """A prompt that was refused, failed or was interrupted: `kind` is one of these three words.

    The message holds what the user would read, `sentence` the node's own words; `node` and `node_type` name the node it
    stopped at, where there is one, and `details` is the host's own account of it.
    """

    def __init__(self, kind: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.details = kind, details
        self.node, self.node_type = details.get("node_id"), details.get("node_type")
        self.sentence = str(details.get("exception_message", "")).strip()
        complaints = details.get("node_errors") or {}
        if len(complaints) == 1:
            ((self.node, complaint),) = complaints.items()
            self.node_type, self.sentence = complaint["class_type"], complaint["errors"][0]["details"]


@dataclass(frozen=True)
class Result:
    """A prompt that ran: `outputs` by node id, `messages` as (event, data) pairs, `cached` the ids not run again."""

    prompt_id: str
    outputs: dict[str, Any]
    messages: list[tuple[str, dict[str, Any]]]
    seconds: float

    @property
    def cached(self) -> set[str]:
        return {node for event, data in self.messages if event == "execution_cached" for node in data["nodes"]}

    @property
    def images(self) -> list[dict[str, str]]:
        """Of every node that shows or saves pictures; `Host.image` fetches one."""
        return [entry for output in self.outputs.values() for entry in output.get("images", ())]


@dataclass
class Host:
    """One ComfyUI whose models, nodes, input, output and user data all lie in `folder`; a context manager.

    `place` and `python` are the host's folder and interpreter, `options` go to its main.py, `variables` to its
    environment. The pack is copied in, without what git ignores, when the process starts.
    """

    folder: Path
    place: Path
    python: str
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # ---- the process

    def start(self, timeout: float = 300) -> None:
        """Returns once it answers; a host that ends before that, or is slower, is an error with its log's end."""
        for name in ("models/checkpoints", "models/loras", "models/embeddings", "custom_nodes", "input", "output"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        copy_pack(self.folder / "custom_nodes" / dev.PACK)
        self.port = dev.free_port()
        command = [self.python, str(self.place / "main.py"), "--base-directory", str(self.folder)]
        command += [*ARGUMENTS, "--port", str(self.port), *self.options]
        variables = {**dev.environment(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **self.variables}
        with self.log.open("ab") as log, hearing():
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.until(self.answers, timeout, "did not answer")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        if self.process is not None:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """As a power cut does: nothing in it gets to run."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kills it and starts it again on the same folder, with the pack as it is now."""
        self.kill()
        self.start()

    def memory(self) -> int:
        """What the process holds of the machine's memory, in bytes."""
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss

    @property
    def log(self) -> Path:
        return self.folder / "host.log"

    def log_text(self) -> str:
        """Everything it printed, over all its starts in this folder."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, happened: Callable[[], Any], timeout: float, complaint: str, pause: float = 0.05) -> Any:
        """What `happened` returns once it is true. A host that dies meanwhile, or the time's end, is an error."""
        assert self.process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"ComfyUI ended with code {self.process.returncode}:\n{self.log_text()[-4000:]}")
            if answer := happened():
                return answer
            time.sleep(pause)
        raise TimeoutError(f"ComfyUI {complaint} within {timeout:.0f} s:\n{self.log_text()[-4000:]}")

    def answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except OSError:
            return False

    # ---- requests

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        """GET, or POST where there is a body. An answer other than success raises urllib's HTTPError."""
        request = urllib.request.Request(self.address + path, data=body, headers={"Content-Type": kind})
        without_proxies = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with without_proxies.open(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        """What a path holds, parsed where it is JSON, else as bytes."""
        content = self.request(path)
        return json.loads(content) if content[:1] in (b"{", b"[") else content

    def post(self, path: str, **values: Any) -> Any:
        content = self.request(path, json.dumps(values).encode())
        return json.loads(content) if content[:1] in (b"{", b"[") else content

    def object_info(self, node_type: str | None = None) -> dict[str, Any]:
        """What the editor knows of every node, or of one; an unknown one raises KeyError."""
        return self.get("/object_info") if node_type is None else self.get(f"/object_info/{node_type}")[node_type]

    def interrupt(self, prompt_id: str | None = None) -> None:
        self.post("/interrupt", **({"prompt_id": prompt_id} if prompt_id else {}))

    def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Returns when it is done. `free_memory` drops the cached results too.

        The host looks for such a wish after a prompt, so a prompt queued at once might still find the cache: it is
        given one of no consequence to look after.
        """
        self.post("/free", unload_models=unload_models, free_memory=free_memory)
        blank = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        self.run({"1": blank, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})

    def upload(self, name: str, image: Image.Image) -> str:
        """Puts a PNG among the host's input pictures; returns the name LoadImage knows it by."""
        content = io.BytesIO()
        image.save(content, format="PNG")
        body, kind = multipart({"overwrite": "true"}, name, content.getvalue())
        return json.loads(self.request("/upload/image", body, kind))["name"]

    def image(self, entry: Mapping[str, str]) -> Image.Image:
        """One of `Result.images`."""
        return Image.open(io.BytesIO(self.request("/view?" + urllib.parse.urlencode(entry))))

    # ---- prompts

    def queue(self, prompt: Mapping[str, Any], client_id: str | None = None, **extra: Any) -> str:
        """Returns the prompt's id; `extra` goes to extra_data. A prompt that the host refuses raises HostError."""
        values = {"prompt": prompt, "extra_data": extra} | ({"client_id": client_id} if client_id else {})
        try:
            return self.post("/prompt", **values)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise refusal(json.loads(error.read())) from None

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The host's account of a prompt that is over; None before that."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, timeout: float = 300) -> Result:
        """The end of a queued prompt; raises HostError where it failed or was interrupted."""
        start = time.monotonic()
        entry = self.until(lambda: self.history(prompt_id), timeout, f"did not finish prompt {prompt_id}")
        status = entry["status"]
        messages = [(event, data) for event, data in status["messages"]]
        if status["status_str"] != "success":
            raise failure(dict(messages))
        return Result(prompt_id, entry["outputs"], messages, time.monotonic() - start)

    def run(self, prompt: Mapping[str, Any], timeout: float = 300, client_id: str | None = None) -> Result:
        return self.wait(self.queue(prompt, client_id), timeout)

    def events(self) -> Events:
        """A client that listens, as the editor does; queue prompts with its `client_id`. A context manager."""
        return Events(self.port)


# ---- what the host says of a prompt ------------------------------------------------------------------------------


def refusal(answer: Mapping[str, Any]) -> HostError:
    """The validation's complaints, the node's own first."""
    sentences = [
        f"{node['class_type']}: {error['message']} {error['details']}".rstrip()
        for node in answer.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    general = answer["error"]
    return HostError("refused", "; ".join([*sentences, f"{general['message']} {general['details']}".rstrip()]), answer)


def failure(messages: Mapping[str, Mapping[str, Any]]) -> HostError:
    if "execution_error" in messages:
        details = messages["execution_error"]
        return HostError("failed", details["exception_message"].rstrip(), details)
    details = messages.get("execution_interrupted", {})
    return HostError("interrupted", f"at {details.get('node_type')}", details)


# ---- forms and files --------------------------------------------------------------------------------------------


def multipart(values: Mapping[str, str], name: str, image: bytes) -> tuple[bytes, str]:
    """A form's body and content type: plain values, and a PNG as the field `image`."""
    border = f"--{uuid.uuid4().hex}"
    lines: list[str | bytes] = []
    for key, value in values.items():
        lines += [border, f'Content-Disposition: form-data; name="{key}"', "", value]
    lines += [border, f'Content-Disposition: form-data; name="image"; filename="{name}"', "Content-Type: image/png"]
    lines += ["", image, border + "--", ""]
    body = b"\r\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    return body, f"multipart/form-data; boundary={border[2:]}"


def copy_pack(target: Path) -> None:
    """The repository's files as they are now, without those that git ignores, in the place of an older copy."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=dev.ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    shutil.rmtree(target, ignore_errors=True)
    for name in filter(None, names.split("\0")):
        if (dev.ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(dev.ROOT / name, target / name)
