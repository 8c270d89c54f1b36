/**
 * Which nodes feed an input: through links, reroutes, switches and the walls of subgraphs.
 *
 * In: walking the graph as the editor holds it. Not in: what is made of the nodes that are found.
 *
 * A node's execution id is the way to it from the root, `subgraph:inner:node`. A node inside a subgraph that is used
 * twice has two.
 */

/** Execution ids of the training nodes that feed the monitor's `run` input. */
export function trainersOf(monitor, root) {
  return new Set(nodesBefore(monitor, "run", root, "APTTrain", "APT_RUN").keys());
}

/** Nodes of a class that feed an input by wires of a type, by execution id. */
export function nodesBefore(node, name, root, comfyClass, wireType) {
  const sought = { comfyClass, wireType, found: new Map(), seen: new Set() };
  const slot = node.inputs?.findIndex((input) => input.name === name);
  for (const path of root ? pathsTo(node.graph, root) : []) follow(node, slot, path, sought);
  return sought.found;
}

/** Whether a node lies in the graph that is open, or in one of its subgraphs. */
export function isIn(node, root) {
  return Boolean(root && pathsTo(node.graph, root).length);
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
function follow(node, slot, path, sought) {
  const place = `${path.map((host) => host.id).join(":")}/${node.id}/${slot}`;
  if (sought.seen.has(place)) return;
  sought.seen.add(place);
  const link = linkOf(node.graph, node.inputs?.[slot]?.link);
  if (link) arrive(node.graph, link, path, sought);
}

/** What a link comes from. */
function arrive(graph, link, path, sought) {
  if (link.originIsIoNode) {
    if (path.length) follow(path[path.length - 1], link.origin_slot, path.slice(0, -1), sought);
    return;
  }
  const origin = graph.getNodeById(link.origin_id);
  if (!origin) return;
  if (origin.isSubgraphNode?.()) {
    const inner = linkOf(origin.subgraph, origin.subgraph.outputs?.[link.origin_slot]?.linkIds?.[0]);
    if (inner) arrive(origin.subgraph, inner, [...path, origin], sought);
  } else if (origin.comfyClass === sought.comfyClass) {
    sought.found.set([...path, origin].map((node) => node.id).join(":"), origin);
  } else {
    for (const [index, input] of (origin.inputs ?? []).entries()) {
      if (origin.isVirtualNode || passes(input.type, sought.wireType)) follow(origin, index, path, sought);
    }
  }
}

function passes(type, wireType) {
  return type === "*" || String(type).split(",").includes(wireType);
}

export function linkOf(graph, id) {
  return id == null ? undefined : (graph.getLink?.(id) ?? graph.links?.[id]);
}
