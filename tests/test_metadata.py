"""What a LoRA file says about itself: readable by others, no machine in it, never too long."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from apt_train.config import AdapterConfig, DataConfig, OutputConfig, TrainConfig
from apt_train.disk.tensor_writer import header_bytes
from apt_train.families.components import Components, Family
from apt_train.families.sd.published import FILE_WORDS
from apt_train.run.export import save_embedding, save_lora
from apt_train.run.metadata import (
    MAX_HEADER,
    embedding_metadata,
    file_name,
    fit_metadata,
    lora_metadata,
    renamed_metadata,
)
from tests.lora_files import metadata_of
from tests.tiny import tiny_components

SIDES = {"sd15": 512, "sd2": 512, "sd2-768": 768, "sdxl": 1024, "custom": 64}
FAMILIES = {name: Family(name, side, 8, FILE_WORDS[name]) for name, side in SIDES.items()}


WORDS = "toy_subject toy"  # what a prompt must say
MODEL = replace(tiny_components(), family=FAMILIES["sd15"], source="model-v1.safetensors", digest="")
CONFIG = TrainConfig(class_word="toy", identifier_mode="word", steps=2000, adapter=AdapterConfig(rank=8, alpha=4.0))
CAPTIONS = ("a photo of {subject}, red", "a photo of {subject} on grass", "a photo of {subject}, red, small")


def _metadata(
    config: TrainConfig = CONFIG,
    model: Components = MODEL,
    captions: Sequence[str] = CAPTIONS,
    thumbnail: Image.Image | None = None,
    **more: Any,
) -> dict[str, str]:
    """Of a LoRA, or with a thumbnail of its copy."""
    found = lora_metadata(config, model, captions=captions, steps=750, **more)
    return renamed_metadata(found, embedding=None, stem=config.name, thumbnail=thumbnail) if thumbnail else found


def test_what_other_programs_look_for() -> None:
    found = _metadata()
    expected = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_output_name": "toy_subject",
        "ss_sd_model_name": "model-v1.safetensors",
        "ss_steps": "750",
        "ss_max_train_steps": "2000",
        "ss_learning_rate": "5e-05",
        "ss_resolution": "(512, 512)",
        "ss_seed": "0",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "toy_subject",
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": WORDS,
        "modelspec.tags": "toy",
        "apt_class_word": "toy",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert "modelspec.author" not in found and "modelspec.date" not in found and "modelspec.thumbnail" not in found
    assert all(isinstance(value, str) and value not in ("", "None") for value in found.values())


def test_tag_frequency_is_counted_by_comma_with_the_trigger_in_place() -> None:
    tags = json.loads(_metadata()["ss_tag_frequency"])
    assert tags == {"toy_subject": {"red": 2, f"a photo of {WORDS}": 2, f"a photo of {WORDS} on grass": 1, "small": 1}}
    assert list(tags["toy_subject"].values()) == [2, 2, 1, 1]  # the most frequent first


@pytest.mark.parametrize(
    ("family", "base_version", "architecture"),
    [
        ("sd15", "sd_v1", "stable-diffusion-v1/lora"),
        ("sd2", "sd_v2_base", "stable-diffusion-v2-512/lora"),
        ("sd2-768", "sd_v2_768_v", "stable-diffusion-v2-768-v/lora"),
        ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        ("custom", "custom", "custom/lora"),
    ],
)
def test_families(family: str, base_version: str, architecture: str) -> None:
    config = replace(CONFIG, data=DataConfig(resolution=96))
    model = replace(tiny_components(prediction_type="v_prediction"), family=FAMILIES[family])
    found = _metadata(model=model, config=config)
    assert found["ss_base_model_version"] == base_version and found["modelspec.architecture"] == architecture
    assert found["ss_v2"] == str(family.startswith("sd2"))
    assert found["modelspec.prediction_type"] == "v" and found["modelspec.resolution"] == "96x96"


def test_the_settings_come_back_whole() -> None:
    config = TrainConfig(class_word="teddy bear", method="dco", adapter=AdapterConfig(rank=4))
    found = _metadata(config=config)
    assert TrainConfig.from_dict(json.loads(found["apt_config"])) == config
    assert "by DCO in 750 steps" in found["modelspec.description"]


def test_the_embedding_is_named_where_one_was_learned() -> None:
    learned = _metadata(replace(CONFIG, identifier_mode="learned"))
    assert "embedding:toy_subject_embedding" in learned["modelspec.usage_hint"]
    assert learned["apt_embedding"] == "toy_subject_embedding"
    assert "embedding" not in _metadata()["modelspec.usage_hint"]
    assert json.loads(_metadata(summary={"gamma": [0.5]})["apt_summary"]) == {"gamma": [0.5]}


@pytest.mark.parametrize(
    "path",
    ["/home/xenia/models/base.safetensors", "C:\\Users\\xenia\\models\\base.safetensors", "~/xenia/base.safetensors"],
)
def test_no_folder_of_the_users_machine(path: str) -> None:
    prompts = (path, "a photo / {subject}")
    config, model = replace(CONFIG, output=OutputConfig(preview_prompts=prompts)), replace(MODEL, source=path)
    found = _metadata(model=model, config=config, summary={"from": path})
    assert "xenia" not in "".join(found.values())
    assert found["ss_sd_model_name"] == "base.safetensors"
    assert json.loads(found["apt_config"])["output"]["preview_prompts"] == ["base.safetensors", prompts[1]]
    assert "xenia" not in "".join(embedding_metadata(CONFIG, model, steps=10).values())


def test_file_name() -> None:
    assert [file_name(p) for p in ("a/b", "a\\b", "b", "C:b", "a/b/", "")] == ["b", "b", "b", "b", "b", ""]


def test_a_picture_becomes_a_small_jpeg() -> None:
    uri = _metadata(thumbnail=Image.new("RGBA", (1024, 512), "red"))["modelspec.thumbnail"]
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    colour: Any = picture.getpixel((5, 5))
    assert picture.size == (256, 128) and colour[0] > 240


def test_text_that_no_file_can_hold(tmp_path: Path) -> None:
    found = _metadata(captions=["broken \udce9 text"])
    save_lora(tmp_path / "x.safetensors", {"m.alpha": torch.tensor(1.0)}, found)
    assert "broken ? text" in found["ss_tag_frequency"]


# -- the header stays below 1 MiB


def _header(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> int:
    return len(header_bytes(tensors, metadata))


def _many(count: int) -> dict[str, torch.Tensor]:
    return {
        f"lora_unet_input_blocks_7_1_transformer_blocks_{i}_attn1_to_q.lora_down.weight": torch.zeros(1)
        for i in range(count)
    }


def test_short_metadata_is_left_alone() -> None:
    found = _metadata(thumbnail=Image.new("RGB", (64, 64)))
    assert fit_metadata(found, _many(2000)) == found


def test_the_thumbnail_goes_first_then_the_rare_tags() -> None:
    captions = [f"common, rare tag number {i}" for i in range(40_000)]
    found = _metadata(captions=captions) | {"modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 900_000}
    assert fit_metadata({k: v for k, v in found.items() if k != "ss_tag_frequency"}, _many(100))["modelspec.thumbnail"]
    fitted = fit_metadata(found, _many(3000))
    assert _header(fitted, _many(3000)) <= MAX_HEADER < _header(found, _many(3000))
    assert "modelspec.thumbnail" not in fitted
    kept = json.loads(fitted["ss_tag_frequency"])["toy_subject"]
    assert kept["common"] == 40_000 and 10_000 < len(kept) <= 20_000
    untouched = set(found) - {"modelspec.thumbnail", "ss_tag_frequency"}
    assert {key: fitted[key] for key in untouched} == {key: found[key] for key in untouched}


@pytest.mark.parametrize("limit", [12_000, 4_000])
def test_anything_can_be_made_to_fit(limit: int) -> None:
    found = _metadata(replace(CONFIG, class_word="x" * 9_000, identifier="toy_subject"), captions=["y" * 50_000] * 3)
    fitted = fit_metadata(found, _many(1), limit)
    assert _header(fitted, _many(1)) <= limit and fitted["modelspec.title"] == "toy_subject"


def test_tensors_that_fill_the_header_alone_do_not_stop_the_file() -> None:
    assert fit_metadata(_metadata(), _many(5), 100)["modelspec.title"] == "toy_subject"


def test_a_file_never_has_a_longer_header(tmp_path: Path) -> None:
    tensors = {f"m{i}.alpha": torch.tensor(float(i)) for i in range(50)}
    found = _metadata(captions=["é" * 200_000]) | {"modelspec.thumbnail": "data:," + "A" * 2_000_000}
    save_lora(tmp_path / "x.safetensors", tensors, found)
    content = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start <= MAX_HEADER
    metadata = metadata_of(tmp_path / "x.safetensors")
    assert metadata["modelspec.title"] == "toy_subject"
    assert metadata["sshs_model_hash"] == hashlib.sha256(content[start:]).hexdigest()


# -- the embedding's own


def test_embedding_metadata(tmp_path: Path) -> None:
    found = embedding_metadata(CONFIG, replace(MODEL, family=FAMILIES["sdxl"], source="model"), steps=10)
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"
    assert found["modelspec.title"] == "toy_subject" and found["apt_steps"] == "10"
    save_embedding(tmp_path / "e.safetensors", {"clip_l": torch.zeros(1, 768)}, found)
    assert metadata_of(tmp_path / "e.safetensors") == found
