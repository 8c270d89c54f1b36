"""How much GPU memory training SD1.5 and SDXL takes: arithmetic, not a measurement.

    python dev.py bench memory [--json PATH]     takes a minute or two

The published architectures are built on torch's meta device, where tensors have a size and no content, and the
project's own training step runs on them, forward and backward: text encoders with a learned embedding, prior pass,
tuned pass, losses, recomputation. Weights, LoRA and optimizer are counted by their elements, activations as the bytes
of all other tensors alive at a time. A stand-in for fused attention keeps what the fused kernels keep. No GPU and no
weights are needed. The result has not been compared with a real run. Not in: time (speed.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast, get_args
from unittest import mock

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from apt_train.adapter import Adapter, add_adapter
from apt_train.config import AdapterConfig, DataConfig, IdentifierMode, Method, Storage, TrainConfig
from apt_train.data.batch import Batch
from apt_train.data.dataset import ImageSet
from apt_train.demo.recipe import MODEL
from apt_train.disk.files import write_text
from apt_train.families.components import Components, Family, TextEncoder
from apt_train.families.sd.published import FamilySpec, load_family
from apt_train.families.sd.schedule_config import schedule_from_config
from apt_train.presets import PRESETS
from apt_train.settings_field import nested
from apt_train.text.conditioning import Conditioner
from apt_train.text.identifier import Identifier
from apt_train.training import plan as plan_module
from apt_train.training.estimate import estimated
from apt_train.training.indicator import OverfitIndicator
from apt_train.training.live_bytes import META, LiveBytes, as_on_a_gpu, gradients_left_out, weight_bytes
from apt_train.training.memory import Savings
from apt_train.training.objective import objective_of
from apt_train.training.plan import Plan
from apt_train.training.step import TrainingStep

GIB = 2**30
CASES: tuple[tuple[Literal["sd15", "sdxl"], int], ...] = (("sd15", 512), ("sdxl", 1024), ("sdxl", 768))
FREE: dict[str, tuple[float | None, ...]] = {"sd15": (None, 3.5, 3), "sdxl": (None, 15, 12, 8, 6)}  # GiB; None: enough
FREE_LOW: dict[str, tuple[float | None, ...]] = {"sd15": (None,), "sdxl": (None, 4)}
AT_MOST = {"sd15": {"default": 2.5, "low memory": 1.8}, "sdxl": {"default": 7.0, "low memory": 5.5}}  # GiB, our targets
METHODS: dict[Method, str] = {"apt": "APT", "dreambooth": "DreamBooth"}
REACHED = ("model", "side", "settings", "free", "recomputes", "encoders", "blocks")
VAE_FIELDS = ("model", "side", "weights", "encode", "decode")

# What the families' files leave to a checkpoint's tensors to tell, as published.
_CROSS, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
UNETS: dict[str, dict[str, Any]] = {
    "sd15": dict(
        block_out_channels=(320, 640, 1280, 1280), down_block_types=(_CROSS, _CROSS, _CROSS, "DownBlock2D"),
        up_block_types=("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP), cross_attention_dim=768,
    ),
    "sdxl": dict(
        block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", _CROSS, _CROSS),
        up_block_types=(_CROSS_UP, _CROSS_UP, "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True, projection_class_embeddings_input_dim=2816, cross_attention_dim=2048,
    ),
}  # fmt: skip
VAE: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512), latent_channels=4, layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
CLIP_L: dict[str, Any] = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
BIG_G: dict[str, Any] = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)


@dataclass(frozen=True)
class Row:
    """Bytes of one way to train. `adapter`: LoRA with gradients and two moments, all float32.

    Activations are whatever else is alive: `kept` at the end of the forward pass, `peak` at the worst moment of the
    step. Total: the sum, with all gradients counted, though some do not exist yet at that moment.
    """

    model: str
    side: int  # pixels
    checkpointing: bool
    method: Method
    unet: int
    text_encoders: int
    adapter: int
    kept: int
    peak: int

    @property
    def total(self) -> int:
        return self.unet + self.text_encoders + self.adapter + self.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the bytes to this file")
    options = parser.parse_args()
    models = {name: published(name) for name, _ in CASES}
    rows = [
        row_of(models[name], method, side, checkpointing=checkpointing)
        for name, side in CASES
        for checkpointing in (False, True)
        for method in METHODS
    ]
    vae: list[dict[str, Any]] = [
        dict(zip(VAE_FIELDS, (name, side, *vae_bytes(models[name], side)), strict=True)) for name, side in CASES
    ]
    plans = [plan for name, side in CASES[:2] for plan in plans_of(models[name], side)]
    reached = [row for name, _ in CASES[:2] for row in reached_by(models[name])]
    macs = [row for name, _ in CASES[:2] for row in on_macs(models[name])]
    print(report(rows, vae, plans, reached, macs), end="")
    if options.json:
        steps = [{**asdict(row), "total": row.total} for row in rows]
        values = {"unit": "bytes", "measured": False, "steps": steps, "vae": vae, "plans": plans, "reached": reached}
        values["macs"] = macs
        write_text(options.json, json.dumps(values, indent=1) + "\n")


# -- the models


def published(name: Literal["sd15", "sdxl"]) -> Components:
    """A family's published architecture on meta, in bf16, its LoRA on the UNet; the VAE in float32."""
    family, rank = load_family(name), AdapterConfig().rank
    with META:
        unet = UNet2DConditionModel(**_unet_config(family))
        nn.Module.to(unet, torch.bfloat16)  # diffusers' own `to` warns about a cast that is meant
        add_adapter(unet, AdapterConfig(rank=rank))
        encoders = _text_encoders(family)
        vae: Any = AutoencoderKL(**family.vae, **VAE)
    vae.eval().requires_grad_(False)
    return Components(
        unet=unet.train(),
        text_encoders=encoders,
        encode=lambda images: (vae.encode(images).latent_dist.mean, None),
        decode=lambda latents: vae.decode(latents).sample,
        schedule=schedule_from_config(family.scheduler),
        family=Family(family.name, family.resolution, vae_factor=8),
        vae=vae,
    )


def sd_unet(parts: Components) -> UNet2DConditionModel:
    return cast("UNet2DConditionModel", parts.unet)


def _unet_config(family: FamilySpec) -> dict[str, Any]:
    config = {**family.unet, **UNETS[family.name]}
    return {**config, "attention_head_dim": tuple(family.heads(width) for width in config["block_out_channels"])}


def _text_encoders(family: FamilySpec) -> list[TextEncoder]:
    """CLIP-L, and OpenCLIP bigG if there is a second. Token ids come from the embedded model's tokenizer, since
    they do not affect sizes."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL / "tokenizer", model_max_length=77)
    encoders = []
    for spec, sizes in zip(family.text_encoders, (CLIP_L, BIG_G), strict=False):
        config = CLIPTextConfig(
            **sizes, hidden_act=spec.hidden_act, vocab_size=49408, projection_dim=sizes["hidden_size"]
        )
        model: Any = (CLIPTextModelWithProjection if spec.pooled else CLIPTextModel)(config)
        model.to(torch.bfloat16)
        encoders.append(TextEncoder(model, tokenizer, spec.layer, spec.final_norm, spec.pooled, spec.embedding_key))
    return encoders


# -- counting


def row_of(parts: Components, method: Method, side: int, *, checkpointing: bool) -> Row:
    """A batch of one picture of `side` x `side` pixels. `parts`: from `published`, or smaller, on any device.

    The embedding is learned, so the text encoders are on the device.
    """
    kept, peak = step_bytes(parts, method, side, checkpointing=checkpointing)
    adapter = list(Adapter(parts.unet).parameters.values())
    return Row(
        model=parts.family.name,
        side=side,
        checkpointing=checkpointing,
        method=method,
        unet=weight_bytes(parts.unet.parameters()) - weight_bytes(adapter),
        text_encoders=sum(weight_bytes(encoder.model.parameters()) for encoder in parts.text_encoders),
        adapter=4 * weight_bytes(adapter),
        kept=kept,
        peak=peak,
    )


def step_bytes(parts: Components, method: Method, side: int, *, checkpointing: bool) -> tuple[int, int]:
    """Activations of one training step, forward and backward: alive after the forward pass, and the peak."""
    step = _training_step(parts, method, checkpointing=checkpointing)
    identifier = step.conditioner.identifier
    assert identifier is not None
    modules = [parts.unet, identifier, *(encoder.model for encoder in parts.text_encoders)]
    live = LiveBytes(modules)
    trained = [*step.adapter.parameters.values(), *identifier.parameters()]
    with _checkpointing(sd_unet(parts), checkpointing), gradients_left_out(live, trained), as_on_a_gpu(), live:
        batch = _batch(parts, side)
        output = step(batch, with_prior=step.objective.needs_prior(0))
        kept = live.now
        output.total.backward()
    return kept, live.peak


def _training_step(parts: Components, method: Method, *, checkpointing: bool) -> TrainingStep:
    encoders, weight = parts.text_encoders, sd_unet(parts).conv_in.weight
    for encoder in encoders:
        encoder.model.requires_grad_(False)
    identifier = Identifier.from_init_word(encoders, "toy").to(weight.device)
    return TrainingStep(
        parts,
        Adapter(parts.unet),
        Conditioner(encoders, identifier, class_word="toy", name="sks"),
        OverfitIndicator(),
        objective_of(TrainConfig(class_word="toy", method=method)),
        dtype=weight.dtype,
        save_memory=checkpointing,
    )


def _batch(parts: Components, side: int) -> Batch:
    unet, latent = sd_unet(parts), side // parts.family.vae_factor
    device = unet.conv_in.weight.device
    latents = torch.zeros(1, unet.config["in_channels"], latent, latent, device=device)
    timesteps = torch.zeros(1, dtype=torch.int64, device=device)
    sizes = torch.zeros(1, 6, device=device)
    return Batch(latents, torch.zeros_like(latents), timesteps, ["a photo of {subject} on grass"], None, sizes)


def vae_bytes(parts: Components, side: int) -> tuple[int, int, int]:
    """Weights, and the peak beside them while one picture is encoded, and decoded."""
    assert parts.vae is not None
    peaks = []
    for run, channels, size in ((parts.encode, 3, side), (parts.decode, 4, side // parts.family.vae_factor)):
        live = LiveBytes([parts.vae])
        with torch.no_grad(), as_on_a_gpu(), live:
            run(torch.zeros(1, channels, size, size, device=META))
        peaks.append(live.peak)
    return weight_bytes(parts.vae.parameters()), peaks[0], peaks[1]


def plans_of(parts: Components, side: int) -> list[dict[str, Any]]:
    """A run's own estimate before its first step, in bytes, with recomputing. Removes the LoRA from `parts`.

    `step`: everything alive in a step. `vae`: everything beside the working VAE, with the UNet off the device.
    """
    Adapter(parts.unet).remove()
    plans: list[dict[str, Any]] = []
    ways: list[tuple[IdentifierMode, bool]] = [("learned", False), ("learned", True), ("word", False)]
    for storage, (mode, aside) in product(get_args(Storage), ways):
        data = DataConfig(resolution=side)
        config = TrainConfig(class_word="toy", identifier_mode=mode, base_storage=storage, data=data)
        plan = Plan(parts, ImageSet([], ""), None, config, torch.device("cuda"), torch.bfloat16)
        told = estimated(plan, Savings(parts.network.checkpoint_parts(parts.unet), aside))
        assert told is not None, parts.family.name
        place = "aside" if aside else "stay" if mode == "learned" else "leave"
        plans.append(
            {"model": parts.family.name, "side": side, "base_storage": storage, "identifier_mode": mode,
             "encoders": place, "step": told.in_step, "vae": told.beside_vae - told.network}
        )  # fmt: skip
    return plans


def reached_by(parts: Components) -> list[dict[str, Any]]:
    """The memory runs take by their own plan, with the target for each. `parts` must carry no LoRA.

    `free`: GiB free on the card; None: more than any run takes. `vae`: everything beside the working VAE.
    """
    name = parts.family.name
    ways = [("default", {}, free) for free in FREE[name]]
    ways += [("low memory", PRESETS["low memory"].values, free) for free in FREE_LOW[name]]
    rows: list[dict[str, Any]] = []
    for settings, values, free in ways:
        plan = _plan(parts, values)
        with mock.patch.object(plan_module, "free_bytes", lambda device, free=free: int((free or 1000) * GIB)):
            told, savings = plan.memory, plan.savings
        assert told is not None, name
        rows.append(
            {"model": name, "side": plan.side, "settings": settings, "free": free,
             "recomputes": f"{savings.recomputed} of {parts.network.checkpoint_parts(parts.unet)}",
             "encoders": "aside" if savings.encoders_aside else "stay",
             "blocks": f"{savings.blocks_aside} of {len(told.blocks)}", "step": told.in_step,
             "vae": told.beside_vae - told.network * plan.sets_aside, "at_most": AT_MOST[name][settings]}
        )  # fmt: skip
    return rows


def on_macs(parts: Components) -> list[dict[str, Any]]:
    """A step on Apple's GPU by a run's own estimate, in bytes, with the defaults. `parts` must carry no LoRA."""
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        plan = replace(_plan(parts, {}), device=torch.device("mps"), dtype=dtype)
        told = [estimated(plan, Savings(count)) for count in (0, parts.network.checkpoint_parts(parts.unet))]
        found = [memory.in_step for memory in told if memory is not None]
        row = {"model": parts.family.name, "side": plan.side, "precision": str(dtype).removeprefix("torch.")}
        rows.append({**row, **dict(zip(("step", "recomputed"), found, strict=True))})
    return rows


def _plan(parts: Components, values: Mapping[str, Any]) -> Plan:
    """The plan of a run on a GPU, which need not exist. `values`: settings by name."""
    config = TrainConfig.from_dict(nested({**values, "class_word": "toy"}, TrainConfig))
    images = ImageSet.from_tensors([torch.zeros(parts.family.resolution, parts.family.resolution, 3)])
    return Plan(parts, images, None, config, torch.device("cuda"), torch.bfloat16)


@contextlib.contextmanager
def _checkpointing(unet: UNet2DConditionModel, on: bool) -> Iterator[None]:
    if on:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


# -- what is printed


def report(
    rows: list[Row],
    vae: list[dict[str, Any]],
    plans: list[dict[str, Any]],
    reached: list[dict[str, Any]],
    macs: list[dict[str, Any]],
) -> str:
    """The tables, in GiB, and what they leave out."""
    steps = [
        (r.model, r.side, "on" if r.checkpointing else "off", METHODS[r.method])
        + tuple(_gib(n) for n in (r.unet + r.text_encoders, r.adapter, r.kept, r.peak, r.total))
        for r in rows
    ]
    resident = {r.model: r.unet + r.text_encoders + r.adapter for r in rows}
    unets = {r.model: r.unet for r in rows}
    between = [
        (v["model"], v["side"], *(_gib(n) for n in (v["weights"], v["encode"], v["decode"])))
        + tuple(_gib(resident[v["model"]] + v["weights"] + v[way]) for way in ("encode", "decode"))
        + (_gib(resident[v["model"]] - unets[v["model"]] + v["weights"] + max(v["encode"], v["decode"])),)
        for v in vae
    ]
    words = ", ".join(f"{_gib(n)} for {model}" for model, n in {r.model: r.text_encoders for r in rows}.items())
    loras = {r.model: r.adapter / 4e9 for r in rows}  # GB. Weights, gradients and two moments have the same size
    files = ", ".join(f"{size:.2f} and {3 * size:.2f} for {model}" for model, size in loras.items())
    rank = AdapterConfig().rank
    told = [(*list(plan.values())[:5], _gib(plan["step"]), _gib(plan["vae"])) for plan in plans]
    parts = {"steps": steps, "vae": between, "plans": told, "reached": map(_reached_cells, reached)}
    parts["macs"] = [(*list(row.values())[:3], _gib(row["step"]), _gib(row["recomputed"])) for row in macs]
    return TEXT.format(**{name: _cells(cells) for name, cells in parts.items()}, words=words, files=files, rank=rank)


def _reached_cells(row: dict[str, Any]) -> list[object]:
    free = "enough" if row["free"] is None else row["free"]
    cells = [free if name == "free" else row[name] for name in REACHED]
    return [*cells, _gib(row["step"]), _gib(row["vae"]), row["at_most"]]


def _gib(count: int) -> str:
    return f"{count / GIB:.1f}"


def _cells(rows: Iterable[Iterable[object]]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


TEXT = """\
Arithmetic, not a measurement: nobody has held it against a GPU yet. GiB; batch 1, bf16, a caption of 77 tokens, a
float32 LoRA of rank {rank} on the attention layers, a learned identifier, fused attention.

| model | pixels | checkpointing | method | weights | LoRA + optimizer | kept for backward | activations | total |
|---|---|---|---|---|---|---|---|---|
{steps}

- checkpointing: of gradients; by default decided by the free memory.
- weights: UNet and text encoders. In word mode the text encoders leave the device; that takes off
  {words}.
- LoRA + optimizer: weights, gradients and AdamW's two moments.
- kept for backward: activations alive when the forward pass has ended.
- activations: those alive at the worst moment of the step. Beside the kept ones these are what the prior pass left for
  the losses, or in the backward pass the block that is recomputed and its gradients.
- total: weights, LoRA + optimizer, activations.

On disk, in GB, a snapshot and the state beside it in the newest two:
{files}.

Between the steps the VAE joins them, in float32: APT encodes augmented pictures, previews are decoded. Where that would
be the peak, the UNet's frozen weights leave the device meanwhile.

| model | pixels | VAE | encoding | decoding | total while encoding | total while decoding | UNet aside |
|---|---|---|---|---|---|---|---|
{vae}

What a run tells before its first step, APT with checkpointing, by `base_storage` and `identifier_mode`. The text
encoders leave the device in word mode; aside, they are there one at a time, while they work.

| model | pixels | base_storage | identifier_mode | text encoders | in a step | beside the VAE, UNet aside |
|---|---|---|---|---|---|---|
{plans}

A run's own plan, with the defaults and with the preset low memory. If the free memory (in GiB) is too small, the run
recomputes activations, in the outer parts of the network first. Then it keeps the text encoders off the device, then
as many blocks of the network as must be.

| model | pixels | settings | free | recomputed | encoders | blocks aside | in a step | beside the VAE | target |
|---|---|---|---|---|---|---|---|---|---|
{reached}

A step on Apple's GPU, whose attention keeps whole maps for the backward pass, with the defaults.

| model | pixels | precision | in a step | with all activations recomputed |
|---|---|---|---|---|
{macs}

Not counted: the CUDA context, the allocator's rounding and fragmentation, the kernels' workspaces (convolutions' above
all) and whatever else uses the GPU. Without fused attention the activations are more.
"""


if __name__ == "__main__":
    main()
