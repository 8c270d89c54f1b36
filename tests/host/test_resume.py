"""`APT Train` stopped, killed, evicted, restarted, with more or fewer steps: nothing is lost, nothing trained twice."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..signals import ENDING
from .events import Events
from .graphs import LEARNED, TRIGGER, training_graph, upload_pictures
from .server import Host, HostError
from .trained import equal, log_of, new_run, runs, shown_text, weights
from .workflows import Graph


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def test_cancel_keeps_the_work_and_the_next_queue_ends_as_if_never_stopped(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, setting=LEARNED, seed=20, steps=10)
    with host.events() as events:
        before = runs(host)
        queued = host.queue(g.prompt, events.client_id)
        events.wait_for(lambda event: event.kind == "apt_train.steps" and event.data["points"][-1]["step"] >= 2)
        host.interrupt()
        with pytest.raises(HostError, match="interrupted"):
            host.wait(queued)
        stopped = events.wait_for("apt_train.finished").data
    (run,) = runs(host) - before
    done = len(log_of(run))
    assert stopped["state"] == "stopped" and stopped["step"] == done and 2 <= done < 10
    assert (run / "snapshots" / f"step_{done:06d}" / "state.safetensors").is_file()

    with host.events() as events:
        host.run(g.prompt, client_id=events.client_id)
        started = events.wait_for("apt_train.started").data
    assert started["first_step"] == done and started["run"] == run.name
    assert [line["step"] for line in log_of(run)] == list(range(1, 11))

    moved = run.rename(run.with_name("stopped_once"))
    host.free()
    unbroken = new_run(host, lambda: host.run(g.prompt))
    assert unbroken.name == run.name
    assert equal(weights(moved, 10), weights(unbroken, 10))
    assert (moved / "log.jsonl").read_text() == (unbroken / "log.jsonl").read_text()


@pytest.mark.parametrize(("resume", "seed"), [("automatic", 33), ("restart", 37)])
def test_a_cancelled_run_is_used_as_it_is_where_steps_say_so(
    host: Host, names: list[str], resume: str, seed: int
) -> None:
    """The line on the node says how, and nothing is trained for it."""
    like = {"setting": LEARNED, "seed": seed, "resume": resume}
    g, _ = training_graph(names, **like, steps=200)
    before = runs(host)
    with host.events() as events:
        cancel(host, host.queue(g.prompt, events.client_id), events)
        line = events.wait_for(lambda event: event.kind == "text" and "stopped after step" in event.data["text"])
    (run,) = runs(host) - before
    steps = re.search(r"set steps to (\d+) to use it as it is", line.data["text"])
    assert steps is not None and len(log_of(run)) == int(steps[1])
    written = (run / "log.jsonl").stat().st_mtime_ns
    g, node = training_graph(names, **like, steps=int(steps[1]))
    word = g.node("PreviewAny", source=node[TRIGGER])
    stem = shown_text(host.run(g.prompt), word).removeprefix("embedding:")
    assert (host.folder / "output" / "loras" / f"{stem}.safetensors").is_file()
    assert (run / "log.jsonl").stat().st_mtime_ns == written


def test_cancel_is_heard_while_the_drift_is_measured(host: Host, names: list[str]) -> None:
    """Which takes longer than any step: here of forty prompts, some thousand calls of the UNet."""
    prompts = "\n".join(f"scene number {number}" for number in range(40))
    setting = {"drift_prompts": prompts, "snapshot_every": 2}
    g, _ = training_graph(names, setting=setting, seed=26, steps=4)
    with host.events() as events:
        before = runs(host)
        queued = host.queue(g.prompt, events.client_id)
        events.wait_for(lambda event: event.kind == "text" and "measuring the drift" in event.data["text"])
        host.interrupt()
        with pytest.raises(HostError, match="interrupted"):
            host.wait(queued)
        stopped = events.wait_for("apt_train.finished").data
    (run,) = runs(host) - before
    assert stopped["state"] == "stopped" and stopped["step"] == 2
    assert [line["step"] for line in log_of(run)] == [1, 2] and "drift" not in log_of(run)[-1]


def test_an_unchanged_queue_is_instant_and_an_evicted_one_does_not_train(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, seed=21)
    run = new_run(host, lambda: host.run(g.prompt))
    again = host.run(g.prompt)
    assert node.id in again.cached and again.seconds < 1
    written = (run / "log.jsonl").stat().st_mtime_ns
    host.free()
    time.sleep(0.5)  # the host frees between prompts
    with host.events() as events:
        evicted = host.run(g.prompt, client_id=events.client_id)
        found = events.wait_for("apt_train.found").data
    assert node.id not in evicted.cached and (found["run"], found["step"]) == (run.name, 3)
    newest = host.get("/apt_train/runs")["runs"][0]
    assert (newest["run"], newest["state"]) == (run.name, "done")
    assert (run / "log.jsonl").stat().st_mtime_ns == written


def test_more_steps_go_on_and_fewer_are_found_or_trained_beside(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, seed=22, steps=3)
    run = new_run(host, lambda: host.run(g.prompt))
    longer, _ = training_graph(names, seed=22, steps=6)
    host.run(longer.prompt)
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4, 5, 6]
    before = runs(host)
    host.free()
    host.run(g.prompt)  # the end of the first run is a snapshot of the longer one
    assert runs(host) == before
    shorter, _ = training_graph(names, seed=22, steps=2)
    beside = new_run(host, lambda: host.run(shorter.prompt))
    assert beside.name == f"{run.name}_to2"
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in log_of(beside)] == [line["loss"] for line in log_of(run)[:2]]


def test_restart_trains_anew_and_keeps_the_earlier_run(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, seed=23)
    run = new_run(host, lambda: host.run(g.prompt))
    before = weights(run, 3)
    g, _ = training_graph(names, seed=23, resume="restart")
    previous = new_run(host, lambda: host.run(g.prompt))
    assert previous.name == run.name + "_previous"
    assert equal(weights(run, 3), before) and equal(weights(previous, 3), before)


def test_a_restarted_run_that_is_given_more_steps_goes_on(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, seed=34, steps=2, resume="restart")
    run = new_run(host, lambda: host.run(g.prompt))
    longer, _ = training_graph(names, seed=34, steps=4, resume="restart")
    with host.events() as events:
        host.run(longer.prompt, client_id=events.client_id)
        assert events.wait_for("apt_train.started").data["first_step"] == 2
    assert not run.with_name(run.name + "_previous").exists()


def test_with_restart_a_file_that_was_moved_away_is_no_reason_to_train(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, setting=LEARNED, seed=35, steps=1, resume="restart")
    word = g.node("PreviewAny", source=node[TRIGGER])
    run = new_run(host, lambda: host.run(g.prompt))
    stem = shown_text(host.run(g.prompt), word).removeprefix("embedding:")
    (host.folder / "output" / "loras" / f"{stem}.safetensors").unlink()
    written = (run / "log.jsonl").stat().st_mtime_ns
    assert all(node.id in host.run(g.prompt).cached for _ in range(2))
    assert (run / "log.jsonl").stat().st_mtime_ns == written


def test_a_cancelled_restart_does_not_cost_the_finished_run(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, seed=28, steps=12)
    run = new_run(host, lambda: host.run(g.prompt))
    finished = weights(run, 12)
    g, _ = training_graph(names, seed=28, steps=12, resume="restart")
    cancel_after_a_step(host, g)
    with host.events() as events:
        host.run(g.prompt, client_id=events.client_id)
        assert events.wait_for("apt_train.started").data["first_step"] >= 1  # goes on, as after every Cancel
    assert equal(weights(run, 12), finished)
    assert equal(weights(run.with_name(run.name + "_previous"), 12), finished)


def test_a_restart_is_refused_while_another_process_trains_there(host: Host, names: list[str]) -> None:
    """Else it would move the folder away from under the other one."""
    g, _ = training_graph(names, seed=38, steps=1)
    run = new_run(host, lambda: host.run(g.prompt))
    g, _ = training_graph(names, seed=38, steps=1, resume="restart")
    with FileLock(run / ".lock"), pytest.raises(HostError, match="by another process"):
        host.run(g.prompt)
    assert weights(run, 1) and not run.with_name(run.name + "_previous").exists()


def test_a_missing_file_is_written_again(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, setting=LEARNED, seed=24)
    word = g.node("PreviewAny", source=node[TRIGGER])
    stem = shown_text(host.run(g.prompt), word).removeprefix("embedding:")
    places = [host.folder / "output" / "loras", host.folder / "models" / "embeddings"]
    contents = [(place / f"{stem}.safetensors").read_bytes() for place in places]
    for place in places:
        (place / f"{stem}.safetensors").unlink()
    host.run(g.prompt)
    assert [(place / f"{stem}.safetensors").read_bytes() for place in places] == contents


def test_files_of_an_earlier_training_make_way(host: Host, names: list[str]) -> None:
    """Else the loaders would draw with other weights than the wire, where these could not be written once."""
    g, node = training_graph(names, setting=LEARNED, seed=36, steps=1)
    word = g.node("PreviewAny", source=node[TRIGGER])
    stem = shown_text(host.run(g.prompt), word).removeprefix("embedding:")
    places = [host.folder / "output" / "loras", host.folder / "models" / "embeddings"]
    contents = [(place / f"{stem}.safetensors").read_bytes() for place in places]
    for place in places:
        file = place / f"{stem}.safetensors"
        with safe_open(file, "pt") as there:
            metadata = there.metadata()
        save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata)
    host.free()
    time.sleep(0.5)
    host.run(g.prompt)
    assert [(place / f"{stem}.safetensors").read_bytes() for place in places] == contents


def test_a_restarted_host_does_not_train_again(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, seed=25)
    run = new_run(host, lambda: host.run(g.prompt))
    written = (run / "log.jsonl").stat().st_mtime_ns
    host.restart()
    host.run(g.prompt)
    assert (run / "log.jsonl").stat().st_mtime_ns == written


def test_a_run_killed_before_it_saved_anything_begins_again(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, seed=27, steps=16)
    before = runs(host)
    with host.events() as events:
        host.queue(g.prompt, events.client_id)
        events.wait_for("apt_train.steps")
        host.restart()
    host.run(g.prompt)
    (run,) = runs(host) - before
    assert [line["step"] for line in log_of(run)] == list(range(1, 17))


@pytest.mark.skipif(os.name == "nt", reason="only a whole console can be sent Ctrl-C there, and nothing else")
@pytest.mark.parametrize("sent", ENDING, ids=lambda sent: sent.name)
def test_a_host_that_is_ended_keeps_the_work(host: Host, names: list[str], sent: signal.Signals) -> None:
    """By Ctrl-C in its terminal, a container that is stopped, a terminal that is closed."""
    g, _ = training_graph(names, seed=39 + sent, steps=200)
    before = runs(host)
    assert host.process is not None
    with host.events() as events:
        host.queue(g.prompt, events.client_id)
        events.wait_for(lambda event: event.kind == "apt_train.steps" and event.data["points"][-1]["step"] >= 2)
        host.process.send_signal(sent)
        host.process.wait(60)
    host.start()
    (run,) = runs(host) - before
    done = len(log_of(run))
    assert 2 <= done < 200 and weights(run, done)
    assert "Traceback" not in host.log_text()[-3000:]


def cancel_after_a_step(host: Host, g: Graph) -> None:
    with host.events() as events:
        cancel(host, host.queue(g.prompt, events.client_id), events)


def cancel(host: Host, queued: str, events: Events) -> None:
    """After a step."""
    events.wait_for("apt_train.steps")
    host.interrupt()
    with pytest.raises(HostError, match="interrupted"):
        host.wait(queued)
