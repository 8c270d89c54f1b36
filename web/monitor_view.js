/**
 * What a monitor shows on its node: a line of text, the curves, and after the run the verdict.
 *
 * In: the element and its redrawing. Not in: where the numbers come from (`runs`), the drawing itself (`chart`).
 */

import { drawCurves } from "./chart.js";
import { say, saySentence } from "./texts.js";

export const LEFT = "apt-train-left"; // the class of the element that a monitor lay in
const LEAST_HEIGHT = 250;
const VERDICT_HEIGHT = 330; // of the longest that there is, on a node 440 wide
const NOTICES_HEIGHT = 80; // of those unfolded
const SMOOTH = 2; // canvas pixels per CSS pixel at least: a node rarely lies on whole pixels
const SHARPEST = 4; // and at most, for a node zoomed in on

export class MonitorView {
  constructor() {
    this.element = make("div", {
      display: "flex", flexDirection: "column", gap: "4px", padding: "6px", boxSizing: "border-box",
      overflow: "hidden", borderRadius: "6px", background: "var(--comfy-input-bg, #222)",
      color: "var(--input-text, #ddd)", font: "12px/1.35 system-ui, sans-serif", minHeight: `${LEAST_HEIGHT}px`,
    });
    this.element.className = "apt-train-monitor";
    this.line = make("div", { fontVariantNumeric: "tabular-nums", flex: "none" });
    this.notices = document.createElement("details");
    this.notices.className = "apt-train-notices";
    Object.assign(this.notices.style, {
      flex: "none", display: "none", maxHeight: `${NOTICES_HEIGHT}px`, overflowY: "auto", userSelect: "text",
    });
    // The canvas lies over its place instead of filling it, so that its own size never pushes the node's.
    this.place = make("div", { position: "relative", flex: "1 1 0", minHeight: "0" });
    this.canvas = make("canvas", { position: "absolute", inset: "0", width: "100%", height: "100%" });
    this.verdict = make("div", {
      flex: "none", maxHeight: `${VERDICT_HEIGHT - 10}px`, overflowY: "auto", whiteSpace: "pre-wrap",
      userSelect: "text", display: "none",
    });
    this.canvas.setAttribute("role", "img");
    this.place.append(this.canvas);
    this.element.append(this.line, this.notices, this.place, this.verdict);
    // A wheel turned over a text longer than its place scrolls it and does not zoom the graph.
    for (const text of [this.verdict, this.notices]) {
      text.addEventListener("wheel", (event) => scrolls(text) && event.stopPropagation(), { passive: true });
    }
    this._series = null;
    this._told = "";
    this._resized = new ResizeObserver(() => this._later());
    this._themed = new MutationObserver(() => this._later());
  }

  /** Redraw when the size or the theme changes, until it is disposed of. */
  watch() {
    this._resized.observe(this.place);
    this._themed.observe(document.documentElement, { attributes: true, attributeFilter: ["style", "class"] });
    this._themed.observe(document.body, { attributes: true, attributeFilter: ["class"] });
  }

  /** Show a run's series; null with a text says what is missing. */
  show(series, text) {
    this._series = series;
    this.line.textContent = series ? statusOf(series) : text;
    this.canvas.setAttribute("aria-label", this.line.textContent);
    this._tell(series?.notices ?? []);
    this._later();
  }

  /** How many notices there are; a click unfolds them. */
  _tell(notices) {
    const told = notices.join("\n");
    if (told === this._told) return; // unfolded stays unfolded
    this._told = told;
    const [summary, ...items] = [countOf(notices), ...notices].map((text, place) => {
      const element = document.createElement(place ? "div" : "summary");
      element.textContent = place ? `• ${saySentence(text)}` : text; // file names are in it: never as HTML
      return element;
    });
    summary.style.cursor = "pointer";
    this.notices.replaceChildren(...(notices.length ? [summary, ...items] : []));
    this.notices.style.display = notices.length ? "block" : "none";
  }

  say(verdict) {
    this.verdict.textContent = verdict ?? "";
    this.verdict.style.display = verdict ? "block" : "none";
    this.element.style.minHeight = `${this.leastHeight}px`;
  }

  /** CSS pixels that the line, legible curves and the verdict need. */
  get leastHeight() {
    return this.verdict.textContent ? LEAST_HEIGHT + VERDICT_HEIGHT : LEAST_HEIGHT;
  }

  /** Draw anew where zooming has made the canvas too coarse. */
  sharpen() {
    if (this._drawn && Math.abs(this._density() / this._drawn - 1) > 0.15) this._later();
  }

  dispose() {
    this._resized.disconnect();
    this._themed.disconnect();
    cancelAnimationFrame(this._frame);
    this._frame = null;
    this.element.parentElement?.classList.add(LEFT);
    this.element.remove();
  }

  _later() {
    this._frame ??= requestAnimationFrame(() => {
      this._frame = null;
      this._draw();
    });
  }

  _draw() {
    const [width, height] = [this.place.clientWidth, this.place.clientHeight];
    if (!width || !height) return;
    const density = this._density();
    this.canvas.width = Math.round(width * density);
    this.canvas.height = Math.round(height * density);
    this._drawn = density;
    const pen = this.canvas.getContext("2d");
    if (!this._series?.points.length || height < 60) return;
    pen.setTransform(this.canvas.width / width, 0, 0, this.canvas.height / height, 0, 0);
    drawCurves(pen, width, height, this._series, this._colours());
  }

  /** Canvas pixels per CSS pixel: the screen's, times how far the graph is zoomed in. */
  _density() {
    const zoom = this.place.clientWidth ? this.place.getBoundingClientRect().width / this.place.clientWidth : 1;
    return Math.min(SHARPEST, Math.max(SMOOTH, (globalThis.devicePixelRatio || 1) * zoom));
  }

  _colours() {
    const style = getComputedStyle(this.element);
    const dark = lightness(style.backgroundColor) < lightness(style.color);
    return { ink: style.color, faint: dark ? "rgba(255, 255, 255, 0.15)" : "rgba(0, 0, 0, 0.15)", dark };
  }
}

/** `step 120 / 2000 · loss 0.113 · mean gamma 0.42 · drift ratio 0.12 · 12 min left` */
export function statusOf(series) {
  const last = series.points[series.points.length - 1];
  const ended = { done: say("done"), stopped: say("stopped"), failed: say("failed") }[series.state];
  const parts = [...(ended ? [ended] : []), say("step {step} / {total}", { step: last?.step ?? series.step, total: series.total || "?" })];
  if (last?.loss != null) parts.push(say("loss {loss}", { loss: last.loss.toPrecision(3) }));
  const gamma = (last?.gamma ?? []).filter((value) => value != null);
  if (gamma.length) parts.push(say("mean gamma {gamma}", { gamma: mean(gamma).toFixed(2) }));
  const drift = series.points.findLast((point) => point.drift_ratio != null)?.drift_ratio;
  if (drift != null) parts.push(say("drift ratio {ratio}", { ratio: drift.toFixed(2) }));
  if (series.state === "running" && series.secondsLeft != null) parts.push(say("{time} left", { time: duration(series.secondsLeft) }));
  if (series.state === "running" && !last) parts.push(say("getting ready"));
  if (series.state === "stopped") parts.push(say("queue again to go on"));
  return parts.join(" · ");
}

function scrolls(element) {
  return element.scrollHeight > element.clientHeight;
}

function mean(values) {
  return values.reduce((a, b) => a + b) / values.length;
}

/** `1 notice`, `2 notices` */
function countOf(notices) {
  return notices.length === 1 ? say("1 notice") : say("{count} notices", { count: notices.length });
}

/** `40 s`, `12 min`, `3 h 20 min` */
export function duration(seconds) {
  if (seconds < 90) return say("{seconds} s", { seconds: Math.round(seconds) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return say("{minutes} min", { minutes });
  return say("{hours} h {minutes} min", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}

function lightness(colour) {
  const [r, g, b] = (colour.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return 0.3 * r + 0.6 * g + 0.1 * b;
}

function make(tag, style) {
  const element = document.createElement(tag);
  Object.assign(element.style, style);
  return element;
}
