/**
 * What the pack's scripts and combos say, in the editor's language.
 *
 * In: looking texts up in `locales/LANGUAGE/main.json`, which the host serves; labels of combos and text boxes. Not in:
 * the texts, nor the nodes' own names and tooltips, which the editor translates itself. A text is found by its English,
 * which stands where it is used and is what is shown where no translation is.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODES = [
  "APTTrain", "APTMethodOptions", "APTAdapterOptions", "APTDataOptions", "APTSampleOptions", "APTTrainOptions",
  "APTAttentionAlignPreview", "APTOverfitIndicatorMonitor", "APTImageSet", "APTSnapshotSheet", "APTLoadRun",
  "APTLoRACheckUp",
];

const TRANSLATED_WIDTH = 340; // a choice stands there with its translation

let served = {};
let told = ""; // the page's id and language as the server knows them

/** The English text or its translation, `{name}` replaced by the value of that name. */
export function say(english, values = {}) {
  const text = ours().texts?.[english] ?? english;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** A sentence of the server's, whose translation has `{1}`, `{2}` ... where it differs from case to case. */
export function saySentence(english) {
  for (const [pattern, text] of bySaying(ours().server ?? {})) {
    const parts = pattern.split(/\{\d\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const found = english.match(new RegExp(`^${parts.join("(.+?)")}$`, "s"));
    if (found) return text.replace(/\{(\d)\}/g, (_, place) => found[place]);
  }
  return english;
}

/** What says most by itself comes first, as on the server. */
function bySaying(sentences) {
  const words = ([pattern]) => pattern.replace(/\{\d\}/g, "").length;
  return Object.entries(sentences).sort((one, other) => words(other) - words(one));
}

/** A choice as the combo shows it: the value, which errors and help pages name, and what it means. */
export function labelOf(choice) {
  return ours().choices?.[choice] ?? choice;
}

/** The lines of the templates' notes and their titles, by their English. */
export function templateTexts() {
  return ours().templates ?? {};
}

function ours() {
  return served[language()]?.aptTrain ?? {};
}

function language() {
  return app.extensionManager?.setting?.get("Comfy.Locale");
}

/**
 * The server cannot know the browser's own language, which the editor takes where none was chosen; nor, with several
 * users, whose prompt it is.
 */
async function tellLanguage() {
  const news = `${api.clientId} ${language()}`;
  if (!api.clientId || !language() || told === news) return;
  told = news;
  const route = `/apt_train/language?client=${encodeURIComponent(api.clientId)}`;
  await api.fetchApi(route, { method: "POST", body: language() });
}

/** Not in English: a combo with labels of its own loses the host's search in its list. */
function translateCombos(node) {
  if (!ours().choices) return;
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  const own = { ...required, ...optional }; // not the seed's control, which is the host's, whatever its name
  for (const widget of node.widgets ?? []) {
    if (widget.type !== "combo" || !(widget.name in own) || !widget.options) continue;
    widget.options.getOptionLabel ??= (choice) => labelOf(choice ?? "");
  }
  node.setSize?.([Math.max(node.size[0], TRANSLATED_WIDTH), node.size[1]]);
}

/** The classic editor shows no name on a text box but what stands in it while it is empty. */
function nameTextBoxes(node) {
  for (const { element, name, label } of node.widgets ?? []) {
    if (!(element instanceof HTMLTextAreaElement)) continue;
    const hint = element.placeholder === name ? "" : element.placeholder;
    element.placeholder = [label ?? name, hint].filter(Boolean).join(": ");
  }
}

app.registerExtension({
  name: "APTTrain.Texts",

  async init() {
    try {
      served = await (await api.fetchApi("/i18n")).json();
    } catch {
      served = {}; // English then
    }
    const tell = () => tellLanguage().catch(() => {}); // the server speaks English then
    api.addEventListener("status", tell); // the first one brings the page's id
    api.addEventListener("reconnected", () => ((told = ""), tell())); // to a host that was restarted, perhaps
    tell();
  },

  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    translateCombos(node);
    nameTextBoxes(node);
  },
});
