/**
 * Which training nodes a monitor looks at: through links, reroutes, switches and the walls of subgraphs.
 *
 * In: walking the graph as the editor holds it. Not in: runs, drawing.
 *
 * A node's execution id is the way to it from the root, `subgraph:inner:node`. A node inside a subgraph that is used
 * twice has two.
 */

const TRAINER = "APTTrain";
const RUN_TYPE = "APT_RUN";

/** Execution ids of the training nodes that feed the monitor's `run` input. */
export function trainersOf(monitor, root) {
  const found = new Set();
  const slot = monitor.inputs?.findIndex((input) => input.name === "run") ?? -1;
  if (slot < 0 || !monitor.graph || !root) return found;
  for (const path of pathsTo(monitor.graph, root)) follow(monitor, slot, path, found, new Set());
  return found;
}

/** Whether a node lies in the graph that is open, or in one of its subgraphs. */
export function isIn(node, root) {
  return Boolean(node.graph && root && pathsTo(node.graph, root).length);
}

/** The key by which the host's page files a node's outputs: `subgraph's id:node`, at the root only the node. */
export function locatorOf(node, root) {
  return node.graph === root || !node.graph ? String(node.id) : `${node.graph.id}:${node.id}`;
}

/** Every way from the root to a graph, as lists of subgraph nodes. */
function pathsTo(graph, root, path = []) {
  if (graph === root) return [path];
  const ways = [];
  for (const node of root.nodes ?? []) {
    const inner = node.isSubgraphNode?.() ? node.subgraph : null;
    if (inner && !path.includes(node)) ways.push(...pathsTo(graph, inner, [...path, node]));
  }
  return ways;
}

/** What a node's input comes from. */
function follow(node, slot, path, found, seen) {
  const place = `${path.map((host) => host.id).join(":")}/${node.id}/${slot}`;
  if (seen.has(place)) return;
  seen.add(place);
  const link = linkOf(node.graph, node.inputs?.[slot]?.link);
  if (link) arrive(node.graph, link, path, found, seen);
}

/** What a link comes from. */
function arrive(graph, link, path, found, seen) {
  if (link.originIsIoNode) {
    if (path.length) follow(path[path.length - 1], link.origin_slot, path.slice(0, -1), found, seen);
    return;
  }
  const origin = graph.getNodeById(link.origin_id);
  if (!origin) return;
  if (origin.isSubgraphNode?.()) {
    const inner = linkOf(origin.subgraph, origin.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
    if (inner) arrive(origin.subgraph, inner, [...path, origin], found, seen);
  } else if (origin.comfyClass === TRAINER) {
    found.add([...path, origin].map((node) => node.id).join(":"));
  } else {
    for (const [index, input] of (origin.inputs ?? []).entries()) {
      if (origin.isVirtualNode || passesRuns(input.type)) follow(origin, index, path, found, seen);
    }
  }
}

function passesRuns(type) {
  return type === "*" || String(type).split(",").includes(RUN_TYPE);
}

function linkOf(graph, id) {
  return id == null ? undefined : (graph.getLink?.(id) ?? graph.links?.[id]);
}
