"""`APT Train Options` on the real host: every widget reaches the run's settings; unchanged ones are the defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_train.config import TrainConfig

from .graphs import (
    QUICK,
    SETTINGS,
    half_transparent,
    option_defaults,
    options,
    picture,
    training_graph,
    untouched,
    upload_pictures,
)
from .server import Host, HostError

# Another value than the default for every widget; the ones left out are tested elsewhere, with what they do.
CHANGED: dict[str, Any] = {
    "identifier_mode": "word", "init_word": "thing", "dco_beta": 500.0, "adaptive_augmentation": False,
    "adaptive_loss_weight": False, "bins": 5, "ema": 0.2, "temperature": "50", "p_max": 0.5, "max_zoom": 2.0,
    "max_degrees": 10.0, "augment_kinds": ["affine", "flip"], "augment_variants": 4, "mask_fill": True,
    "stabilization": False, "dist_weight": 0.5, "dist_layers": "mid+up", "dist_mode": "raw", "alignment": False,
    "attn_weight": 0.25, "attn_layers": "all", "attn_schedule": "indicator", "watch_indicator": True,
    "balance_every": 1, "alpha": 2.0, "dropout": 0.1, "targets": "attention+ff", "min_rank": 1,
    "embedding_learning_rate": 1e-4, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.01,
    "max_grad_norm": 0.5, "lr_schedule": "cosine", "warmup_steps": 1, "accumulation": 2, "bucket_multiple": 32,
    "class_caption": "a picture of {class_word}", "prior_preservation_weight": 0.5, "precision": "bf16",
    "gradient_checkpointing": "on", "lazy_prior": 2, "snapshot_every": 1, "preview_every": 0,
    "preview_prompts": "a {subject} in snow\na {subject}", "preview_steps": 2, "preview_guidance": 3.0,
    "preview_seed": 3, "watch_drift": False, "drift_prompts": "a dog in snow\na city",
    "augment_fill": "reflect", "optimizer": "radam", "kind": "rslora",
}  # fmt: skip
DEFAULTS = {name: option_defaults()[name] for name in QUICK}
ELSEWHERE = {"mask_counts", "alpha_masks", "background"}


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def settings_of(host: Host, names: list[str], **changes: Any) -> dict[str, Any]:
    """The run's settings, flat: no two have one name."""
    g, _ = training_graph(names, setting={**DEFAULTS, **changes}, steps=2)
    before = set((host.folder / "output").glob("apt_train/*"))
    host.run(g.prompt)
    (run,) = set((host.folder / "output").glob("apt_train/*")) - before
    return flat(json.loads((run / "config.json").read_text())["config"])


def test_settings_of_a_later_round_reach_the_run_from_their_own_node(host: Host, names: list[str]) -> None:
    own = {**untouched("APTAdapterOptions"), "memory": "fixed", "base_storage": "fp8", "channels_last": True}
    g, node = training_graph(names, steps=1)
    node_id = str(len(g.prompt) + 1)
    options = g.prompt[node.id]["inputs"]["options"]
    g.prompt[node_id] = {"class_type": "APTAdapterOptions", "inputs": {**own, "options": options}}
    g.prompt[node.id]["inputs"]["options"] = [node_id, 0]
    before = set((host.folder / "output").glob("apt_train/*"))
    host.run(g.prompt)
    (run,) = set((host.folder / "output").glob("apt_train/*")) - before
    settings = flat(json.loads((run / "config.json").read_text())["config"])
    assert settings["memory"] == "fixed" and settings["base_storage"] == "fp8"
    assert settings["channels_last"] and not settings["compile_blocks"]


def flat(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def as_stored(name: str, shown: Any) -> Any:
    if name == "gradient_checkpointing":
        return shown == "on"
    if name == "temperature":
        return float(shown)
    if name == "max_zoom":
        return shown or "auto"
    return shown.splitlines() if name in ("preview_prompts", "drift_prompts") else shown


def test_every_widget_reaches_the_run(host: Host, names: list[str]) -> None:
    defaults = option_defaults()
    assert CHANGED.keys() == defaults.keys() - ELSEWHERE
    assert not [name for name, value in CHANGED.items() if value == defaults[name]]
    found = settings_of(host, names, **CHANGED)
    assert {name: found[name] for name in CHANGED} == {name: as_stored(name, CHANGED[name]) for name in CHANGED}


def test_widgets_left_alone_are_the_dataclasses_defaults(host: Host, names: list[str]) -> None:
    found = settings_of(host, names)
    expected = flat(json.loads(json.dumps(TrainConfig(class_word="toy").to_dict())))
    shown = {"identifier", "preview_every", *SETTINGS}
    differing = {name for name in expected if found[name] != expected[name]}
    assert differing <= shown
    assert found["preview_every"] == 250


def test_without_options_the_settings_are_the_same(host: Host, names: list[str]) -> None:
    """The run is found again, so it is the same one."""
    g, _ = training_graph(names, steps=2, options=None)
    before = set((host.folder / "output").glob("apt_train/*"))
    host.run(g.prompt)
    assert set((host.folder / "output").glob("apt_train/*")) == before


def test_temperature_may_be_auto_and_nothing_else_but_a_number(host: Host, names: list[str]) -> None:
    assert settings_of(host, names, temperature="auto")["temperature"] == "auto"
    with pytest.raises(HostError, match="temperature is 'warm': give a number above 0, or auto."):
        settings_of(host, names, temperature="warm")


def test_snapshots_and_previews_stand_in_the_run(host: Host, names: list[str]) -> None:
    often = {"snapshot_every": 1, "preview_every": 1, "preview_steps": 2}
    g, _ = training_graph(names, setting=often, steps=2, seed=5)
    before = set((host.folder / "output").glob("apt_train/*"))
    host.run(g.prompt)
    (run,) = set((host.folder / "output").glob("apt_train/*")) - before
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == ["step_000001", "step_000002"]
    assert len(list((run / "previews").iterdir())) == 8, "the caption template and the unseen prompt"


def test_prior_preservation_pictures(host: Host, names: list[str]) -> None:
    """They make another run, whose log has their loss."""
    g, node = training_graph(names, steps=2, seed=6)
    prior = g.node("LoadImage", image=names[0])
    g.prompt[node.id]["inputs"]["options"] = options(g, **QUICK, prior_images=prior[0])[0]
    before = set((host.folder / "output").glob("apt_train/*"))
    host.run(g.prompt)
    (run,) = set((host.folder / "output").glob("apt_train/*")) - before
    log = [json.loads(line) for line in Path(run / "log.jsonl").read_text().splitlines()]
    assert all(line["prior_preservation"] > 0 for line in log)


def test_alpha_masks_and_background(host: Host) -> None:
    """Images with a fourth channel: laid on the background, or their transparency taken as the mask."""
    name = upload_pictures(host, 1)[0]
    cutout = host.upload("cutout.png", half_transparent(picture(5)))
    seen = set()
    for changes in ({}, {"background": "#ff0000"}, {"alpha_masks": True}):
        g, node = training_graph([name], steps=1, seed=7)
        mask = g.node("LoadImage", image=cutout)
        joined = g.node("JoinImageWithAlpha", image=g.prompt[node.id]["inputs"]["images"], alpha=mask[1])
        g.prompt[node.id]["inputs"] |= {"images": joined[0], "options": options(g, **QUICK, **changes)[0]}
        before = set((host.folder / "output").glob("apt_train/*"))
        host.run(g.prompt)
        (run,) = set((host.folder / "output").glob("apt_train/*")) - before
        seen.add(json.loads((run / "log.jsonl").read_text().splitlines()[0])["denoising"])
    assert len(seen) == 3


def test_the_training_nodes_own_widgets_reach_the_run(host: Host, names: list[str]) -> None:
    changed = {"class_word": "doll", "caption_template": "my {subject}", "steps": 1, "rank": 3, "learning_rate": 2e-3}
    changed |= {"resolution": 128, "batch_size": 2, "seed": 9, "method": "DreamBooth", "subject": "other toy"}
    g, _ = training_graph(names, **changed)
    before = set((host.folder / "output").glob("apt_train/*"))
    host.run(g.prompt)
    (run,) = set((host.folder / "output").glob("apt_train/*")) - before
    found = flat(json.loads((run / "config.json").read_text())["config"])
    expected = {**changed, "method": "dreambooth", "identifier": "other_toy"}
    del expected["subject"]
    assert {name: found[name] for name in expected} == expected
