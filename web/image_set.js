/** APT Image Set, in the editor: a node large enough that its contact sheet can be read, also at 70% zoom. */

import { app } from "../../scripts/app.js";
import { makeRoomForSheet } from "./picture.js";

const IMAGE_SET = "APTImageSet";
const WIDTH = 640;

app.registerExtension({
  name: "APTTrain.ImageSet",

  nodeCreated(node) {
    if (node.comfyClass === IMAGE_SET) makeRoomForSheet(node, WIDTH);
  },
});
