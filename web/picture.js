/**
 * Pictures on the pack's nodes: room to see them in, and one at a time.
 *
 * In: a node's size, the end of its live picture. Not in: drawing, which the host does as for every node.
 */

import { app } from "../../scripts/app.js";
import { locatorOf } from "./upstream.js";

const HOST_HEIGHT = 220; // what the host itself keeps free for a picture
const CAPTION = 30; // the host's line beneath it, and margins
const PREVIEW = "$$canvas-image-preview"; // how the host's own widget for a picture is called
const SEND_LIVE_PICTURES = ["APTTrain", "APTSnapshotSheet"];

const seen = new WeakMap(); // node -> the size of picture that it was last made room for

/**
 * A node high enough for a picture of that size at full width, but not for more than `tallest`; no height is taken away.
 *
 * Once for each size of picture: who makes the node smaller afterwards means it.
 */
export function makeRoom(node, width, height, tallest) {
  const size = `${width}x${height}`;
  if (!width || !height || seen.get(node) === size) return;
  seen.set(node, size);
  const picture = Math.min(tallest, (node.size[0] * height) / width) + CAPTION;
  const needed = (node.computeSize?.()[1] ?? 0) + picture - (node.widgets?.some(isPreview) ? HOST_HEIGHT : 0);
  if (node.size[1] < needed) node.setSize?.([node.size[0], needed]);
}

/** Whether the host made this widget for a picture. */
export function isPreview(widget) {
  return widget.name.startsWith(PREVIEW);
}

/** Calls `then(output)` whenever the node has run, or its output was in the host's memory. */
export function afterRun(node, then) {
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    const answer = before?.apply(this, arguments);
    then(output);
    return answer;
  };
}

/** A node at least `width` wide, and as high as its sheet needs once it has one, which counts as `tallest` at most. */
export function makeRoomForSheet(node, width, tallest) {
  node.setSize?.([Math.max(node.size[0], width), node.size[1]]);
  afterRun(node, (output) => output?.sheet_size && setTimeout(() => makeRoom(node, ...output.sheet_size, tallest)));
}

/**
 * The host keeps a node's live picture until the next run, beside the picture that the node ends with.
 *
 * Its page has no public way to let it go; where this one is gone, both are seen, as without us.
 */
function endLivePicture(node) {
  const page = document.getElementById("vue-app")?.__vue_app__;
  const outputs = page?.config?.globalProperties?.$pinia?._s?.get("nodeOutput");
  outputs?.revokePreviewsByLocatorId?.(locatorOf(node, app.rootGraph));
}

app.registerExtension({
  name: "APTTrain.Picture",

  nodeCreated(node) {
    if (!SEND_LIVE_PICTURES.includes(node.comfyClass)) return;
    afterRun(node, (output) => output?.images?.length && endLivePicture(node));
  },
});
