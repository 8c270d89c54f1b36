([titles, [left, top, right, bottom]]) => {
  const things = titles.length ? [...app.graph.nodes, ...app.graph.groups] : app.graph.groups;
  const shown = things.filter((thing) => !titles.length || titles.includes(thing.title));
  const boxes = shown.map((thing) => thing.boundingRect ?? thing._bounding);
  const [x, y] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const [width, height] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])) - [x, y][axis]);
  const scale = Math.min((right - left) / width, (bottom - top) / height);
  const page = app.canvas.canvas.getBoundingClientRect();
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [(left - page.x) / scale - x, (top - page.y) / scale - y];
  app.canvas.setDirty(true, true);
  return { x: left, y: top, width: width * scale, height: height * scale };
}
