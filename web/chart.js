/**
 * A run's curves on a canvas: the indicator of every noise level above, the loss below.
 *
 * In: drawing, in CSS pixels. Not in: where the numbers come from, the canvas's place on a node.
 */

import { say } from "./texts.js";

const NEAR_ONE = 0.9; // as in the report: here the denoising loss weighs a tenth
const FONT = "system-ui, sans-serif";

// The report's ramp (palette.py), from clean pictures to noise.
const BIN_RAMP = [
  [59, 28, 140],
  [42, 111, 187],
  [26, 168, 143],
  [124, 181, 24],
  [240, 162, 2],
  [215, 38, 61],
];
const LOSS = [42, 111, 187];

/**
 * Draw a series into `width` x `height`.
 *
 * `colours`: `{ink, faint, dark}`, CSS colours of letters and lines, and whether they stand on a dark ground.
 */
export function drawCurves(pen, width, height, series, colours) {
  pen.clearRect(0, 0, width, height);
  const size = Math.max(9, Math.min(12, height / 24, width / 34));
  pen.font = `${size}px ${FONT}`;
  const legend = Math.max(...series.bins.map((name) => pen.measureText(name).width), 0) + size * 1.8;
  const middle = Math.round((height - size * 2) * 0.6);
  const upper = { top: size * 1.6, bottom: middle, low: 0, high: 1, ticks: [0, 0.5, 1] };
  const lower = { top: middle + size * 2.4, bottom: height - size * 1.9, ...lossSpan(series.points) };
  const lines = Math.floor((lower.bottom - lower.top) / size / 2);
  lower.ticks = ticksBetween(lower.low, lower.high, Math.max(2, Math.min(4, lines)));
  const left = Math.max(...[...upper.ticks, ...lower.ticks].map((tick) => pen.measureText(String(tick)).width)) + 8;
  const steps = [series.points[0]?.step ?? 1, series.points[series.points.length - 1]?.step ?? 1];
  const shared = { left, right: width - Math.max(legend, 10), size, steps };
  Object.assign(upper, shared);
  Object.assign(lower, shared);
  drawIndicator(pen, upper, series, colours);
  drawLoss(pen, lower, series.points, colours);
}

/** One colour per bin as CSS; lighter on a dark ground. */
export function binColours(count, dark) {
  return Array.from({ length: count }, (_, bin) => css(ramp(count > 1 ? bin / (count - 1) : 0), dark));
}

function drawIndicator(pen, frame, series, colours) {
  drawFrame(pen, frame, say("overfitting indicator γ by noise level"), colours);
  drawDashes(pen, frame, colours);
  const bins = binColours(series.bins.length, colours.dark);
  const blank = series.points.length > 20 && series.points.every(({ gamma }) => gamma.every((value) => !value));
  if (blank) note(pen, frame, say("0 in every bin: not measured, or nothing to see yet"), colours);
  bins.forEach((colour, bin) => drawLine(pen, frame, series.points, ({ gamma }) => gamma[bin], colour, 1.4));
  drawLegend(pen, frame, series.bins, bins, colours);
}

function drawLoss(pen, frame, points, colours) {
  drawFrame(pen, frame, say("loss, thick: its moving average"), colours);
  drawSteps(pen, frame, colours);
  const colour = css(LOSS, colours.dark);
  pen.globalAlpha = 0.4;
  drawLine(pen, frame, points, ({ loss }) => loss, colour, 0.8);
  pen.globalAlpha = 1;
  const smooth = smoothed(points);
  drawLine(pen, frame, points, (_, i) => smooth[i], colour, 1.8);
}

/** Moving average of the loss over a 25th of the steps, null where none is known. */
export function smoothed(points) {
  const reach = Math.max(0, Math.floor(((points[points.length - 1]?.step ?? 0) - (points[0]?.step ?? 0)) / 50));
  const means = [];
  let [from, to, sum, count] = [0, 0, 0, 0];
  for (const { step } of points) {
    for (; to < points.length && points[to].step <= step + reach; to++) {
      if (points[to].loss == null) continue;
      sum += points[to].loss * points[to].count;
      count += points[to].count;
    }
    for (; points[from].step < step - reach; from++) {
      if (points[from].loss == null) continue;
      sum -= points[from].loss * points[from].count;
      count -= points[from].count;
    }
    means.push(count > 0 ? sum / count : null);
  }
  return means;
}

/** Axis of the loss: from 0, or below where it goes there, to above nearly all steps. */
function lossSpan(points) {
  const known = points.map(({ loss }) => loss).filter((loss) => loss != null).sort((a, b) => a - b);
  if (!known.length) return { low: 0, high: 1 };
  const low = Math.min(0, known[0]);
  const high = Math.max(known[Math.floor((known.length - 1) * 0.99)], ...smoothed(points).map((mean) => mean ?? low));
  return high > low ? { low, high: high + (high - low) * 0.05 } : { low, high: low + 1 };
}

function drawFrame(pen, frame, title, { ink, faint }) {
  pen.textBaseline = "middle";
  pen.lineWidth = 1;
  pen.strokeStyle = faint;
  pen.fillStyle = ink;
  pen.textAlign = "right";
  for (const tick of frame.ticks) {
    const y = Math.round(yOf(frame, tick)) + 0.5;
    stroke(pen, [[frame.left, y], [frame.right, y]]);
    pen.fillText(String(tick), frame.left - 5, y);
  }
  pen.textAlign = "left";
  pen.fillText(title, frame.left, frame.top - frame.size * 0.75);
}

function drawDashes(pen, frame, { ink }) {
  pen.setLineDash([3, 4]);
  pen.globalAlpha = 0.6;
  pen.strokeStyle = ink;
  const y = Math.round(yOf(frame, NEAR_ONE)) + 0.5;
  stroke(pen, [[frame.left, y], [frame.right, y]]);
  pen.globalAlpha = 1;
  pen.setLineDash([]);
}

function drawSteps(pen, frame, { ink }) {
  pen.fillStyle = ink;
  pen.textBaseline = "top";
  const y = frame.bottom + frame.size * 0.4;
  const ticks = ticksBetween(frame.steps[0], frame.steps[1], 5).filter(Number.isInteger);
  pen.textAlign = "center";
  for (const tick of ticks) pen.fillText(String(tick), xOf(frame, tick), y);
  const half = pen.measureText(String(ticks[ticks.length - 1] ?? "")).width / 2;
  pen.textAlign = "left";
  pen.fillText(say("step"), frame.right + half + frame.size * 0.5, y);
}

function drawLegend(pen, frame, names, bins, { ink }) {
  const room = (frame.bottom - frame.top) / Math.max(1, names.length);
  const every = Math.max(1, Math.ceil(frame.size / room));
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  for (let row = 0; row < names.length; row += every) {
    const bin = names.length - 1 - row;
    const y = frame.top + (row + 0.5) * room;
    pen.fillStyle = bins[bin];
    pen.fillRect(frame.right + 5, y - 1.5, frame.size * 0.7, 3);
    pen.fillStyle = ink;
    pen.fillText(names[bin], frame.right + frame.size * 0.7 + 9, y);
  }
}

function note(pen, frame, text, { ink }) {
  pen.fillStyle = ink;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(text, (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2);
}

/** A curve with gaps where a value is missing; a lone point is a dot. */
function drawLine(pen, frame, points, valueOf, colour, width) {
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = width;
  pen.lineJoin = "round";
  pen.beginPath();
  let [drawn, last] = [0, null];
  points.forEach((point, i) => {
    const value = valueOf(point, i);
    if (value == null) return (last = null);
    const at = [xOf(frame, point.step), yOf(frame, Math.min(frame.high, Math.max(frame.low, value)))];
    if (last) pen.lineTo(...at);
    else pen.moveTo(...at);
    last = at;
    drawn++;
  });
  pen.stroke();
  if (drawn === 1 && last) pen.fillRect(last[0] - 2, last[1] - 2, 4, 4);
}

function stroke(pen, places) {
  pen.beginPath();
  places.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.stroke();
}

function xOf({ left, right, steps }, step) {
  return steps[1] > steps[0] ? left + ((step - steps[0]) / (steps[1] - steps[0])) * (right - left) : right;
}

function yOf({ top, bottom, low, high }, value) {
  return bottom - ((value - low) / (high - low)) * (bottom - top);
}

/** Round numbers within a span, about as many as asked for. */
export function ticksBetween(low, high, about) {
  if (!(high > low)) return [low];
  const rough = (high - low) / about;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const apart = (unit) => Math.abs(Math.log((unit * ten) / rough));
  const width = ten * [1, 2, 5, 10].reduce((best, unit) => (apart(unit) < apart(best) ? unit : best));
  const ticks = [];
  for (let i = Math.ceil(low / width); i * width <= high * (1 + 1e-9); i++) {
    ticks.push(Number((i * width).toPrecision(6)));
  }
  return ticks;
}

function ramp(place) {
  const at = place * (BIN_RAMP.length - 1);
  const below = Math.min(Math.floor(at), BIN_RAMP.length - 2);
  return BIN_RAMP[below].map((channel, c) => channel + (BIN_RAMP[below + 1][c] - channel) * (at - below));
}

function css(rgb, dark) {
  const lighter = rgb.map((channel) => Math.round(dark ? channel + (255 - channel) * 0.35 : channel));
  return `rgb(${lighter.join(", ")})`;
}
