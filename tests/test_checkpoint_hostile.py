"""Whatever a model's files say, loading it ends soon, in the model or in one sentence, and asks no other machine."""

from __future__ import annotations

import errno
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler

from apt_train.disk.tensor_file import open_tensor_file
from apt_train.errors import InputError
from apt_train.families.load import load_checkpoint
from apt_train.families.reading.tokenizer_files import load_tokenizer
from tests.tiny import tiny_components, unet_of, vae_of
from tests.tiny_checkpoint import single_file_tensors, tiny_modules, write_clip_vocabulary, write_safetensors

SECONDS = 20  # of computing for one file
UNET, TEXT, VAE = "unet/config.json", "text_encoder/config.json", "vae/config.json"
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
TOKENIZER, WORDS, SPECIAL = (
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/special_tokens_map.json",
)
FILES = (INDEX, UNET, TEXT, VAE, SCHEDULER, TOKENIZER, WORDS, SPECIAL)
HUB_NAME = "hf-internal-testing/tiny-random-clip"


@pytest.fixture(autouse=True)
def no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the guard on sockets, for libraries that swallow its error: the Hub's own entries fail the test."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def forbidden(*arguments: Any, **named: Any) -> Any:
        pytest.fail(f"the Hub was asked: {arguments} {named}")

    for name in ("hf_hub_download", "snapshot_download", "model_info", "list_repo_files", "repo_exists"):
        monkeypatch.setattr(huggingface_hub, name, forbidden)
    for name in ("model_info", "list_repo_files", "list_repo_tree", "repo_info", "get_paths_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, forbidden)
    for module in ("diffusers.configuration_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.hf_hub_download", forbidden, raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest folder that loads, with every kind of JSON that a tokenizer may have."""
    folder = tmp_path_factory.mktemp("models") / "drawn"
    parts = tiny_components("sd15")
    (encoder,) = parts.text_encoders
    unet_of(parts).save_pretrained(folder / "unet")
    vae_of(parts).save_pretrained(folder / "vae")
    cast("Any", encoder.model).save_pretrained(folder / "text_encoder")
    encoder.tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    (folder / SPECIAL).write_text(json.dumps({"bos_token": "<bos>", "eos_token": {"content": "<eos>"}}))
    index = {part: ["transformers", "CLIPTextModel"] for part in ("text_encoder", "tokenizer", "scheduler")}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / INDEX).write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    return folder


@pytest.fixture
def changed(model: Path) -> Iterator[Callable[[str, bytes], Path]]:
    """Write one file of the model otherwise; all are as they were afterwards."""
    kept = {name: (model / name).read_bytes() for name in FILES}

    def write(name: str, content: bytes) -> Path:
        (model / name).write_bytes(content)
        return model

    yield write
    for name, content in kept.items():
        (model / name).write_bytes(content)


def outcome(path: Path) -> str:
    """The refusal, or nothing where the model loads; any other exception, and a long wait, fail the test."""
    started = time.process_time()
    try:
        load_checkpoint(path)
        message = ""
    except InputError as error:
        message = str(error)
        assert message.endswith(".") and message.isprintable() and len(message) < 500, message
    assert time.process_time() - started < SECONDS
    return message


def with_setting(path: Path, values: dict[str, Any]) -> bytes:
    return json.dumps({**json.loads(path.read_bytes()), **values}).encode()


CONTENTS = {
    "a Hub name": json.dumps(HUB_NAME).encode(),
    "a list": json.dumps([HUB_NAME]).encode(),
    "null": b"null",
    "nothing": b"",
    "cut": b'{"a": ',
    "NaN": b'{"a": NaN}',
    "beyond a float": b'{"a": 1e400}',
    "beyond an int": b'{"a": ' + b"9" * 10_000 + b"}",
    "deep": b'{"a":' * 100_000,
    "nested": b'{"a":' + b"[" * 60 + b"]" * 60 + b"}",
    "twice": b'{"a": 1, "a": 2}',
    "no UTF-8": b'{"a": "\xff"}',
    "huge": b'{"a": "' + b"x" * (1 << 25) + b'"}',
}


@pytest.mark.parametrize("name", FILES)
def test_a_json_that_is_no_plain_object_is_refused(changed, model: Path, name: str) -> None:
    for kind, content in CONTENTS.items():
        message = outcome(changed(name, content))
        assert Path(name).name in message, (kind, message)


WRONG: dict[str, dict[str, list[Any]]] = {
    INDEX: {"unet": [HUB_NAME, 1, ["a"], [1, 2], {}, [[], {}]], "_class_name": [[], 5], "text_encoder_2": ["x/y"]},
    UNET: {
        "sample_size": [0, -1, "64", 1.5, True, [8], 10**9, 4096, [64, 4096]],
        "in_channels": [0, None, 10**9, "4"],
        "block_out_channels": [[10**9], [], [0, 0], [[16], 32], "16", None, [16, 32, 64], [True, True], [16.0, 32.0]],
        "layers_per_block": [10**8, 0, -1, [1], [1, 10**8], None, "1", True],
        "transformer_layers_per_block": [10**8, [1, 10**8], [[[1]]], [], 64],
        "reverse_transformer_layers_per_block": [10**8, [10**8, 1], "1"],
        "down_block_types": [["Unknown", "DownBlock2D"], ["CrossAttnDownBlock2D"], "CrossAttnDownBlock2D", [], None],
        "mid_block_type": ["Unknown", 5, ""],
        "norm_num_groups": [0, 7, -8, None, 10**9],
        "attention_head_dim": [0, -1, 10**9, [2], None, "2"],
        "num_attention_heads": [0, 2],
        "cross_attention_dim": [64, 0, [32, 32], None],
        "act_fn": ["x/y", 1],
        "norm_eps": ["1e-5", -1, True],
        "time_embedding_type": ["fourier", 1],
        "addition_embed_type": ["image", "text_time", 5],
        "class_embed_type": ["timestep"],
        "time_cond_proj_dim": [256],
        "quantization_config": [{"quant_method": "x/y"}],
        "conv_in_kernel": [2, 10**9],
        "out_channels": [8],
    },
    TEXT: {
        "vocab_size": [0, -1, 10**12, "49", None],
        "hidden_size": [0, 33, 10**9],
        "num_attention_heads": [0, 3, -1, "2"],
        "num_hidden_layers": [0, 10**8, 3],
        "max_position_embeddings": [0, 1, 10**9],
        "hidden_act": ["x/y", 1],
        "layer_norm_eps": ["x", -1],
        "bos_token_id": ["1", -1, [1]],
        "eos_token_id": [None, "1", -1, 1.0],
        "quantization_config": [{"quant_method": "gptq"}],
    },
    VAE: {
        "_class_name": ["x/y", 5],
        "block_out_channels": [[10**9], [8], [8, 8, 8, 8], "8"],
        "layers_per_block": [10**8, 0],
        "scaling_factor": [0, -1, "0.18", None, 1e300],
        "norm_num_groups": [0, 3],
        "latents_mean": [[0.0] * 4],
        "up_block_types": [["UpDecoderBlock2D"], ["x/y"] * 3],
        "act_fn": ["x/y"],
    },
    SCHEDULER: {
        "num_train_timesteps": [0, 1, -1, 10**12, 1000.5, "1000", None, True],
        "beta_start": [-1, "x", 2, 0.5, float("-inf")],
        "beta_end": [2, 0, None, float("inf")],
        "beta_schedule": ["x/y", 5],
        "trained_betas": ["x", [], [0.1, "x"], [0.1, -1], [0.5] * 3, 5],
        "prediction_type": ["sample", "flow_prediction", 5, []],
        "use_flow_sigmas": [True, 1],
        "_class_name": ["LCMScheduler", "FlowMatchEulerDiscreteScheduler", 5],
    },
    TOKENIZER: {
        "model_max_length": [1, 0, -1, "77", 10**40, True],
        "added_tokens_decoder": ["x/y", {"0": 1}, {"0": {"content": 5}}, {"1": {"content": "x", "lstrip": 1}}],
        "bos_token": [5, ["<bos>"], {"text": "<bos>"}],
        "padding_side": ["middle"],
    },
    WORDS: {
        "model": [5, {}, {"type": "BPE", "vocab": {"a": -1}}, {"type": "WordLevel", "vocab": {"a": 10**9}}],
        "added_tokens": [5, [{"id": -1, "content": "x"}], [[]]],
        "normalizer": [
            "x/y",
            {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
            {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 9}]},
        ],
        "pre_tokenizer": [{"type": "Unknown"}, 5],
    },
    SPECIAL: {"bos_token": [5, {"content": 1}], "additional_special_tokens": ["<x>", [5]]},
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_setting_is_refused(changed, model: Path, name: str) -> None:
    original = (model / name).read_bytes()
    for key, values in WRONG[name].items():
        for value in values:
            (model / name).write_bytes(original)
            message = outcome(changed(name, with_setting(model / name, {key: value})))
            assert message, f"{name} loads with {key} = {value!r}"
            is_word = any(word in repr(value) for word in ("x/y", "Unknown", "middle"))
            if is_word and name != WORDS and key != "_class_name":  # refused before a library looks it up
                assert key in message, message


@pytest.mark.parametrize(
    ("pattern", "loads"),
    [
        ("a+", True),
        (r"a+|b*|\p{L}{2}|[(+]c?|\(", True),
        ("a+b*", False),  # two repetitions in a row
        ("a|b+c+", False),
        ("(ab)", False),
        ("(a+)", False),
    ],
)
def test_a_pattern_is_read_if_no_text_makes_it_slow(changed, model: Path, pattern: str, loads: bool) -> None:
    step = {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
    message = outcome(changed(WORDS, with_setting(model / WORDS, {"normalizer": step})))
    assert ("simple patterns" in message) == (not loads) == bool(message), message


CALLS: dict[str, Any] = {  # what a library would fetch, import or open because a file says so
    "_name_or_path": HUB_NAME,
    "name_or_path": HUB_NAME,
    "base_model": HUB_NAME,
    "auto_map": {"AutoConfig": f"{HUB_NAME}--x.Y", "AutoTokenizer": [f"{HUB_NAME}--x.Y", None]},
    "trust_remote_code": True,
    "attn_implementation": HUB_NAME,
    "_attn_implementation": HUB_NAME,
    "_attn_implementation_internal": HUB_NAME,
    "torch_dtype": HUB_NAME,
    "dtype": HUB_NAME,
    "_commit_hash": HUB_NAME,
    "tokenizer_class": HUB_NAME,
    "tokenizer_file": "/etc/passwd",
    "vocab_file": "/etc/passwd",
    "merges_file": "/etc/passwd",
    "gguf_file": HUB_NAME,
    "fast_tokenizer_files": ["tokenizer.0.0.0.json"],
    "chat_template": "{{ x }}",
    "init_inputs": [HUB_NAME],
    "fix_mistral_regex": True,
    "text_config": {"attn_implementation": HUB_NAME},
    "pruned_heads": {"0": [0]},
    "id2label": {"x": "y"},
    "x" * 1000: [HUB_NAME],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_settings_that_are_not_ours_reach_no_library(changed, model: Path, name: str) -> None:
    values = {key: value for key, value in CALLS.items() if key not in json.loads((model / name).read_bytes())}
    assert not outcome(changed(name, with_setting(model / name, values)))


@pytest.mark.parametrize("name", FILES)
def test_no_text_setting_makes_a_look_up(changed, model: Path, name: str) -> None:
    original = json.loads((model / name).read_bytes())
    for key, value in original.items():
        if isinstance(value, str) or key in ("_class_name", "tokenizer_class", "_name_or_path"):
            outcome(changed(name, json.dumps({**original, key: HUB_NAME}).encode()))


PANICS: dict[str, dict[str, Any]] = {
    "a prefix longer than the words": {"model": {"continuing_subword_prefix": "####", "merges": ["d o"]}},
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a map that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
}


@pytest.mark.parametrize("name", PANICS)
def test_a_tokenizer_at_which_the_library_panics_is_one_sentence(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints where it panicked past Python, which nobody should see."""
    vocabulary = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzA.,1")}
    vocabulary |= {word: len(vocabulary) + number for number, word in enumerate(("do", "<bos>", "<eos>"))}
    special = PANICS[name]
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "a", **special.get("model", {})}
    whole = {"version": "1.0", "added_tokens": [], "decoder": None, **special, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "a"}')
    with pytest.raises(
        InputError, match=r"^The tokenizer in .* cannot be read \(.*\): give another with --tokenizer.$"
    ):
        load_tokenizer(tmp_path, max_length=77, rows=600)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EDQUOT, errno.ENOENT])
def test_a_full_folder_for_temporary_files_is_not_the_tokenizers_fault(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    words = write_clip_vocabulary(tmp_path / "words")
    name = "tempfile.TemporaryDirectory" if number == errno.ENOENT else "apt_train.disk.files._create"
    monkeypatch.setattr(name, refuse)
    with pytest.raises(InputError, match=r"for temporary files \(.*\): free space there, or name another folder"):
        load_tokenizer(words, max_length=77, rows=600)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json", TOKENIZER.split("/")[1]])
def test_a_clip_vocabulary_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", single_file_tensors(tiny_modules("sd15")))
    words = write_clip_vocabulary(tmp_path / "words")
    for content in (json.dumps(HUB_NAME).encode(), b"\xff", b'{"a": "b", "model_max_length": "x"}', b"[" * 100_000):
        (words / name).write_bytes(content)
        with pytest.raises(InputError, match="--tokenizer") as caught:
            load_checkpoint(path, tokenizer=words)
        assert "\n" not in str(caught.value)


# --- headers of safetensors -----------------------------------------------------------------------------------

PLAIN = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


def with_header(path: Path, header: bytes, size: int = 36) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return path


HEADERS: dict[str, Any] = {
    **{f"shape {value!r}": {"a": {**PLAIN, "shape": value}}
       for value in (None, "2", [2.0, 4], [-2, -4], [True, 8], [[2, 4]], [2**62, 2**62], [3, 4], [1] * 100, {})},
    **{f"offsets {value!r}": {"a": {**PLAIN, "data_offsets": value}}
       for value in (None, ["0", "32"], [-32, 0], [32, 0], [0], [0, 32, 64], [False, 32], [0, 1e9], [0, 10**30], {})},
    **{f"type {value!r}": {"a": {**PLAIN, "dtype": value}} for value in (None, "F4", "float", [], 5, "I64")},
    **{f"entry {value!r}": {"a": value} for value in (None, 5, "x", [], {}, {"dtype": "F32"})},
    **{f"metadata {value!r}": {"__metadata__": value, "a": PLAIN} for value in (5, "x", [], {"a": 1}, {"a": None})},
    "overlap": {"a": PLAIN, "b": PLAIN},
    "gap": {"a": PLAIN, "b": {"dtype": "F16", "shape": [1], "data_offsets": [34, 36]}},
    "beyond the file": {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]}},
    "long name": {"a." * 100_000: PLAIN},
    "no object": ["a"], "a text": HUB_NAME, "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", list(HEADERS))
def test_a_wrong_header_is_refused(tmp_path: Path, kind: str) -> None:
    path = with_header(tmp_path / "m.safetensors", json.dumps(HEADERS[kind]).encode())
    assert "m.safetensors" in outcome(path)


RAW_HEADERS = {
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "twice": b'{"a":' + json.dumps(PLAIN).encode() + b',"a":' + json.dumps(PLAIN).encode() + b"}",
    "no UTF-8": b'{"\xff":1}',
    "beyond a float": b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}',
    "half a character": b'{"\\ud800":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
    "a line's end": b'{"a\\n\\u001b[31m":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
    "larger than any": b'{"a":"' + b"x" * 10_000_001 + b'"}',
}


@pytest.mark.parametrize("kind", list(RAW_HEADERS))
def test_a_header_that_is_no_plain_json_is_refused(tmp_path: Path, kind: str) -> None:
    assert "m.safetensors" in outcome(with_header(tmp_path / "m.safetensors", RAW_HEADERS[kind]))


def test_a_good_header_is_read(tmp_path: Path) -> None:
    path = with_header(tmp_path / "m.safetensors", json.dumps({"__metadata__": {"a": "b"}, "a": PLAIN}).encode(), 32)
    file = open_tensor_file(path)
    assert file.shapes == {"a": (2, 4)} and file.metadata == {"a": "b"}


# --- tensors of a single file that have another shape, name or type -------------------------------------------

UNET_IN = "model.diffusion_model.input_blocks.0.0.weight"
BLOCK = "model.diffusion_model.input_blocks.1.1.transformer_blocks"
ENCODER = "cond_stage_model.transformer.text_model"
ODD_TENSORS: dict[str, dict[str, torch.Tensor]] = {
    "a UNet's first layer without axes": {UNET_IN: torch.tensor(1.0)},
    "no text width": {f"{BLOCK}.0.attn2.to_k.weight": torch.zeros(32)},
    "a block of number 999999999": {f"{BLOCK}.999999999.norm1.weight": torch.zeros(32)},
    "a block of number 9999": {f"{BLOCK}.9999.norm1.weight": torch.zeros(32)},
    "an encoder's layer 99999999": {f"{ENCODER}.encoder.layers.99999999.mlp.fc1.weight": torch.zeros(1)},
    "an encoder's layer 9999": {f"{ENCODER}.encoder.layers.9999.mlp.fc1.weight": torch.zeros(1)},
    "a vocabulary without axes": {f"{ENCODER}.embeddings.token_embedding.weight": torch.tensor(1.0)},
    "no positions": {f"{ENCODER}.embeddings.position_embedding.weight": torch.zeros(0, 768)},
    "whole numbers": {UNET_IN: torch.zeros(32, 4, 3, 3, dtype=torch.int64)},
    "a VAE's level 9999": {"first_stage_model.encoder.down.9999.block.0.conv1.weight": torch.zeros(1)},
    "a VAE without latents": {"first_stage_model.decoder.conv_in.weight": torch.zeros(1)},
}  # fmt: skip


OPEN_CLIP = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
ODD_IN_SDXL = {
    "fused rows without axes": {OPEN_CLIP: torch.tensor(1.0)},
    "no fused rows": {OPEN_CLIP: torch.zeros(0, 1280)},
    "fused rows that are not three parts": {OPEN_CLIP: torch.zeros(3841, 1280)},
}


@pytest.mark.parametrize("kind", [*ODD_TENSORS, *ODD_IN_SDXL])
def test_odd_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    words = write_clip_vocabulary(tmp_path / "words")
    model, odd = ("sdxl", ODD_IN_SDXL[kind]) if kind in ODD_IN_SDXL else ("sd15", ODD_TENSORS[kind])
    tensors = {**single_file_tensors(tiny_modules(model)), **odd}
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, tokenizer=words)
    assert time.process_time() - started < SECONDS and "\n" not in str(caught.value)
