/**
 * APT Train Options, in the editor: a list of augment_kinds, as older workflows hold it, becomes the choice it means.
 *
 * In: what a saved workflow puts into the widget. Not in: what the node makes of a list that comes over the API.
 */

import { app } from "../../scripts/app.js";

const OPTIONS = "APTTrainOptions";
const WIDGET = "augment_kinds";

/** `["flip", "affine"]` -> `affine+flip`; of an empty list, as every new node once had it, the default. */
export function choiceOf(kinds, choices) {
  const same = (choice) => [...choice.split("+")].sort().join() === [...new Set(kinds)].sort().join();
  return choices.find(same) ?? choices[0];
}

app.registerExtension({
  name: "APTTrain.SavedKinds",

  nodeCreated(node) {
    if (node.comfyClass !== OPTIONS) return;
    const before = node.onConfigure;
    node.onConfigure = function (...args) {
      const answer = before?.apply(this, args);
      const widget = this.widgets?.find(({ name }) => name === WIDGET);
      if (Array.isArray(widget?.value)) widget.value = choiceOf(widget.value, widget.options.values);
      return answer;
    };
  },
});
