"""A host's own modules go through the same loop, and their owner has them back untouched.

Not here: what any family must say (`test_second_family`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from apt_train.errors import InputError
from apt_train.events import PreviewEvent
from apt_train.families.components import Components
from apt_train.families.network import TextInput
from apt_train.families.storage import STORAGES
from apt_train.lora_check.asked import Asked
from apt_train.lora_check.check_up import check_up
from apt_train.lora_check.lora_file import read_lora
from apt_train.lora_check.subject import Subject
from apt_train.rng import generator
from apt_train.sample.apply import personalized
from apt_train.text.conditioning import Conditioner
from apt_train.text.identifier import Identifier
from apt_train.text.tokens import REST_LABEL
from apt_train.training.capture import Capture, attention_maps
from tests.plain_flow import HEADS, LENGTH, WIDTH, PlainNetwork, plain_flow_components, second_encoder
from tests.tiny import tiny_components
from tests.training import Recorder, quick_config, run, same_weights, stopping

SETTINGS: dict[str, Any] = {"steps": 6, "temperature": 10_000.0, "dist_weight": 0.5, "attn_weight": 2.0}


@pytest.mark.usefixtures("no_report")
def test_it_is_trained_resumed_exported_sampled_and_looked_at(tmp_path: Path) -> None:
    more: dict[str, Any] = {"snapshot_every": 3, "preview_every": 6, "targets": "attention+ff"}
    run(plain_flow_components(), output_dir=tmp_path, on_event=stopping(3), **SETTINGS, **more)
    recorder, parts = Recorder(), plain_flow_components()
    resumed = run(parts, output_dir=tmp_path, resume=True, on_event=recorder, **SETTINGS, **more)
    assert same_weights(resumed, run(plain_flow_components(), **SETTINGS, targets="attention+ff"))
    last = recorder.steps[-1]
    assert last.stabilization and last.alignment and max(max(step.gamma) for step in recorder.steps) > 0.05
    (drawn,) = [event for event in recorder.events if isinstance(event, PreviewEvent)]
    assert drawn.prior[0].tobytes() != drawn.tuned[0].tobytes()

    path = tmp_path / "toy_subject.safetensors"
    lora, learned = load_file(path), load_file(tmp_path / "toy_subject_embedding.safetensors")
    ends = ("img_attn_qkv", "img_attn_proj", "img_mlp_0", "img_mlp_2")
    names = {f"lora_unet_double_blocks_{block}_{end}" for block in range(3) for end in ends}
    assert {key.partition(".")[0] for key in lora} == names and set(learned) == {"clip_l", "t5"}
    mine = replace(parts, unet=parts.unet.requires_grad_(False))
    with torch.inference_mode(), personalized(mine, lora, learned, quick_config(**SETTINGS, **more)) as (_, adapter):
        assert len(adapter.parameters) == 2 * len(names)
    file = read_lora(path)

    class Numbered(PlainNetwork):
        def block(self, path: str) -> str:
            return {"0": "single 1", "1": "double 10", "2": "double 2"}[path.split(".")[1]]

    parts.network = Numbered()
    found = check_up(parts, file, Subject.of(file, embedding=learned), Asked(bins=2, draws=1, precision="fp32"))
    assert [block.name for block in found.blocks] == ["double 2", "double 10", "single 1"]
    assert all(point.spill > 0 for point in found.points)  # though pure noise, where sampling starts, has no share


def everything_of(parts: Components) -> Iterator[tuple[Any, ...]]:
    """Each tensor itself and what it holds, and every module's state."""
    for module in (parts.unet, *(encoder.model for encoder in parts.text_encoders)):
        for part in module.modules():
            yield part, part.training, set(vars(part)), list(part._modules), len(part._forward_hooks)
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None:
                    yield id(tensor), tensor.dtype, tensor.requires_grad, tensor.data_ptr(), tensor.float().tolist()


@pytest.mark.parametrize(
    "more", [{"precision": "fp32"}, *({"precision": "bf16", "base_storage": storage} for storage in STORAGES)]
)
def test_the_owner_has_the_modules_back_as_they_were(more: dict[str, Any]) -> None:
    """Even after a cast, rounding, freezing and another mode; and another precision may follow."""
    parts = plain_flow_components()
    parts.unet.get_submodule("double_blocks.1").eval()
    for encoder in parts.text_encoders:  # at their first call transformers' modules add hooks of their own
        with torch.no_grad():
            encoder.model(input_ids=torch.tensor([[2, 3]]), output_hidden_states=True, return_dict=True)
    before = list(everything_of(parts))
    run(parts, **SETTINGS, **more)
    assert list(everything_of(parts)) == before
    run(parts, **{**SETTINGS, "steps": 1}, precision="bf16")
    assert list(everything_of(parts)) == before


def test_without_being_borrowed_they_are_the_trainers() -> None:
    parts = replace(tiny_components(), borrowed=False)
    run(parts, steps=1, precision="bf16")
    assert {parameter.dtype for parameter in parts.unet.parameters()} == {torch.bfloat16}


def test_attention_is_read_from_a_projection_of_all_three() -> None:
    parts = plain_flow_components()
    with parts.lent():
        unet = parts.unet.float()
        noisy, hidden = (
            torch.randn(2, 4, 8, 8, generator=generator("a")),
            torch.randn(2, 5, 48, generator=generator("b")),
        )
        outputs: dict[str, Tensor] = {}
        block = unet.get_submodule("double_blocks.2")
        for name in ("img_attn.qkv", "txt_attn.qkv"):
            block.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
        with torch.no_grad(), Capture(parts.network, unet, attention=["up"]).record() as captured:
            parts.network.predict(unet, noisy, torch.tensor(500), TextInput(hidden), torch.float32)
        (found,) = attention_maps(captured, torch.arange(5).expand(2, 5), 5)
        query = outputs["img_attn.qkv"][..., :WIDTH].unflatten(2, (HEADS, -1)).transpose(1, 2)
        key = outputs["txt_attn.qkv"][..., WIDTH : 2 * WIDTH].unflatten(2, (HEADS, -1)).transpose(1, 2)
        expected = torch.softmax(query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5, dim=-1)
        for name in ("img_attn.qkv", "txt_attn.qkv"):
            block.get_submodule(name)._forward_hooks.clear()
    torch.testing.assert_close(found, expected)


# ---- text of several kinds ---------------------------------------------------------------------------------------


def conditioner_of(*changes: dict[str, Any]) -> Conditioner:
    encoders = [*tiny_components("sdxl").text_encoders, second_encoder(80)]
    encoders = [replace(encoder, **change) for encoder, change in zip(encoders, changes, strict=True)]
    return Conditioner(encoders, Identifier.from_init_word(encoders, "red dog"), class_word="toy", name="zwx")


def test_two_encoders_side_by_side_and_a_third_behind_them() -> None:
    """As SD3's: widths padded to the widest, pooled vectors joined, and a column for each token of either kind."""
    conditioner = conditioner_of({"pooled": True}, {}, {})
    caption = "a photo of {subject} on grass"
    both = {tuned: conditioner.encode([caption], tuned=tuned) for tuned in (True, False)}
    for found in both.values():
        assert found.hidden.shape == (1, 16 + LENGTH, 80) and found.pooled is not None and found.pooled.shape == (1, 64)
        assert not found.hidden[0, :16, 64:].any() and found.hidden[0, 16:, 64:].any()
        assert found.columns.max() == found.num_columns - 1 == len(found.labels[0]) - 1
    assert both[True].labels == both[False].labels and both[True].labels[0].count("grass") == 2
    rows, last = conditioner.identifier, [label for label in both[True].labels[0]]
    assert rows is not None and last[-1] == REST_LABEL
    gradients = torch.autograd.grad(both[True].hidden.square().sum(), list(rows.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients) and len(gradients) == 3
    words = [last[column] for column in both[True].columns[0, 16:].tolist()]
    assert words[:8] == ["a", "photo", "of", "<subject>", "<subject>", "on", "grass", "<end>"]


def test_an_encoder_may_be_read_for_its_pooled_vector_alone() -> None:
    """As FLUX's first; a caption too long for it does not lengthen the other's text, which fits."""
    conditioner = conditioner_of({"sequence": None, "pooled": True}, {"sequence": None, "pooled": False}, {})
    found = conditioner.encode(["a photo of {subject}"], tuned=True)
    assert found.hidden.shape == (1, LENGTH, 80) and found.pooled is not None and found.pooled.shape == (1, 32)
    long = conditioner.encode(["a photo of {subject}" + " on grass" * 8], tuned=True)
    assert long.hidden.shape[1] == 2 * LENGTH and long.columns.min() >= 0


def test_the_parts_of_a_caption_are_encoded_alike_alone_and_in_a_batch() -> None:
    conditioner = conditioner_of({}, {}, {})
    texts = ["a photo of {subject}", "a photo of {subject}" + " on grass" * 8]
    chunks, together = conditioner.num_chunks(texts), conditioner.encode(texts, tuned=True)
    for row, text in enumerate(texts):
        alone = conditioner.encode([text], tuned=True, chunks=chunks)
        assert torch.equal(alone.hidden[0], together.hidden[row])
        assert torch.equal(alone.columns[0], together.columns[row])


def test_an_encoder_that_reads_another_table_than_it_names_is_no_encoder() -> None:
    """Else its learned rows would never be read: transformers' T5EncoderModel is of that kind, and its stack is not."""
    encoder = second_encoder(32)
    named = nn.Embedding(40, 32)
    model: Any = encoder.model
    model.get_input_embeddings = lambda: named
    conditioner = Conditioner([encoder], Identifier.from_init_word([encoder], "toy"), class_word="toy", name="zwx")
    with pytest.raises(AssertionError, match="another table"):
        conditioner.encode(["{subject}"], tuned=True)


def test_a_tokenizer_of_another_model_is_still_refused() -> None:
    broken = replace(second_encoder(), starts=True)
    with pytest.raises(InputError, match="no start or end token"):
        Identifier.from_init_word([broken], "toy")
