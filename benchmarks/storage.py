"""What each way to store the frozen base rounds off, and what a step on it costs. One step of each in turn.

    python dev.py bench storage [--rounds 12] [--model embedded|sd15] [--name NAME] [--short]

An error is a root mean square, as a share of what it is an error of. A step is an APT step (`speed.prepared`), in this
process's CPU seconds on one thread. In: rounding, time. Not in: memory (memory.py), quality (quality/), a GPU's time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from apt_train.config import Storage
from apt_train.families.storage import stored
from apt_train.training.running import Run
from apt_train.training.update import optimizer_step
from benchmarks import speed

RESULTS = speed.RESULTS.parent / "storage"
DRAWS = 8  # noisy latents whose predictions are compared
FULL, *ROUNDED = cast("tuple[Storage, ...]", get_args(Storage))
ERRORS = ("normal weights", "weights", "prediction")


def main() -> None:
    speed.compare(__doc__ or "", RESULTS, measured, table)


def measured(name: speed.ModelName, rounds: int) -> dict[str, dict[str, Any]]:
    """By storage: the three errors, and a step's time as quartiles of its ratio to a step on the full base."""
    with contextlib.ExitStack() as stack:
        runs = {way: stack.enter_context(speed.prepared(name, "apt", 1, base_storage=way)) for way in (FULL, *ROUNDED)}
        predicted = {way: predictions(run) for way, run in runs.items()}
        steps: dict[str, Callable[[], object]] = {way: partial(optimizer_step, run) for way, run in runs.items()}
        ratios = speed.ratios(steps, FULL, rounds)
    return {
        way: {
            "normal weights": round(error_of_normal(way), 5),
            "weights": round(error_of(speed.components(name).unet, way), 5),
            "prediction": round(_share(predicted[way], predicted[FULL]), 5),
            "step": ratios[way],
        }
        for way in ROUNDED
    }


def predictions(run: Run) -> Tensor:
    """The prior's predictions for the same noisy latents and captions, whatever the storage."""
    found: list[Tensor] = []
    with torch.no_grad(), run.adapter.disabled():
        for place in range(DRAWS):
            batch = run.inputs.subject.draw(torch.zeros(1), place, count=1, batch_size=1, device=run.device)[0]
            noisy = run.plan.components.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
            text = run.inputs.conditioner.encode(batch.captions, tuned=False)
            found.append(run.training_step.predict(noisy, batch, text))
    return torch.cat(found)


def error_of_normal(way: str) -> float:
    """Of rows as long as SDXL's, drawn from normal distributions. Their deviations run through an octave, as a storage
    may suit one better than another."""
    layer = nn.Linear(1280, 1280, bias=False)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    layer.weight.data *= 0.02 * 2 ** torch.linspace(0, 1, len(layer.weight))[:, None]
    return error_of(nn.Sequential(layer.requires_grad_(False)), way)


def error_of(network: nn.Module, way: str) -> float:
    """Of all weights that are stored, together."""
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    with stored(network, way, torch.float32):
        pass
    after = {name: parameter for name, parameter in network.named_parameters() if not parameter.equal(before[name])}
    return _share(*(torch.cat([one[name].flatten() for name in after]) for one in (after, before)))


def _share(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A row per model and storage: errors in percent, and the median time of a step with the quartiles in brackets."""
    rows = [
        f"| {name} | {way} | {' | '.join(f'{one[title]:.1%}' for title in ERRORS)} | {speed.cell(one['step'])} |\n"
        for name, ways in found.items()
        for way, one in ways.items()
    ]
    return f"| | | {' | '.join(ERRORS)} | step : full |\n|---|---|---|---|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    main()
