"""Reports a run's progress to the browser while it trains, and to a page opened later.

    apt_train.started   {run, node, prompt_id, workflow, total, first_step, bins}
    apt_train.steps     {run, node, prompt_id, workflow, points, seconds_left}
    apt_train.notice    {run, node, prompt_id, workflow, text, step}, a sentence the user should see
    apt_train.finished  {run, node, prompt_id, workflow, state, step}
    apt_train.found     {run, node, prompt_id, workflow, total, step, bins}, for a run that needed no training
    GET /apt_train/runs        the runs of this session, newest first
    GET /apt_train/runs/RUN    a run's curves, from its log; `?after=STEP`: only later steps
    POST /apt_train/language?client=ID  a page's language as the body, `zh`; used if the settings name none, and
                               with `--multi-user`

In: messages and routes. Not in: the curves' numbers (`apt_train.run.curves`), what the training node itself shows
(`watch`), the monitor that draws (`web/`).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..apt_train.errors import InputError
from ..apt_train.names import LOG
from ..apt_train.wording import bin_names

if TYPE_CHECKING:
    from ..apt_train.events import StepEvent

Send = Callable[[str, dict[str, Any]], None]

INTERVAL = 0.25  # seconds; the shortest time between messages with steps
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
STEP = re.compile(r"[0-9]{1,9}")


class LiveRun:
    """Reports a run to the browser. Steps are collected and sent a few times a second; none is lost."""

    def __init__(
        self, *, run_id: str, node_id: str, prompt_id: str, total: int, bins: int, send: Send,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._who = {"run": run_id, "node": node_id, "prompt_id": prompt_id}
        self._total, self._bins = total, bin_names(bins)
        self._send, self._clock = send, clock
        self._waiting: list[dict[str, Any]] = []
        self._last_sent = -INTERVAL
        self._seconds_left: float | None = None

    def start(self, first_step: int) -> None:
        """`first_step`: the step the run is at, 0 for a new run; points follow for later steps."""
        self._tell("started", total=self._total, first_step=first_step, bins=self._bins)

    def found(self, step: int) -> None:
        """Sent instead of all other messages: the run is at `step` and needs no training."""
        self._tell("found", total=self._total, step=step, bins=self._bins)

    def step(self, event: StepEvent, seconds_left: float | None) -> None:
        """One step of the trainer, and the estimated time left."""
        from ..apt_train.run.curves import point_of

        self._waiting.append(point_of(event.log_line()))
        self._seconds_left = seconds_left
        if self._clock() - self._last_sent >= INTERVAL:
            self._flush()

    def notice(self, text: str, step: int) -> None:
        """A sentence the user should see, sent after `step`; it is also kept in the run's folder."""
        self._tell("notice", text=text, step=step)

    def finish(self, state: Literal["done", "stopped", "failed"], step: int) -> None:
        """The run is at `step` and has stopped for now."""
        self._flush()
        self._tell("finished", state=state, step=step)

    def _flush(self) -> None:
        if self._waiting:
            self._tell("steps", points=self._waiting, seconds_left=self._seconds_left)
            self._waiting = []
            self._last_sent = self._clock()

    def _tell(self, what: str, **message: Any) -> None:
        self._send(f"apt_train.{what}", {**self._who, **message})


class Session:
    """The runs of this host process, according to the messages about them."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], dict[str, Any]] = {}

    def note(self, event: str, message: dict[str, Any]) -> None:
        """Remember a message of `LiveRun`."""
        if event == "apt_train.notice":
            return
        key = message["run"], message["node"]
        stands = {"apt_train.started": ("running", "first_step"), "apt_train.found": ("done", "step")}.get(event)
        if stands is not None:
            self._runs.pop(key, None)  # a run that starts or is found again becomes the newest
            who = {name: message.get(name) for name in ("run", "node", "prompt_id", "workflow", "total")}
            self._runs[key] = {**who, "state": stands[0], "step": message[stands[1]]}
        elif key in self._runs:
            newest = message["points"][-1]["step"] if event == "apt_train.steps" else message["step"]
            self._runs[key] |= {"step": newest, "state": message.get("state", "running")}

    def runs(self) -> list[dict[str, Any]]:
        """Newest first: `{run, node, prompt_id, workflow, total, state, step}`."""
        return [dict(run) for run in reversed(list(self._runs.values()))]


_SESSION = Session()  # lives as long as the host process, like its queue


def host_sender() -> Send:
    """Sends messages to the page that queued the prompt, or to all pages if it is unknown, and records them.

    Each message carries the id of its workflow, so that a page does not mistake it for another tab's node with the same
    number. The id is None if the prompt came without a workflow.
    """
    from server import PromptServer  # pyright: ignore[reportMissingImports]

    server = PromptServer.instance
    workflows: dict[str, str | None] = {}

    def send(event: str, message: dict[str, Any]) -> None:
        prompt = message["prompt_id"]
        if prompt not in workflows:
            workflows[prompt] = workflow_of(prompt, server.prompt_queue.get_current_queue_volatile()[0])
        message = {**message, "workflow": workflows[prompt]}
        _SESSION.note(event, message)
        server.send_sync(event, message, server.client_id)

    return send


def workflow_of(prompt_id: str, running: list[Any]) -> str | None:
    """The id of the workflow that queued a prompt; `running`: the host's (number, prompt id, prompt, extra data...)."""
    extra = next((item[3] for item in running if item[1] == prompt_id), None) or {}
    return ((extra.get("extra_pnginfo") or {}).get("workflow") or {}).get("id")


def folder_of(root: Path, run: str) -> Path:
    """The folder of a run directly in `root`. InputError: not a valid name, or no such run."""
    try:
        folder = root / run if RUN_ID.fullmatch(run) else None
        if folder is not None and folder.resolve().parent == root.resolve() and folder.is_dir():
            return folder
    except (OSError, RuntimeError):  # no permission, or a link to itself
        pass
    raise InputError("There is no such run in output/apt_train: ask for one of /apt_train/runs.")


def curves_of(root: Path, run: str, after: int = 0) -> dict[str, Any]:
    """The route's answer about a run of this or an earlier session.

    InputError: there is none of that name, or its files cannot be read.
    """
    from ..apt_train.run.curves import run_curves
    from ..apt_train.run.notices import read_notices

    folder = folder_of(root, run)
    try:
        curves = run_curves(folder, after)
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError):
        raise InputError(f"The files of {run} are damaged or may not be read: restore them, or train again.") from None
    known = [item["state"] for item in _SESSION.runs() if item["run"] == run]
    state = known[0] if known else "done" if _is_finished(folder, curves) else "stopped"
    told = [notice.text for notice in read_notices(folder)]
    return {"run": run, "state": state, "notices": told, **curves}


def _is_finished(folder: Path, curves: dict[str, Any]) -> bool:
    """Whether it is at its last step, or a stopping rule ended it before."""
    from ..apt_train.run.config_file import read_config
    from ..apt_train.run.log import read_log
    from ..apt_train.training.stopping import ending, measured_in

    if curves["step"] >= curves["total"]:
        return True
    output = read_config(folder).settings.output
    return output.stop != "never" and ending(output.stop, measured_in(read_log(folder / LOG).lines)) is not None


def answer_of(root: Path, run: str, after: str) -> tuple[int, str]:
    """HTTP status and JSON about a run; 404 with the reason if it does not exist or cannot be read.

    The JSON is valid for browsers: it has no NaN.
    """
    try:
        curves = curves_of(root, run, int(after) if STEP.fullmatch(after) else 0)
        return 200, json.dumps(curves, allow_nan=False)
    except InputError as error:
        return 404, json.dumps({"error": str(error)})


def register_routes() -> None:
    """Add the routes to the host's server before it starts."""
    from aiohttp import web  # pyright: ignore[reportMissingImports]
    from server import PromptServer  # pyright: ignore[reportMissingImports]

    from .host.folders import runs_folder
    from .host.language import note_page_language, tell_users_apart

    async def language(request: web.Request) -> web.Response:
        note_page_language(await request.content.read(10), request.query.get("client", ""))
        return web.Response(status=204)

    async def runs(_request: web.Request) -> web.Response:
        return web.json_response({"runs": _SESSION.runs()})

    async def run(request: web.Request) -> web.Response:
        work = answer_of, runs_folder(), request.match_info["run"], request.query.get("after", "")
        # Files are read off the event loop, which serves every page's messages.
        status, text = await asyncio.get_running_loop().run_in_executor(None, *work)
        return web.json_response(text=text, status=status)

    tell_users_apart(PromptServer.instance)
    PromptServer.instance.routes.post("/apt_train/language")(language)
    PromptServer.instance.routes.get("/apt_train/runs")(runs)
    PromptServer.instance.routes.get("/apt_train/runs/{run}")(run)
