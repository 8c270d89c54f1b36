/**
 * APT Train's preset, in the editor: what it sets is said when it is chosen, as the other widgets go on showing their own.
 *
 * In: the notice. Not in: what a preset sets, which the server says in the node's definition.
 */

import { app } from "../../scripts/app.js";
import { say } from "./texts.js";

const TRAINER = "APTTrain";
const LIFE = 12_000; // ms that the notice stays

function tell(name, settings) {
  const detail = say("{name} sets {settings}. A widget that you have changed yourself stands above it.", {
    name, settings,
  });
  app.extensionManager.toast.add({ severity: "info", summary: "APT Train", detail, life: LIFE });
}

app.registerExtension({
  name: "APTTrain.Presets",

  nodeCreated(node) {
    if (node.comfyClass !== TRAINER) return;
    const sets = node.constructor.nodeData?.input?.optional?.preset?.[1]?.sets ?? {};
    const widget = node.widgets?.find(({ name }) => name === "preset");
    if (!widget) return;
    const before = widget.callback;
    widget.callback = function (value, ...rest) {
      const answer = before?.call(this, value, ...rest);
      if (sets[value]) tell(value, sets[value]);
      return answer;
    };
  },
});
