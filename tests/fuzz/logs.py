"""Run folders whose log or config is damaged: read back, summed up and, for one in four, drawn as a report."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from apt_train.config import TrainConfig
from apt_train.report import write_report
from apt_train.verdict.run_files import read_run
from tests.synthetic_run import plausible_log, write_run

from .case import Case, packed
from .damage import BROKEN, VALUES, Edit, byte_edits, cases_of, file_edits, json_actions, json_edits

LOG, CONFIG = "log.jsonl", "config.json"
STEPS = 60
FIELDS = ["step", "loss", "denoising", "stabilization", "alignment", "prior_preservation", "numbers", "grad_norm", "lr",
    "timestep",
          "gamma", "grad_norm_terms", "drift", "seconds"]  # fmt: skip


def sample(folder: Path) -> None:
    write_run(folder, plausible_log(STEPS, ratios=(1.0, 1.2)), TrainConfig(class_word="toy", steps=STEPS))
    for step in (25, 50):
        (folder / "snapshots" / f"step_{step:06d}").mkdir(parents=True)


def run(folder: Path, case: Case) -> None:
    """`arguments`: whether the report is drawn too, which is slow."""
    _ = read_run(folder).summary
    if case.arguments:
        write_report(folder)


def cases(folder: Path) -> SearchStrategy[Case]:
    log = st.one_of(_lines(folder), _lines(folder), byte_edits(LOG), file_edits(LOG))
    config = st.one_of(json_edits(folder / CONFIG, CONFIG, ["num_timesteps", "digest", "name"], 60), file_edits(CONFIG))
    edits = st.one_of(log, log, log, config, byte_edits(CONFIG), _folder())
    return cases_of(edits, 4, st.sampled_from([None, None, None, True]))


def _lines(folder: Path) -> SearchStrategy[Edit]:
    """Damage of whole lines, and inside one that has everything."""
    number = st.one_of(st.integers(0, STEPS), st.sampled_from([0, 49, STEPS - 1]))
    whole = st.tuples(
        st.just("line"), st.just(LOG), number,
        st.sampled_from(["replace", "insert", "delete", "double", "append"]), st.one_of(VALUES,
        st.sampled_from(BROKEN)),
    )  # fmt: skip
    full = plausible_log(STEPS, ratios=(1.0, 1.2))[49]
    inside = json_actions(full, FIELDS, most=20).map(lambda action: ("line-json", LOG, 49, *action))
    field = st.tuples(
        st.just("line-json"),
        st.just(LOG),
        number,
        st.sampled_from(FIELDS).map(lambda name: [name]),
        st.just("set"),
        VALUES,
    )
    return st.one_of(whole, inside, field)


def _folder() -> SearchStrategy[Edit]:
    """The rest of a run's folder: snapshots of odd names, files where folders belong, links where files belong."""
    names = [
        "step_best",
        "step_000025 copy",
        "step_",
        "step_-1",
        "step_²",
        "step_" + "9" * 30,
        "step_25",
        ".tmp",
        "step_٣",
    ]
    return st.one_of(
        st.sampled_from(names).map(lambda name: ("folder", f"snapshots/{name}")),
        st.sampled_from(
            ["snapshots", "previews", "report.md", "report.json", "indicator.png", "attention.safetensors"]
        ).map(lambda name: ("text", name, "x")),
        st.sampled_from(["report.md", "report.json", "indicator.png", "losses.png"]).map(lambda name: ("folder", name)),
        st.sampled_from(["report.md", "indicator.png", "previews", "snapshots"]).map(
            lambda name: ("link", name, "nowhere")
        ),
        st.binary(max_size=40).map(lambda data: ("write", "attention.safetensors", packed(data))),
    )


def hostile() -> list[Case]:
    lines: list[Edit] = [
        ("line-json", LOG, 49, [name], "set", raw)
        for name, raw in [
            ("step", "1" + 400 * "0"), ("step", "9223372036854775808"), ("step", "-1"), ("step", "0"), ("step", "true"),
            ("loss", "1" + 400 * "0"), ("loss", "1e400"), ("loss", "NaN"), ("timestep", "[NaN]"), ("timestep",
            "[1e400]"),
            ("timestep", "[-5]"), ("timestep", "[100000000]"), ("gamma", "[]"), ("gamma", "@many 100000 0.5"),
            ("gamma", "[null]"), ("drift", '{"ratio": 1e400}'), ("drift", '{"x": 1}'), ("grad_norm_terms", '{"x": 1}'),
            ("grad_norm_terms", "@nest 100000"), ("grad_norm", "1e400"),
        ]
    ]  # fmt: skip
    lines += [
        ("line", LOG, 30, "replace", text) for text in ("@nest 100000", "\x00\x00", "{}", "\ud800", "@long 10000000")
    ]
    config: list[Edit] = [("json", CONFIG, [], "set", raw) for raw in ("[]", "null", "@nest 100000", "{}")]
    config += [("json", CONFIG, ["num_timesteps"], "set", raw) for raw in ("1" + 400 * "0", '"x"', "1e400", "true")]
    config += [("json", CONFIG, ["config", "apt", "bins"], "set", raw) for raw in ("100000000", "[]", "0")]
    config += [("json", CONFIG, ["config", "steps"], "set", raw) for raw in ("1" + 400 * "0", "1e400", "0.5", '"x"')]
    config += [("json", CONFIG, ["format"], "set", raw) for raw in ("2", "null", '"1"', "1.0", "@nest 100000")]
    folder: list[Edit] = [("folder", "snapshots/step_best"), ("folder", "snapshots/step_²"), ("link", LOG, LOG),
                          ("link", LOG, "/dev/zero"), ("text", LOG, ""), ("folder", LOG)]  # fmt: skip
    drawn: list[Edit] = [("folder", "report.md"), ("folder", "indicator.png"), ("link", "report.md", "nowhere"),
                         ("line-json", LOG, 49, ["loss"], "set", "1e308")]  # fmt: skip
    return [*(Case((edit,)) for edit in lines + config + folder), *(Case((edit,), True) for edit in drawn)]
