/**
 * APT Train, in the editor: a node high enough that the samples on its picture can be seen, while it trains and after.
 *
 * In: its size. Not in: the picture, which the host draws as it draws every node's.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const TRAINER = "APTTrain";
const TALLEST = 640; // of the picture on the node
const HOST_HEIGHT = 220; // what the host itself keeps free for a picture
const CAPTION = 30; // the host's line beneath it, and margins
const TEXT_HEIGHT = 60; // of a text box once there is a picture, which would have to share the room with it

const seen = new WeakMap(); // node -> the size of picture that it was last made room for

/** Once for each size of picture: who makes the node smaller afterwards means it. */
function makeRoom(node, width, height) {
  const size = `${width}x${height}`;
  if (seen.get(node) === size) return;
  seen.set(node, size);
  const picture = Math.min(TALLEST, (node.size[0] * height) / width) + CAPTION;
  const drawn = node.widgets?.some((widget) => widget.name.startsWith("$$canvas-image-preview"));
  const needed = (node.computeSize?.()[1] ?? 0) + picture - (drawn ? HOST_HEIGHT : 0);
  for (const { name, options } of node.widgets ?? []) {
    if (options && !name.startsWith("$$canvas-image-preview")) options.getMaxHeight ??= () => TEXT_HEIGHT;
  }
  if (node.size[1] < needed) node.setSize?.([node.size[0], needed]);
}

/** A picture sent while a node runs; of a node inside a subgraph the subgraph's own node shows it, which keeps its size. */
async function onPreview({ detail }) {
  const node = app.rootGraph?.getNodeById?.(detail?.nodeId);
  if (node?.comfyClass !== TRAINER || !detail.blob) return;
  try {
    const picture = await createImageBitmap(detail.blob);
    makeRoom(node, picture.width, picture.height);
    picture.close();
  } catch {
    // no picture that this browser reads: the host says so where it draws it
  }
}

app.registerExtension({
  name: "APTTrain.Picture",

  init() {
    api.addEventListener("b_preview_with_metadata", onPreview);
  },

  nodeCreated(node) {
    if (node.comfyClass !== TRAINER) return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      const answer = before?.apply(this, arguments);
      const [width, height] = output?.picture_size ?? [];
      if (width && height) setTimeout(() => makeRoom(node, width, height));
      return answer;
    };
  },
});
