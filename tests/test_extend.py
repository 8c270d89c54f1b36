"""The pages that show how to extend the trainer: each one's diff applies to the source, and a run trains with it.

The changed copy is imported under a name of its own, beside the real package. Not here: what the parts do (test_step).
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from apt_train.report.plots import part_figure
from apt_train.settings_field import flat_values
from apt_train.verdict.run_files import read_run
from tests.synthetic_run import write_run
from tests.tiny import scaled_linear_schedule, tiny_components
from tests.training import pictures, quick_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "extend"
SEED = 3  # whose first timestep has a signal-to-noise ratio above the limit


def changed_files(page: str) -> dict[str, str]:
    """Every file that the page's diff names, changed. A hunk is found by its content, which has to stand there once."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    files = {}
    for name, hunks in re.findall(r"^--- a/\S+\n\+\+\+ b/(\S+)\n(.*?)(?=^--- a/|\Z)", diff, re.DOTALL | re.MULTILINE):
        files[name] = (ROOT / name).read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            files[name] = _applied(files[name], hunk.splitlines(keepends=True))
    return files


def _applied(text: str, hunk: list[str]) -> str:
    old = "".join(line[1:] or "\n" for line in hunk if line[0] in " -")
    new = "".join(line[1:] or "\n" for line in hunk if line[0] in " +")
    assert text.count(old) == 1, f"stands there {text.count(old)} times:\n{old}"
    return text.replace(old, new)


def trained(module: Callable[[str], Any], **settings: Any) -> list[dict[str, Any]]:
    values = {**flat_values(quick_config(steps=3, watch_drift=False)), **settings}
    settings_of, kind, events = module("config").TrainConfig, module("events").StepEvent, []
    config = settings_of.from_dict(module("settings_field").nested(values, settings_of))
    module("training.train").train(tiny_components(), pictures(), config, device="cpu", on_event=events.append)
    return [event.log_line() for event in events if isinstance(event, kind)]


class Copy:
    """The trainer with a page's change, under another name."""

    def __init__(self, name: str, place: Path, page: str) -> None:
        self.name = name
        shutil.copytree(
            ROOT / "apt_train", place / name, ignore=shutil.ignore_patterns("__pycache__", "drawn_world*", "*.png")
        )
        for path, text in changed_files(page).items():
            compile(text, path, "exec")
            if path.startswith("apt_train/"):
                (place / name / path.removeprefix("apt_train/")).write_text(text, encoding="utf-8")

    def module(self, path: str) -> ModuleType:
        return importlib.import_module(f"{self.name}.{path}")

    def train(self, **settings: Any) -> list[dict[str, Any]]:
        """Three steps; the lines that the log would hold."""
        return trained(self.module, **settings)

    def help(self) -> str:
        commands = self.module("cli").build_parser()._subparsers._group_actions[0].choices
        return commands["run"].format_help()


@contextlib.contextmanager
def imported_copy(page: str, place: Path) -> Iterator[Copy]:
    name = f"apt_with_{page}"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        yield Copy(name, place, page)
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


@pytest.fixture
def copy(request: Any, tmp_path: Path, one_thread: None) -> Iterator[Copy]:
    with imported_copy(request.param, tmp_path) as copy:
        yield copy


@pytest.mark.parametrize("copy", ["term"], indirect=True)
def test_the_term_of_the_page_is_trained_with_and_logged(copy: Copy) -> None:
    with_it = copy.train(prior_pull_weight=0.5)
    without = copy.train(prior_pull_weight=0.0)
    assert [line["prior_pull"] for line in with_it][0] == 0 and all(line["prior_pull"] > 0 for line in with_it[1:])
    assert all("prior_pull" not in line for line in without)
    assert with_it[2]["loss"] != without[2]["loss"]
    assert "--prior-pull-weight" in copy.help()


@pytest.mark.parametrize("copy", ["term"], indirect=True)
def test_the_term_of_the_page_alone_measures_the_indicator(copy: Copy) -> None:
    off = dict(adaptive_augmentation=False, adaptive_loss_weight=False, stabilization=False, alignment=False)
    for weight in (0.5, 0.0):
        config = copy.module("config").TrainConfig.from_dict(
            {"class_word": "toy", "apt": {**off, "prior_pull_weight": weight}}
        )
        needed = copy.module("training.objective").objective_of(config).needs_prior(0)
        assert config.measures_indicator == needed == (weight > 0)


@pytest.mark.parametrize("copy", ["weighting"], indirect=True)
def test_the_weighting_of_the_page_multiplies_the_denoising_loss(copy: Copy) -> None:
    off = dict(adaptive_loss_weight=False, stabilization=False, alignment=False, batch_size=1, seed=SEED)
    with_it = copy.train(min_snr=5.0, **off)[0]
    without = copy.train(min_snr=0.0, **off)[0]
    alpha_bar = scaled_linear_schedule().alphas_cumprod[with_it["timestep"][0]].item()
    factor = min(1, 5.0 / (alpha_bar / (1 - alpha_bar)))
    assert factor < 1
    assert with_it["denoising"] == without["denoising"]
    assert with_it["loss"] == pytest.approx(factor * without["loss"])
    assert copy.train(min_snr=5.0, batch_size=1, seed=SEED, method="dreambooth")[0]["loss"] == with_it["loss"]
    assert "--min-snr" in copy.help()


@pytest.mark.parametrize("page", ["term", "weighting"])
def test_the_setting_of_a_page_opens_a_round_of_its_own(page: str) -> None:
    """Or its widget would stand before older ones, and shift the values of saved workflows."""
    before, after = (
        (ROOT / "apt_train/config.py").read_text(encoding="utf-8"),
        changed_files(page)["apt_train/config.py"],
    )
    rounds, changed = ([int(number) for number in re.findall(r"since=(\d+)", text)] for text in (before, after))
    assert len(changed) == len(rounds) + 1 and max(changed) == max(rounds) + 1


@pytest.mark.parametrize("copy", ["optimizer"], indirect=True)
def test_the_optimizer_of_the_page_is_trained_with(copy: Copy) -> None:
    nadam, adamw = (copy.train(optimizer=name) for name in ("nadam", "adamw"))
    assert nadam[0] == adamw[0] and nadam[2]["loss"] != adamw[2]["loss"]
    assert "nadam" in copy.help()


@pytest.mark.parametrize("copy", ["adapter"], indirect=True)
def test_the_kind_of_the_page_is_trained_with(copy: Copy) -> None:
    """What it does besides: test_adapter_kinds."""
    loha, lora = (copy.train(kind=name) for name in ("loha", "lora"))
    assert loha[0]["loss"] == lora[0]["loss"] and loha[2]["loss"] != lora[2]["loss"]
    assert "loha" in copy.help()


OWN_SETTINGS = [  # page, what is chosen, its setting, the line before which it is declared, and where it is read
    (
        "optimizer", ("optimizer", "nadam"), "momentum_decay", "    @property\n    def betas",
        ("optimizers.py", "NAdam(groups, ", "NAdam(groups, momentum_decay=settings.momentum_decay, "),
    ),
    (
        "adapter", ("kind", "loha"), "module_dropout", "    kind: str = _recipe(",
        ("adapter_kinds.py", "LoHaConfig(r=", "LoHaConfig(module_dropout=settings.module_dropout, r="),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("copy", "chosen", "name", "before", "read"), OWN_SETTINGS, indirect=["copy"])
def test_it_may_read_a_setting_of_its_own(
    copy: Copy, tmp_path: Path, chosen: tuple[str, str], name: str, before: str, read: tuple[str, str, str]
) -> None:
    """A field beside the others is all: the command line has it, and says where it has no effect."""
    seam, choice = chosen
    field = f"""    {name}: float = setting(
        0.004, "How much.", Range(0, 1), since=7, needs="{seam}={choice}", widget=Widget(step=0.001)
    )

"""
    for file, old, new in (("config.py", before, field + before), read):
        path = tmp_path / copy.name / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
    plain, other = (copy.train(**{seam: choice, name: value}) for value in (0.004, 0.5))
    assert plain[0]["loss"] == other[0]["loss"] and plain[2]["loss"] != other[2]["loss"]
    assert plain[0] == other[0] or seam == "kind"  # dropout acts on the first gradient
    assert copy.train(**{name: 0.5}) == copy.train()
    option = f"--{name.replace('_', '-')}"
    assert option in copy.help()
    given = f"run --checkpoint m --images p --class-word toy --output o {option} 0.5".split()
    options = copy.module("cli").build_parser().parse_args(given)
    console = copy.module("console.options")
    said = list(console.unread(options, console.config_from(options)))
    assert said == [f"{option} does nothing with --{seam} {'adamw' if seam == 'optimizer' else 'lora'}."]


@pytest.mark.parametrize("copy", ["number"], indirect=True)
def test_the_number_of_the_page_is_logged_and_drawn_and_changes_nothing_else(copy: Copy, tmp_path: Path) -> None:
    with_it = copy.train()
    norms = [line.pop("numbers")["weight_norm"] for line in with_it]
    assert len(set(norms)) == 3 and all(norm > 0 for norm in norms)
    assert with_it == trained(lambda path: importlib.import_module(f"apt_train.{path}"))
    folder = write_run(tmp_path / "run", [{**line, "numbers": {"weight_norm": 1.0}} for line in with_it])
    figure = part_figure("losses", read_run(folder))
    assert "Weight norm" in [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize("copy", ["term", "weighting"], indirect=True)
def test_the_new_setting_at_its_default_is_no_other_run(copy: Copy) -> None:
    made = copy.module("config").TrainConfig.from_dict(quick_config().to_dict())
    assert made.identity() == quick_config().identity()
