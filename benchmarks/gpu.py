"""One command on one GPU, about eight minutes: a step's time, its memory, and whether the results are right.

    python dev.py bench gpu [--name NAME]     also writes benchmarks/results/gpu/NAME.json
    python dev.py bench gpu --tiny            the same on tiny networks, also on the CPU: does it run?

The published architectures with random weights. Nothing is downloaded. Measured: a matmul as the card's ceiling. For
each model and way to train, seconds per step, peak memory and the share of the ceiling. Whether the embedded model
trains as on the CPU, resumes, and trains in half precision. The tests marked `gpu`. In: measuring. Not in: quality.
"""

from __future__ import annotations

import argparse
import functools
import gc
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import diffusers
import peft
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from apt_train.adapter import Adapter, add_adapter
from apt_train.config import AdapterConfig, AptConfig, DataConfig, OutputConfig, Precision, TrainConfig
from apt_train.data.dataset import ImageSet, load_images
from apt_train.demo.recipe import DEMO, MODEL
from apt_train.families.components import Components
from apt_train.families.load import load_checkpoint
from apt_train.families.network import TextInput
from apt_train.families.precision import DTYPES, resolve_dtype
from apt_train.families.sd.network import reads_size_ids
from apt_train.families.vae_codec import VaeCodec
from apt_train.presets import PRESETS
from apt_train.training.live_bytes import META
from apt_train.training.memory import Savings
from apt_train.training.plan import plan_run
from apt_train.training.running import Run
from apt_train.training.setup import prepared_run
from apt_train.training.train import train
from apt_train.training.update import optimizer_step
from benchmarks import layout, speed
from benchmarks.memory import published, sd_unet

Name = Literal["tiny", "sd15", "sdxl"]
RESULTS = Path(__file__).parent / "results" / "gpu"
# Each with the share of the time after which no more of its rows begin, or a slow card would measure the first alone.
CASES: tuple[tuple[Name, int, float], ...] = (("sdxl", 1024, 0.6), ("sdxl", 512, 0.8), ("sd15", 512, 1.0))
TINY: tuple[tuple[Name, int, float], ...] = (("tiny", 64, 1.0),)
WAYS: dict[str, dict[str, Any]] = {
    "DreamBooth": {"method": "dreambooth"},
    "APT": {"method": "apt"},
    "APT, lazy prior 4": {"method": "apt", "lazy_prior": 4},
}
LOW_MEMORY: dict[str, Any] = {"base_storage": PRESETS["low memory"].values["base_storage"]}  # else as every row
WARM_UP, STEPS, MOST_SECONDS = 2, 8, 420.0


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("bench gpu: no CUDA device is here: give --tiny to see whether it runs.")
    began = time.monotonic()
    values: dict[str, Any] = {"machine": machine(device), "ceiling": ceilings(device, 256 if options.tiny else 8192)}
    values["agreement"] = _tried(lambda: agreement(device, steps=4 if options.tiny else 40))
    values["tests"] = None if options.tiny else _tried(marked_tests)
    values["steps"] = []
    cases = TINY if options.tiny else CASES
    for is_compiled in (False, True):  # last, as compiling takes minutes
        for name, side, share in cases:
            until = began + MOST_SECONDS * (1 if is_compiled else share)
            for row in steps_of(name, side, device, values["ceiling"], until, is_compiled):
                values["steps"].append(row)
                print(_line(row), file=sys.stderr, flush=True)
                values["seconds"] = round(time.monotonic() - began, 1)
                speed.keep(RESULTS, options.name, values)  # each time, as a device may be taken away
    print(report(values), end="")


def _tried(work: Callable[[], Any]) -> Any:
    """What `work` returns, or why it failed: the minutes on a device are worth what else they give."""
    try:
        return work()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--tiny", action="store_true", help="networks of a few weights, on the CPU where there is no GPU"
    )
    parser.add_argument("--name", help="also write benchmarks/results/gpu/NAME.json")
    return parser.parse_args()


def machine(device: torch.device) -> dict[str, str]:
    """Card, driver and versions."""
    found = {module.__name__: module.__version__ for module in (torch, diffusers, peft)}
    found |= {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d"), "card": platform.machine()}
    if device.type == "cuda":
        found |= {"card": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda), "driver": _driver()}
    return found


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# -- the ceiling


def ceilings(device: torch.device, side: int) -> dict[str, float]:
    """Operations per second of a square matmul, by type."""
    names = ("bf16", "fp16", "fp32") if device.type == "cuda" else ("bf16", "fp32")
    return {name: _matmul_rate(device, DTYPES[name], side) for name in names}


def _matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = _seconds(lambda: left @ right, device, WARM_UP, STEPS)
    return 2 * side**3 / seconds


def _seconds(step: Callable[[], object], device: torch.device, warm_up: int, count: int) -> float:
    """Median of single steps, with a synchronization after each."""
    taken = []
    for _ in range(warm_up + count):
        started = time.perf_counter()
        step()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[warm_up:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- is it right


def agreement(device: torch.device, steps: int) -> dict[str, Any]:
    """The embedded model with the same seed on the CPU and on the device, resumed there, and in half precision.

    `lora`: the largest difference between the LoRAs over their largest weight. The others are mean losses.
    """
    here = _trained("cpu", "fp32", steps)
    there = _trained(device, "fp32", steps)
    with tempfile.TemporaryDirectory() as folder:
        _trained(device, "fp32", steps // 2, folder)
        resumed = _trained(device, "fp32", steps, folder, resume=True)
    halves: tuple[Precision, ...] = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    return {
        "steps": steps,
        "lora": _difference(here.lora, there.lora),
        "lora, resumed": _difference(there.lora, resumed.lora),
        "loss": {"cpu": statistics.fmean(here.losses), "device": statistics.fmean(there.losses)}
        | {name: statistics.fmean(_trained(device, name, steps).losses) for name in halves},
    }


def _trained(device: Any, precision: Precision, steps: int, folder: str | None = None, resume: bool = False) -> Any:
    config = TrainConfig(
        class_word="toy", steps=steps, precision=precision, adapter=AdapterConfig(rank=4),
        apt=AptConfig(augment_variants=4, balance_every=0), output=OutputConfig(watch_drift=False),
    )  # fmt: skip
    images = load_images(DEMO / "subject")
    place = Path(folder) / "run" if folder else None
    return train(load_checkpoint(MODEL), images, config, device=device, output_dir=place, resume=resume)


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    largest = max(float(tensor.abs().max()) for name, tensor in one.items() if not name.endswith("alpha"))
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def marked_tests() -> str:
    """The last output line of the tests marked `gpu`."""
    asked = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests/test_gpu.py"]
    return subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=120).stdout.strip().rpartition("\n")[2]


# -- what a step costs


@dataclass(frozen=True)
class On:
    """What is trained, the side of its pictures, the device and the precision."""

    parts: Components
    side: int
    device: torch.device
    dtype: torch.dtype


def steps_of(
    name: Name, side: int, device: torch.device, ceiling: dict[str, float], until: float, is_compiled: bool
) -> Iterator[dict[str, Any]]:
    """A row per way to train, with and without recomputing, or those that compile. None begins after `until`."""
    if time.monotonic() > until:
        return
    dtype = resolve_dtype("auto", device)
    rate = ceiling[next(key for key, value in DTYPES.items() if value == dtype)]
    work, rows, on = operations(name, side), [], On(model(name, device), side, device, dtype)
    for checkpointing in (False, True):
        rows += [("bare loop", {}, checkpointing), *((way, WAYS[way], checkpointing) for way in WAYS)]
    rows.append(("APT, low memory", LOW_MEMORY, True))
    rows.append(("APT, one part recomputed", {"savings": Savings(1)}, True))
    everything, blocks = on.parts.network.checkpoint_parts(on.parts.unet), on.parts.network.blocks(on.parts.unet)
    rows.append(("APT, blocks aside", {"savings": Savings(everything, blocks_aside=len(blocks))}, True))
    changed = {title: settings for title, settings in layout.CHANGES.items() if settings}
    rows += [(f"DreamBooth, {title}", WAYS["DreamBooth"] | settings, True) for title, settings in changed.items()]
    for way, settings, checkpointing in rows:
        if time.monotonic() > until:
            break
        if settings.get("compile_blocks", False) == is_compiled:
            row = {"model": name, "side": side, "way": way, "checkpointing": checkpointing}
            yield row | _row(on, settings, checkpointing, work / rate)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _row(on: On, settings: dict[str, Any], checkpointing: bool, least: float) -> dict[str, Any]:
    """`least`: the seconds of one forward and backward pass of the network at the ceiling.

    `utilisation`: `least` over the seconds of a whole step, whatever else the step does.
    """
    try:
        with _steps(on, settings, checkpointing) as (step, run):
            if on.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(on.device)  # the VAE has encoded the pictures, and left
            seconds = _seconds(step, on.device, WARM_UP, STEPS)
            in_step = _peak(on.device)
            if run is not None:
                run.inputs.subject.bank.ensure_variants(1)
    except torch.cuda.OutOfMemoryError:
        return {"seconds": None, "bytes": None, "failed": "out of memory"}
    except Exception as error:  # no compiler, or numbers that are none; the other rows are worth keeping
        return {"seconds": None, "bytes": None, "failed": type(error).__name__, "why": str(error)[:300]}
    return {
        "seconds": seconds, "bytes": in_step, "bytes_encoding": _peak(on.device), "utilisation": least / seconds,
        "estimated": None if run is None or run.plan.memory is None else run.plan.memory.in_step,
    }  # fmt: skip


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@contextmanager
def _steps(on: On, settings: dict[str, Any], checkpointing: bool) -> Iterator[tuple[Callable[[], object], Run | None]]:
    parts = replace(on.parts, rounded_to=None, stored_as="full")  # random weights: how often does not matter
    if not settings:
        try:
            yield bare_step(on, checkpointing), None
        finally:
            Adapter(parts.unet).remove()
            sd_unet(parts)._hf_peft_config_loaded = False
            parts.network.checkpoint(parts.unet, 0)
            nn.Module.to(parts.unet.eval(), "cpu")
        return
    settings = dict(settings)
    savings = settings.pop("savings", None)
    # Steady: augmented pictures would be encoded in the first steps only, and pass for a cost of every step.
    apt = AptConfig(adaptive_augmentation=True, balance_every=0, lazy_prior=settings.pop("lazy_prior", 1), p_max=0)
    config = TrainConfig(
        class_word="toy", gradient_checkpointing=checkpointing, apt=apt, data=DataConfig(resolution=on.side),
        output=OutputConfig(watch_drift=False), **settings,
    )  # fmt: skip
    images = ImageSet.from_tensors([torch.rand(on.side, on.side, 3) for _ in range(2)])
    plan = plan_run(parts, images, config, device=on.device)
    if savings is not None:
        vars(plan)["savings"] = savings  # which else depends on the free memory
    _ = plan.event
    with prepared_run(plan, lambda text: None) as run:
        yield lambda: optimizer_step(run), run


def bare_step(on: On, checkpointing: bool) -> Callable[[], None]:
    """diffusers, peft and AdamW alone."""
    parts, device, dtype = on.parts, on.device, on.dtype
    unet: Any = nn.Module.to(parts.unet.requires_grad_(False), device, dtype)
    rank = AdapterConfig().rank
    unet.add_adapter(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    unet.train()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    parts.network.checkpoint(unet, parts.network.checkpoint_parts(unet) * checkpointing)
    optimizer = torch.optim.AdamW(trained, lr=5e-5)
    noisy, text = _inputs(parts, on.side, device)

    def step() -> None:
        times = torch.randint(1000, (1,), device=device)
        with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
            prediction = parts.network.predict(unet, noisy, times, text, dtype)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.mse_loss(prediction, noisy).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    return step


def _inputs(parts: Components, side: int, device: torch.device) -> tuple[Tensor, TextInput]:
    unet: Any = parts.unet
    latent = side // parts.family.vae_factor
    pooled = geometry = None
    if reads_size_ids(unet):
        pooled, geometry = torch.zeros(1, 1280, device=device), torch.zeros(1, 6, device=device)
    noisy = torch.zeros(1, parts.network.latent_channels(unet), latent, latent, device=device)
    return noisy, TextInput(torch.zeros(1, 77, unet.config["cross_attention_dim"], device=device), pooled, geometry)


@functools.cache  # asked twice for every case
def operations(name: Name, side: int) -> float:
    """Operations of one forward and backward pass of the network with its LoRA, counted on the meta device."""
    parts = speed.components("short") if name == "tiny" else published(name)
    if name == "tiny":
        add_adapter(parts.unet.to(META), AdapterConfig(alpha=1))
    noisy, text = _inputs(parts, side, META)
    times, dtype = torch.zeros(1, dtype=torch.int64, device=META), sd_unet(parts).conv_in.weight.dtype
    with FlopCounterMode(display=False) as counter:
        parts.network.predict(parts.unet.train(), noisy, times, text, dtype).sum().backward()
    return float(counter.get_total_flops())


def model(name: Name, device: torch.device) -> Components:
    """With random weights drawn on the device, moved to the CPU. Its VAE is float32."""
    if name == "tiny":
        return speed.components("short")
    parts = published(name)
    Adapter(parts.unet).remove()
    assert parts.vae is not None
    for module in (parts.unet, parts.vae, *(encoder.model for encoder in parts.text_encoders)):
        _fill(module, device)
    codec = VaeCodec(cast("AutoencoderKL", parts.vae))
    return replace(parts, encode=codec.encode, decode=codec.decode)


def _fill(module: nn.Module, device: torch.device) -> None:
    module.to_empty(device=device)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if "position_ids" in name:
            tensor.data.copy_(torch.arange(tensor.numel()).view_as(tensor))
        elif tensor.is_floating_point():
            ones = name.endswith("weight") and tensor.dim() == 1  # of norms
            tensor.data.fill_(1.0) if ones else tensor.data.normal_(0, 0.02)
    nn.Module.to(module, "cpu")


# -- what is printed


def report(values: dict[str, Any]) -> str:
    """Tables for a page."""
    card = ", ".join(f"{name} {value}" for name, value in values["machine"].items())
    rates = ", ".join(f"{name} {value / 1e12:.1f}" for name, value in values["ceiling"].items())
    agree = values["agreement"]
    lines = [
        f"{card}.", "", f"A matmul reaches, in TFLOP/s: {rates}.", "",
        f"Agreement failed: {agree['failed']}." if "failed" in agree else _agreement_line(agree), "",
        f"Tests marked gpu: {values['tests'] or 'not run'}.", "",
        "| model | pixels | way | checkpointing | s / step | GiB | estimated | with the VAE | of the matmul |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    return "\n".join([*lines, *map(_line, values["steps"])]) + "\n"


def _agreement_line(agree: dict[str, Any]) -> str:
    losses = ", ".join(f"{name} {value:.4f}" for name, value in agree["loss"].items())
    return (
        f"After {agree['steps']} steps the LoRA differs from the CPU's by {agree['lora']:.1e} of its largest weight, "
        f"and one that was resumed by {agree['lora, resumed']:.1e}. Mean losses: {losses}."
    )


def _line(row: dict[str, Any]) -> str:
    cells = [row["model"], row["side"], row["way"], "on" if row["checkpointing"] else "off"]
    if row["seconds"] is None:
        return "| " + " | ".join(map(str, [*cells, row["failed"], "-", "-", "-", "-"])) + " |"
    sizes = [_gib(row[key]) for key in ("bytes", "estimated", "bytes_encoding")]
    return "| " + " | ".join(map(str, [*cells, f"{row['seconds']:.3f}", *sizes, f"{row['utilisation']:.0%}"])) + " |"


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f}"


if __name__ == "__main__":
    main()
