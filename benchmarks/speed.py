"""What a training step costs: each method against a bare loop of diffusers, peft and AdamW, in turn.

    python dev.py bench speed [--rounds 10] [--model embedded|sd15] [--name NAME] [--short]

Every round takes `CYCLE` steps of each way to train, one step of each in turn, so other load on the machine affects all
of them. It counts this process's CPU seconds on one thread. A ratio is of two sums in one round. Median and quartiles
are over rounds. Augmentation is off: its variants are encoded once, in a run's first steps, and would look like a cost
of every step. The subject is a plain word, so the text encoders have finished before.

In: time. Not in: memory (memory.py), a GPU's time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import diffusers
import peft
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from apt_train.config import AdapterConfig, AptConfig, Method, OptimizerConfig, TrainConfig
from apt_train.data.dataset import load_images
from apt_train.demo.recipe import DEMO, MODEL
from apt_train.disk.files import write_text
from apt_train.families.components import Components, Family, TextEncoder
from apt_train.families.load import load_checkpoint
from apt_train.families.sd.published import load_family
from apt_train.families.sd.schedule_config import schedule_from_config
from apt_train.training.plan import plan_run
from apt_train.training.running import Run
from apt_train.training.setup import prepared_run
from apt_train.training.update import optimizer_step

RESULTS = Path(__file__).parent / "results" / "speed"
ModelName = Literal["embedded", "sd15", "short"]
Step = Callable[[], object]
STEADY: dict[str, Any] = {"adaptive_augmentation": False, "balance_every": 0}
WAYS: dict[str, tuple[Method, int]] = {
    "DreamBooth": ("dreambooth", 1),
    "DCO": ("dco", 1),
    "APT": ("apt", 1),
    "APT, lazy prior 2": ("apt", 2),
    "APT, lazy prior 4": ("apt", 4),
}
BARE, NETWORK, CYCLE = "bare loop", "network alone", 4  # after this many steps every lazy prior has run
RATIOS = {
    "DreamBooth : bare loop": ("DreamBooth", BARE),
    "DCO : DreamBooth": ("DCO", "DreamBooth"),
    "APT : DreamBooth": ("APT", "DreamBooth"),
    "APT, lazy prior 2 : DreamBooth": ("APT, lazy prior 2", "DreamBooth"),
    "APT, lazy prior 4 : DreamBooth": ("APT, lazy prior 4", "DreamBooth"),
}
REST = "not the network, of an APT step"


def main() -> None:
    options = asked(__doc__ or "", RESULTS, 10)
    cycle = 1 if options.short else CYCLE
    torch.set_num_threads(1)
    found = {name: measured(name, options.rounds, cycle) for name in options.model}
    print(table(found), end="")
    keep(RESULTS, options.name, {"machine": machine(), "rounds": options.rounds, "models": found})


def keep(folder: Path, name: str | None, values: dict[str, Any]) -> None:
    """Write what was measured as NAME.json; None: it is only printed."""
    if name:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{name}.json", json.dumps(values, indent=1) + "\n")


def asked(description: str, results: Path, rounds: int) -> argparse.Namespace:
    """The command line of a benchmark of time: `rounds`, `model` and `name`, or `short`."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--model", choices=("embedded", "sd15"), nargs="+", default=["embedded", "sd15"])
    parser.add_argument("--name", help=f"also write benchmarks/results/{results.name}/NAME.json")
    parser.add_argument("--short", action="store_true", help="two rounds on a tiny network: does it run?")
    options = parser.parse_args()
    if options.short:
        options.rounds, options.model = 2, ["short"]
    return options


def compare(
    description: str,
    results: Path,
    measured: Callable[[ModelName, int], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """A benchmark of time that measures each model by itself: (model, rounds) -> values, {model: values} -> a table."""
    options = asked(description, results, 12)
    torch.set_num_threads(1)
    found = {name: measured(name, options.rounds) for name in options.model}
    print(table(found), end="")
    keep(results, options.name, {"machine": machine(), "rounds": options.rounds, "models": found})


def ratios(steps: dict[str, Step], base: str, rounds: int) -> dict[str, list[float]]:
    """Lower quartile, median and upper quartile of each step's ratio to that of `base`, after a warm-up."""
    seconds = [one_round(steps, 1) for _ in range(rounds + 1)][1:]
    found = {title: [one[title] / one[base] for one in seconds] for title in steps if title != base}
    return {title: [round(value, 4) for value in statistics.quantiles(all_, n=4)] for title, all_ in found.items()}


def machine() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, diffusers, peft)},
        "processor": platform.machine(),
        "threads": "1",
    }


def measured(name: ModelName, rounds: int, cycle: int = CYCLE) -> dict[str, list[float]]:
    """Lower quartile, median and upper quartile of each ratio, after one warm-up round."""
    with contextlib.ExitStack() as stack:
        steps: dict[str, Step] = {BARE: stack.enter_context(bare_loop(name))}
        for way, (method, lazy) in WAYS.items():
            run = stack.enter_context(prepared(name, method, lazy))
            steps[way] = lambda run=run: optimizer_step(run)
            if way == "APT":
                steps[NETWORK] = network_alone(run)
        seconds = [one_round(steps, cycle) for _ in range(rounds + 1)][1:]
    ratios = {title: [one[a] / one[b] for one in seconds] for title, (a, b) in RATIOS.items()}
    ratios[REST] = [1 - one[NETWORK] / one["APT"] for one in seconds]
    return {title: [round(value, 4) for value in statistics.quantiles(all_, n=4)] for title, all_ in ratios.items()}


def one_round(steps: dict[str, Step], cycle: int) -> dict[str, float]:
    """CPU seconds of `cycle` steps of each way, taken in turn."""
    seconds = dict.fromkeys(steps, 0.0)
    for _ in range(cycle):
        for name, step in steps.items():
            started = time.process_time()
            step()
            seconds[name] += time.process_time() - started
    return seconds


# -- what is measured


@contextlib.contextmanager
def prepared(name: ModelName, method: Method, lazy_prior: int, **settings: Any) -> Iterator[Run]:
    """A run of this project."""
    config = TrainConfig(
        class_word="toy",
        identifier_mode="word",
        method=method,
        apt=AptConfig(**STEADY, lazy_prior=lazy_prior),
        optimizer=OptimizerConfig(batch_size=1),
        **settings,
    )
    with prepared_run(plan_run(components(name), _pictures(), config, device="cpu"), lambda text: None) as run:
        yield run


@contextlib.contextmanager
def bare_loop(name: ModelName) -> Iterator[Step]:
    """The same network, layers and batch in a tutorial's loop, without this project's code."""
    unet: Any = components(name).unet.float().requires_grad_(False)
    settings = AdapterConfig()
    lora = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]
    )
    unet.add_adapter(lora)
    unet.train()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=1e-4)
    schedule: Any = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, text = _latents(name), _text(name, unet)

    def step() -> None:
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (1,))
        noisy = schedule.add_noise(latents, noise, timesteps)
        prediction = unet(noisy, timesteps, encoder_hidden_states=text).sample
        optimizer.zero_grad(set_to_none=True)
        nn.functional.mse_loss(prediction, noise).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    yield step


def network_alone(run: Run) -> Step:
    """The network's part of an APT step: the prior's pass, the tuned model's pass, and its backward pass."""
    batch = run.inputs.subject.draw(torch.zeros(1), 0, count=1, batch_size=1, device=run.device)[0]
    text, ones = run.inputs.conditioner.encode(batch.captions, tuned=True), torch.ones_like(batch.latents)
    adapter, trained = run.adapter, list(run.trainable.values())

    def step() -> None:
        with run.compiled.used():
            with torch.no_grad(), adapter.disabled():
                run.training_step.predict(batch.latents, batch, text)
            torch.autograd.grad(run.training_step.predict(batch.latents, batch, text), trained, ones)

    return step


# -- on which networks


def components(name: ModelName) -> Components:
    """The embedded model; a network of SD1.5's shape with a fifth of its widths at 256 pixels; one of a few weights."""
    if name == "embedded":
        return load_checkpoint(MODEL)
    widths, side, width = ((64, 128, 288, 288), 256, 768) if name == "sd15" else ((32, 32), 64, 48)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=(*["CrossAttnDownBlock2D"] * (len(widths) - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (len(widths) - 1)),
        cross_attention_dim=width,
        attention_head_dim=8,
    )
    draws = torch.Generator().manual_seed(0)
    return Components(
        unet=unet.eval(),
        text_encoders=[_text_encoder(width)],
        encode=lambda images: (torch.randn(1, 4, *(n // 8 for n in images.shape[2:]), generator=draws), None),
        decode=lambda latents: latents[:, :3],
        schedule=schedule_from_config(load_family("sd15").scheduler),
        family=Family("sd15", side, vae_factor=8),
    )


def _text_encoder(width: int) -> TextEncoder:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL / "tokenizer", model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width, num_hidden_layers=1,
        num_attention_heads=12, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return TextEncoder(CLIPTextModel(config).eval(), tokenizer)


def _pictures() -> Any:
    return load_images(DEMO / "subject")


def _latents(name: ModelName) -> Tensor:
    parts = components(name)
    side = parts.family.resolution // parts.family.vae_factor
    return torch.randn(1, parts.network.latent_channels(parts.unet), side, side)


def _text(name: ModelName, unet: Any) -> Tensor:
    length = components(name).text_encoders[0].tokenizer.model_max_length
    return torch.randn(1, length, unet.config["cross_attention_dim"])


# -- what is printed


def table(found: dict[str, dict[str, list[float]]]) -> str:
    return ratio_table(found, [*RATIOS, REST])


def ratio_table(found: dict[str, dict[str, list[float]]], titles: list[str]) -> str:
    """A row per ratio, a column per model: the median, and the quartiles in brackets."""
    head = f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}\n"
    rows = [f"| {title} | {' | '.join(cell(one[title]) for one in found.values())} |\n" for title in titles]
    return head + "".join(rows)


def cell(quartiles: list[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f} - {high:.2f})"


if __name__ == "__main__":
    main()
