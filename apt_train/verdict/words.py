"""A run's numbers in one plain paragraph: what happened, what it may mean, what to change.

In: words. Not in: the numbers (`run_summary`). It says what the log can show and, as often, what it cannot: the
indicator compares losses on the training pictures; only pictures show likeness and obedience to a prompt.
"""

from __future__ import annotations

from collections.abc import Callable

from ..config import METHOD_TITLES
from ..run.log import line_numbers
from ..wording import counted, levels_named
from .recommend import has_risen, last_before_rising, lowest_ratio
from .run_summary import FEWEST_STEPS, NEAR_ONE, BinSummary, Summary

DOMINATES = 0.8  # share of the sum of gradient norms (ours)


def paragraph(summary: Summary, say: Callable[[str], str] = str) -> str:
    """The paragraph for a summary. `say`: applied to each sentence and piece of advice, for example to translate it."""
    said = [*_opening(summary), *_indicator(summary), *_drift(summary), _loss(summary), *_balance(summary)]
    changes = advice(summary)
    if not changes:
        said.append("Nothing in these numbers asks for a change.")
    told = [say(sentence) for sentence in said]
    if changes:
        told += map(say, ["What to change:", *changes])
    told.append(say("These numbers cannot see likeness or prompt-following: look at the pictures before you decide."))
    return " ".join(told)


def advice(summary: Summary) -> list[str]:
    """What to change, a sentence each, most useful first; empty if the numbers call for nothing."""
    if _short(summary):
        return ["Train longer before reading anything into a report."]
    return [*_against_overfitting(summary), *_about_length(summary), *_about_balance(summary)]


def _opening(summary: Summary) -> list[str]:
    name = METHOD_TITLES[summary.method]
    steps = counted(summary.steps_done, "step")
    if summary.steps_done < summary.steps_planned:
        steps += f" of the {summary.steps_planned} planned"
    cut = ["The last line of the log was cut off and is left out."] if summary.truncated else []
    return [f'{name} trained "{summary.class_word}" for {steps}.', *cut, *_left_out(summary.left_out)]


def _left_out(lines: list[int]) -> list[str]:
    """A sentence about ignored lines of a damaged log, by number."""
    if not lines:
        return []
    verb = "is" if len(lines) == 1 else "are"
    return [f"{line_numbers(lines).capitalize()} of the log {verb} unreadable or repeated and left out."]


def _indicator(summary: Summary) -> list[str]:
    if not summary.indicator_measured:
        because = "The overfitting indicator was not measured, because the prior was not run beside the tuned model"
        unknown = "From its own loss a run cannot tell learning from memorising, so whether it overfits is not known"
        return [f"{because}." if summary.drift else f"{because}. {unknown}."]
    if _short(summary):
        return [f"With fewer than {FEWEST_STEPS} steps the overfitting indicator says nothing yet."]
    seen = [item for item in summary.bins if item.samples]
    said = [_near_one(summary)]
    if len(seen) < len(summary.bins):
        said.append(
            f"Noise levels that were trained at all: {len(seen)} of {len(summary.bins)}. The others say nothing."
        )
    if summary.data_weight is not None and summary.near_one:
        said.append(f"The adaptive weight leaves the denoising loss {summary.data_weight:.0%} on average by now.")
    return said


def _near_one(summary: Summary) -> str:
    near, count = summary.near_one, len(summary.bins)
    if not near:
        top = max(summary.bins, key=lambda item: item.gamma)
        so = "" if summary.drift else ", so by this measure the run does not overfit"
        at = f"{top.gamma:.2f}, at {top.range}"
        return f"The overfitting indicator is near 1 at no noise level: the highest is {at}{so}."
    first = min(item.near_one_since or 0 for item in near)
    where = (
        f"The overfitting indicator is near 1 ({NEAR_ONE} or more) at {len(near)} of {count} noise levels "
        f"({_ranges(near, count)}). This began at step {first}"
    )
    if summary.most_since is None:
        return (
            f"{where}. Published runs on SDXL end like this: near 1 at low and middle noise, far below at the "
            "noisiest. This alone is no alarm."
        )
    return (
        f"{where}, for most levels at step {summary.most_since}. There the tuned model knows the training pictures far "
        "better than the prior does. That is overfitting, or a subject far from all the prior knows. The indicator "
        "cannot tell these apart."
    )


def _drift(summary: Summary) -> list[str]:
    if not summary.drift or _short(summary):
        return []
    end = summary.drift[-1]
    meant = "The ratio is how much unrelated prompts change, divided by how much the subject's prompts change."
    ratio = f"At step {end.step} the drift ratio was {end.ratio:.2f}"
    if len(summary.drift) < 2:
        return [f"{ratio}. {meant} Measured once, it says little."]
    risen = "other pictures change too, a sign of overfitting" if has_risen(summary) else "it has not risen much"
    return [f"{ratio}, its lowest {lowest_ratio(summary):.2f}: {risen}. {meant}"]


def _loss(summary: Summary) -> str:
    rose = "The denoising loss rose over the last half of the run"
    augmented = ", as it may when more pictures are augmented: no bad sign by itself" if summary.augments else ""
    return {
        "unknown": "There are too few steps to say where the denoising loss is going.",
        "falling": "The denoising loss was still falling at the end.",
        "flat": "The denoising loss no longer changes by more than chance over the last half of the run.",
        "rising": f"{rose}{augmented}.",
    }[summary.trend]


def _balance(summary: Summary) -> list[str]:
    if len(summary.balance) < 2:
        return []
    shares = ", ".join(f"{name.replace('_', ' ')} {item.share:.0%}" for name, item in summary.balance.items())
    top, item = max(summary.balance.items(), key=lambda pair: pair[1].share)
    judged = f"{top.replace('_', ' ').capitalize()} dominates" if item.share > DOMINATES else "No term dominates"
    return [f"Each term's share of the gradient norms: {shares}. {judged}."]


def _against_overfitting(summary: Summary) -> list[str]:
    """Based on drift only: the indicator is also near 1 if a subject is learned well and nothing else has changed."""
    if len(summary.drift) < 2:
        if summary.indicator_measured and summary.most_since is None:
            return []
        return ["Have the drift measured (watch_drift on, snapshot_every well below the steps)."]
    if not has_risen(summary):
        return []
    changes = [
        f"Lower the learning rate from {summary.learning_rate:g}.",
        "Add pictures, especially with other backgrounds and views.",
    ]
    if (kept := last_before_rising(summary)) is not None:
        return [f"Compare the snapshot of step {kept.step}, from before the drift ratio rose.", *changes]
    return changes


def _about_length(summary: Summary) -> list[str]:
    if has_risen(summary) or (len(summary.drift) < 2 and summary.most_since is not None):
        return []
    if summary.trend == "rising" and not summary.augments:
        return [f"Lower the learning rate from {summary.learning_rate:g}."]
    if summary.trend == "falling" and summary.indicator_measured:
        return ["If the subject is not yet there, train longer: nothing here speaks against it."]
    if summary.trend == "flat" and summary.indicator_measured and not summary.near_one:
        rate = f"raise the learning rate from {summary.learning_rate:g}"
        return [f"If the subject is not there, {rate}: more steps alone change little."]
    return []


def _about_balance(summary: Summary) -> list[str]:
    """Regularisers that drown the rest. A small share needs no advice: in our benchmark ten times less did as well."""
    return [
        f"Lower {weight.name} from {weight.value:g}, as the {term.replace('_', ' ')} term dominates."
        for term, weight in summary.weights.items()
        if term in summary.balance and summary.balance[term].share > DOMINATES
    ]


def _short(summary: Summary) -> bool:
    return summary.steps_done < FEWEST_STEPS


def _ranges(bins: list[BinSummary], count: int) -> str:
    """Noise level ranges, with neighbouring bins merged: `0.0-0.3, 0.5-0.6`."""
    runs: list[list[BinSummary]] = []
    for item in bins:
        if runs and runs[-1][-1].bin == item.bin - 1:
            runs[-1].append(item)
        else:
            runs.append([item])
    return ", ".join(levels_named(run[0].levels[0], run[-1].levels[1], count) for run in runs)
