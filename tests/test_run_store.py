"""What the nodes read of a run's folder, and what they publish of it: under which names, with what beside it.

Not here: the host (`tests/host`); its modules are stood in for.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from apt_train.config import OutputConfig, TrainConfig
from apt_train.disk.tensor_file import read_tensors
from apt_train.disk.tensor_writer import write_tensors
from apt_train.run.snapshot import write_snapshot
from apt_train.run.state import State
from tests.node_modules import node_module
from tests.pretend_windows import refuse_files_in_use
from tests.synthetic_run import plausible_log, write_run
from tests.test_filmstrip import bomb

STEPS = (2, 4, 6)
STOPS = TrainConfig(class_word="toy", identifier="toy", steps=9, output=OutputConfig(stop="drift"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    folders: Any = ModuleType("folder_paths")
    latest: Any = ModuleType("comfy_api.latest")
    folders.get_output_directory = lambda: str(tmp_path / "output")
    folders.get_folder_paths = lambda _: [str(tmp_path / "embeddings")]
    folders.get_filename_list = lambda _: [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("emb*/*/*.*")]
    folders.get_full_path = lambda _, name: str(tmp_path / name)
    latest.io = SimpleNamespace(Custom=lambda name: name, ComfyNode=object)
    for name, module in {
        "folder_paths": folders,
        "comfy_api": ModuleType("comfy_api"),
        "comfy_api.latest": latest,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    with node_module("published") as published:
        yield SimpleNamespace(**{**vars(sys.modules[published.fault_of.__module__]), **vars(published)})


@pytest.fixture
def run(store: Any, tmp_path: Path) -> Any:
    """A run of six steps with a snapshot at every second, as the node hands it on."""
    folder = write_run(tmp_path / "output" / "apt_train" / "toy_0", plausible_log(6))
    for step in STEPS:
        tensors = {"lora_unet_a.alpha": torch.tensor(float(step))}
        files = {
            "toy.safetensors": lambda path, tensors=tensors: write_tensors(path, tensors),
            "toy_embedding.safetensors": lambda path: write_tensors(path, {"clip_l": torch.ones(1, 2)}),
        }
        write_snapshot(folder / "snapshots", State({"a": torch.ones(1)}, {"step": step}), files)
    return store.open_run(folder, TrainConfig(class_word="toy", identifier="toy", steps=6), "0" * 64)


def flip(run: Any, step: int, name: str) -> None:
    file = run.folder / "snapshots" / f"step_{step:06d}" / name
    whole = bytearray(file.read_bytes())
    whole[-2] ^= 4
    file.write_bytes(whole)


def test_an_intact_snapshot_is_published(store: Any, run: Any, tmp_path: Path) -> None:
    published = store.publish(run, 4)
    assert published.lora["lora_unet_a.alpha"] == 4 and published.trigger == f"embedding:{run.stem}_s4"
    assert (tmp_path / "output" / "loras" / f"{run.stem}_s4.safetensors").is_file()


@pytest.mark.parametrize("name", ["toy.safetensors", "toy_embedding.safetensors"])
def test_a_damaged_snapshot_is_not_published_and_the_nearest_intact_one_offered(
    store: Any, run: Any, tmp_path: Path, name: str
) -> None:
    flip(run, 6, name)
    flip(run, 4, "toy.safetensors")
    assert store.is_damaged(run)
    told = rf"step 6 is damaged \({name} does not match its checksum\): choose step 2, the nearest that is intact"
    with pytest.raises(store.InputError, match=told):
        store.publish(run)
    assert not list((tmp_path / "output").glob("loras/*")) and not (tmp_path / "embeddings").exists()
    flip(run, 2, "toy.safetensors")
    with pytest.raises(store.InputError, match="restart"):
        store.publish(run)


def test_a_missing_lora_is_damage_too(store: Any, run: Any) -> None:
    (run.folder / "snapshots" / "step_000006" / "toy.safetensors").unlink()
    with pytest.raises(store.InputError, match=r"toy\.safetensors is missing\): choose step 4"):
        store.publish(run)
    assert store.is_damaged(run)


def test_copies_of_snapshots_and_odd_pictures_count_for_nothing(store: Any, run: Any) -> None:
    for name in ("step_000004 copy", "step_best", "step_8", "step_000009_set_aside"):
        (run.folder / "snapshots" / name).mkdir()
    (run.folder / "snapshots" / "step_000008").write_text("")
    (run.folder / "snapshots" / "step_000999").mkdir()  # empty
    (run.folder / "snapshots" / "step_000998").mkdir()
    (run.folder / "snapshots" / "step_000998" / ".DS_Store").write_text("")  # emptied in the Finder
    assert store.snapshot_steps(run) == list(STEPS) and store.steps_done(run.folder) == 6
    previews = run.folder / "previews"
    previews.mkdir()
    for name in ("step_best_0_tuned", "step_000004_0_tuned", "step_000004_0_prior", "step_000002 copy_0_tuned"):
        Image.new("RGB", (4, 4)).save(previews / f"{name}.png")
    (previews / "step_000006_0_tuned.png").write_bytes(b"\x89PNG cut")
    assert store.newest_samples(run.folder, 6).step == 4


def test_a_damaged_log_costs_the_node_no_readable_step(store: Any, run: Any) -> None:
    log = run.folder / "log.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([lines[0], b"{nonsense", b'{"step": "3"}', *lines[3:]]) + b"\n")
    assert [len(curve) for curve in store.gamma_and_losses(run)] == [4, 4]
    log.write_text(json.dumps({"loss": None, "step": 1, "timestep": [], "gamma": [None] * 10}) + "\n")
    assert len(store.gamma_and_losses(run)[1]) == 1 and store.newest_drift(run) is None


@pytest.mark.parametrize(("owner", "is_taken"), [("0" * 8, True), (None, False)])
def test_a_word_of_the_same_name_in_a_subfolder_takes_the_name(
    store: Any, run: Any, tmp_path: Path, owner: str | None, is_taken: bool
) -> None:
    """The host looks into all folders, and nobody knows which it finds first. The run's own may be moved there."""
    word = tmp_path / "embeddings" / "old" / f"{run.stem}.safetensors"
    word.parent.mkdir(parents=True)
    write_tensors(word, {"clip_l": torch.zeros(1, 4)}, {"apt_run": owner or run.owner})
    again = same_again(store, run)
    assert again.stem == (f"{run.stem}_{run.owner}" if is_taken else run.stem)
    assert again.trigger == f"embedding:{again.stem}"


def test_words_go_into_the_first_folder_that_is_there(store: Any, tmp_path: Path) -> None:
    """Not into one below the place of a disk that is not connected, which the disk would then hide."""
    absent, there = tmp_path / "disk" / "embeddings", tmp_path / "embeddings"
    folders: Any = sys.modules["folder_paths"]
    folders.get_folder_paths = lambda _: [str(absent), str(there)]
    assert store.embeddings_folder() == absent, "where there is none, the first is made"
    there.mkdir()
    assert store.embeddings_folder() == there


def test_one_folder_for_loras_and_embeddings_is_refused(store: Any, tmp_path: Path) -> None:
    folders: Any = sys.modules["folder_paths"]
    folders.get_folder_paths = lambda _: [str(tmp_path / "output" / "loras")]
    store.check_places(TrainConfig(class_word="toy", identifier_mode="word"))
    with pytest.raises(store.InputError, match="give embeddings another folder"):
        store.check_places(TrainConfig(class_word="toy"))


@pytest.mark.parametrize(("gone", "stands"), [((), 4), ((4,), 6), ((4, 6), None), ((6,), 4)])
def test_a_run_has_ended_at_the_first_snapshot_there_is_from_its_ending_on(
    store: Any, run: Any, gone: tuple[int, ...], stands: int | None
) -> None:
    """Training would not go on from there either, so asking for a later step would find nothing for ever."""
    drifts(run)
    for step in gone:
        shutil.rmtree(run.folder / "snapshots" / f"step_{step:06d}")
    assert store.ended_step(run.folder, STOPS) == stands


def drifts(run: Any) -> None:
    """The drift ratio rises at step 4."""
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    for line, ratio in ((lines[1], 0.1), (lines[3], 0.4), (lines[5], 0.5)):
        line["drift"] = {"subject": 1.0, "unrelated": 0.1, "ratio": ratio}
    (run.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("by_itself", [False, True])
def test_a_run_without_a_report_of_its_last_step_is_not_done(store: Any, run: Any, by_itself: bool) -> None:
    """As after Cancel while the report was drawn, of a run at its last step or ended by a stopping rule."""
    config, last = (STOPS, 4) if by_itself else (TrainConfig(class_word="toy", identifier="toy", steps=6), 6)
    if by_itself:
        drifts(run)
        shutil.rmtree(run.folder / "snapshots" / "step_000006")
    saved = {"format": 1, "config": config.to_dict(), "restarted": True}
    (run.folder / "config.json").write_text(json.dumps(saved))
    assert store.lacks_report(run.folder, last) and store.is_restart_to_finish(run.folder, config)
    for numbers, done in (
        ({"steps_done": 6}, True),
        ({"steps_done": 3}, False),
        ({"steps_done": "6"}, False),
        ([], False),
    ):
        (run.folder / "report.json").write_text(json.dumps(numbers))
        assert store.lacks_report(run.folder, last) != done and store.is_restart_to_finish(run.folder, config) != done
    for damaged in ("{", "[" * 200_000):
        (run.folder / "report.json").write_text(damaged)
        assert store.lacks_report(run.folder, last)
    assert not store.lacks_report(run.folder, 2), "used with fewer steps than it was begun with"


def test_a_restart_without_steps_in_its_settings_has_the_default_before_it(store: Any, run: Any) -> None:
    config = TrainConfig(class_word="toy", identifier="toy", steps=6)
    settings = {"class_word": "toy", "identifier": "toy"}
    (run.folder / "config.json").write_text(json.dumps({"format": 1, "config": settings, "restarted": True}))
    (run.folder / "report.json").write_text(json.dumps({"steps_done": 6}))
    assert store.is_restart_to_finish(run.folder, config)


# ---- names ----------------------------------------------------------------------------------------------------------


def test_a_published_file_is_named_so_that_a_person_can_read_it(store: Any, run: Any, tmp_path: Path) -> None:
    assert run.stem == "toy_apt_6" and store.publish(run).trigger == "embedding:toy_apt_6"
    store.publish(run, 4)
    loras = tmp_path / "output" / "loras"
    assert sorted(path.name for path in loras.iterdir()) == ["toy_apt_6.safetensors", "toy_apt_6_s4.safetensors"]


def same_again(store: Any, run: Any, digest: str = "0" * 64) -> Any:
    return store.open_run(run.folder, TrainConfig(class_word="toy", identifier="toy", steps=6), digest)


@pytest.mark.parametrize("mode", ["learned", "word"])
def test_prompts_say_a_learned_word_by_its_file_and_another_as_it_is(store: Any, run: Any, mode: Any) -> None:
    config = TrainConfig(class_word="toy", identifier="sks", identifier_mode=mode, steps=6)
    opened = store.open_run(run.folder, config, "0" * 64)
    assert opened.trigger == (f"embedding:{opened.stem}" if mode == "learned" else config.trigger)
    assert config.trigger and config.trigger != f"embedding:{opened.stem}"


def test_the_same_run_keeps_its_name_and_another_one_gets_its_digest(store: Any, run: Any) -> None:
    store.publish(run)
    assert same_again(store, run).stem == "toy_apt_6"
    other = same_again(store, run, "1" * 64)
    assert other.stem == f"toy_apt_6_{other.owner}" and len(other.owner) == 8
    store.publish(other)
    assert same_again(store, run, "1" * 64).stem == other.stem and same_again(store, run).stem == "toy_apt_6"


@pytest.mark.parametrize("place", ["output/loras", "embeddings"])
@pytest.mark.parametrize("content", [b"", b"mine", None])
def test_a_file_of_the_user_is_never_written_over(
    store: Any, run: Any, tmp_path: Path, place: str, content: bytes | None
) -> None:
    mine = tmp_path / place / "toy_apt_6.safetensors"
    mine.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        write_tensors(mine, {"lora_unet_a.alpha": torch.tensor(6.0)}, {"modelspec.title": "mine"})
    else:
        mine.write_bytes(content)
    before = mine.read_bytes()
    late = same_again(store, run)
    assert late.stem == f"toy_apt_6_{late.owner}"
    store.publish(late)
    assert mine.read_bytes() == before


def test_a_snapshot_makes_way_for_a_file_of_the_user_too(store: Any, run: Any, tmp_path: Path) -> None:
    mine = tmp_path / "output" / "loras" / f"{run.stem}_s4.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert store.publish(run, 4).trigger == f"embedding:{run.stem}_s4_{run.owner}" and mine.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["toy_0_previous", "toy_0_copy", "toy_0_to4", "other", "Toy_0"])
@pytest.mark.parametrize("first", [True, False])
def test_a_run_set_aside_or_copied_never_writes_over_the_one_in_its_nodes_place(
    store: Any, run: Any, tmp_path: Path, name: str, first: bool
) -> None:
    """They have one digest: on a GPU, and after a restart, their weights differ all the same."""
    earlier = shutil.copytree(run.folder, run.folder.with_name(name))
    shutil.rmtree(earlier / "snapshots" / "step_000006")
    files = {"toy.safetensors": lambda path: write_tensors(path, {"lora_unet_a.alpha": torch.tensor(7.0)})}
    files["toy_embedding.safetensors"] = lambda path: write_tensors(path, {"clip_l": torch.zeros(1, 2)})
    write_snapshot(earlier / "snapshots", State({"a": torch.ones(1)}, {"step": 6}), files)
    config = TrainConfig(class_word="toy", identifier="toy", steps=6)
    for folder in (earlier, run.folder) if first else (run.folder, earlier):
        store.publish(store.open_run(folder, config, "0" * 64))
    again = store.open_run(earlier, config, "0" * 64)
    assert again.stem == f"toy_apt_6_{again.owner}" and store.publish(again).trigger == f"embedding:{again.stem}"
    for folder in (tmp_path / "output" / "loras", tmp_path / "embeddings"):
        assert sorted(path.stem for path in folder.iterdir()) == ["toy_apt_6", again.stem]
    loras = tmp_path / "output" / "loras"
    assert read_tensors(loras / "toy_apt_6.safetensors")[0]["lora_unet_a.alpha"] == 6
    assert read_tensors(tmp_path / "embeddings" / "toy_apt_6.safetensors")[0]["clip_l"].sum() == 2


def test_a_file_of_the_user_that_came_after_the_run_was_opened_stays(store: Any, run: Any, tmp_path: Path) -> None:
    mine = tmp_path / "output" / "loras" / f"{run.stem}.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert store.publish(run).trigger == f"embedding:{run.stem}_{run.owner}" and mine.read_bytes() == b"mine"


def test_what_goes_out_can_be_trained_on(store: Any, run: Any) -> None:
    """The host runs nodes under inference mode, whose tensors autograd refuses."""
    with torch.inference_mode():
        published = store.publish(run, 4)
    assert published.lora and not any(tensor.is_inference() for tensor in published.lora.values())


# ---- making way for a new run ------------------------------------------------------------------------------------


@pytest.fixture
def earlier(run: Any) -> Path:
    """What an earlier restart set aside: a run of four steps."""
    folder = Path(shutil.copytree(run.folder, run.folder.with_name("toy_0_previous")))
    shutil.rmtree(folder / "snapshots" / "step_000006")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files by their places, but for the lock."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("[!.]*.*")}


@pytest.mark.usefixtures("as_on_windows")
@pytest.mark.parametrize("longer", ["now", "earlier"])
def test_of_a_run_and_the_one_set_aside_before_the_longer_is_kept(
    longer: str, store: Any, run: Any, earlier: Path
) -> None:
    if longer == "earlier":
        shutil.rmtree(run.folder / "snapshots" / "step_000006")
        shutil.rmtree(run.folder / "snapshots" / "step_000004")
    kept, wire = contents(run.folder if longer == "now" else earlier), store.publish(run, 2)
    before = store.times_set_aside()
    store.set_aside(run.folder)
    store.set_aside(run.folder)  # which is gone, as on a first training
    assert store.times_set_aside() == before + 1, "the training node's fingerprint: the host holds a result no more"
    assert contents(earlier) == kept and [path.name for path in earlier.parent.iterdir()] == [earlier.name]
    assert wire.lora["lora_unet_a.alpha"] == 2, "a LoRA on a wire holds no file"


@pytest.mark.parametrize("used", ["now", "earlier"])
def test_a_run_in_use_is_not_set_aside_and_none_is_lost(
    used: str, store: Any, run: Any, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(run.folder), contents(earlier)
    refuse_files_in_use(monkeypatch)
    folder = run.folder if used == "now" else earlier
    with open(folder / "log.jsonl", "rb"), pytest.raises(store.InputError, match="toy_0 cannot be set aside"):
        store.set_aside(run.folder)
    assert (contents(run.folder), contents(earlier)) == before


@pytest.mark.parametrize("used", ["now", "earlier"])
def test_windows_is_asked_again_while_another_program_reads_a_run(
    used: str, store: Any, run: Any, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = contents(run.folder)
    reader = open((run.folder if used == "now" else earlier) / "log.jsonl", "rb")
    refused = refuse_files_in_use(monkeypatch)
    files = sys.modules[store.take_place.__module__]
    monkeypatch.setattr(files, "os", SimpleNamespace(**{**vars(os), "name": "nt"}))
    monkeypatch.setattr(files.time, "sleep", lambda _: reader.close())
    store.set_aside(run.folder)
    assert len(refused) == 1 and contents(earlier) == kept and not run.folder.exists()


# ---- beside the LoRA ----------------------------------------------------------------------------------------------


def sample(run: Any, step: int, colour: str) -> None:
    previews = run.folder / "previews"
    previews.mkdir(exist_ok=True)
    for kind in ("prior", "tuned"):
        picture = Image.new("RGB", (8, 8), colour if kind == "tuned" else "black")
        picture.save(previews / f"step_{step:06d}_0_{kind}.png")


def test_the_newest_sample_lies_beside_the_lora(store: Any, run: Any, tmp_path: Path) -> None:
    sample(run, 4, "green")
    store.publish(run)
    beside = tmp_path / "output" / "loras" / f"{run.stem}.png"
    with Image.open(beside) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (0, 128, 0)
    sample(run, 6, "red")
    store.publish(run)
    with Image.open(beside) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("own", [b"no picture", None, bomb()], ids=["no picture", "a picture", "a huge one"])
def test_a_picture_that_the_user_chose_stays(store: Any, run: Any, tmp_path: Path, own: bytes | None) -> None:
    sample(run, 6, "red")
    beside = tmp_path / "output" / "loras" / f"{run.stem}.png"
    beside.parent.mkdir(parents=True)
    beside.write_bytes(own) if own else Image.new("RGB", (9, 9)).save(beside)
    before = beside.read_bytes()
    store.publish(run)
    assert beside.read_bytes() == before


def test_a_picture_that_cannot_be_written_costs_only_itself(
    store: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(run, 6, "red")
    save = Image.Image.save

    def full(picture: Image.Image, place: Any, format: str) -> None:
        if format == "PNG":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(picture, place, format)

    monkeypatch.setattr(Image.Image, "save", lambda picture, place, format, **_: full(picture, place, format))
    assert store.publish(run).trigger == f"embedding:{run.stem}"
    assert [path.name for path in (tmp_path / "output" / "loras").iterdir()] == [f"{run.stem}.safetensors"]
    assert (tmp_path / "embeddings" / f"{run.stem}.safetensors").is_file()


def test_what_the_user_was_told_stands_in_the_file_without_folders(store: Any, run: Any, tmp_path: Path) -> None:
    told = [
        {"step": 0, "text": "2 pictures were enlarged: a.png, /home/me/pictures/b.png and C:\\Users\\me\\c.png."},
        {"step": 5, "text": "Later."},
    ]
    (run.folder / "notices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    store.publish(run, 4)
    notes = read_tensors(tmp_path / "output" / "loras" / f"{run.stem}_s4.safetensors")[1]["ss_training_comment"]
    assert notes == "2 pictures were enlarged: a.png, b.png and c.png."


def test_of_many_runs_twelve_are_shown_the_chosen_one_among_them(store: Any, tmp_path: Path) -> None:
    for number in range(15):
        folder = tmp_path / "output" / "apt_train" / f"toy_{number:02}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (number, number))
    load_run = importlib.import_module(".load_run", store.__package__)
    newest, oldest = (load_run.runs_sheet(f"toy_{number:02}") for number in (14, 0))
    assert newest.size == oldest.size and newest != oldest
