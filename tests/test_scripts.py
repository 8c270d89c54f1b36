"""The editor's scripts by themselves, in a page without the host: curves, what is known of runs, prompts.

Not here: the scripts in the host's own editor (`tests/host/test_editor.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest

from apt_train.palette import BLUE, Rgb, bin_colours

from .host.editor import Browser, lacking
from .node_modules import ROOT

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

HOST = {  # stand-ins for the host's own scripts, which know no route
    "/scripts/app.js": "export const app = { named: {}, registerExtension(it) { this.named[it.name] = it } };",
    "/scripts/api.js": "export const api = new EventTarget(); api.fetchApi = async () => ({ status: 404 });",
}
WHO = {"node": "1", "workflow": "w", "total": 9}


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A blank page that finds the scripts where the host serves them."""

    def answer(route: Any) -> None:
        path = urlparse(route.request.url).path
        if path == "/":
            route.fulfill(body="", content_type="text/html")
            return
        script = HOST.get(path) or (ROOT / "web" / path.rpartition("/")[2]).read_text(encoding="utf-8")
        route.fulfill(body=script, content_type="text/javascript")

    with Browser() as browser:
        blank = browser.chromium.new_page()
        blank.route("**/*", answer)
        blank.goto("http://pack/")
        yield blank


def told(page: Any, script: str, text: str, *values: Any) -> Any:
    """What a function returns that gets a script's exports and these values."""
    call = f"async (given) => ({text})(await import('/extensions/pack/{script}.js'), ...given)"
    return page.evaluate(call, list(values))


# ---- the curves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_a_bin_has_the_colour_it_has_in_the_report(page: Any, count: int) -> None:
    colours = told(page, "chart", "(chart, count) => chart.binColours(count, false)", count)
    shown = [[int(channel) for channel in re.findall(r"\d+", colour)] for colour in colours]
    np.testing.assert_allclose(shown, bin_colours(count), atol=1)  # the two round a half differently


def _css(colour: Rgb) -> str:
    return "rgb({}, {}, {})".format(*colour)


def test_the_thick_line_is_the_mean_of_the_known_losses_around(page: Any) -> None:
    """Over a 25th of the steps. A point may stand for several steps, which all count."""
    steps = list(range(2, 202, 2))
    losses: list[float | None] = [step % 7 for step in steps]
    losses[10:20] = [None] * 10
    points = [{"step": step, "loss": loss, "count": 1 + step % 3} for step, loss in zip(steps, losses, strict=True)]
    expected = []
    for step in steps:
        near = [point for point in points if abs(point["step"] - step) <= 3 and point["loss"] is not None]
        weights = [point["count"] for point in near]
        expected.append(np.average([point["loss"] for point in near], weights=weights) if near else None)
    assert told(page, "chart", "(chart, points) => chart.smoothed(points)", points) == pytest.approx(expected)
    assert None in expected


@pytest.mark.parametrize(
    ("low", "high", "about", "ticks"),
    [
        (0, 1, 2, [0, 0.5, 1]),
        (0, 0.31, 4, [0, 0.1, 0.2, 0.3]),
        (-0.2, 0.9, 4, [-0.2, 0, 0.2, 0.4, 0.6, 0.8]),
        (1, 2000, 5, [500, 1000, 1500, 2000]),
        (3, 3, 4, [3]),
    ],
)
def test_ticks_are_round_numbers(page: Any, low: float, high: float, about: int, ticks: list[float]) -> None:
    assert told(page, "chart", "(chart, ...span) => chart.ticksBetween(...span)", low, high, about) == ticks


def test_gamma_is_drawn_above_and_the_loss_below(page: Any) -> None:
    """Both in their colours; of the loss the mean alone is opaque."""
    points = [{"step": step, "loss": 0.5, "gamma": [0.2, 0.8], "count": 1} for step in range(1, 40)]
    halves = told(
        page,
        "chart",
        """({ drawCurves }, points) => {
          const [width, height, scale] = [400, 300, 4];
          const pen = new OffscreenCanvas(width * scale, height * scale).getContext("2d");
          pen.scale(scale, scale);
          drawCurves(pen, width, height, { points, bins: [] }, { ink: "black", faint: "silver", dark: false });
          const empty = pen.getImageData(0, 0, width * scale, height * scale).data.slice();
          drawCurves(pen, width, height, { points, bins: ["0", "1"] }, { ink: "black", faint: "silver", dark: false });
          const row = 4 * width * scale;
          const colours = (data, from, to) => {
            const found = new Set();
            for (let at = from * scale * row; at < to * scale * row; at += 4) {
              if (data[at + 3] === 255) found.add(`rgb(${data[at]}, ${data[at + 1]}, ${data[at + 2]})`);
            }
            return [...found];
          };
          const drawn = pen.getImageData(0, 0, width * scale, height * scale).data;
          const [above, below] = [[0, height * 0.55], [height * 0.65, height]];
          return [colours(drawn, ...above), colours(drawn, ...below), colours(empty, ...above)];
        }""",
        points,
    )
    upper, lower, without_bins = map(set, halves)
    bins = {_css(colour) for colour in bin_colours(2)}
    assert bins <= upper and not bins & lower and not bins & without_bins
    assert _css(BLUE) in lower and _css(BLUE) not in upper


# ---- the line and the notices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "shown"), [(40.4, "40 s"), (90, "2 min"), (700, "12 min"), (12_000, "3 h 20 min")])
def test_time_is_told_in_the_unit_that_suits_it(page: Any, seconds: float, shown: str) -> None:
    assert told(page, "monitor_view", "(view, seconds) => view.duration(seconds)", seconds) == shown


def test_the_line_says_the_newest_drift_ratio(page: Any) -> None:
    ratios = [None, 0.25, None]
    points = [{"step": step, "loss": 0.5, "gamma": [], "drift_ratio": ratio} for step, ratio in enumerate(ratios, 1)]
    said = "(view, points) => view.statusOf({ points, total: 9, state: 'running' })"
    assert told(page, "monitor_view", said, points) == "step 3 / 9 · loss 0.500 · drift ratio 0.25"
    assert "drift" not in told(page, "monitor_view", said, points[:1])


def test_notices_are_counted_on_the_monitor_and_unfold(page: Any) -> None:
    """And who cannot see the curves hears the line."""
    said = told(
        page,
        "monitor_view",
        """async ({ MonitorView }, who) => {
          const { Runs } = await import("/extensions/pack/runs.js");
          const runs = new Runs(async () => null, null);
          runs.started({ ...who, run: "a", first_step: 0, bins: [] });
          for (const text of ["<b>one</b>", "two", "two"]) runs.noticed({ ...who, run: "a", text, step: 0 });
          const view = new MonitorView();
          view.show(runs.get("a"), null);
          const { notices } = view;
          const shown = [notices.style.display, ...[...notices.children].map((child) => child.textContent)];
          const markup = notices.querySelector("b");
          view.show(null, "nothing");
          const after = [notices.style.display, view.canvas.getAttribute("aria-label")];
          view.dispose();
          return [...shown, markup, ...after];
        }""",
        WHO,
    )
    assert said == ["block", "2 notices", "• <b>one</b>", "• two", None, "none", "nothing"]


def test_what_the_host_tells_is_shown_at_once(page: Any) -> None:
    """Not when the monitor next looks around, a second later."""
    lines = told(
        page,
        "apt_train",
        """async (_, who) => {
          const { app } = await import("/scripts/app.js");
          const { api } = await import("/scripts/api.js");
          const [trainer, link] = [{ id: 1, comfyClass: "APTTrain" }, { origin_id: 1, origin_slot: 0 }];
          app.rootGraph = { id: "w", nodes: [], getNodeById: () => trainer, getLink: () => link };
          const node = { id: 2, comfyClass: "APTOverfitIndicatorMonitor", graph: app.rootGraph, size: [0, 0] };
          node.inputs = [{ name: "run", link: 7 }];
          node.addDOMWidget = (_name, _type, element) => ({ element: (node.element = element) });
          app.named["APTTrain.Monitor"].init();
          app.named["APTTrain.Monitor"].nodeCreated(node);
          const lines = [];
          const tell = (kind, detail) => {
            api.dispatchEvent(new CustomEvent(`apt_train.${kind}`, { detail: { ...who, run: "a", ...detail } }));
            lines.push(node.element.firstElementChild.textContent);
          };
          tell("started", { first_step: 0, bins: [] });
          tell("steps", { points: [{ step: 1, loss: 1, gamma: [0.25, 0.75] }], seconds_left: 5 });
          tell("finished", { state: "done", step: 1 });
          node.onRemoved();
          return lines;
        }""",
        WHO,
    )
    said = "step 1 / 9 · loss 1.00 · mean gamma 0.50"
    assert lines == ["step 0 / 9 · getting ready", f"{said} · 5 s left", f"done · {said}"]


# ---- what is known of runs ---------------------------------------------------------------------------------------


def test_a_run_that_is_found_again_is_the_newest_again(page: Any) -> None:
    """Also when the page asks which runs there were, as it does whenever the queue has moved."""
    seen = told(
        page,
        "runs",
        """async ({ Runs }) => {
          const who = { node: "1", workflow: "w", total: 2 };
          const listed = ["a", "b"].map((run) => ({ ...who, run, state: "done", step: 2 })); // newest first
          const runs = new Runs(async () => ({ runs: listed }), null);
          for (const run of ["a", "b"]) {
            runs.started({ ...who, run, first_step: 0, bins: [] });
            runs.finished({ ...who, run, state: "done", step: 2 });
          }
          const newest = () => runs.madeBy(["1"], "w").run;
          const before = newest();
          runs.found({ ...who, run: "a", step: 2, bins: [] });
          const found = newest();
          await runs._list();
          runs.stepped({ ...who, run: "b", points: [{ step: 4, loss: 1, gamma: [] }], seconds_left: 0 });
          runs.found({ ...who, run: "b", step: 2, bins: [] }); // which had gone on beyond what is asked for now
          return [before, found, runs.get("a").state, runs.get("a").loaded, newest(), runs.get("b").total];
        }""",
    )
    assert seen == ["b", "a", "done", False, "b", 4]


def test_what_a_monitor_shows_stays_when_the_queue_moves(page: Any) -> None:
    """With two training nodes, one of which has made two runs, and after an answer from the host's cache."""
    seen = told(
        page,
        "runs",
        """async ({ Runs }) => {
          const item = (node, run) => ({ node, run, workflow: "w", total: 2, state: "done", step: 2 });
          const listed = [item("2", "y"), item("1", "q"), item("1", "p")]; // newest first
          const [heard, opened] = [1, 2].map(() => new Runs(async () => ({ runs: listed }), null));
          for (const made of [...listed].reverse()) heard.started({ ...made, first_step: 0, bins: [] });
          const found = [];
          for (const runs of [heard, opened]) {
            for (const _ of [1, 2]) {
              await runs._list();
              found.push(runs.madeBy(["1", "2"], "w").run);
            }
            runs.note("p", "1", "w");
            await runs._list();
            found.push(runs.madeBy(["1", "2"], "w").run);
          }
          return found;
        }""",
    )
    assert seen == ["y", "y", "p"] * 2


def test_a_page_opened_again_knows_whose_run_is_whose(page: Any) -> None:
    """Also one whose browser keeps nothing does its work."""
    seen = told(
        page,
        "runs",
        """({ Runs }, who) => {
          const kept = new Map();
          const localStorage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, text) => kept.set(key, text) };
          const forbidden = { get localStorage() { throw new DOMException("denied", "SecurityError") } };
          return [{ localStorage }, forbidden].map((browser) => {
            const runs = new Runs(async () => null, browser);
            for (const run of ["a", "b", "a"]) runs.started({ ...who, run, first_step: 0, bins: [] });
            runs.started({ ...who, workflow: undefined, run: "of a script", first_step: 0, bins: [] });
            const [made, again] = [runs, new Runs(async () => null, browser)].map((one) => one.madeBy(["1"], "w")?.run);
            return [made, again ?? null];
          });
        }""",
        WHO,
    )
    assert seen == [["a", "a"], ["a", None]]


def test_a_page_opened_while_a_run_goes_on_takes_its_steps(page: Any) -> None:
    """Which may come before the page has asked what runs there are."""
    seen = told(
        page,
        "runs",
        """({ Runs }, who) => {
          const runs = new Runs(async () => null, null);
          runs.stepped({ ...who, run: "a", points: [{ step: 7, loss: 1, gamma: [] }], seconds_left: 5 });
          return [runs.madeBy(["1"], "w").run, runs.get("a").step, runs.get("a").loaded];
        }""",
        WHO,
    )
    assert seen == ["a", 7, False]


def test_a_run_that_nobody_tells_of_is_asked_for_now_and_then(page: Any) -> None:
    """A run of another page: its steps and end are known from the list, its curves by asking, but not all the time."""
    asked = told(
        page,
        "runs",
        """async ({ Runs }, who) => {
          const asked = [];
          const listed = [{ ...who, run: "a", state: "done", step: 9 }];
          const answer = (route) => (route.endsWith("/runs") ? { runs: listed } : undefined);
          const runs = new Runs(async (route) => (asked.push(route), answer(route)), null);
          runs.started({ ...who, run: "a", first_step: 0, bins: [] });
          runs.stepped({ ...who, run: "a", points: [{ step: 1, loss: 1, gamma: [] }], seconds_left: 5 });
          const now = Date.now;
          for (const later of [0, 6000, 6000, 6001]) {
            Date.now = () => now() + later;
            await runs.keepUp("a");
          }
          await runs._list();
          for (const _ of [1, 2]) await runs.keepUp("a");
          Date.now = now;
          return asked;
        }""",
        WHO,
    )
    assert asked == ["/apt_train/runs/a?after=1", "/apt_train/runs", "/apt_train/runs/a"]


# ---- a subject's name in a prompt ------------------------------------------------------------------------------------


def encoder(text: Any) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}}


def replacing(text: str, found: str) -> dict[str, Any]:
    inputs = {"string": text, "find": found, "replace": ["1", 5]}
    return {"class_type": "StringReplace", "inputs": inputs}


def trainer(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "APTTrain", "inputs": {"subject": "my toy", "class_word": "toy", **inputs}}


IN_VAIN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "typed plainly": ({"1": trainer(), "2": encoder("My_Toy on the beach")}, ["my_toy"]),
    "the trigger": ({"1": trainer(), "2": encoder("embedding:my_toy_apt_1500 on the beach")}, []),
    "another word": ({"1": trainer(), "2": encoder("my_toys and my_toy-like things")}, []),
    "placeholder filled in": ({"1": trainer(), "2": encoder(["3", 0]), "3": replacing("{subject}!", "{subject}")}, []),
    "name in its place": ({"1": trainer(), "2": encoder(["3", 0]), "3": replacing("my_toy!", "{subject}")}, ["my_toy"]),
    "trigger before it": (
        {
            "1": trainer(),
            "2": encoder(["3", 0]),
            "3": {"class_type": "StringConcatenate", "inputs": {"string_a": ["1", 5], "string_b": " my_toy's beach"}},
        },
        [],
    ),
    "no name given": ({"1": trainer(subject=""), "2": encoder("toy_subject, red")}, ["toy_subject"]),
    "a name by wire": ({"1": trainer(subject=["9", 0]), "2": encoder("my_toy")}, []),
    "a plain trigger word": (
        {"1": trainer(options=["3", 0]), "2": encoder("my_toy toy"), "3": {"inputs": {"identifier_mode": "word"}}},
        [],
    ),
    "a caption": ({"1": trainer(captions="my_toy on grass"), "2": encoder("a beach")}, []),
    "a file": (
        {"1": trainer(), "2": {"class_type": "LoraLoader", "inputs": {"clip": ["1", 1], "lora_name": "my_toy.pt"}}},
        [],
    ),
}


def filled_with(value: Any, text: str = "{subject}!") -> dict[str, Any]:
    node = replacing(text, "{subject}")
    return {"1": trainer(), "2": encoder(["3", 0]), "3": {**node, "inputs": {**node["inputs"], "replace": value}}}


UNFILLED: dict[str, tuple[dict[str, Any], bool]] = {
    "by the trigger": (filled_with(["1", 5]), False),
    "by the class word": (filled_with("toy"), False),
    "by nothing, as where the trainer is bypassed": (filled_with(""), True),
    "not at all": ({"1": trainer(), "2": encoder("a photo of {subject}")}, True),
    "not at all, from a text node": (
        {"2": encoder(["3", 0]), "3": {"class_type": "PrimitiveString", "inputs": {"value": "a {subject}"}}},
        True,
    ),
    "no subject": ({"1": trainer(sample_prompts="{subject}"), "2": encoder("a beach")}, False),
}


@pytest.mark.parametrize(("graph", "names"), IN_VAIN.values(), ids=list(IN_VAIN))
def test_a_prompt_that_names_a_learned_subject_in_vain(page: Any, graph: dict[str, Any], names: list[str]) -> None:
    whole = {key: {"class_type": "X", **node} for key, node in graph.items()}
    assert told(page, "prompts", "(prompts, graph) => prompts.namedInVain(graph)", whole) == names


@pytest.mark.parametrize(("graph", "unfilled"), UNFILLED.values(), ids=list(UNFILLED))
def test_a_prompt_whose_subject_nothing_fills_in(page: Any, graph: dict[str, Any], unfilled: bool) -> None:
    assert told(page, "prompts", "(prompts, graph) => prompts.isUnfilled(graph)", graph) is unfilled
