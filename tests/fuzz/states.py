"""Runs to go on with whose state, snapshots, log or config are damaged.

A resume that succeeds ends in the same bits as an undamaged one, whichever state it went back to.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor

from apt_train.training import loop
from apt_train.training import train as training
from tests.tiny import tiny_components
from tests.training import pictures, quick_config

from .case import Case
from .damage import BROKEN, VALUES, Edit, byte_edits, cases_of, file_edits, header_edits, json_edits
from .outcome import Wrong

STEPS, KEPT = 6, 4  # of the whole run, and of the one in the folder
RUN, EXPECTED = "run", "expected.safetensors"
NEW, OLD = f"{RUN}/snapshots/step_000004", f"{RUN}/snapshots/step_000002"
TENSORS, NUMBERS = f"{NEW}/state.safetensors", f"{NEW}/state.json"
LOG, CONFIG = f"{RUN}/log.jsonl", f"{RUN}/config.json"


def sample(folder: Path) -> None:
    _train(folder / RUN, KEPT, resume=False)
    whole = _train(None, STEPS, resume=False)
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, folder / EXPECTED)


def run(folder: Path, case: Case) -> None:
    lora = _train(folder / RUN, STEPS, resume=True)
    expected = load_file(folder / EXPECTED)
    if lora.keys() != expected.keys() or any(not lora[name].equal(expected[name]) for name in expected):
        raise Wrong("a resume succeeded with other bits than an undamaged one: it went on from damage")


def _train(output: Path | None, steps: int, *, resume: bool) -> dict[str, Tensor]:
    """Without the report and the drift, which are slow and none of the state's business."""
    config = quick_config(steps=steps, snapshot_every=2, batch_size=1, augment_variants=1)
    with mock.patch.object(training, "write_extras"), mock.patch.object(loop, "try_drift", return_value=None):
        return training.train(
            tiny_components(), pictures(1), config, output_dir=output, resume=resume, device="cpu"
        ).lora


def cases(folder: Path) -> SearchStrategy[Case]:
    state = st.one_of(
        byte_edits(TENSORS), byte_edits(TENSORS), byte_edits(NUMBERS), header_edits(folder / TENSORS, TENSORS),
        json_edits(folder / NUMBERS, NUMBERS, ["checksum", "sha256", "format"], 20),
        *(file_edits(name) for name in (TENSORS, NUMBERS, NEW)),
    )  # fmt: skip
    older = st.one_of(byte_edits(f"{OLD}/state.safetensors"), file_edits(OLD), file_edits(f"{OLD}/state.json"))
    log = st.one_of(
        byte_edits(LOG), file_edits(LOG),
        st.tuples(
            st.just("line"), st.just(LOG), st.integers(0, KEPT), st.sampled_from(["replace", "insert", "delete",
                "double"]),
            st.one_of(VALUES, st.sampled_from(BROKEN)),
        ),
    )  # fmt: skip
    return cases_of(st.one_of(state, state, older, log, _config(folder), _folder()), 3)


def _config(folder: Path) -> SearchStrategy[Edit]:
    keys = ["vae", "inputs", "warnings", "dtype", "name", "digest"]
    return st.one_of(json_edits(folder / CONFIG, CONFIG, keys, 60), byte_edits(CONFIG), file_edits(CONFIG))


def _folder() -> SearchStrategy[Edit]:
    """What copying, moving and tidying leaves in a run's folder."""
    names = [
        "step_best",
        "step_000004 copy",
        "step_000009",
        "step_000001",
        "step_",
        "step_4",
        "step_²",
        "step_" + "9" * 30,
    ]
    return st.one_of(
        st.tuples(st.just("duplicate"), st.sampled_from([NEW, OLD]), st.sampled_from(names)),
        st.tuples(st.just("move"), st.sampled_from([NEW, OLD]), st.sampled_from(names)),
        st.sampled_from([f"{RUN}/snapshots", f"{RUN}/previews", f"{RUN}/toy_subject.safetensors"]).flatmap(file_edits),
        st.sampled_from([f"{NEW}/x.tmp", f"{RUN}/.0a1b2c3d.tmp", f"{RUN}/snapshots/.x.tmp", f"{RUN}/.lock"]).map(
            lambda name: ("text", name, "x")
        ),
        st.sampled_from([f"{RUN}/.lock", f"{RUN}/snapshots/step_000006", f"{RUN}/previews"]).map(
            lambda name: ("folder", name)
        ),
    )


def hostile() -> list[Case]:
    edits: list[Edit] = [("bytes", TENSORS, "flip", place, "01") for place in (0.5, 0.0, 0.2, 0.9)]
    edits += [("bytes", TENSORS, "zero", 0.5, "00"), ("bytes", TENSORS, "cut", 0.7, "00"), ("text", TENSORS, "")]
    edits += [("header", TENSORS, [], "set", raw) for raw in ("{}", "@nest 100000", "null")]
    edits += [("json", NUMBERS, [], "set", raw) for raw in ("{}", "null", "@nest 100000", "[]", '"x"')]
    edits += [
        ("json", NUMBERS, ["step"], "set", raw) for raw in ("3", "-1", "null", '"4"', "1" + 400 * "0", "NaN", "true")
    ]
    edits += [("json", NUMBERS, [key], "set", raw) for key in ("variants", "indicator", "scaler")
              for raw in ("null", "-1", "[]", "100000000", '{"x": 1}')]  # fmt: skip
    edits += [
        ("line", LOG, 1, "replace", text) for text in ("{", "{}", "[]", "@nest 100000", '{"step": "2"}', "\ud800")
    ]
    edits += [("duplicate", NEW, name) for name in ("step_000004 copy", "step_best", "step_000009", "step_²")]
    edits += [("folder", f"{RUN}/.lock"), ("remove", LOG), ("folder", LOG), ("remove", NUMBERS), ("folder", NUMBERS)]
    edits += [("json", CONFIG, [key], "delete", "") for key in ("dtype", "digest", "config", "name")]
    edits += [("json", CONFIG, ["config", key], "set", raw) for key in ("adapter", "steps", "seed", "name")
              for raw in ("null", "7", "[]", '"../x"', "1" + 400 * "0")]  # fmt: skip
    return [Case((edit,)) for edit in edits]
