"""The example workflows, one function each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .notes import ATTENTION, CHECK_UP, COMPARE, MONITOR, PICK, SDXL_TRAIN_AND_GENERATE, TRAIN_AND_GENERATE
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
SLIM, PHOTOS = 270, (360, 900)  # where much stands side by side: notes and models, photos
LINE, TEXT = 70, 102  # heights of a text of one line and of several


def checkpoint(s: Sketch, model: tuple[str, str], width: int = NARROW) -> Box:
    """Where the file is missing, the editor offers to fetch it."""
    name, url = model
    models = [{"name": name, "url": url, "directory": "checkpoints"}]
    return s.node("CheckpointLoaderSimple", {"ckpt_name": name}, size=(width, 102), models=models)


def photos(
    s: Sketch, side: int = 512, *, size: tuple[int, int] = (480, 1000), folder: str = "none"
) -> tuple[Box, dict[str, Wire]]:
    """The user's own, by the folder, and what is learned of them; the contact sheet has room beneath the widgets."""
    images = s.node("APTImageSet", {"folder": folder, "resolution": side}, title="Your photos", size=size)
    return images, {name: images[name] for name in ("images", "captions", "masks")}


def training(
    s: Sketch, model: Box, learned: Mapping[str, Wire], title: str = "", size: tuple[int, int] = (WIDE, 1000),
    **changes: Any,
) -> Box:  # fmt: skip
    """Its live picture has room beneath the widgets, also in Nodes 2.0; where it has less, nothing stands below it."""
    wires = {"model": model["MODEL"], "clip": model["CLIP"], "vae": model["VAE"], **learned}
    values = {"subject": "my_toy", "class_word": "toy", "seed": SEED, **changes}
    return s.node("APTTrain", {**wires, **values}, title=title, size=size)


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
    images, learned = photos(s, side)
    train = training(s, loader, learned)
    text = prompt(s, train["trigger"])
    positive = encoded(s, train["CLIP"], text["STRING"], "Positive")
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative")
    latent = canvas(s, side)
    sampler, picture = drawn(s, train["MODEL"], positive, negative, latent, loader["VAE"], control="randomize")
    save = saved(s, picture, "my_toy")
    s.column(group("Read me", [s.note(says, NARROW, 520)]), group("2 · Model", [loader]))
    s.column(group("1 · Your photos", [images]))
    s.column(group("3 · Train", [train]))
    s.column(group("4 · Draw", [text, positive, negative, latent], [sampler, picture, save]))


def sdxl_train_and_generate(s: Sketch) -> None:
    train_and_generate(s, SDXL, 1024, SDXL_TRAIN_AND_GENERATE)


def compare_prior_dreambooth_apt(s: Sketch) -> None:
    loader = checkpoint(s, SD15, SLIM)
    images, learned = photos(s, size=PHOTOS)
    word = s.node("PrimitiveString", {"value": "toy"}, title="Class word", size=(SLIM, LINE))
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(SLIM, 80))
    seed = s.node("PrimitiveInt", {"value": SEED}, title="Seed of training and pictures", folded=True)
    steps = s.node("PrimitiveInt", {"value": 2000}, title="Training steps", size=(SLIM, 70))
    same = {"class_word": word["STRING"], "seed": seed["INT"], "steps": steps["INT"]}
    size = (330, 950)
    plain = training(s, loader, learned, "APT Train: DreamBooth", size, method="DreamBooth", **same)
    apt = training(s, loader, learned, "APT Train: APT", size, method="APT", **same)
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
        save = saved(s, picture, prefix, name, (230, 300))
        rows.append(group(f"4 · {name}", [said, positive, sampler, picture], [save]))
    s.column(
        group("Read me", [s.note(COMPARE, SLIM, 480)]),
        group("2 · Model", [loader]),
        group("3 · The same for all three", [word, text, steps]),
    )
    s.column(group("1 · Your photos", [images]))
    s.column(group("The same for all three", [seed, negative]), group("Train by DreamBooth", [plain]))
    s.column(group("The same for all three", [latent]), group("Train by APT", [apt]))
    s.column(*rows)


def attention_preview(s: Sketch) -> None:
    loader = checkpoint(s, SD15, SLIM)
    images, learned = photos(s, size=PHOTOS)
    train = training(s, loader, learned, size=(350, 1000))
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(240, TEXT))
    said = prompt(s, train["trigger"], text["STRING"], "Prompt, filled in", folded=True)
    positive = encoded(s, train["CLIP"], said["STRING"], "Positive", folded=True)
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative", folded=True)
    latent = canvas(s, 512, folded=True)
    sampler, picture = drawn(s, train["MODEL"], positive, negative, latent, loader["VAE"], folded=True)
    save = saved(s, picture, "my_toy", size=(240, 310))
    looked = {
        "model": loader["MODEL"], "tuned": train["MODEL"], "clip": train["CLIP"], "image": picture["IMAGE"],
        "vae": loader["VAE"], "run": train["APT_RUN"], "prompt": text["STRING"], "trigger": train["trigger"],
        "draw": "over the picture",
    }  # fmt: skip
    look = s.node("APTAttentionAlignPreview", looked, size=(530, 1120))
    s.column(group("Read me", [s.note(ATTENTION, SLIM, 560)]), group("2 · Model", [loader]))
    s.column(group("1 · Your photos", [images]))
    s.column(group("3 · Train", [train]))
    s.column(group("4 · Draw", [text, said, positive, negative, latent, sampler, picture, save]))
    s.column(group("5 · Where both models look", [look]))


def monitor_and_pick_snapshot(s: Sketch) -> None:
    loader = checkpoint(s, SD15, SLIM)
    images, learned = photos(s, size=PHOTOS)
    train = training(s, loader, learned, size=(360, 1000))
    text = s.node("PrimitiveStringMultiline", {"value": PROMPT}, title="Prompt", size=(280, TEXT))
    monitor = s.node("APTOverfitIndicatorMonitor", {"run": train["APT_RUN"]}, size=(440, 1110))
    wires = {"model": loader["MODEL"], "lora": monitor["LORA_MODEL"]}
    tuned = s.node("LoraModelLoader", wires, title="The snapshot's LoRA", folded=True)
    said = prompt(s, monitor["trigger"], text["STRING"], "Prompt, filled in", folded=True)
    positive = encoded(s, train["CLIP"], said["STRING"], "Positive", folded=True)
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative", folded=True)
    latent = canvas(s, 512, folded=True)
    sampler, picture = drawn(s, tuned["model"], positive, negative, latent, loader["VAE"], folded=True)
    save = saved(s, picture, "snapshot", "The monitor's snapshot", (280, 350))
    s.column(group("Read me", [s.note(MONITOR, SLIM, 620)]), group("2 · Model", [loader]))
    s.column(group("1 · Your photos", [images]))
    s.column(group("3 · Train", [train]))
    s.column(group("Watch it overfit, or not", [monitor]))
    s.column(group("4 · Draw", [text, tuned, said, positive, negative, latent, sampler, picture, save]))


def pick_a_snapshot(s: Sketch) -> None:
    loader = checkpoint(s, SD15)
    run = s.node("APTLoadRun", {"run": "no run yet"}, size=(440, 620))
    wires = {"model": loader["MODEL"], "clip": loader["CLIP"], "vae": loader["VAE"], "run": run["APT_RUN"]}
    sheet = s.node("APTSnapshotSheet", wires, size=(700, 1120))
    said = prompt(s, sheet["trigger"], PROMPT)
    positive = encoded(s, loader["CLIP"], said["STRING"], "Positive", folded=True)
    negative = encoded(s, loader["CLIP"], NEGATIVE, "Negative", folded=True)
    latent = canvas(s, 512, folded=True)
    sampler, picture = drawn(s, sheet["MODEL"], positive, negative, latent, loader["VAE"], folded=True)
    save = saved(s, picture, "picked", "By the picked snapshot", (NARROW, 390))
    s.column(group("Read me", [s.note(PICK, NARROW, 520)]), group("2 · Model", [loader]))
    s.column(group("1 · The run", [run]))
    s.column(group("3 · Snapshots", [sheet]))
    s.column(group("4 · Draw", [said, positive, negative, latent, sampler, picture, save]))


def check_a_lora_up(s: Sketch) -> None:
    loader = checkpoint(s, SD15)
    images, learned = photos(s)
    wires = {"model": loader["MODEL"], "clip": loader["CLIP"], "vae": loader["VAE"]}
    looked = {**wires, **{name: learned[name] for name in ("images", "captions")}, "class_word": "toy"}
    check_up = s.node("APTLoRACheckUp", looked, size=(640, 1120))
    verdict = s.node("PreviewAny", {"source": check_up["verdict"]}, title="Verdict", size=(330, 500))
    save = saved(s, check_up, "check_up", "The sheet", (330, 420))
    s.column(group("Read me", [s.note(CHECK_UP, NARROW, 520)]), group("2 · Model", [loader]))
    s.column(group("1 · The photos it was trained on", [images]))
    s.column(group("3 · The LoRA", [check_up]))
    s.column(group("What was found", [verdict, save]))


EXAMPLES: dict[str, Callable[[Sketch], None]] = {
    make.__name__: make
    for make in (
        train_and_generate, compare_prior_dreambooth_apt, attention_preview, monitor_and_pick_snapshot, pick_a_snapshot,
        check_a_lora_up, sdxl_train_and_generate,
    )
}  # fmt: skip
