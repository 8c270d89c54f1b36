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


# Heights are those of Nodes 2.0 where it draws a node higher than the classic editor: neither may let two overlap. A
# template opens at three quarters of the window, and below a zoom of 0.6 nobody can read it: all of it has to stand in
# 1980 x 1230 pixels, so what needs no look is folded; nowhere at the bottom, as Nodes 2.0 measures it unfolded.
NARROW, WIDE = 300, 400
PICTURES = 480  # two pictures side by side, and the note above them
LINE, TEXT = 70, 102  # heights of a text of one line and of several


def checkpoint(s: Sketch, model: tuple[str, str], width: int = NARROW) -> Box:
    """Where the file is missing, the editor offers to fetch it."""
    name, url = model
    models = [{"name": name, "url": url, "directory": "checkpoints"}]
    return s.node("CheckpointLoaderSimple", {"ckpt_name": name}, size=(width, 102), models=models)


def pictures(s: Sketch, names: Sequence[str] = ("example.png",) * 4, *, folded: bool = False) -> tuple[list[Box], Box]:
    """The loaders, and the list of their pictures."""
    loaders = [
        s.node("LoadImage", {"image": name}, title=f"Your picture {number}", size=(230, 326))
        for number, name in enumerate(names, 1)
    ]
    wires = {f"inputs.input{n}": loader["IMAGE"] for n, loader in enumerate(loaders)}
    return loaders, s.node("CreateList", wires, title="As a list", size=(230, 126), folded=folded)


def training(
    s: Sketch, model: Box, images: Box, height: int = 880, title: str = "", width: int = WIDE, **changes: Any
) -> Box:
    """Its live picture has room beneath the widgets, also in Nodes 2.0; where it has less, nothing stands below it."""
    wires = {"model": model["MODEL"], "clip": model["CLIP"], "vae": model["VAE"], "images": images["list"]}
    values = {"subject": "my_toy", "class_word": "toy", "seed": SEED, **changes}
    return s.node("APTTrain", {**wires, **values}, title=title, size=(width, height))


def prompt(s: Sketch, subject: Wire, text: str | Wire = PROMPT, title: str = "Prompt", *, folded: bool = False) -> Box:
    """The prompt, with what the model must read for {subject}."""
    values = {"string": text, "find": "{subject}", "replace": subject}
    return s.node("StringReplace", values, title=title, size=(NARROW, 238), folded=folded)


def encoded(s: Sketch, clip: Wire, text: str | Wire, title: str, *, folded: bool = False) -> Box:
    return s.node("CLIPTextEncode", {"clip": clip, "text": text}, title=title, size=(NARROW, TEXT), folded=folded)


def canvas(s: Sketch, side: int, *, folded: bool = False) -> Box:
    return s.node("EmptyLatentImage", {"width": side, "height": side}, size=(NARROW, 118), folded=folded)


def drawn(
    s: Sketch, model: Wire, positive: Box, negative: Box, latent: Box, vae: Wire, *, control: str = "fixed",
    seed: int | Wire = SEED, folded: bool = False, folded_decoder: bool = False,
) -> tuple[Box, Box]:  # fmt: skip
    """The sampler and what it drew."""
    sampler = s.node(
        "KSampler",
        {
            "model": model, "positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"],
            "latent_image": latent["LATENT"], "seed": seed, "control_after_generate": control, "steps": 25, "cfg": 7,
            "sampler_name": "dpmpp_2m", "scheduler": "karras",
        },
        size=(NARROW, 270),
        folded=folded,
    )  # fmt: skip
    wires = {"samples": sampler["LATENT"], "vae": vae}
    return sampler, s.node("VAEDecode", wires, size=(NARROW, 54), folded=folded or folded_decoder)


def saved(s: Sketch, image: Box, prefix: str, title: str = "", size: tuple[int, int] = (NARROW, 390)) -> Box:
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
    s.column(group("Read me", [s.note(says, NARROW, 520)]), group("2 · Model", [loader]))
    s.column(group("1 · Your pictures", [*loaders[::2], images], loaders[1::2]))
    s.column(group("3 · Train", [train]))
    s.column(group("4 · Draw", [text, positive, negative, latent], [sampler, picture, save]))


def sdxl_train_and_generate(s: Sketch) -> None:
    train_and_generate(s, SDXL, 1024, SDXL_TRAIN_AND_GENERATE)


def compare_prior_dreambooth_apt(s: Sketch) -> None:
    width = 390
    loader = checkpoint(s, SD15, width)
    loaders, images = pictures(s, folded=True)
    word = s.node("PrimitiveString", {"value": "toy"}, title="Class word", size=(width, LINE))
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(width, TEXT))
    seed = s.node("PrimitiveInt", {"value": SEED}, title="Seed of training and pictures", size=(width, 90))
    steps = s.node("PrimitiveInt", {"value": 2000}, title="Training steps", size=(width, 90))
    same = {"class_word": word["STRING"], "seed": seed["INT"], "steps": steps["INT"]}
    plain = training(s, loader, images, 640, "APT Train: DreamBooth", width, method="DreamBooth", **same)
    apt = training(s, loader, images, 640, "APT Train: APT", width, method="APT", **same)
    negative = encoded(s, apt["CLIP"], NEGATIVE, "Negative", folded=True)
    latent = canvas(s, 512, folded=True)
    rows = []
    for name, prefix, model, clip, subject in (
        ("Prior: as it was", "compare_prior", loader["MODEL"], apt["CLIP"], word["STRING"]),
        ("DreamBooth", "compare_dreambooth", plain["MODEL"], plain["CLIP"], plain["trigger"]),
        ("APT", "compare_apt", apt["MODEL"], apt["CLIP"], apt["trigger"]),
    ):
        said = prompt(s, subject, text["STRING"], "Prompt, filled in", folded=True)
        positive = encoded(s, clip, said["STRING"], "Positive", folded=True)
        sampler, picture = drawn(s, model, positive, negative, latent, loader["VAE"], seed=seed["INT"], folded=True)
        save = saved(s, picture, prefix, name, (270, 270))
        rows.append(group(f"4 · {name}", [said, positive, sampler, picture], [save]))
    s.column(
        group("Read me", [s.note(COMPARE, PICTURES, 310)]),
        group("1 · Your pictures", [images, *loaders[::2]], loaders[1::2]),
    )
    s.column(
        group("2 · Model", [loader]),
        group("The same for all three", [seed, steps]),
        group("Train by DreamBooth", [plain]),
    )
    s.column(group("3 · The same for all three", [word, text]), group("Train by APT", [apt]))
    s.column(group("The same for all three", [negative], [latent]), *rows)


def attention_preview(s: Sketch) -> None:
    loader = checkpoint(s, SD15, WIDE)
    loaders, images = pictures(s, folded=True)
    train = training(s, loader, images, 670)
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(NARROW, TEXT))
    said = prompt(s, train["trigger"], text["STRING"], "Prompt, filled in", folded=True)
    positive = encoded(s, train["CLIP"], said["STRING"], "Positive", folded=True)
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative")
    latent = canvas(s, 512, folded=True)
    sampler, picture = drawn(s, train["MODEL"], positive, negative, latent, loader["VAE"], folded_decoder=True)
    save = saved(s, picture, "my_toy", size=(NARROW, 310))
    looked = {
        "model": loader["MODEL"], "tuned": train["MODEL"], "clip": train["CLIP"], "image": picture["IMAGE"],
        "vae": loader["VAE"], "run": train["APT_RUN"], "prompt": text["STRING"], "trigger": train["trigger"],
    }  # fmt: skip
    look = s.node("APTAttentionAlignPreview", looked, size=(620, 1120))
    table = s.node("PreviewAny", {"source": look["table"]}, title="Score and table", size=(WIDE, 150))
    s.column(
        group("Read me", [s.note(ATTENTION, PICTURES, 310)]),
        group("1 · Your pictures", [images, *loaders[::2]], loaders[1::2]),
    )
    s.column(group("2 · Model", [loader]), group("Score and table", [table]), group("3 · Train", [train]))
    s.column(group("4 · Draw", [text, said, positive, negative, latent, sampler, picture, save]))
    s.column(group("5 · Where both models look", [look]))


def monitor_and_pick_snapshot(s: Sketch) -> None:
    loader = checkpoint(s, SD15, WIDE)
    loaders, images = pictures(s, folded=True)
    train = training(s, loader, images)
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(460, TEXT))
    monitor = s.node("APTOverfitIndicatorMonitor", {"run": train["APT_RUN"]}, size=(440, 1110))
    wires = {"model": loader["MODEL"], "lora": monitor["LORA_MODEL"]}
    tuned = s.node("LoraModelLoader", wires, title="The snapshot's LoRA", size=(NARROW, 134), folded=True)
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative", folded=True)
    latent = canvas(s, 512, folded=True)
    rows = []
    for name, prefix, model, trigger in (
        ("The monitor's snapshot", "snapshot", tuned["model"], monitor["trigger"]),
        ("The last step", "last_step", train["MODEL"], train["trigger"]),
    ):
        said = prompt(s, trigger, text["STRING"], "Prompt, filled in", folded=True)
        positive = encoded(s, train["CLIP"], said["STRING"], "Positive", folded=True)
        sampler, picture = drawn(s, model, positive, negative, latent, loader["VAE"], folded=True)
        save = saved(s, picture, prefix, name, (230, 300))
        rows.append(group(f"5 · {name}", [said, positive, sampler, picture], [save]))
    s.column(
        group("Read me", [s.note(MONITOR, PICTURES, 320)]),
        group("1 · Your pictures", [images, *loaders[::2]], loaders[1::2]),
    )
    s.column(group("2 · Model", [loader]), group("3 · Train", [train]))
    s.column(group("Watch it overfit, or not", [monitor]))
    s.column(
        group("4 · Prompt", [text]),
        group("The same for both, and the snapshot", [negative, tuned], [latent]),
        *rows,
    )


EXAMPLES: dict[str, Callable[[Sketch], None]] = {
    make.__name__: make
    for make in (
        train_and_generate, compare_prior_dreambooth_apt, attention_preview, monitor_and_pick_snapshot,
        sdxl_train_and_generate,
    )
}  # fmt: skip
