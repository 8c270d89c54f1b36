"""The example workflows, one function each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .notes import ATTENTION, COMPARE, MONITOR, SDXL_TRAIN_AND_GENERATE, TRAIN_AND_GENERATE
from .sketch import Box, Sketch, Wire, group

SD15 = (
    "v1-5-pruned-emaonly-fp16.safetensors",
    "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
)
SDXL = (
    "sd_xl_base_1.0.safetensors",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
)
PROMPT = "a photo of {subject} on the beach"
NEGATIVE = "blurry, watermark"
SEED = 1


def checkpoint(s: Sketch, model: tuple[str, str]) -> Box:
    """Where the file is missing, the editor offers to fetch it."""
    name, url = model
    models = [{"name": name, "url": url, "directory": "checkpoints"}]
    return s.node("CheckpointLoaderSimple", {"ckpt_name": name}, size=(330, 0), models=models)


def pictures(s: Sketch, names: Sequence[str] = ("example.png",) * 4) -> tuple[list[Box], Box]:
    """The loaders, and the list of their pictures."""
    loaders = [
        s.node("LoadImage", {"image": name}, title=f"Your picture {number}", size=(220, 320))
        for number, name in enumerate(names, 1)
    ]
    wires = {f"inputs.input{n}": loader["IMAGE"] for n, loader in enumerate(loaders)}
    return loaders, s.node("CreateList", wires, title="As a list", size=(200, 0))


def training(s: Sketch, model: Box, images: Box, height: int = 780, title: str = "", **changes: Any) -> Box:
    """Its live picture has room beneath the widgets."""
    wires = {"model": model["MODEL"], "clip": model["CLIP"], "vae": model["VAE"], "images": images["list"]}
    values = {"subject": "my_toy", "class_word": "toy", "seed": SEED, **changes}
    return s.node("APTTrain", {**wires, **values}, title=title, size=(440, height))


def prompt(s: Sketch, subject: Wire, text: str | Wire = PROMPT, title: str = "Prompt") -> Box:
    """The prompt, with what the model must read for {subject}."""
    values = {"string": text, "find": "{subject}", "replace": subject}
    return s.node("StringReplace", values, title=title, size=(330, 200))


def encoded(s: Sketch, clip: Wire, text: str | Wire, title: str) -> Box:
    height = 60 if isinstance(text, Wire) else 100
    return s.node("CLIPTextEncode", {"clip": clip, "text": text}, title=title, size=(330, height))


def canvas(s: Sketch, side: int) -> Box:
    return s.node("EmptyLatentImage", {"width": side, "height": side}, size=(330, 0))


def drawn(
    s: Sketch, model: Wire, positive: Box, negative: Box, latent: Box, vae: Wire, *, control: str = "fixed",
    seed: int | Wire = SEED,
) -> tuple[Box, Box]:  # fmt: skip
    """The sampler and what it drew."""
    sampler = s.node(
        "KSampler",
        {
            "model": model, "positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"],
            "latent_image": latent["LATENT"], "seed": seed, "control_after_generate": control, "steps": 25, "cfg": 7,
            "sampler_name": "dpmpp_2m", "scheduler": "karras",
        },
        size=(330, 300),
    )  # fmt: skip
    return sampler, s.node("VAEDecode", {"samples": sampler["LATENT"], "vae": vae}, size=(330, 0))


def saved(s: Sketch, image: Box, prefix: str, title: str = "", size: tuple[int, int] = (330, 390)) -> Box:
    return s.node("SaveImage", {"images": image["IMAGE"], "filename_prefix": prefix}, title=title, size=size)


# ---- the workflows ---------------------------------------------------------------------------------------------


def train_and_generate(
    s: Sketch, model: tuple[str, str] = SD15, side: int = 512, says: str = TRAIN_AND_GENERATE
) -> None:
    loader = checkpoint(s, model)
    loaders, images = pictures(s)
    train = training(s, loader, images)
    text = prompt(s, train["trigger"])
    positive = encoded(s, train["CLIP"], text["STRING"], "Positive")
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative")
    latent = canvas(s, side)
    sampler, picture = drawn(s, train["MODEL"], positive, negative, latent, loader["VAE"], control="randomize")
    save = saved(s, picture, "my_toy")
    s.column(group("Read me", [s.note(says, 340, 430)]), group("2 · Model", [loader]))
    s.column(group("1 · Your pictures", [*loaders[::2], images], loaders[1::2]))
    s.column(group("3 · Train", [train]))
    s.column(group("4 · Draw", [text, positive, negative, latent], [sampler, picture, save]))


def sdxl_train_and_generate(s: Sketch) -> None:
    train_and_generate(s, SDXL, 1024, SDXL_TRAIN_AND_GENERATE)


def compare_prior_dreambooth_apt(s: Sketch) -> None:
    loader = checkpoint(s, SD15)
    loaders, images = pictures(s)
    word = s.node("PrimitiveString", {"value": "toy"}, title="Class word", size=(340, 0))
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(340, 100))
    seed = s.node("PrimitiveInt", {"value": SEED}, title="Seed of training and pictures", size=(340, 0))
    steps = s.node("PrimitiveInt", {"value": 2000}, title="Training steps", size=(340, 0))
    same = {"class_word": word["STRING"], "seed": seed["INT"], "steps": steps["INT"]}
    plain = training(s, loader, images, 680, "APT Train: DreamBooth", method="DreamBooth", **same)
    apt = training(s, loader, images, 680, "APT Train: APT", method="APT", **same)
    negative = encoded(s, apt["CLIP"], NEGATIVE, "Negative")
    latent = canvas(s, 512)
    rows = []
    for name, prefix, model, clip, subject in (
        ("Prior: as it was", "compare_prior", loader["MODEL"], apt["CLIP"], word["STRING"]),
        ("DreamBooth", "compare_dreambooth", plain["MODEL"], plain["CLIP"], plain["trigger"]),
        ("APT", "compare_apt", apt["MODEL"], apt["CLIP"], apt["trigger"]),
    ):
        said = prompt(s, subject, text["STRING"], "Prompt with its subject")
        positive = encoded(s, clip, said["STRING"], "Positive")
        sampler, picture = drawn(s, model, positive, negative, latent, loader["VAE"], seed=seed["INT"])
        rows.append(group(f"4 · {name}", [said, positive], [sampler, picture], [saved(s, picture, prefix, name)]))
    s.column(
        group("Read me", [s.note(COMPARE, 340, 480)]),
        group("2 · Model", [loader]),
        group("3 · The same for all three", [word, text, seed, steps]),
    )
    s.column(group("1 · Your pictures", [*loaders[::2], images], loaders[1::2]))
    s.column(group("Train by DreamBooth", [plain]), group("Train by APT", [apt]))
    s.column(group("The same for all three", [negative], [latent]), *rows)


def attention_preview(s: Sketch) -> None:
    loader = checkpoint(s, SD15)
    loaders, images = pictures(s)
    train = training(s, loader, images)
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(330, 100))
    said = prompt(s, train["trigger"], text["STRING"], "Prompt with the subject")
    positive = encoded(s, train["CLIP"], said["STRING"], "Positive")
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative")
    latent = canvas(s, 512)
    sampler, picture = drawn(s, train["MODEL"], positive, negative, latent, loader["VAE"])
    save = saved(s, picture, "my_toy")
    looked = {
        "model": loader["MODEL"], "tuned": train["MODEL"], "clip": train["CLIP"], "image": picture["IMAGE"],
        "vae": loader["VAE"], "run": train["APT_RUN"], "prompt": text["STRING"], "trigger": train["trigger"],
    }  # fmt: skip
    look = s.node("APTAttentionAlignPreview", looked, size=(700, 1150))
    table = s.node("PreviewAny", {"source": look["table"]}, title="Score and table", size=(700, 230))
    s.column(group("Read me", [s.note(ATTENTION, 340, 470)]), group("2 · Model", [loader]))
    s.column(group("1 · Your pictures", [*loaders[::2], images], loaders[1::2]))
    s.column(group("3 · Train", [train]))
    s.column(group("4 · Draw", [text, said, positive, negative, latent], [sampler, picture, save]))
    s.column(group("5 · Where both models look", [table, look]))


def monitor_and_pick_snapshot(s: Sketch) -> None:
    loader = checkpoint(s, SD15)
    loaders, images = pictures(s)
    train = training(s, loader, images)
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(340, 100))
    monitor = s.node("APTOverfitIndicatorMonitor", {"run": train["APT_RUN"]}, size=(500, 1110))
    wires = {"model": loader["MODEL"], "lora": monitor["LORA_MODEL"]}
    tuned = s.node("LoraModelLoader", wires, title="The snapshot's LoRA", size=(330, 0))
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative")
    latent = canvas(s, 512)
    rows = []
    for name, prefix, model, trigger in (
        ("The monitor's snapshot", "snapshot", tuned["model"], monitor["trigger"]),
        ("The last step", "last_step", train["MODEL"], train["trigger"]),
    ):
        said = prompt(s, trigger, text["STRING"], "Prompt with the subject")
        positive = encoded(s, train["CLIP"], said["STRING"], "Positive")
        sampler, picture = drawn(s, model, positive, negative, latent, loader["VAE"])
        rows.append(group(f"5 · {name}", [said, positive], [sampler, picture], [saved(s, picture, prefix, name)]))
    s.column(group("Read me", [s.note(MONITOR, 340, 570)]), group("2 · Model", [loader]), group("4 · Prompt", [text]))
    s.column(group("1 · Your pictures", [*loaders[::2], images], loaders[1::2]))
    s.column(group("3 · Train", [train]))
    s.column(group("Watch it overfit, or not", [monitor]))
    s.column(group("The same for both, and the snapshot", [negative], [latent], [tuned]), *rows)


EXAMPLES: dict[str, Callable[[Sketch], None]] = {
    make.__name__: make
    for make in (
        train_and_generate, compare_prior_dreambooth_apt, attention_preview, monitor_and_pick_snapshot,
        sdxl_train_and_generate,
    )
}  # fmt: skip
