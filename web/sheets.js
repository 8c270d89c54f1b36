/**
 * The nodes that show a sheet of pictures, in the editor: large enough that the sheet can be read, also at 70% zoom.
 *
 * In: each node's size, and how high its text boxes may be. Not in: the sheet, which the host draws as it draws every
 * node's picture.
 */

import { app } from "../../scripts/app.js";
import { isPreview, makeRoomForSheet } from "./picture.js";

const BOX_HEIGHT = 90; // else the text boxes share all height that a node gains with its picture
// `tallest`: the templates leave no more room, and a wide sheet needs none.
const SHEETS = {
  APTImageSet: { width: 640, tallest: 1200 },
  APTAttentionAlignPreview: { width: 480, tallest: 1200 },
  APTSnapshotSheet: { width: 560, tallest: 460 },
  APTLoRACheckUp: { width: 560, tallest: 460 },
  APTLoadRun: { width: 440, tallest: 440 },
};

app.registerExtension({
  name: "APTTrain.Sheets",

  nodeCreated(node) {
    const sheet = SHEETS[node.comfyClass];
    if (!sheet) return;
    for (const widget of node.widgets ?? []) {
      if (widget.options && !isPreview(widget)) widget.options.getMaxHeight ??= () => BOX_HEIGHT;
    }
    makeRoomForSheet(node, sheet.width, sheet.tallest);
  },
});
