"""What the editor shows of the nodes: their languages and help pages agree with the schemas. Without the host.

Not here: whether the host serves these files (`tests/host/test_node_texts.py`), whether what they say is true.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apt_train.lora_check.asked import Asked
from apt_train.lora_check.command import SETTINGS, add_options
from apt_train.settings_field import fields_of, said

from .help_pages import OPTIONS, WITH_PRESETS, made, page_of, tables, with_presets, with_settings
from .node_texts import ENGLISH, LOCALES, ROOT, Node, Slot, asked_at_start, english_text, node_defs, node_modules, nodes
from .prose import prose

DOCS = ROOT / "web" / "docs"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())
OTHERS = [language for language in LANGUAGES if language != "en"]
NODES = list(nodes().values())
METHODS = ("APT", "DreamBooth", "DCO", "T-LoRA")
MESSAGE_SYNTAX = set("{}@$|")  # the editor compiles names and descriptions, where these have a meaning; tooltips not
SECTIONS = ("Input", "Output", "What is refused")


def texts(values: Any, path: str = "") -> dict[str, str]:
    """Every text of a locale file by its key."""
    if isinstance(values, str):
        return {path: values}
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= texts(value, f"{path}.{key}" if path else key)
    return found


def locale(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


# ---- the schemas themselves --------------------------------------------------------------------------------------


def test_every_node_and_slot_says_what_it_is() -> None:
    """One sentence at least, which ends as a sentence does."""
    assert len(NODES) >= 4
    for key, text in texts(node_defs()).items():
        assert text.strip() == text != "", key
        if key.endswith((".tooltip", ".description")):
            assert text.endswith("."), f"{key}: {text}"


def test_what_may_have_several_lines_shows_several() -> None:
    shown = {
        (name, slot.id) for name, node in nodes().items() for slot in node.inputs if getattr(slot, "multiline", False)
    }
    assert shown == {
        ("APTTrain", "captions"), ("APTTrain", "sample_prompts"), ("APTSampleOptions", "preview_prompts"),
        ("APTSampleOptions", "drift_prompts"), ("APTTrainOptions", "preview_prompts"),
        ("APTTrainOptions", "drift_prompts"), ("APTAttentionAlignPreview", "prompt"), ("APTSnapshotSheet", "prompts"),
        ("APTSnapshotSheet", "negative"), ("APTLoRACheckUp", "captions"), ("APTLoRACheckUp", "unrelated"),
    }  # fmt: skip


def test_no_sentence_is_longer_than_25_words() -> None:
    """Of what is read in the editor: tooltips, errors, notices, the line on the node, the verdict."""
    scripts = json.loads((LOCALES / "zh" / "main.json").read_text(encoding="utf-8"))["aptTrain"]
    read = [*texts(node_defs()).values(), *scripts["texts"], *scripts["server"]]
    sentences = [sentence for text in read for sentence in re.split(r"(?<=[.!?])\s+", text)]
    assert [sentence for sentence in sentences if len(sentence.split()) > 25] == []
    assert [text for text in read if prose(text).stilted] == []


# Chosen, not turned up: a seed, a place among others, a size to match, and a share whose ends are told.
CHOSEN = {"seed", "step", "width", "height", "resolution", "noise_level", "p_max"}


def test_a_number_says_what_more_or_less_of_it_does() -> None:
    """One that is for everybody: those for experts stand apart (`advanced`)."""
    numbers = [
        (node.node_id, slot)
        for node in NODES
        for slot in node.inputs
        if slot.kind in ("Int", "Float") and not slot.more.get("advanced") and slot.id not in CHOSEN
    ]
    told = re.compile(r"\b([Hh]igher|[Mm]ore|[Ll]ower|Fewer)\b")
    assert len(numbers) > 20
    assert [f"{node}.{slot.id}" for node, slot in numbers if not told.search(slot.tooltip)] == []


def test_keys_are_ones_that_the_editor_can_look_up() -> None:
    """It looks texts up by a path with dots."""
    for node in NODES:
        for name in (node.node_id, *(slot.id for slot in (*node.inputs, *node.outputs))):
            assert re.fullmatch(r"[A-Za-z0-9_]+", name), f"{node.node_id}: {name}"


def test_reading_the_schemas_leaves_nothing_behind() -> None:
    """No stand-in for torch or the host stays among the modules, also where torch had not been imported before."""
    code = (
        "import sys; from tests.node_texts import nodes\n"
        "before = set(sys.modules); nodes(); left = sorted(set(sys.modules) - before)\n"
        "print([name for name in left if name.partition('.')[0] not in sys.stdlib_module_names])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_a_check_up_asks_is_said_once() -> None:
    """By its settings, for the node and the command alike."""
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=1000))
    add_options(parser)
    slots = {slot.id: slot for slot in nodes()["APTLoRACheckUp"].inputs}
    for name in SETTINGS:
        text = said(fields_of(Asked)[name]).help
        assert f" {text} " in parser.format_help()
        assert name not in slots or slots[name].tooltip.startswith(text)


# What the schemas are made of. Everything else is loaded when a node runs: with it, the host started 0.1 s later.
AT_START = set(
    "adapter_kinds config errors lora_check lora_check.asked names optimizers paths presets settings_field "
    "wording".split()
)


def test_the_start_of_the_host_waits_for_the_settings_alone() -> None:
    """Each module beyond these costs every start some milliseconds, whether the nodes are used or not."""
    assert asked_at_start() <= AT_START
    loads = "; ".join(f"import apt_train.{name}" for name in sorted(AT_START))
    code = f"import sys; {loads}; print(*sorted(name for name in sys.modules if name.startswith('apt_train.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert set(done.stdout.split()) == {f"apt_train.{name}" for name in AT_START}, done.stderr


# ---- languages ---------------------------------------------------------------------------------------------------


def test_the_english_file_is_what_the_schemas_say() -> None:
    assert ENGLISH.read_text(encoding="utf-8") == english_text(), "run `python -m tests.node_texts`"


def test_a_language_holds_nothing_but_what_is_tested_here() -> None:
    """English needs no `main.json`: the scripts' own texts stand in them."""
    files = {path.relative_to(LOCALES).as_posix() for path in LOCALES.rglob("*") if path.is_file()}
    others = {f"{language}/main.json" for language in OTHERS}
    assert files == {f"{language}/nodeDefs.json" for language in LANGUAGES} | others
    assert {"en", "zh"} <= set(LANGUAGES)


def of_scripts(language: str) -> dict[str, dict[str, str]]:
    """`texts` by their English, and the combos' `choices`."""
    found = json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))
    assert set(found) == {"aptTrain"}
    return found["aptTrain"]


def said_by_scripts() -> set[str]:
    """Every text that a script of the editor gives to `say`."""
    calls = [call for path in (ROOT / "web").glob("*.js") for call in SAID.findall(path.read_text(encoding="utf-8"))]
    return {"".join(re.findall(r'"([^"]*)"', call)) for call in calls}


SAID = re.compile(r'\bsay\(\s*("[^"]*"(?:\s*\+\s*"[^"]*")*)')


@pytest.mark.parametrize("language", OTHERS)
def test_what_the_scripts_say_is_translated(language: str) -> None:
    texts = of_scripts(language)["texts"]
    assert set(texts) == said_by_scripts() and len(texts) > 10
    for english, translated in texts.items():
        assert re.findall(r"\{\w+\}", english) == re.findall(r"\{\w+\}", translated), english


def said_by_templates() -> set[str]:
    """Every line of a note, and every title, of a template that a user opens."""
    found: set[str] = set()
    for path in (ROOT / "example_workflows").glob("*.json"):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        found |= {part["title"] for part in (*workflow["nodes"], *workflow["groups"]) if part.get("title")}
        notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
        found |= {line for note in notes for line in note.split("\n") if line}
    return found


@pytest.mark.parametrize("language", OTHERS)
def test_every_line_and_title_of_the_templates_is_translated(language: str) -> None:
    """Each to words of its own, as a workflow is saved in English again."""
    table = of_scripts(language)["templates"]
    assert set(table) == said_by_templates()
    assert len({*table, *table.values()}) == 2 * len(table)
    kept = re.compile(r"\{\w+\}|\w+/\w+|\d+(?:\.\d+)?|pick_a_snapshot|low memory|^#+ |\*\*")
    for english, translated in table.items():
        assert sorted(kept.findall(english)) == sorted(kept.findall(translated)), english


@pytest.mark.parametrize("language", OTHERS)
def test_choices_are_explained_beside_their_own_names(language: str) -> None:
    """Errors, tooltips and help pages call them by these; what is a name everywhere needs no explanation."""
    labels, everywhere = of_scripts(language)["choices"], {*METHODS, "fp32", "bf16", "fp16"}
    known = {choice for node in NODES for slot in node.inputs for choice in choices(slot)}
    assert set(labels) == known - everywhere
    assert [choice for choice, label in labels.items() if not label.startswith(choice) or label == choice] == []


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_the_same_keys(language: str) -> None:
    assert set(texts(locale(language))) == set(texts(node_defs()))


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_and_descriptions_are_no_messages_to_compile(language: str) -> None:
    for key, text in texts(locale(language)).items():
        if not key.endswith(".tooltip"):
            assert not MESSAGE_SYNTAX & set(text), f"{key}: {text}"


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_keeps_what_is_typed_or_looked_for(language: str) -> None:
    """Placeholders, file names, settings, abbreviations and numbers stand in it as they are."""
    translated = texts(locale(language))
    for key, text in texts(node_defs()).items():
        if not key.endswith(".name"):
            assert [word for word in verbatim(text) if word not in translated[key]] == [], f"{key}: {translated[key]}"


def verbatim(text: str) -> set[str]:
    patterns = (
        r"\{[a-z_]+\}",  # {subject}
        r"<[a-z-]+>",  # <rest>
        r"#[a-z]+",  # #rrggbb
        r"embedding:\w+",
        r"\w*_[A-Za-z]\w*",  # mask_counts, APT_RUN
        r"\b[A-Z]{2,}\b",  # CLIP
        r"(?:SD)?\d+(?:\.\d+)?",
        r"\w+\([^()]*\)",  # min(gamma, p_max)
    )
    return {word for pattern in patterns for word in re.findall(pattern, text)}


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_names_choices_as_the_widget_shows_them(language: str) -> None:
    """A choice that the English tooltip explains: a combo shows its own name first."""
    translated = locale(language)
    for node in NODES:
        for slot in node.inputs:
            told = [choice for choice in choices(slot) if re.search(rf"\b{re.escape(choice)}\b", slot.tooltip)]
            text = translated[node.node_id]["inputs"][slot.id]["tooltip"]
            assert [choice for choice in told if choice not in text] == [], f"{node.node_id}.{slot.id}: {text}"


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_tells_the_setting_s_own_name(language: str) -> None:
    """Errors and help pages call an input by its id: a tooltip begins with it, unless the name is the id."""
    for node_id, texts_of_node in locale(language).items():
        for slot, shown in texts_of_node["inputs"].items():
            named = shown["name"].casefold() == slot
            assert named or shown["tooltip"].startswith((f"{slot}：", f"{slot}: ")), f"{node_id}.{slot}"


def test_chinese_is_chinese() -> None:
    for key, text in texts(locale("zh")).items():
        if key.endswith((".tooltip", ".description")):
            assert re.search(r"[\u4e00-\u9fff]", text) and text.endswith("。"), f"{key}: {text}"


# ---- help pages --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a page's table: cells by the table's own headings, and the section it stands in."""

    section: str
    cells: dict[str, str]

    @property
    def names(self) -> list[str]:
        """What the first cell puts in code."""
        return re.findall(r"`([^`]+)`", next(iter(self.cells.values())))


def page(node: Node) -> str:
    return (DOCS / f"{node.node_id}.md").read_text(encoding="utf-8")


def rows(text: str) -> Iterator[Row]:
    """Every row; a row with another number of cells than its table's head fails."""
    section, head = "", None
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if head is None:
            head = cells
        else:
            assert len(cells) == len(head), line
            if set(cells) != {"---"}:
                yield Row(section, dict(zip(head, cells, strict=True)))


def rows_of(text: str, *heads: str) -> list[Row]:
    """The rows of the tables whose first heading is one of these."""
    return [row for row in rows(text) if next(iter(row.cells)) in heads]


def choices(slot: Slot) -> list[str]:
    return list(slot.more.get("options", ()))


def shown_default(slot: Slot) -> str:
    """A widget's default as a page tells it."""
    default = slot.more["default"]
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, (list, tuple)):
        return ", ".join(default) or "empty"
    if isinstance(default, float):
        return f"{default:.12f}".rstrip("0").rstrip(".")
    return " / ".join(str(default).splitlines()) or "empty"


def test_every_node_has_a_page_and_every_page_a_node() -> None:
    translated = {f"{name}/{language}.md" for name in nodes() for language in OTHERS}
    found = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.*")}
    assert found == {f"{name}.md" for name in nodes()} | translated


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_translated_page_has_the_translated_tables(node: Node, language: str) -> None:
    """By hand it says what to do first, and what a refusal looks like."""
    text = page_of(node.node_id, language).read_text(encoding="utf-8")
    assert made(text) == tables(node, language), "run `python -m tests.help_pages`"
    assert text.startswith(f"# {locale(language)[node.node_id]['display_name']}\n")
    assert all(f"| `{slot.id}` |" in text for slot in node.inputs)
    assert re.findall(r"<[^!\s]", re.sub(r"`[^`\n]*`", "", text)) == []
    list(rows(text))  # each row has its table's cells


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_page_explains_every_input_and_no_other(node: Node) -> None:
    named = [name for row in rows_of(page(node), "input", "setting") for name in row.names]
    assert sorted(named) == sorted(slot.id for slot in node.inputs)


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_page_finds_inputs_under_the_names_that_the_node_shows(node: Node) -> None:
    """Where that is not the id: `group · id` stands in the group's section, another name beside the id."""
    by_name = {row.names[0]: row for row in rows_of(page(node), "input", "setting")}
    for slot in node.inputs:
        row, (group, _, rest) = by_name[slot.id], slot.name.partition(" · ")
        if rest:
            assert (row.section, slot.id) == (group, rest)
        elif slot.name != slot.id:
            assert f"({slot.name})" in next(iter(row.cells.values()))


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_page_explains_every_output_in_order(node: Node) -> None:
    named = [name for row in rows_of(page(node), "output") for name in row.names]
    assert named == [slot.name for slot in node.outputs]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_page_tells_defaults_and_choices_as_they_are(node: Node) -> None:
    by_name = {row.names[0]: row for row in rows_of(page(node), "setting")}
    widgets = [slot for slot in node.inputs if "default" in slot.more]
    assert widgets
    for slot in widgets:
        cells = by_name[slot.id].cells
        assert cells["default"] == shown_default(slot), slot.id
        told = {*re.findall(r"`([^`]+)`", " ".join(cells.values())), cells["default"]}
        assert set(choices(slot)) <= told, slot.id


@pytest.mark.parametrize("node_id", OPTIONS)
def test_an_options_page_says_of_settings_what_they_say_themselves(node_id: str) -> None:
    text = page(nodes()[node_id])
    assert text == with_settings(text, nodes()[node_id].inputs), "run `python -m tests.help_pages`"


@pytest.mark.parametrize("path", WITH_PRESETS, ids=lambda path: path.stem)
def test_a_table_of_presets_says_what_they_set(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == with_presets(text), "run `python -m tests.help_pages`"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_page_is_markdown_that_the_help_panel_shows(node: Node) -> None:
    """The panel removes tags it does not know, so that a bare <word> would vanish; links leave the panel."""
    text = page(node)
    assert text.startswith(f"# {node.display_name}\n")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [section for section in SECTIONS if not any(heading.startswith(section) for heading in headings)] == []
    bare = re.sub(r"`[^`\n]*`", "", text)
    assert re.findall(r"<\S", bare) == []
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")] == []


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_settings_a_page_mentions_exist(node: Node) -> None:
    """`name_with_underscores` in a text is an input, an output or a choice of one of the nodes."""
    known = {slot.id for other in NODES for slot in (*other.inputs, *other.outputs)}
    known |= {slot.name for other in NODES for slot in other.outputs} | {"my_toy"}
    known |= {choice for other in NODES for slot in other.inputs for choice in choices(slot)}
    mentioned = set(re.findall(r"`([A-Za-z]+(?:_[A-Za-z]+)+)`", page(node)))
    assert mentioned - known == set()


def test_a_number_that_may_be_left_out_says_what_its_0_means() -> None:
    """A widget shows `auto` and an empty field as 0, so its help speaks of 0 as well."""
    with node_modules("settings") as (settings,):
        numbers = [setting for setting in settings.every_setting() if setting.is_number]
        left_out = [one for one in numbers if settings.words_in(one.kind) or settings.may_be_empty(one.kind)]
        helps = {setting.field.name: settings.help_of(setting) for setting in left_out}
    assert {"max_zoom", "alpha", "min_rank"} <= set(helps)
    assert {name: text for name, text in helps.items() if "0:" not in text or re.search(r"\bauto\b", text)} == {}


def test_nothing_names_a_folder_of_somebody_s_machine() -> None:
    for path in (*DOCS.rglob("*.md"), *LOCALES.rglob("*.json")):
        text = Path(path).read_text(encoding="utf-8")
        assert re.findall(r"/(?:home|root|Users|tmp|work)/|[A-Z]:\\\\", text) == [], path.name


@pytest.mark.parametrize(
    ("module", "name", "inputs"),
    [
        ("load_run", "APTLoadRun", {"run": None, "step": 0}),
        ("image_set", "APTImageSet", {"folder": ["none"], "path": (None,)}),
        ("image_set", "APTImageSet", {"folder": (None,), "path": [""]}),
        ("check_up", "APTLoRACheckUp", {"lora_name": (None,)}),
    ],
)
def test_of_a_wired_run_folder_or_file_nothing_is_known_before_it_runs(
    module: str, name: str, inputs: dict[str, Any]
) -> None:
    """The host asks for a fingerprint with None then: what lies there may have changed each time."""
    with node_modules(module) as (loaded,):
        node = getattr(loaded, name)
        first = node.fingerprint_inputs(**inputs)
        assert first != node.fingerprint_inputs(**inputs), "it is run each time"


def test_two_loras_are_refused_before_anything_runs() -> None:
    """The one on the wire may be hours of training away."""
    with node_modules("check_up") as (check_up,):
        check_up.check_widgets = lambda *_: None
        node, error = check_up.APTLoRACheckUp, check_up.InputError
        assert node.validate_inputs(lora=(None,), lora_name=["none"])
        assert node.validate_inputs(lora_name=["a.safetensors"]) and node.validate_inputs(lora_name=(None,))
        for inputs, says in (({"lora": (None,)}, "Two LoRAs are given"), ({}, "No LoRA is given")):
            with pytest.raises(error, match=says):
                node.validate_inputs(lora_name=["a.safetensors" if inputs else "none"], **inputs)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("attention_preview", "APTAttentionAlignPreview"),
        ("load_run", "APTLoadRun"),
        ("monitor", "APTOverfitIndicatorMonitor"),
        ("snapshot_sheet", "APTSnapshotSheet"),
    ],
)
def test_what_the_node_has_a_value_for_may_be_left_out(module: str, name: str) -> None:
    """Else a workflow that was saved before there was such an input is refused."""
    with node_modules(module) as (loaded,):
        node = getattr(loaded, name)
        given = inspect.signature(node.execute).parameters.values()
        optional = {slot.id for slot in node.define_schema().inputs if slot.more.get("optional")}
        assert optional == {one.name for one in given if one.default is not one.empty}


@pytest.mark.parametrize("text", ["0.8 much", "", "0", "1 11", "nan", " ".join(f"0.{k}" for k in range(10, 31))])
def test_strengths_that_cannot_be_tried_are_refused_before_anything_runs(text: str) -> None:
    """Not after the training that makes the LoRA on the wire."""
    with node_modules("check_up") as (check_up,):
        check_up.check_widgets = lambda *_: None
        node, wires = check_up.APTLoRACheckUp, {"lora": (None,), "lora_name": ["none"]}
        assert node.validate_inputs(**wires, strengths=["0.8, 1"]) and node.validate_inputs(**wires, strengths=(None,))
        with pytest.raises(check_up.InputError, match=r"[Ss]trength"):
            node.validate_inputs(**wires, strengths=[text])
