/**
 * APT Attention Align Preview, in the editor: a node large enough that the labels on its picture can be read.
 *
 * In: its size. Not in: the picture, which the host draws as it draws every node's.
 */

import { app } from "../../scripts/app.js";
import { makeRoomForSheet } from "./picture.js";

const PREVIEW = "APTAttentionAlignPreview";
const WIDTH = 480; // the letters are drawn for it
const PROMPT_HEIGHT = 90; // else the prompt's box takes half of all height that the node gains

function attach(node) {
  const prompt = node.widgets?.find((widget) => widget.name === "prompt");
  if (prompt?.options) prompt.options.getMaxHeight = () => PROMPT_HEIGHT;
  makeRoomForSheet(node, WIDTH);
}

app.registerExtension({
  name: "APTTrain.AttentionPreview",

  nodeCreated(node) {
    if (node.comfyClass === PREVIEW) attach(node);
  },
});
