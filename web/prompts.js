/**
 * Notices where a queued prompt would show no subject: it names one that has a learned word, but not the word, or
 * nothing fills its `{subject}`, as where the training node is bypassed.
 *
 * In: reading the queued graph, as the host is sent it. Not in: what the training node itself says at its end.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { say } from "./texts.js";

const TRAINER = "APTTrain";
const SUBJECT = "{subject}";
const TRIGGER = "embedding:"; // how every learned trigger begins
const LIFE = 12_000; // ms that the notice stays

/** Names of subjects that stand alone in a text which an encoder reads; `graph` in the host's API format. */
export function namedInVain(graph) {
  const trainers = Object.values(graph).filter((node) => node.class_type === TRAINER);
  const names = trainers.filter((node) => isLearned(node, graph)).map(({ inputs }) => nameOf(inputs));
  const texts = Object.values(graph).filter(isEncoder).map((node) => textsOf(node, graph));
  return [...new Set(names.filter((name) => name && texts.some((parts) => isInVain(parts, name))))];
}

/** Whether some encoder reads `{subject}` as it stands, or nothing in its place. */
export function isUnfilled(graph) {
  return Object.values(graph).some((node) => {
    if (node.class_type === "StringReplace") return node.inputs.find === SUBJECT && node.inputs.replace === "";
    return isEncoder(node) && promptsOf(node.inputs).some((name) => typedIn(node.inputs[name], graph).includes(SUBJECT));
  });
}

/** A text as it was typed, here or into a plain text node. */
function typedIn(value, graph) {
  const text = Array.isArray(value) ? graph[value[0]]?.inputs.value : value;
  return typeof text === "string" ? text : "";
}

function isInVain(parts, name) {
  if (!/^[\w-]+$/.test(name)) return false; // no name, which the host has said
  const alone = new RegExp(`(?<![\\w-])${name}(?![\\w-])`, "i");
  return parts.some((text) => alone.test(text)) && !parts.some((text) => /\{subject\}|embedding:/i.test(text));
}

/** A learned word unless the options say otherwise, or leave it to a wire; no preset does (tests/test_presets.py). */
function isLearned({ inputs }, graph) {
  return modeOf(inputs.options, graph) === "learned";
}

/** Of the nearest options node in the chain that has it. */
function modeOf(wire, graph, seen = new Set()) {
  const options = graph[wire?.[0]];
  if (!options || seen.has(options)) return "learned";
  if ("identifier_mode" in options.inputs) return options.inputs.identifier_mode;
  return modeOf(options.inputs.options, graph, seen.add(options));
}

function nameOf({ subject, class_word: classWord }) {
  if (typeof subject === "string" && subject.trim()) return subject.trim().split(/\s+/).join("_");
  return typeof subject === "string" && typeof classWord === "string" && classWord.trim()
    ? `${classWord.trim().split(/\s+/).join("_")}_subject`
    : "";
}

function isEncoder({ class_type: type, inputs }) {
  return !type.startsWith("APT") && Array.isArray(inputs.clip) && promptsOf(inputs).length > 0;
}

function promptsOf(inputs) {
  return Object.keys(inputs).filter((name) => /^(text|prompt)/.test(name));
}

/** All that an encoder's text is made of: its own, and those of the nodes before it; of the pack's nodes, the trigger. */
function textsOf(node, graph, names = promptsOf(node.inputs), seen = new Set()) {
  if (seen.has(node)) return [];
  seen.add(node);
  return names.flatMap((name) => {
    const value = node.inputs[name];
    if (isOfReplacing(node, name)) return [];
    if (typeof value === "string") return [value];
    const before = Array.isArray(value) && graph[value[0]];
    if (!before) return [];
    return before.class_type.startsWith("APT") ? [TRIGGER] : textsOf(before, graph, Object.keys(before.inputs), seen);
  });
}

/** What a text node looks for, and what it then puts there, is no part of a text that lacks it. */
function isOfReplacing(node, name) {
  return node.class_type.startsWith("String") && /^(find|replace|pattern|delimiter)/.test(name);
}

/** Asked first: reading the whole graph may make other packs' widgets do something. */
function hasTrainer() {
  const graphs = [app.rootGraph, ...(app.rootGraph.subgraphs?.values() ?? [])];
  return graphs.some((graph) => graph.nodes.some((node) => node.comfyClass === TRAINER));
}

async function notice() {
  if (!hasTrainer()) return;
  const { output } = await app.graphToPrompt();
  const details = namedInVain(output).map((name) =>
    say(
      "{name} alone shows no subject: its look is in a learned word. Write {subject} where it belongs and let " +
        "the trigger output fill it in, or write the trigger itself.",
      { name },
    ),
  );
  if (isUnfilled(output)) {
    details.push(
      say(
        "In a prompt {subject} stays as it is, or becomes nothing, so the picture lacks your subject. Let a Replace " +
          "Text node put the trigger output in its place, or write the class word there.",
      ),
    );
  }
  for (const detail of details) {
    app.extensionManager.toast.add({ severity: "warn", summary: "APT Train", detail, life: LIFE });
  }
}

app.registerExtension({
  name: "APTTrain.Prompts",

  init() {
    api.addEventListener("promptQueued", () => notice());
  },
});
