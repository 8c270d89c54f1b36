"""A flow transformer goes through the same loop as Stable Diffusion: trained, measured, resumed, exported, sampled.

It stands in `toy_flow` alone, which is what a family costs. Not here: what the loop does (`test_train`, `test_step`).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from apt_train.errors import InputError
from apt_train.events import PreviewEvent
from apt_train.families.reading.tokenizer_files import load_tokenizer
from apt_train.sample.sampler import Drawing, Sampler, denoise
from apt_train.text.conditioning import Conditioner
from tests.toy_flow import FlowProcess, ToyNetwork, toy_flow_components
from tests.training import Recorder, run, same_weights, stopping

ROOT = Path(__file__).resolve().parent.parent
SETTINGS: dict[str, Any] = {"steps": 12, "temperature": 10_000.0, "dist_weight": 0.5, "attn_weight": 2.0}


def test_the_process_is_what_it_says() -> None:
    process, draws = FlowProcess(), torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=draws)
    times = torch.tensor([0, 400, 999])
    noisy, target = process.add_noise(latents, noise, times), process.target(latents, noise, times)
    torch.testing.assert_close(process.to_epsilon(target, noisy, times), noise)
    assert torch.equal(process.level(times), torch.tensor([0.001, 0.401, 1.0]))
    start = process.add_noise(latents, noise, torch.tensor([999] * 3))
    found = denoise(process, lambda x, t: target, start, process.sampling_timesteps(7))
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="sampling steps is 1001"):
        process.sampling_timesteps(1001)


def test_all_parts_of_the_method_work_on_it() -> None:
    recorder = Recorder()
    run(toy_flow_components(), on_event=recorder, **SETTINGS)
    last = recorder.steps[-1]
    assert max(max(step.gamma) for step in recorder.steps) > 0.05  # the indicator saw the tuned loss fall below
    assert last.stabilization is not None and last.stabilization > 0
    assert last.alignment is not None and last.alignment > 0


@pytest.mark.parametrize(
    "setting",
    [
        {"adaptive_loss_weight": False}, {"adaptive_augmentation": False}, {"stabilization": False},
        {"alignment": False}, {"dist_layers": "all"}, {"attn_layers": "mid+up"}, {"method": "tlora"}, {"method": "dco"},
    ],
    ids=lambda setting: "".join(f"{value}" for value in setting.values()),
)  # fmt: skip
def test_every_part_has_its_effect(setting: dict[str, Any]) -> None:
    assert not same_weights(
        run(toy_flow_components(), **SETTINGS), run(toy_flow_components(), **{**SETTINGS, **setting})
    )


def test_recomputing_activations_changes_next_to_nothing() -> None:
    kept, again = (run(toy_flow_components(), gradient_checkpointing=on, **SETTINGS) for on in (False, True))
    for name, tensor in kept.lora.items():
        torch.testing.assert_close(again.lora[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("no_report")
def test_it_resumes_to_the_same_bits_and_leaves_what_every_run_leaves(tmp_path: Path) -> None:
    more: dict[str, Any] = {"snapshot_every": 6, "preview_every": 12}
    run(toy_flow_components(), output_dir=tmp_path, on_event=stopping(5), **SETTINGS, **more)
    recorder = Recorder()
    resumed = run(toy_flow_components(), output_dir=tmp_path, resume=True, on_event=recorder, **SETTINGS, **more)
    assert same_weights(resumed, run(toy_flow_components(), **SETTINGS))
    (drawn,) = [event for event in recorder.events if isinstance(event, PreviewEvent)]
    assert drawn.prior[0].tobytes() != drawn.tuned[0].tobytes()
    drift = [step.drift for step in recorder.steps if step.drift]
    assert len(drift) == 2 and drift[-1]["subject"] > 0
    lora = load_file(tmp_path / "toy_subject.safetensors")
    assert "lora_unet_blocks_0_to_q.lora_down.weight" in lora and "lora_unet_blocks_2_to_out_0.alpha" in lora
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["level"] == [(t + 1) / 1000 for t in line["timestep"]] for line in lines)


def test_a_network_that_is_told_the_guidance_is_called_once() -> None:
    """As FLUX.1-dev, which was distilled: two passes and their difference would guide it twice."""
    calls: list[tuple[int, float]] = []

    class Told(ToyNetwork):
        def predict(self, module: Any, noisy: Any, timesteps: Any, text: Any, dtype: Any) -> Any:
            calls.append((len(noisy), text.guidance))
            return super().predict(module, noisy, timesteps, text, dtype)

    parts = replace(toy_flow_components(), network=Told())
    for told in (False, True):
        parts.family = replace(parts.family, reads_guidance=told)
        conditioner = Conditioner(parts.text_encoders, None, class_word="toy", name="zwx")
        text, empty = (conditioner.encode([words], tuned=False) for words in ("a toy", ""))
        Sampler(parts, (64, 64), "cpu", torch.float32).draw(text, empty, Drawing(seed=0, steps=2, guidance=3.5))
    run(parts, steps=1, method="dreambooth", batch_size=1)
    assert calls == [(2, 3.5), (2, 3.5), (1, 3.5), (1, 3.5), (1, 1.0)]


def test_a_tokenizer_of_the_kind_of_t5s_is_read(tmp_path: Path) -> None:
    """It has no start token, and a table of letters as one long text."""
    made = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("\u2581toy", -1.0), ("<unk>", 0.0)], unk_id=3))
    table = (400_000).to_bytes(4, "little") + bytes(400_000)
    made.normalizer, made.pre_tokenizer = normalizers.Precompiled(table), pre_tokenizers.Metaspace()
    ends: Any = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **ends).save_pretrained(tmp_path)
    read = load_tokenizer(tmp_path, max_length=20, rows=4, starts=False)
    assert read("toy")["input_ids"] == [2] and read.model_max_length == 20
    with pytest.raises(InputError, match="no begin, end or padding token"):
        load_tokenizer(tmp_path, max_length=20, rows=4)


def test_a_network_without_such_layers_is_refused_by_the_setting() -> None:
    class Blind(ToyNetwork):
        def attention(self, module: Any, part: str) -> dict[str, Any]:
            return {}

    with pytest.raises(InputError, match="attn_layers is up, but this model has no attention there"):
        run(replace(toy_flow_components(), network=Blind()))


def test_the_page_shows_the_code_as_it_is() -> None:
    page = (ROOT / "docs" / "extend" / "family.md").read_text(encoding="utf-8")
    code = (ROOT / "tests" / "toy_flow.py").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = [line.strip() for part in shown for line in part.splitlines() if line.strip()]
    assert len(lines) > 5 and [line for line in lines if line not in code] == []
