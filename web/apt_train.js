/**
 * Overfit Indicator Monitor, in the editor: the curves of the training node upstream, live.
 *
 * In: the extension, which ties monitors to the graph and to the host's messages. Not in: finding the training node
 * (`upstream`), runs (`runs`), the element on the node (`monitor_view`).
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { LEFT, MonitorView } from "./monitor_view.js";
import { Runs } from "./runs.js";
import { say } from "./texts.js";
import { isIn, locatorOf, trainersOf } from "./upstream.js";

const MONITOR = "APTOverfitIndicatorMonitor";
const FIRST_SIZE = [440, 480];
const PICTURE_HEIGHT = 420;
const LEAST_PICTURE_HEIGHT = 220; // the host's own

const runs = new Runs(ask);
const monitors = new Map(); // node -> {view, shown, executed, lost}
let ticking = null;
let busy = true; // whether the host may be at work

/** What a route answers; null where there is no such thing, undefined where the host is away and may come back. */
async function ask(route) {
  try {
    const response = await api.fetchApi(route);
    if (response.ok) return await response.json();
    return response.status === 404 ? null : undefined;
  } catch {
    return undefined; // the page's own notice says so
  }
}

/** Give a new monitor its element. */
function attach(node) {
  const view = new MonitorView();
  const monitor = { view, shown: null, executed: null, lost: 0 };
  const widget = node.addDOMWidget("live_curves", "apt_train_curves", view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => view.leastHeight + 20, // 10 above and beneath are the host's margin
  });
  widget.serialize = false; // nothing of it goes into the workflow
  node.setSize?.([Math.max(node.size[0], FIRST_SIZE[0]), Math.max(node.size[1], FIRST_SIZE[1])]);
  after(node, "onExecuted", (output) => take(node, monitor, output, runs.nextOrder()));
  after(node, "onConnectionsChange", () => setTimeout(() => refresh(node, monitor)));
  // Not before it is in a graph: the editor makes copies that never are, whose removal nobody would be told of.
  after(node, "onAdded", () => begin(node, monitor));
  after(node, "onRemoved", () => detach(node));
  if (node.graph) begin(node, monitor);
}

function begin(node, monitor) {
  monitor.view.watch();
  monitors.set(node, monitor);
  ticking ??= setInterval(tick, 1000);
  runs.list();
}

function detach(node) {
  monitors.get(node)?.view.dispose();
  monitors.delete(node);
  if (monitors.size) return;
  clearInterval(ticking);
  ticking = null;
}

/** Let something follow a node's own callback. */
function after(node, name, then) {
  const before = node[name];
  node[name] = function (...args) {
    const answer = before?.apply(this, args);
    then(...args);
    return answer;
  };
}

/**
 * What the node itself has returned: the verdict, and which run it was about, also one that needed no training.
 *
 * `order`: its place among the runs heard of; 0 for what it had returned before the page showed it again.
 */
function take(node, monitor, output, order) {
  if (!output) return;
  const untouched = node.size[1] <= FIRST_SIZE[1];
  if (output.text) monitor.view.say([output.text].flat().join("\n"));
  setTimeout(() => grow(node, untouched ? PICTURE_HEIGHT : LEAST_PICTURE_HEIGHT));
  const run = output.run?.[0];
  if (!run || monitor.executed?.order > order) return;
  monitor.executed = { run, order };
  const trainers = trainersOf(node, app.rootGraph);
  if (order && trainers.size === 1) runs.note(run, [...trainers][0], app.rootGraph.id);
  refresh(node, monitor);
}

/** Make room for the verdict and, `picture` high, what the host draws beneath it; never take any away. */
function grow(node, picture) {
  const drawn = node.widgets?.some((widget) => widget.name.startsWith("$$canvas-image-preview"));
  const height = (node.computeSize?.()[1] ?? 0) + (drawn ? 0 : picture);
  if (node.size[1] < height) node.setSize([node.size[0], height]);
}

/**
 * In Nodes 2.0 a node that takes another's place under its number, as after an undo, gets the other's page elements: the
 * host puts no element of the new node there.
 */
function settle(node, { element }) {
  if (element.isConnected || node.graph !== app.canvas?.graph) return;
  document.querySelector(`[data-node-id="${node.id}"] .${LEFT}`)?.replaceChildren(element);
}

/** Show the newest run of the training nodes upstream. */
function refresh(node, monitor) {
  if (!node.graph) return;
  settle(node, monitor.view);
  const trainers = trainersOf(node, app.rootGraph);
  const made = trainers.size ? runs.madeBy(trainers, app.rootGraph.id) : undefined;
  const newest = [made, trainers.size ? monitor.executed : undefined]
    .filter(Boolean)
    .sort((a, b) => b.order - a.order)[0];
  monitor.shown = newest?.run ?? null;
  const series = newest && runs.get(newest.run);
  monitor.view.show(series ?? null, missing(trainers));
  if (newest) runs.keepUp(newest.run);
}

function missing(trainers) {
  return trainers.size
    ? say("Queue the workflow: the curves appear here while APT Train runs.")
    : say("Connect APT_RUN of an APT Train node.");
}

function refreshAll() {
  for (const [node, monitor] of monitors) refresh(node, monitor);
}

function tick() {
  if (busy && document.visibilityState === "visible") runs.listAgain();
  for (const [node, monitor] of monitors) {
    // Nobody is told of what lay in a subgraph of a workflow that was closed. Thrice, as one may just be loading.
    monitor.lost = isIn(node, app.rootGraph) ? 0 : monitor.lost + 1;
    if (monitor.lost > 2) {
      detach(node);
      continue;
    }
    if (document.visibilityState === "visible") refresh(node, monitor);
    monitor.view.sharpen();
  }
}

app.registerExtension({
  name: "APTTrain.Monitor",

  init() {
    api.addEventListener("apt_train.started", ({ detail }) => runs.started(detail));
    api.addEventListener("apt_train.steps", ({ detail }) => runs.stepped(detail));
    api.addEventListener("apt_train.notice", ({ detail }) => runs.noticed(detail));
    api.addEventListener("apt_train.finished", ({ detail }) => runs.finished(detail));
    api.addEventListener("apt_train.found", ({ detail }) => runs.found(detail));
    // Another page's run is told to that page alone; that the queue moved is told to all.
    for (const event of ["status", "reconnected"]) {
      api.addEventListener(event, ({ detail }) => {
        busy = detail?.exec_info?.queue_remaining > 0; // no while it is away
        if (monitors.size) runs.list();
      });
    }
    runs.addEventListener("change", refreshAll);
  },

  nodeCreated(node) {
    if (node.comfyClass === MONITOR) attach(node);
  },

  afterConfigureGraph() {
    refreshAll();
  },

  /** Another workflow came to the front: the page hands its nodes what they had returned. */
  onNodeOutputsUpdated(outputs) {
    for (const [node, monitor] of monitors) take(node, monitor, outputs?.[locatorOf(node, app.rootGraph)], 0);
  },
});
