/**
 * APT Image Set, in the editor: the subject's name and class word are typed once, in the APT Train that trains on it.
 *
 * In: what an empty widget sends when the workflow is queued; what the widget shows and the workflow keeps stays empty.
 * A notice where the set is checked at another size than it is trained at. Not in: the checks, which the server makes.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { say } from "./texts.js";
import { linkOf, nodesBefore } from "./upstream.js";

const [IMAGE_SET, TRAINER] = ["APTImageSet", "APTTrain"];
const FILE_NAME = /^[\w\s-]+$/; // else the training node says what is wrong, and one complaint is enough
const NO_WORDS = /[{}:]/;
const LIFE = 12_000; // ms that the notice stays
const OFF = [2, 4]; // the modes of a muted and of a bypassed node

function every(comfyClass) {
  const graphs = [app.rootGraph, ...(app.rootGraph.subgraphs?.values() ?? [])];
  return graphs.flatMap((graph) => graph.nodes).filter((node) => node.comfyClass === comfyClass && !OFF.includes(node.mode));
}

/** The training nodes that train on this set. */
function trainersOn(imageSet) {
  const setsOf = (node) => [...nodesBefore(node, "images", app.rootGraph, IMAGE_SET, "IMAGE").values()];
  return every(TRAINER).filter((node) => setsOf(node).includes(imageSet));
}

/** `{subject, class_word}` of the training nodes that train on this set; empty where they differ, or none can be known. */
function calledBy(imageSet) {
  const trainers = trainersOn(imageSet);
  const [subject, word] = ["subject", "class_word"].map((name) => {
    const values = new Set(trainers.map((node) => textOf(node, name)));
    return values.size === 1 ? [...values][0] : "";
  });
  const named = !subject || FILE_NAME.test(subject);
  const worded = word && !NO_WORDS.test(word) && (subject || FILE_NAME.test(word));
  return named && worded ? { subject, class_word: word } : { subject: "", class_word: "" };
}

/** What stands in a widget, or in the text node that is wired to it. */
function textOf(node, name) {
  const link = linkOf(node.graph, node.inputs?.find((input) => input.name === name)?.link);
  const [from, of] = link ? [node.graph.getNodeById(link.origin_id), "value"] : [node, name];
  const text = from?.widgets?.find((widget) => widget.name === of)?.value;
  return typeof text === "string" ? text.trim() : "";
}

/** A training node's 0 is the model's own size, which nobody knows here. */
function noticeSizes() {
  for (const imageSet of every(IMAGE_SET)) {
    const [checked, ...trained] = [imageSet, ...trainersOn(imageSet)].map(sizeOf);
    const other = trained.find((size) => checked && size && size !== checked);
    if (!other) continue;
    const detail = say(
      "The images are checked at {checked} pixels but trained on at {trained}: set resolution of APT Image Set to {trained}.",
      { checked, trained: other },
    );
    app.extensionManager.toast.add({ severity: "warn", summary: "APT Image Set", detail, life: LIFE });
  }
}

function sizeOf(node) {
  const isWired = node.inputs?.some((input) => input.name === "resolution" && input.link != null);
  return isWired ? 0 : node.widgets?.find((widget) => widget.name === "resolution")?.value;
}

app.registerExtension({
  name: "APTTrain.Called",

  init() {
    api.addEventListener("promptQueued", noticeSizes);
  },

  nodeCreated(node) {
    if (node.comfyClass !== IMAGE_SET) return;
    for (const widget of node.widgets ?? []) {
      if (!["subject", "class_word"].includes(widget.name)) continue;
      widget.serializeValue = () => (String(widget.value).trim() ? widget.value : calledBy(node)[widget.name]);
    }
  },
});
