// Texts that lie over each other: pairs of them, and by how much. The argument is the overlap that is allowed, in pixels.
// What scrolls away under the navigation, and what a scrolling part hides, does not count.
const seen = [];
const clipped = (box, element) => {
  let { left, right, top, bottom } = box;
  for (let at = element; at && at !== document.body; at = at.parentElement) {
    if (getComputedStyle(at).overflowX === "visible") continue;
    const frame = at.getBoundingClientRect();
    [left, right] = [Math.max(left, frame.left), Math.min(right, frame.right)];
    [top, bottom] = [Math.max(top, frame.top), Math.min(bottom, frame.bottom)];
  }
  return { left, right, top, bottom };
};
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walk.nextNode(); node; node = walk.nextNode()) {
  const parent = node.parentElement;
  if (!node.data.trim() || !parent.getClientRects().length) continue;
  if (parent.closest("nav, script, style, option, title")) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const whole of range.getClientRects()) {
    const box = clipped(whole, parent);
    if (box.right - box.left > 1 && box.bottom - box.top > 1) seen.push({ ...box, node, text: node.data.trim().slice(0, 40) });
  }
}
seen.sort((a, b) => a.top - b.top);
const clashes = [];
seen.forEach((one, index) => {
  for (let next = index + 1; next < seen.length && seen[next].top < one.bottom - arguments[0]; next += 1) {
    const other = seen[next];
    const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
    const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
    if (one.node === other.node || wide <= arguments[0] || high <= arguments[0]) continue;
    clashes.push([one.text, other.text, wide, high]);
  }
});
return clashes;
