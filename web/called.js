/**
 * APT Image Set, in the editor: the subject's name and class word are typed once, in the APT Train that trains on it.
 *
 * In: what an empty widget sends when the workflow is queued; what the widget shows and the workflow keeps stays empty.
 * Not in: checking captions for them, which the server does.
 */

import { app } from "../../scripts/app.js";
import { linkOf, nodesBefore } from "./upstream.js";

const [IMAGE_SET, TRAINER] = ["APTImageSet", "APTTrain"];
const FILE_NAME = /^[\w\s-]+$/; // else the training node says what is wrong, and one complaint is enough
const NO_WORDS = /[{}:]/;

/** `{subject, class_word}` of the training nodes that train on this set; empty where they differ, or none can be known. */
function calledBy(imageSet) {
  const graphs = [app.rootGraph, ...(app.rootGraph.subgraphs?.values() ?? [])];
  const trainers = graphs
    .flatMap((graph) => graph.nodes)
    .filter((node) => node.comfyClass === TRAINER)
    .filter((node) => [...nodesBefore(node, "images", app.rootGraph, IMAGE_SET, "IMAGE").values()].includes(imageSet));
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

app.registerExtension({
  name: "APTTrain.Called",

  nodeCreated(node) {
    if (node.comfyClass !== IMAGE_SET) return;
    for (const widget of node.widgets ?? []) {
      if (!["subject", "class_word"].includes(widget.name)) continue;
      widget.serializeValue = () => (String(widget.value).trim() ? widget.value : calledBy(node)[widget.name]);
    }
  },
});
