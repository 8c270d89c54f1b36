"""LoRA files and learned words from anywhere, damaged or odd; what can be read is looked over on a tiny model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save, save_file
from torch import Tensor

from apt_train.disk.tensor_file import read_tensors
from apt_train.families.components import Components
from apt_train.lora_check.asked import Asked
from apt_train.lora_check.check_up import check_up
from apt_train.lora_check.lora_file import read_lora
from apt_train.lora_check.numbers import as_json
from apt_train.lora_check.sheet import sheet_figure
from apt_train.lora_check.subject import Subject
from apt_train.sample import trajectories
from tests.lora_files import attention_paths, kohya, random_layers
from tests.tiny import tiny_components

from .case import Case, packed
from .damage import VALUES, Edit, byte_edits, cases_of, file_edits, header_edits
from .outcome import Wrong

FILE, WORD = "toy.safetensors", "toy_embedding.safetensors"
SAID = {"apt_class_word": "toy", "modelspec.trigger_phrase": "embedding:toy_embedding"}
QUICK = Asked(strengths=(1.0,), unrelated=("a dog",), resolution=32, bins=2, draws=1, rows=16, sample_steps=0)
DTYPES = [
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8,
    torch.int64, torch.bool,
]  # fmt: skip
SIZES = [0.0, 1e-40, 1e-10, 1.0, 1e4, 1e10, 1e19, 1e38, float("inf"), float("nan"), -1.0]


@functools.cache
def _model() -> Components:
    """Every check-up gives it back as it was."""
    return tiny_components()


@functools.cache
def _lora() -> dict[str, Tensor]:
    """Layers of every kind: LoRA, DoRA, LoHa, LoKr, a difference with a bias."""
    unet = _model().unet
    first, second, third, fourth, *rest = attention_paths(unet)
    found = kohya(random_layers(unet, rest[:8], size=0.1)) | kohya(random_layers(unet, [first], size=0.1))
    rows, columns = unet.get_parameter(f"{second}.weight").shape
    names = [f"lora_unet_{path.replace('.', '_')}" for path in (first, second, third, fourth)]
    found[f"{names[0]}.dora_scale"] = torch.ones(rows, 1)
    for part, size in (("w1_a", (rows, 2)), ("w1_b", (2, columns)), ("w2_a", (rows, 2)), ("w2_b", (2, columns))):
        found[f"{names[1]}.hada_{part}"] = torch.full(size, 0.1)
    third_rows, third_columns = unet.get_parameter(f"{third}.weight").shape
    found[f"{names[2]}.lokr_w1"] = torch.full((2, 2), 0.1)
    found[f"{names[2]}.lokr_w2"] = torch.full((third_rows // 2, third_columns // 2), 0.1)
    found["lora_unet_conv_in.diff"], found["lora_unet_conv_in.diff_b"] = torch.zeros(16, 4, 3, 3), torch.zeros(16)
    return found


def sample(folder: Path) -> None:
    save_file(_lora(), folder / FILE, SAID)
    save_file({"clip_l": torch.ones(2, 32)}, folder / WORD)


def run(folder: Path, case: Case) -> None:
    """Numbers that JSON has, words that a terminal can show, and a page that can be laid out."""
    lora = read_lora(folder / FILE)
    rows = None if lora.embedding is None else read_tensors(lora.embedding)[0]
    subject = Subject.of(lora, **(case.arguments or {}), embedding=rows)
    with mock.patch.object(trajectories, "STEPS", 4):
        found = check_up(_model(), lora, subject, replace(QUICK, device="cpu"))
    values = json.loads(as_json(found), parse_constant=_no_number)
    if not case.arguments and not all(part.isprintable() for part in values["verdict"]):  # nobody typed it
        raise Wrong("the verdict: a letter that no terminal shows")
    sheet_figure(found)


def _no_number(text: str) -> None:
    raise Wrong(f"the numbers: {text} is none")


def cases(folder: Path) -> SearchStrategy[Case]:
    edits = st.one_of(
        header_edits(folder / FILE, FILE), byte_edits(FILE), byte_edits(FILE), byte_edits(WORD), _metadata(),
        header_edits(folder / WORD, WORD), file_edits(FILE), file_edits(WORD), _tensors(), _tensors(),
    )  # fmt: skip
    return cases_of(edits, most=2, arguments=_words())


def _words() -> SearchStrategy[dict[str, str] | None]:
    texts = st.one_of(
        st.sampled_from(["", "toy", "{subject}", "embedding:toy", "a b", "\0", "💥"]), st.text(max_size=5)
    )
    return st.one_of(st.none(), st.none(), st.fixed_dictionaries({}, optional={"class_word": texts, "trigger": texts}))


def _metadata() -> SearchStrategy[Edit]:
    values = st.fixed_dictionaries({name: st.one_of(st.text(max_size=8), VALUES) for name in SAID}).map(json.dumps)
    return st.tuples(st.just("header"), st.just(FILE), st.just(["__metadata__"]), st.just("set"), values)


def _tensors() -> SearchStrategy[Edit]:
    """One tensor, or all of them, in another type, size or shape."""
    names = st.one_of(st.none(), st.sampled_from(sorted(_lora())))
    changes = st.one_of(
        st.sampled_from(DTYPES).map(lambda dtype: lambda tensor: tensor.to(dtype)),
        st.sampled_from(SIZES).map(lambda size: lambda tensor: tensor * size),
        st.lists(st.sampled_from([0, 1, 2, 16]), max_size=5).map(lambda shape: lambda _: torch.ones(shape)),
    )
    return st.builds(lambda name, change: _changed(change, name), names, changes)


def _changed(change: Callable[[Tensor], Tensor], only: str | None = None) -> Edit:
    tensors = {name: change(tensor) if only in (None, name) else tensor for name, tensor in _lora().items()}
    return ("write", FILE, packed(save({name: tensor.contiguous() for name, tensor in tensors.items()}, SAID)))


def _mixed() -> Edit:
    """Every layer in another type, so that one case has them all."""
    layers = list(dict.fromkeys(name.partition(".")[0] for name in _lora()))
    kinds = {layer: DTYPES[place % len(DTYPES)] for place, layer in enumerate(layers)}
    tensors = {name: tensor.to(kinds[name.partition(".")[0]]) for name, tensor in _lora().items()}
    return ("write", FILE, packed(save({name: tensor.contiguous() for name, tensor in tensors.items()}, SAID)))


def hostile() -> list[Case]:
    edits = [_changed(lambda tensor, dtype=dtype: tensor.to(dtype)) for dtype in DTYPES]
    edits += [_changed(lambda tensor, size=size: tensor * size) for size in SIZES]
    alpha = next(name for name in _lora() if name.endswith("alpha"))
    odd = [alpha, "lora_unet_conv_in.diff", next(name for name in _lora() if name.endswith("lora_down.weight"))]
    shapes = [(2,), (0,), (1, 1), (0, 16), (2, 0), (1,) * 6]
    edits += [_changed(lambda _, shape=shape: torch.ones(shape), name) for shape in shapes for name in odd]
    no_rank = {name: t[:0] if "down" in name else t[:, :0] for name, t in _lora().items() if "lora_" in name[10:]}
    edits.append(("write", FILE, packed(save({n: t.contiguous() for n, t in no_rank.items()}, SAID))))
    edits.append(("write", FILE, packed(save({"lora_unet_conv_in.diff": torch.zeros(16, 4, 3, 3),
                                              "lora_unet_conv_in.alpha": torch.ones(2)}, SAID))))  # fmt: skip
    said = [{"apt_class_word": "\x1b[2J"}, {"apt_class_word": "{subject}"}, {"modelspec.trigger_phrase": "a\nb"},
            {"apt_class_word": "toy" * 5_000}, {"modelspec.trigger_phrase": "embedding:"}]  # fmt: skip
    edits += [("header", FILE, ["__metadata__"], "set", json.dumps(SAID | values)) for values in said]
    words = [torch.ones(200, 32), torch.ones(1, 31), torch.ones(0, 32), torch.ones(3), torch.full((1, 32), 1e38)]
    edits += [("write", WORD, packed(save({"clip_l": word}))) for word in words]
    return [Case((_mixed(),)), *(Case((edit,)) for edit in edits)]
