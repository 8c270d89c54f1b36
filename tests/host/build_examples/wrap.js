async ([title, members, inputs, outputs]) => {
  const inner = new Set(app.graph.nodes.filter((node) => members.includes(Number(node.id))));
  const { subgraph, node } = app.graph.convertToSubgraph(inner);
  subgraph.name = node.title = title;
  for (const input of subgraph.inputs.filter((input) => node.findInputSlot(input.name) >= 0)) {
    if (node.inputs[node.findInputSlot(input.name)].widget) subgraph.removeInput(input); // chosen by the editor
  }
  for (const [name, id, slot] of inputs) {
    const target = subgraph.getNodeById(id);
    const socket = target.inputs[target.findInputSlot(slot)];
    subgraph.addInput(name, socket.type).connect(socket, target);
  }
  for (const [name, id, slot] of outputs) {
    const source = subgraph.getNodeById(id);
    const socket = source.outputs[source.findOutputSlot(slot)];
    subgraph.addOutput(name, socket.type).connect(socket, source);
  }
  node.setSize([400, Math.max(node.size[1], node.computeSize()[1])]);
  app.canvas.deselectAll();
  app.canvas.select(node);
  await app.extensionManager.command.execute("Comfy.PublishSubgraph", { metadata: { name: title } });
}
