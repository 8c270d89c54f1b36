async ([nodes, columns, FOLDED]) => {
  const [TITLE, GAP, GROUP_TITLE, PADDING] = [30, 20, 40, 15];
  const COLOUR = "#88aabb";
  const round = (number) => Math.ceil(number / 10) * 10;

  await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
  const boxes = [null, ...nodes.map(create)]; // by number

  nodes.forEach((node, i) => connect(node, boxes[i + 1]));
  nodes.forEach((node, i) => node.folded && boxes[i + 1].collapse());
  let right = 0;
  for (const groups of columns) right = column(groups, right) + GAP;
  app.graph.setDirtyCanvas(true, true);

  function create({ type, title, size, widgets, properties }) {
    const box = LiteGraph.createNode(type);
    if (!box) throw new Error(`the host has no node ${type}`);
    app.graph.add(box);
    if (title) box.title = title;
    Object.assign(box.properties, properties);
    for (const [name, value] of Object.entries(widgets)) set(box, name, value);
    const least = box.computeSize();
    box.setSize([round(Math.max(size[0], least[0], 200)), round(Math.max(size[1], least[1]))]);
    return box;
  }

  function set(box, name, value) {
    const widget = box.widgets?.find((widget) => widget.name === name);
    if (!widget) throw new Error(`${box.type} has no widget ${name}: ${box.widgets?.map((each) => each.name)}`);
    widget.value = value;
    widget.callback?.(value);
  }

  function connect({ wires }, box) {
    for (const [name, [from, output]] of Object.entries(wires)) {
      const slots = [boxes[from].findOutputSlot(output), box.findInputSlot(name)];
      if (slots.includes(-1) || !boxes[from].connect(slots[0], box, slots[1])) {
        throw new Error(`${boxes[from].type} ${output} does not go into ${box.type} ${name}`);
      }
    }
  }

  function column(groups, left) {
    let [top, right] = [0, left];
    for (const { title, columns } of groups) {
      const [x, y] = fill(columns, left, top);
      const frame = new LiteGraph.LGraphGroup(title);
      frame._bounding.set([left, top, x - left, y - top]);
      frame.color = COLOUR;
      app.graph.add(frame);
      top = y + GAP;
      right = Math.max(right, x);
    }
    return right;
  }

  function widthOf(box) {
    return box.flags.collapsed ? FOLDED[0] : box.size[0];
  }

  function heightOf(box) {
    return box.flags.collapsed ? FOLDED[1] : TITLE + box.size[1];
  }

  function fill(columns, left, top) {
    let [x, bottom] = [left + PADDING, top];
    for (const column of columns) {
      let y = top + GROUP_TITLE;
      for (const id of column) {
        boxes[id].pos = [x, y + TITLE];
        y += heightOf(boxes[id]) + GAP;
      }
      x += Math.max(...column.map((id) => widthOf(boxes[id]))) + GAP;
      bottom = Math.max(bottom, y);
    }
    return [x - GAP + PADDING, bottom - GAP + PADDING];
  }
}
