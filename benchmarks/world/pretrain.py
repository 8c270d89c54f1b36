"""Pretrain the embedded text-to-image model on the drawn world, from scratch, on a CPU.

Stages, in this order (``decoder`` may run beside ``unet``; ``render`` keeps the shards that are there)::

    python -m benchmarks.world.pretrain render  --work .cache/world
    python -m benchmarks.world.pretrain vae     --work .cache/world --steps 2500 --batch 8
    python -m benchmarks.world.pretrain latents --work .cache/world
    python -m benchmarks.world.pretrain unet    --work .cache/world --steps 7000
    python -m benchmarks.world.pretrain decoder --work .cache/world --steps 2500 --batch 8
    python -m benchmarks.world.pretrain export  --work .cache/world --out apt_train/assets/drawn_world

``vae``, ``unet`` and ``decoder`` write checkpoints (safetensors + json) and continue from them; the number
of threads and of steps may differ between starts.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from benchmarks.world import draw

WORLD_SEED = 0
PICTURES = 32_000
SHARD = 2_000
CONTEXT = 24  # tokens per caption
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"

# Words a user may type although the world does not draw them; untrained, but distinct from each other.
SPARE_WORDS = """
sks zwx ohwx xyz a an the of on in at with and or near under over by to from is are it its his her my your our
this that these those one two three four five six seven eight nine ten not no yes very more most some any
person man woman boy girl child people dog cat bird fish horse cow sheep bear lion tiger elephant monkey rabbit
house home building bridge tower castle church street road path garden forest tree flower leaf river lake sea
ocean beach desert island hill valley sky cloud sun moon star rain storm fire ice rock stone mountain
table chair bed desk sofa lamp clock book pen paper cup bowl plate glass bottle spoon fork knife pot pan
shirt dress coat shoe shoes boot sock glove scarf belt ring watch glasses backpack suitcase basket
bike bicycle bus train plane boat ship truck motorcycle rocket robot doll teddy puppet figurine statue sculpture
guitar piano drum violin phone computer camera television radio keyboard screen
apple orange banana grape lemon cherry bread cake cheese egg pizza coffee tea milk water food fruit
black brown grey gray gold silver cyan magenta violet beige turquoise dark pale colorful colourful
round square long short tall wide thin thick soft hard wet dry hot cold warm fast slow
wooden metal plastic leather cotton wool paper clay ceramic marble concrete
painting drawing picture image portrait poster cartoon illustration watercolor watercolour oil pencil ink
pastel comic anime render rendering digital vector mosaic collage print icon logo style art artwork
photograph photography closeup close up view front side back top bottom left right center background foreground
day night morning evening sunset sunrise spring summer autumn winter snowy rainy sunny cloudy foggy
sitting standing running walking flying sleeping playing eating holding wearing looking lying floating
toy toys bag bags vase vases ball balls box boxes mug mugs car cars hat hats duck ducks thing object subject
stripes dots checks spots pattern patterned plain striped dotted checkered spotted
brick floor wall ground field carpet tile tiles mud dirt gravel moss street rug lawn
""".split()


def world_words() -> list[str]:
    """Every word that a caption of the world may contain."""
    phrases = [
        *draw.GROUND_PHRASE.values(),
        *draw.PLACE_PHRASE.values(),
        *draw.STYLE_PHRASE.values(),
        *draw.SHAPES,
        *draw.COLOURS,
        *draw.PATTERNS,
        *draw.FILLER_WORDS,
    ]
    return [word for phrase in phrases for word in phrase.split()] + ["a", "an", "and"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer that frames a caption as BOS ... EOS and pads with its own PAD.

    EOS is not token 2, which CLIPTextModel reads as "the largest id ends the text".
    """
    letters_and_digits = list("abcdefghijklmnopqrstuvwxyz0123456789,.!?'\"-:;()")
    words = dict.fromkeys([PAD, BOS, UNK, EOS, *world_words(), *SPARE_WORDS, *letters_and_digits])
    vocabulary = {word: index for index, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A $B {EOS}",
        special_tokens=[(BOS, vocabulary[BOS]), (EOS, vocabulary[EOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=CONTEXT,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """A three-layer CLIP text transformer of width 128, randomly initialised."""
    named: Any = tokenizer  # transformers' annotation has strings among the ids
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=named.bos_token_id,
        eos_token_id=named.eos_token_id,
        pad_token_id=named.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """A 5.6 M parameter conditional U-Net on (4, 16, 16) latents with attention at 8 x 8 and 4 x 4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        attention_head_dim=cast("Any", (2, 3, 4)),  # diffusers reads this field as the number of heads
        cross_attention_dim=128,
        norm_num_groups=16,
    )


def build_vae() -> AutoencoderKL:
    """A 0.65 M parameter autoencoder, (3, 64, 64) <-> (4, 16, 16)."""
    blocks: dict[str, Any] = dict(  # diffusers annotates them as tuples of one
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
    )
    return AutoencoderKL(
        **blocks,
        sample_size=draw.SIZE,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


# --------------------------------------------------------------------------------------------------------------
# Rendering


def _render_shard(job: tuple[Path, int]) -> None:
    work, shard = job
    path = work / f"shard_{shard:03d}.npy"
    if path.exists():
        return
    items = [draw.world_item(WORLD_SEED, index) for index in range(shard * SHARD, (shard + 1) * SHARD)]
    about = [{"caption": caption, "scene": asdict(scene)} for _, caption, scene in items]
    path.with_suffix(".json").write_text(json.dumps(about))
    partial = path.with_suffix(".part.npy")
    np.save(partial, np.stack([picture for picture, _, _ in items]))
    partial.replace(path)


def render(args: argparse.Namespace) -> None:
    """Draw the pretraining pictures into shards of uint8 (2000, 64, 64, 3) with their captions beside them."""
    jobs = [(args.work, shard) for shard in range(PICTURES // SHARD)]
    with multiprocessing.Pool(args.workers) as pool:
        for count, _ in enumerate(pool.imap_unordered(_render_shard, jobs), 1):
            print(f"rendered {count * SHARD} of {PICTURES}", flush=True)


def load_pictures(work: Path, shards: int | None = None) -> Tensor:
    """Rendered pictures, uint8 (N, 3, 64, 64)."""
    paths = sorted(work.glob("shard_[0-9][0-9][0-9].npy"))[:shards]
    arrays = [torch.from_numpy(np.load(path, allow_pickle=False)) for path in paths]
    return torch.cat(arrays).permute(0, 3, 1, 2).contiguous()


def _load_about(work: Path) -> list[dict]:
    paths = sorted(work.glob("shard_[0-9][0-9][0-9].json"))
    return [about for path in paths for about in json.loads(path.read_text())]


def load_captions(work: Path) -> list[str]:
    """Captions in the order of :func:`load_pictures`."""
    return [about["caption"] for about in _load_about(work)]


def load_scenes(work: Path) -> list[draw.Scene]:
    """Scenes in the order of :func:`load_pictures`."""
    return [draw.Scene(**about["scene"]) for about in _load_about(work)]


def to_signed(pictures: Tensor) -> Tensor:
    """uint8 [0, 255] to float [-1, 1]."""
    return pictures.float() / 127.5 - 1


# --------------------------------------------------------------------------------------------------------------
# Checkpoints: one safetensors file for all tensors, one json file for the counters.


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, log: dict) -> None:
    """Write ``path`` (.safetensors) and its .json atomically."""
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    tensors |= _optimizer_tensors(optimizer)
    partial = path.with_suffix(".part")
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, partial, log_meta(log))
    partial.replace(path)
    path.with_suffix(".json").write_text(json.dumps(log, indent=1))


def log_meta(log: dict) -> dict[str, str]:
    """The counters as safetensors metadata, so that tensors and counters stay together."""
    return {"step": str(log["step"]), "seconds": f"{log['seconds']:.1f}"}


def load_checkpoint(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer | None) -> dict:
    """Restore what :func:`save_checkpoint` wrote; an empty log if there is none."""
    if not path.exists():
        return {"step": 0, "seconds": 0.0, "history": []}
    tensors = load_file(path)
    for name, module in modules.items():
        prefix = name + "."
        module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    if optimizer is not None:
        _restore_optimizer(optimizer, tensors)
    return json.loads(path.with_suffix(".json").read_text())


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total: int, warmup: int) -> None:
    """Linear warm-up, then a cosine down to a fiftieth of each group's peak."""
    progress = min(1.0, step / max(1, total))
    factor = min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


class Average:
    """Exponential moving average of a module's weights, with a ramp at the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(source.parameters()), weight)


# --------------------------------------------------------------------------------------------------------------
# Autoencoder


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the pixels, of their 4 x 4 averages and of neighbour differences, images (N, 3, H, W).

    Without a perceptual network the plain L1 gives up colour first; the averages keep it, the differences keep edges.
    """
    across = (output.diff(dim=3) - target.diff(dim=3)).abs().mean()
    below = (output.diff(dim=2) - target.diff(dim=2)).abs().mean()
    coarse = F.l1_loss(F.avg_pool2d(output, 4), F.avg_pool2d(target, 4))
    return F.l1_loss(output, target) + 2.0 * coarse + 0.2 * (across + below)


def train_vae(args: argparse.Namespace) -> None:
    """Train encoder and decoder together with a tiny KL term."""
    torch.manual_seed(WORLD_SEED)
    pictures = load_pictures(args.work, args.shards)
    vae: Any = build_vae()
    optimizer = torch.optim.AdamW([{"params": vae.parameters(), "peak": 2e-3}], betas=(0.9, 0.99), weight_decay=0.0)
    path = args.work / "vae.safetensors"
    log = load_checkpoint(path, {"vae": vae}, optimizer)
    generator = torch.Generator().manual_seed(WORLD_SEED + log["step"])
    started = time.time() - log["seconds"]
    for step in range(log["step"], args.steps):
        set_learning_rate(optimizer, step, args.steps, warmup=100)
        target = to_signed(pictures[torch.randint(len(pictures), (args.batch,), generator=generator)])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            output = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(output.float(), target) + args.kl * kl.float()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            log |= {"step": step + 1, "seconds": time.time() - started}
            log["history"].append([step + 1, round(loss.item(), 5), round(kl.item(), 3)])
            print(f"vae {step + 1} loss {loss.item():.4f} kl {kl.item():.2f} {log['seconds']:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            save_checkpoint(path, {"vae": vae}, optimizer, log)


@torch.no_grad()
def cache_latents(args: argparse.Namespace) -> None:
    """Encode every picture once: unscaled posterior means, fp16 (N, 4, 16, 16), and the scale measured on them."""
    vae: Any = build_vae().eval()
    load_checkpoint(args.work / "vae.safetensors", {"vae": vae}, None)
    pictures, encoded = load_pictures(args.work), []
    for batch in pictures.split(100):
        with torch.autocast("cpu", torch.bfloat16):
            encoded.append(vae.encode(to_signed(batch)).latent_dist.mean.half())
        if len(encoded) % 40 == 0:
            print(f"encoded {len(encoded) * 100}", flush=True)
    latents = torch.cat(encoded)
    scale = 1 / latents.float().std().item()
    save_file({"latents": latents}, args.work / "latents.safetensors", {"scale": f"{scale:.6f}"})
    (args.work / "latents.json").write_text(json.dumps({"scale": scale, "pictures": len(pictures)}))
    print(f"scaling_factor {scale:.4f}")


def train_decoder(args: argparse.Namespace) -> None:
    """Sharpen the decoder on the cached latents. The encoder, and so the U-Net's latents, stay unchanged."""
    torch.manual_seed(WORLD_SEED)
    pictures = load_pictures(args.work)
    vae: Any = build_vae()
    load_checkpoint(args.work / "vae.safetensors", {"vae": vae}, None)
    latents = load_file(args.work / "latents.safetensors")["latents"]
    jitter = 0.03 * latents.float().std()  # samples are never exact: do not let the decoder rely on it
    decoder = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    optimizer = torch.optim.AdamW([{"params": decoder.parameters(), "peak": 1e-3}], betas=(0.9, 0.99), weight_decay=0.0)
    path = args.work / "decoder.safetensors"
    log = load_checkpoint(path, {"vae": vae}, optimizer)
    generator = torch.Generator().manual_seed(WORLD_SEED + 7 + log["step"])
    started = time.time() - log["seconds"]
    for step in range(log["step"], args.steps):
        set_learning_rate(optimizer, step, args.steps, warmup=50)
        rows = torch.randint(len(pictures), (args.batch,), generator=generator)
        noise = torch.randn(args.batch, *latents.shape[1:], generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            output = vae.decode(latents[rows].float() + jitter * noise).sample
        loss = reconstruction_loss(output.float(), to_signed(pictures[rows]))
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            log |= {"step": step + 1, "seconds": time.time() - started}
            log["history"].append([step + 1, round(loss.item(), 5)])
            print(f"decoder {step + 1} loss {loss.item():.4f} {log['seconds']:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            save_checkpoint(path, {"vae": vae}, optimizer, log)


# --------------------------------------------------------------------------------------------------------------
# Text encoder + U-Net


def min_snr_weight(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """Min-SNR-gamma loss weight for epsilon prediction (Hang et al. 2023, eq. 6): min(SNR, gamma) / SNR."""
    snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
    return snr.clamp(max=gamma) / snr


def p2_weight(alphas_cumprod: Tensor, timesteps: Tensor, k: float = 0.2) -> Tensor:
    """P2 loss weight for epsilon prediction (Choi et al. 2022, eq. 8, gamma 1): 1 / (k + SNR).

    It favours the noise levels at which the layout of a picture is decided: patterns become orderly sooner.
    """
    return 1 / (k + alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps]))


class Trainer:
    """Joint training of the text encoder and the U-Net on cached latents."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(WORLD_SEED)
        self.args = args
        self.tokenizer = build_tokenizer()
        self.unet, self.text = build_unet(), build_text_encoder(self.tokenizer)
        self.averages = {
            "unet": Average(build_unet(), 0.999),
            "text": Average(build_text_encoder(self.tokenizer), 0.999),
        }
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.unet.parameters(), "peak": args.lr},
                {"params": self.text.parameters(), "peak": args.lr / 2},
            ],
            betas=(0.9, 0.99),
            weight_decay=0.0,  # decay would pull the spare words' untouched embeddings to zero
        )
        self.log = load_checkpoint(args.work / "unet.safetensors", self._modules(), self.optimizer)
        noising: Any = DDPMScheduler.from_config(build_scheduler().config)
        self.alphas_cumprod = noising.alphas_cumprod
        self._load_data()

    def _modules(self) -> dict[str, nn.Module]:
        averages = {f"average_{name}": average.module for name, average in self.averages.items()}
        return {"unet": self.unet, "text": self.text} | averages

    def _load_data(self) -> None:
        scale = json.loads((self.args.work / "latents.json").read_text())["scale"]
        self.latents = load_file(self.args.work / "latents.safetensors")["latents"] * scale
        captions = load_captions(self.args.work)
        ids = self.tokenizer(captions + [""], padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.tokens, self.empty = ids[:-1], ids[-1]

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scaled latents, float (B, 4, 16, 16), and token ids (B, 24), a tenth of them of the empty caption."""
        index = torch.randint(len(self.latents), (self.args.batch,), generator=generator)
        tokens = self.tokens[index].clone()
        tokens[torch.rand(len(index), generator=generator) < 0.1] = self.empty
        return self.latents[index].float(), tokens

    def _loss(self, generator: torch.Generator) -> Tensor:
        latents, tokens = self._batch(generator)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(1000, (len(latents),), generator=generator)
        kept = self.alphas_cumprod[timesteps][:, None, None, None]
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            context = self.text(tokens).last_hidden_state
            predicted = self.unet(noisy, timesteps, context).sample
        error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        weight = p2_weight if self.args.weight == "p2" else min_snr_weight
        return (error * weight(self.alphas_cumprod, timesteps)).mean()

    def _step(self, step: int, generator: torch.Generator) -> float:
        set_learning_rate(self.optimizer, step, self.args.steps, warmup=200)
        loss = self._loss(generator)
        loss.backward()
        nn.utils.clip_grad_norm_([*self.unet.parameters(), *self.text.parameters()], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.averages["unet"].update(self.unet, step)
        self.averages["text"].update(self.text, step)
        return loss.item()

    def run(self) -> None:
        """Train up to ``args.steps`` in total, writing a checkpoint every ``args.every`` steps."""
        started, losses = time.time() - self.log["seconds"], []
        generator = torch.Generator().manual_seed(WORLD_SEED + 1 + self.log["step"])
        for step in range(self.log["step"], self.args.steps):
            losses.append(self._step(step, generator))
            if (step + 1) % 100 == 0:
                self.log |= {"step": step + 1, "seconds": time.time() - started}
                self.log["history"].append([step + 1, round(float(np.mean(losses)), 5)])
                print(f"unet {step + 1} loss {np.mean(losses):.4f} {self.log['seconds']:.0f} s", flush=True)
                losses = []
            if (step + 1) % self.args.every == 0 or step + 1 == self.args.steps:
                self.log |= {"step": step + 1, "seconds": time.time() - started}
                save_checkpoint(self.args.work / "unet.safetensors", self._modules(), self.optimizer, self.log)


# --------------------------------------------------------------------------------------------------------------
# Export


def load_trained(work: Path) -> StableDiffusionPipeline:
    """The averaged weights of the work folder as a pipeline, fp32."""
    tokenizer = build_tokenizer()
    unet, text, vae = build_unet(), build_text_encoder(tokenizer), build_vae()
    load_checkpoint(work / "unet.safetensors", {"average_unet": unet, "average_text": text}, None)
    sharpened = work / "decoder.safetensors"
    load_checkpoint(sharpened if sharpened.exists() else work / "vae.safetensors", {"vae": vae}, None)
    vae.register_to_config(scaling_factor=round(json.loads((work / "latents.json").read_text())["scale"], 6))
    parts: dict[str, Any] = dict(  # diffusers' annotations allow none of the parts that may be left out
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
    )
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _write_for_both_transformers(folder: Path) -> None:
    """Spell what transformers 5 saved so that transformers 4 reads it too; 5 reads both spellings."""
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    edits = {
        folder / "text_encoder" / "config.json": {"dtype": "float32", "torch_dtype": "float32"},
        folder / "tokenizer" / "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        folder / "model_index.json": {"tokenizer": ["transformers", "PreTrainedTokenizerFast"]},
    }
    for path, values in edits.items():
        path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights as a diffusers folder in fp16, replacing only the model's own parts."""
    pipeline = load_trained(args.work).to(dtype=torch.float16)
    fresh = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    pipeline.save_pretrained(fresh, safe_serialization=True)
    _write_for_both_transformers(fresh)
    args.out.mkdir(parents=True, exist_ok=True)
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)  # some versions write them readable by their owner alone
    for part in sorted(fresh.iterdir()):
        target = args.out / part.name
        old = fresh.with_name(f"{fresh.name}.old")
        if target.is_dir():
            target.replace(old)
        part.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    fresh.rmdir()
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("render", "vae", "latents", "unet", "decoder", "export"))
    parser.add_argument("--work", type=Path, default=Path(".cache/world"), help="renders, caches and checkpoints")
    parser.add_argument("--out", type=Path, default=Path("apt_train/assets/drawn_world"), help="folder of the export")
    parser.add_argument("--steps", type=int, default=7000, help="total steps, those of earlier starts included")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of the U-Net")
    parser.add_argument("--weight", choices=("min-snr", "p2"), default="min-snr", help="loss weight by noise level")
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the autoencoder's KL term")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--shards", type=int, default=None, help="use only the first shards for the autoencoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="rendering processes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    stages = {
        "render": render,
        "vae": train_vae,
        "latents": cache_latents,
        "decoder": train_decoder,
        "export": export,
    }
    if args.stage == "unet":
        Trainer(args).run()
    else:
        stages[args.stage](args)


if __name__ == "__main__":
    main()
