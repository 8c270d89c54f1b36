"""What the notes in the example workflows say."""

from __future__ import annotations

_PHOTOS = """\
1. **Your photos**: put a folder with 3 to 10 photos of one subject into ComfyUI's *input* folder, press R, and choose \
it. Sharp photos on different backgrounds are best. The sheet shows how each is learned and what to change."""
_MODEL = "**Model**: choose {} checkpoint. Its file belongs in *models/checkpoints*."
_WORDS = """\
**APT Train**: *subject* is a name you make up, *class_word* what kind of thing it is: toy, dog, backpack."""
_CANCEL = "**Cancel** keeps the work: run again to continue, or set *steps* to the step it names to use it as it is."


def _train_and_generate(family: str, side: str) -> str:
    return f"""\
## Teach the model one thing, then draw it

{_PHOTOS}
2. {_MODEL.format(family)}
3. {_WORDS}
4. **Prompt**: say what you want to see, with *{{subject}}* where your subject goes. The wire *trigger* fills it in.
5. **Run**. You train once. After that, another prompt or seed is drawn without training. {_CANCEL}

{side}
"""


_FILES = """\
The finished LoRA is in *output/loras*, and its word in *models/embeddings*: use both in any other workflow."""
TRAIN_AND_GENERATE = _train_and_generate("a Stable Diffusion 1.5", _FILES)
SDXL_TRAIN_AND_GENERATE = _train_and_generate(
    "an SDXL",
    f"{_FILES}\n\nShort of memory? On APT Train choose the preset *low memory*, or set *resolution* to 768 or 512.",
)

COMPARE = f"""\
## One seed, three models

What does training do to the rest of the model? The same prompt and seed, drawn by the model as it was, after \
DreamBooth, and after APT; both trained on the same pictures, with the same seed, for the same number of steps.

{_PHOTOS}
2. {_MODEL.format("a Stable Diffusion 1.5")}
3. **The same for all three**: say what kind of thing your subject is (class word), and write a prompt that your \
pictures do not show: another place, another style.
4. **Run**: two trainings, one after the other. {_CANCEL}

Look for two things: is it your subject, and is the rest of the prompt still there?
"""

ATTENTION = f"""\
## Where do both models look?

Each word of a prompt steers some part of the picture. An overfitted model tends to dim every word but your subject, \
and the rest of the prompt goes unheard.

{_PHOTOS}
2. {_MODEL.format("a Stable Diffusion 1.5")}
3. {_WORDS}
4. **Prompt**: *{{subject}}* is where your subject goes: the tuned model reads its trigger there, the model as it was \
the class word.
5. **Run**. For each word the sheet shows where the prior looks, where the tuned model looks, and the difference; \
*tokens* picks some of the words.
"""

MONITOR = f"""\
## Watch it overfit, and take the step before

{_PHOTOS}
2. {_MODEL.format("a Stable Diffusion 1.5")}
3. {_WORDS}
4. **Run**. The monitor draws while APT Train runs. γ near 1: it knows the pictures well at that noise level. The \
*drift ratio* rises when other pictures change too. {_CANCEL}
5. **Pick**: *snapshot* passes on the recommended one, the last, or the *step* you name. Snapshots are kept every 250 \
steps (*APT Sample Options* changes that). Its LoRA is in *output/loras*.

Trust your eyes over the rule. The template *pick_a_snapshot* draws several snapshots side by side.
"""

PICK = f"""\
## Which snapshot is the good one?

1. **The run**: choose one that you trained before. The picture shows the newest.
2. {_MODEL.format("a Stable Diffusion 1.5")} Take the one that the run was trained on.
3. **Snapshots**: write prompts that ask for what your photos never show. Run.
4. Look for the last column that still obeys every prompt and shows your subject. Write its letter into *column*, and \
run again: only the last picture is drawn again.

*strengths* such as *0.6, 0.8, 1* shows each snapshot at several strengths. The chosen LoRA is in *output/loras*.
"""

CHECK_UP = f"""\
## What does this LoRA do?

1. **Your photos**: choose the folder that the LoRA was trained on. None at hand? Delete the node. What the LoRA \
learned is then not measured, what it changes still is.
2. {_MODEL.format("a Stable Diffusion 1.5")} Take the one that the LoRA is for.
3. **The LoRA**: choose its file in *lora_name*, from any trainer. Say what its subject is in *class_word*, and what a \
prompt must say for it in *trigger*. Both may stay empty for a LoRA from APT Train.
4. **Run**. The sheet shows samples at each strength, what was learned at each noise level, and what else changes.

The verdict names the strength to use it at, and says what cannot be seen.
"""
