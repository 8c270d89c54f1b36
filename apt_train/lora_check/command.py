"""`apt-train inspect`: its options, and a check-up from files to files.

Nothing heavy is imported before the command runs. Not in: the check-up itself (`check_up`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..events import BusyEvent
from ..paths import expanded, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.dataset import ImageSet
    from ..families.components import Components
    from .check_up import Busy
    from .findings import CheckUp
    from .lora_file import LoraFile


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `inspect`. Numbers that cannot be are left to the check-up, which says it better."""
    add = parser.add_argument
    add("file", help="the LoRA, a .safetensors from APT Train or any other trainer (LoRA, LoCon, DoRA, LoHa, LoKr)")
    add("--checkpoint", required=True, help="the model it is for: a diffusers folder or a .safetensors (SD1.5, SDXL)")
    add("--images", help="folder of the pictures it was trained on, with X.txt captions beside them")
    add("--class-word", default="", help="what its subject is, such as dog (default: as the LoRA says)")
    add("--trigger", default="", help="what a prompt must say for it (default: as the LoRA says, or the class word)")
    add("--embedding", help="the learned word's file (default: NAME_embedding.safetensors beside the LoRA)")
    add("--prompt", default="", help='what samples show, with {subject} (default: "a photo of {subject}")')
    add("--unrelated", nargs="+", default=(), metavar="TEXT", help="prompts about other things (default: four of ours)")
    add("--strengths", nargs="+", type=float, metavar="NUMBER", help="strengths to try (default: 0.4 0.6 0.8 1.0 1.2)")
    add("--draws", type=int, default=2, help="noises per picture and noise level; more is surer (default: 2)")
    add("--sample-steps", type=int, default=20, help="sampling steps of each sample; 0: none (default: 20)")
    add("--seed", type=int, default=0, help="of the samples (default: 0)")
    add("--resolution", type=int, help="pixels of a side (default: the model's own)")
    add("--precision", default="auto", metavar="auto|fp32|bf16|fp16", help="auto: fp16 on a GPU, else fp32")
    add("--background", default="white", help="colour under transparent pictures (default: white)")
    add("--tokenizer", help="folder of the CLIP vocabulary, for a single file")
    add("--vae", help="a VAE to use instead of the model's own")
    add("--prediction-type", choices=("epsilon", "v_prediction"), help="for a file that does not say so itself")
    add(
        "--zero-terminal-snr",
        action=argparse.BooleanOptionalAction,
        help="whether the noise schedule ends in pure noise, for a v-prediction file that does not say so itself",
    )
    add("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    add("--out", help="folder for the sheet and the numbers (default: the next free runs/inspect-N)")


def inspect(options: argparse.Namespace, output: Path) -> int:
    """Look the LoRA over, print the verdict, and write `check_up.png` and `check_up.json` into `output`."""
    from ..console.progress import Progress
    from .lora_file import read_lora
    from .verdict import paragraphs

    lora = read_lora(options.file)  # refused before gigabytes are read
    with Progress(options.device) as progress:
        found = _looked_over(options, lora, lambda done, total: progress(BusyEvent("check-up", 0, done, total)))
    print("\n\n".join(paragraphs(found)), end="\n\n")
    _write(found, output)
    print(f"Sheet: {one_line(str(output / 'check_up.png'))}")
    print(f"Numbers: {one_line(str(output / 'check_up.json'))}")
    return 0


def _looked_over(options: argparse.Namespace, lora: LoraFile, busy: Busy) -> CheckUp:
    from .check_up import check_up
    from .findings import PROMPT, STRENGTHS, Asked
    from .subject import Subject

    asked = Asked(
        strengths=tuple(options.strengths or STRENGTHS),
        prompt=options.prompt or PROMPT,
        unrelated=tuple(options.unrelated),
        resolution=options.resolution,
        draws=options.draws,
        sample_steps=options.sample_steps,
        seed=options.seed,
        precision=options.precision,
    )
    subject = Subject.of(lora, options.class_word, options.trigger, _embedding(options, lora))
    components, images = _loaded(options)
    return check_up(components, lora, subject, asked, images=images, device=options.device, busy=busy)


def _loaded(options: argparse.Namespace) -> tuple[Components, ImageSet | None]:
    from ..data.dataset import load_images
    from ..families.sd import load_checkpoint

    images = load_images(options.images, background=options.background) if options.images else None
    told = {name: getattr(options, name) for name in ("tokenizer", "vae", "prediction_type", "zero_terminal_snr")}
    return load_checkpoint(options.checkpoint, **told), images


def _embedding(options: argparse.Namespace, lora: LoraFile) -> dict[str, Tensor] | None:
    from ..disk.tensor_file import read_tensors

    place = expanded(options.embedding, "--embedding") if options.embedding else lora.embedding
    return None if place is None else read_tensors(place)[0]


def _write(found: CheckUp, output: Path) -> None:
    from ..disk.files import atomic_write, write_text
    from .numbers import as_json
    from .sheet import sheet

    output.mkdir(parents=True, exist_ok=True)
    picture = sheet(found)
    atomic_write(output / "check_up.png", lambda temporary: picture.save(temporary, format="PNG"))
    write_text(output / "check_up.json", as_json(found))
