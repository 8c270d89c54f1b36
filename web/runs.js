/**
 * The curves of runs, as this page has heard of them: by live messages, or asked from the pack's routes.
 *
 * In: points by run, which run a training node made last, asking and asking again. Not in: the graph, drawing. Nothing
 * is written into the workflow; which run belongs to which node is also kept in the browser's own storage.
 *
 * Emits `change` with the run's id as detail.
 */

const MOST_POINTS = 1600; // beyond this neighbours run together; no node is that wide
const QUIET = 5000; // ms without news after which a going run is asked for
const ASK_EVERY = 1900; // ms, a little less than two of the monitors' looks
const STORED = "apt_train.runs";
const MOST_STORED = 200;

/** One run: `points` rise by step, each `{step, loss, gamma, drift_ratio, count}`, count being the steps it stands for. */
class Series {
  constructor(run) {
    this.run = run;
    this.total = 0;
    this.bins = [];
    this.points = [];
    this.state = "running";
    this.step = 0;
    this.secondsLeft = null;
    this.notices = []; // sentences that the user should see
    this.loaded = false; // whether the points go back to the first step
    this.heard = 0; // ms
    this.asked = 0; // ms
  }

  /** Add points; what a run that was taken up again tells anew replaces what was there. */
  add(points) {
    for (const point of points) {
      while (this.points.length && this.points[this.points.length - 1].step >= point.step) this.points.pop();
      const before = this.points.length ? this.points[this.points.length - 1].step : 0;
      this.points.push({ ...point, count: Math.max(1, point.step - before) });
      this.step = point.step;
    }
    while (this.points.length > MOST_POINTS) this.points = inPairs(this.points);
  }

  cutAfter(step) {
    this.points = this.points.filter((point) => point.step <= step);
  }
}

export class Runs extends EventTarget {
  /** `ask(route)`: the parsed answer, or null where there is none. `page`: has the browser's storage. */
  constructor(ask, page = globalThis) {
    super();
    this._ask = ask;
    this._page = page;
    this._series = new Map(); // run id -> Series
    this._made = new Map(); // workflow|node -> {run, order}
    this._newest = new Map(); // workflow|node -> the newest run that the host has told of
    this._order = 0;
    this._listing = null;
    this._listed = 0; // ms
    this._recall();
  }

  get(run) {
    return this._series.get(run);
  }

  /** The run that one of these training nodes made last: `{run, order}`, or undefined. */
  madeBy(nodes, workflow) {
    let newest;
    for (const node of nodes) {
      const made = this._made.get(keyOf(node, workflow));
      if (made && (!newest || made.order > newest.order)) newest = made;
    }
    return newest;
  }

  /**
   * Remember that a node of a workflow made a run.
   *
   * A prompt without a workflow, as a script queues it, has node numbers that mean nothing here: it is nobody's.
   */
  note(run, node, workflow) {
    if (!workflow) return;
    this._made.delete(keyOf(node, workflow));
    this._made.set(keyOf(node, workflow), { run, order: ++this._order });
    this._store();
  }

  /** As the host tells of them, in the order in which they were made. */
  _told({ run, node, workflow }) {
    this._newest.set(keyOf(node, workflow), run);
    this.note(run, node, workflow);
  }

  nextOrder() {
    return ++this._order;
  }

  // ---- live messages

  started(message) {
    const series = this._open(message.run);
    Object.assign(series, { total: message.total, bins: message.bins, state: "running", secondsLeft: null });
    series.step = message.first_step;
    series.cutAfter(message.first_step);
    series.loaded = message.first_step === 0;
    if (series.loaded) series.notices = [];
    this._told(message);
    this._heard(series);
  }

  stepped(message) {
    const series = this._open(message.run);
    const last = series.points.length ? series.points[series.points.length - 1].step : 0;
    if (message.points[0].step > last + 1) series.loaded = false; // some went by unheard
    series.add(message.points);
    Object.assign(series, { state: "running", secondsLeft: message.seconds_left });
    const made = this.madeBy([message.node], message.workflow);
    if (made?.run !== message.run) this._told(message);
    this._heard(series);
  }

  noticed(message) {
    const series = this._open(message.run);
    if (!series.notices.includes(message.text)) series.notices.push(message.text);
    this._heard(series);
  }

  finished(message) {
    const series = this._open(message.run);
    Object.assign(series, { state: message.state, step: message.step, secondsLeft: null });
    this._heard(series);
  }

  /** A run of an earlier queue, or of an earlier session: its points are asked for where they are not known. */
  found(message) {
    const series = this._open(message.run);
    if (!series.points.length) Object.assign(series, { step: message.step, loaded: false, asked: 0 });
    const total = Math.max(message.total, series.step); // it may have gone on beyond what is asked for now
    Object.assign(series, { total, bins: message.bins, state: "done", secondsLeft: null });
    this._told(message);
    this._heard(series);
  }

  // ---- asking

  /** Ask which runs this session of the host knows, so that a reopened page finds its own. */
  list() {
    this._listing ??= setTimeout(() => this._list(), 200); // the host's messages come in bursts
  }

  /** The same while the host works: nobody tells this page that another page's run has begun, or how far it is. */
  listAgain() {
    if (Date.now() - this._listed > QUIET) this.list();
  }

  async _list() {
    [this._listing, this._listed] = [null, Date.now()];
    const answer = await this._ask("/apt_train/runs");
    const listed = [...(answer?.runs ?? [])].reverse();
    const newest = new Map(listed.map((item) => [keyOf(item.node, item.workflow), item.run]));
    for (const item of listed) {
      const key = keyOf(item.node, item.workflow);
      // Only a node's newest run counts, and only as news: what a cached answer has shown since stays.
      if (newest.get(key) === item.run && this._newest.get(key) !== item.run) this._told(item);
      const series = this._open(item.run);
      if (!series.points.length) Object.assign(series, { step: item.step, loaded: !item.step, total: item.total });
      if (series.state !== item.state && Date.now() - series.heard > QUIET) {
        series.state = item.state;
        series.asked = 0;
        if (item.step !== series.step) series.loaded = false;
      }
    }
    this._changed();
  }

  /** Keep a run that is being looked at up to date: ask for what is missing, and for news where none come. */
  async keepUp(run) {
    const series = this._open(run);
    const now = Date.now();
    // Before its first step a run has nothing to tell, and perhaps no folder yet.
    const quiet = series.state === "running" && series.step > 0 && now - series.heard > QUIET;
    if ((series.loaded && !quiet) || now - series.asked < ASK_EVERY) return;
    series.asked = now;
    const after = series.loaded ? series.step : 0;
    const answer = await this._ask(`/apt_train/runs/${encodeURIComponent(run)}${after ? `?after=${after}` : ""}`);
    if (answer) this._take(series, answer, after);
    else if (answer === null) this._forget(series);
  }

  _take(series, answer, after) {
    const live = series.points.filter((point) => point.step > answer.step);
    if (!after || answer.step < after) series.points = [];
    series.add(answer.points);
    series.add(live);
    series.notices = [...new Set([...(answer.notices ?? []), ...series.notices])];
    series.step = Math.max(answer.step, live.length ? live[live.length - 1].step : 0);
    series.loaded = !after || answer.step >= after;
    Object.assign(series, { total: answer.total, bins: answer.bins, state: answer.state });
    if (!live.length) series.secondsLeft = null;
    this._changed(series.run);
  }

  /** No such run, or no such route: what is drawn stays, and it is not asked for again. */
  _forget(series) {
    series.loaded = true;
    series.heard = Infinity;
    if (!series.points.length) {
      for (const [key, made] of this._made) if (made.run === series.run) this._made.delete(key);
      this._store();
    }
    this._changed(series.run);
  }

  _open(run) {
    if (!this._series.has(run)) this._series.set(run, new Series(run));
    return this._series.get(run);
  }

  _heard(series) {
    series.heard = Date.now();
    this._changed(series.run);
  }

  _changed(run) {
    this.dispatchEvent(new CustomEvent("change", { detail: run }));
  }

  // ---- the browser's storage: it may be full, or forbidden, where the very look at it is an error

  _recall() {
    try {
      for (const [key, run] of JSON.parse(this._page.localStorage.getItem(STORED) ?? "[]")) {
        this._made.set(key, { run, order: ++this._order });
      }
    } catch {
      this._made.clear();
    }
  }

  _store() {
    const named = [...this._made].filter(([key]) => !/^[0-]*\|/.test(key)).slice(-MOST_STORED);
    try {
      this._page.localStorage.setItem(STORED, JSON.stringify(named.map(([key, made]) => [key, made.run])));
    } catch {
      // then only this page remembers
    }
  }
}

function keyOf(node, workflow) {
  return `${workflow ?? ""}|${node}`;
}

function inPairs(points) {
  const pairs = [];
  for (let i = 0; i < points.length; i += 2) {
    const [a, b] = [points[i], points[i + 1]];
    const drift = b?.drift_ratio ?? a.drift_ratio;
    pairs.push(b ? { ...b, drift_ratio: drift, loss: meanLoss(a, b), count: a.count + b.count } : a);
  }
  return pairs;
}

function meanLoss(a, b) {
  if (a.loss == null || b.loss == null) return a.loss ?? b.loss;
  return (a.loss * a.count + b.loss * b.count) / (a.count + b.count);
}
