/**
 * A node large enough that the letters on its sheet can be read.
 *
 * In: its size. Not in: the picture, which the host draws as it draws every node's.
 */

const TALLEST = 1200; // of a picture; long sheets are scrolled to
const HOST_HEIGHT = 220; // what the host itself keeps free for a picture
const CAPTION = 30; // the host's line beneath it, and margins

/** Give a node that width at least, and the height its sheet needs once it has one. */
export function makeRoomForSheet(node, width) {
  node.setSize?.([Math.max(node.size[0], width), node.size[1]]);
  const before = node.onExecuted;
  let grown = "";
  node.onExecuted = function (output) {
    const answer = before?.apply(this, arguments);
    const size = output?.sheet_size;
    // Once for each size of picture: who makes the node smaller afterwards means it.
    if (size && grown !== (grown = String(size))) setTimeout(() => grow(node, size));
    return answer;
  };
}

/** Make the node high enough for its picture at full width; never take any height away. */
function grow(node, [width, height]) {
  const picture = Math.min(TALLEST, (node.size[0] * height) / width) + CAPTION;
  const drawn = node.widgets?.some((widget) => widget.name.startsWith("$$canvas-image-preview"));
  const needed = (node.computeSize?.()[1] ?? 0) + picture - (drawn ? HOST_HEIGHT : 0);
  if (node.size[1] < needed) node.setSize?.([node.size[0], needed]);
}
