/** APT Train, in the editor: a node high enough that the samples on its picture can be seen, while it trains and after. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { afterRun, isPreview, makeRoom } from "./picture.js";

const TRAINER = "APTTrain";
const TALLEST = 640; // of the picture on the node
const TEXT_HEIGHT = 60; // of a text box once there is a picture, which would have to share the room with it

function makeRoomForSamples(node, width, height) {
  for (const widget of node.widgets ?? []) {
    if (widget.options && !isPreview(widget)) widget.options.getMaxHeight ??= () => TEXT_HEIGHT;
  }
  makeRoom(node, width, height, TALLEST);
}

/** A picture sent while a node runs; of a node inside a subgraph the subgraph's own node shows it, which keeps its size. */
async function onPreview({ detail }) {
  const node = app.rootGraph?.getNodeById?.(detail?.nodeId);
  if (node?.comfyClass !== TRAINER || !detail.blob) return;
  try {
    const picture = await createImageBitmap(detail.blob);
    makeRoomForSamples(node, picture.width, picture.height);
    picture.close();
  } catch {
    // no picture that this browser reads: the host says so where it draws it
  }
}

app.registerExtension({
  name: "APTTrain.Samples",

  init() {
    api.addEventListener("b_preview_with_metadata", onPreview);
  },

  nodeCreated(node) {
    if (node.comfyClass !== TRAINER) return;
    afterRun(node, (output) => {
      if (output?.picture_size) setTimeout(() => makeRoomForSamples(node, ...output.picture_size));
    });
  },
});
