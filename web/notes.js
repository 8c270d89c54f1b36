/**
 * The notes and titles of the pack's templates, in the editor's language.
 *
 * In: what an opened template shows; the workflow that is saved keeps the English, so that it opens in any language. A
 * note is translated line by line, as the templates share many. Not in: the texts (`locales/LANGUAGE/main.json`).
 */

import { app } from "../../scripts/app.js";
import { templateTexts } from "./texts.js";

const NOTE = "MarkdownNote";

function turned(text, table) {
  return typeof text === "string" ? text.split("\n").map((line) => table[line] ?? line).join("\n") : text;
}

function showNode(node, table, english) {
  const before = node.onSerialize;
  const texts = node.type === NOTE ? (node.widgets ?? []) : [];
  node.title = turned(node.title, table);
  for (const widget of texts) widget.value = turned(widget.value, table);
  node.onSerialize = function (saved) {
    before?.call(this, saved);
    if (saved.title) saved.title = turned(saved.title, english);
    for (const values of texts.length ? [saved.widgets_values, saved.widgets_values_named] : []) {
      for (const key of Object.keys(values ?? {})) values[key] = turned(values[key], english);
    }
  };
}

function showGroup(group, table, english) {
  const serialize = group.serialize;
  group.title = turned(group.title, table);
  group.serialize = function (...args) {
    const saved = serialize.apply(this, args);
    return { ...saved, title: turned(saved.title, english) };
  };
}

app.registerExtension({
  name: "APTTrain.Notes",

  afterConfigureGraph() {
    const table = templateTexts();
    const { nodes, groups } = app.rootGraph;
    const isOurs = (node) => node.type === NOTE && String(node.widgets?.[0]?.value).split("\n")[0] in table;
    if (!nodes.some(isOurs)) return; // "Prompt" may be a title in anybody's workflow
    const english = Object.fromEntries(Object.entries(table).map(([from, to]) => [to, from]));
    for (const node of nodes) showNode(node, table, english);
    for (const group of groups) showGroup(group, table, english);
  },
});
