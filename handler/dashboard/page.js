// Asks /ops/status and /ops/history every few seconds, and says on the page what they answer, or that they do not.
import { code, data, define, fill, many, only, put, putData, putTime, set, text, time, toTheRight } from "./elements.js";
import { PLOTS, draw, prepare } from "./plots.js";
import { ago, bytes, clock, count, gauge, perDay, ratio, seconds } from "./units.js";

const EVERY = 5000;
const GIVE_UP = 8000;
const KEY = "cloud-native-poc key";
const RUNBOOK = document.documentElement.dataset.runbook;

const WORDS = {
  well: "Everything is well",
  attention: "Something needs attention",
  degraded: "The service is degraded",
  down: "The service is down",
};
const UNITS = { ratio, seconds, per_day: perDay };
const IN_CONTAINER = {
  http_requests_in_flight: "Requests in flight",
  event_loop_delay_seconds: "Event loop delay",
  data_volume_free_bytes: "Volume, free",
  data_volume_size_bytes: "Volume, size",
};
const OF_DATABASE = {
  database_size_bytes: "Database",
  database_wal_size_bytes: "WAL",
  database_writes_waiting: "Writes waiting",
  commit_log_unsaved_seconds: "Not in the log for",
};

const $ = (id) => document.getElementById(id);
let answered = null; // when the service last did
let asked = 0;

function putRunbook(element, place) {
  if (!RUNBOOK) return put(only(element, "code"), place);
  const link = only(element, "a");
  set(link, "href", RUNBOOK + place.slice(place.indexOf("#")));
  return put(link, place);
}

const ofGauges = (names, gauges) =>
  Object.entries(names)
    .filter(([metric]) => metric in gauges)
    .map(([metric, name]) => [name, (value) => putData(value, gauges[metric], (number) => gauge(metric, number))]);

// What the page says

function show(status) {
  const { service } = status;
  document.title = `${status.state} · ${service.name}`;
  say(status.state, WORDS[status.state] ?? status.state, status.since);
  const reason = status.reason === `${WORDS[status.state]}.` ? "" : status.reason;
  put($("reason"), [reason, ending(status.alerts[0]?.last)].filter(Boolean).join(" "));
  put($("not-asked"), status.not_asked.join("; "));
  advise(status.alerts);
  const instance = service.per_instance ? `this instance alone: ${service.instance}` : service.instance;
  put($("service"), [service.name, service.version, service.revision, instance].filter(Boolean).join(" · "));

  fill($("alerts"), status.alerts, [
    (cell, alert) => {
      set(cell, "data-severity", alert.severity);
      many(cell, "span", 2);
      put(cell.children[0], alert.severity).className = "severity";
      put(cell.children[1], alert.name);
    },
    (cell, { summary, last }) => {
      many(cell, "span", 2);
      put(cell.children[0], summary);
      put(cell.children[1], ending(last)).className = "note";
    },
    time("since"),
    (cell, alert) => putRunbook(cell, alert.runbook),
  ]);
  fill($("objectives"), status.objectives, [
    (cell, objective) => {
      many(cell, "span", 2);
      put(cell.children[0], objective.title);
      const notes = [objective.state !== "met" && objective.reason, objective.per_instance && "of this instance alone"];
      put(cell.children[1], notes.filter(Boolean).join("; ")).className = "note";
      set(cell, "data-name", objective.name);
    },
    toTheRight(text("target")),
    ...["5m", "1h", "24h", "30d"].map((span) =>
      toTheRight((cell, { values, unit }) => putData(cell, values[span], UNITS[unit])),
    ),
    toTheRight((cell, { budget_left: left }) => {
      putData(cell, left, ratio);
      cell.style.setProperty("--left", Math.min(1, Math.max(0, left ?? 0)));
      cell.classList.toggle("budget", left !== null);
      cell.classList.toggle("overdrawn", left < 0);
    }),
    (cell, { state }) => {
      const word = put(only(cell, "span"), state.replace("_", " "));
      word.className = "word";
      word.dataset.state = state;
    },
  ]);
  fill($("errors"), status.errors, [
    time("at"),
    (cell, error) => {
      many(cell, "span", 2);
      put(cell.children[0], error.message).className = "message";
      const times = error.count > 1 && `${count(error.count)} times, this is the newest`;
      put(cell.children[1], [error.level, error.logger, times].filter(Boolean).join(", ")).className = "note";
    },
    code("request_id"),
  ]);

  define($("container"), [
    ["Started", (value) => putTime(value, service.started_at)],
    ...ofGauges(IN_CONTAINER, status.gauges),
  ]);
  const gauges = Object.entries(status.gauges).sort().map(([name, value]) => ({ name, value }));
  fill($("gauges"), gauges, [
    code("name"),
    toTheRight((cell, { name, value }) => putData(cell, value, (number) => gauge(name, number))),
  ]);
  $("of-the-log").hidden = !status.log; // PostgreSQL has its own, and its own backups
  if (status.log) showLog(status);
}

function showLog({ log, backups, gauges }) {
  define($("log"), [
    ["At", (value) => put(only(value, "code"), log.txid)],
    ["In", (value) => put(only(value, "code"), log.url)],
    ["Lag", (value) => putData(value, log.lag, (lag) => `${count(lag)} ${lag === 1 ? "commit" : "commits"}`)],
    ["Since the last compaction", (value) => putData(value, log.since_compaction, count)],
    ["Since the last snapshot", (value) => putData(value, log.since_snapshot, count)],
    ...ofGauges(OF_DATABASE, gauges),
  ]);
  fill($("commits"), log.commits.slice(0, 10), [code("txid"), time("at"), data("writes", count), data("bytes", bytes)]);
  fill($("backups"), backups, [
    code("name"),
    time("at"),
    (cell, backup) => {
      if (backup.proven_at || backup !== backups[0]) putTime(cell, backup.proven_at);
      else put(cell, "not yet"); // the newest is what is proven next, an older one never
    },
    data("bytes", bytes),
  ]);
}

// Of an alert that may have outlived its cause
function ending(last) {
  if (!last) return "";
  const until = `this goes away by ${clock(last.until)} if no other comes`;
  return `The last ${last.what} was at ${clock(last.at)}; ${until}.`;
}

function say(state, words, since) {
  set($("state"), "data-state", state);
  const sentence = $("sentence");
  many(sentence, "span", 2);
  put(sentence.children[0], since ? `${words}, ` : words);
  if (since) putTime(sentence.children[1], since, (at) => `since ${clock(at)}`);
  else put(sentence.children[1], "");
}

function advise([worst]) {
  const first = $("first");
  first.hidden = !worst;
  if (!worst) return;
  many(first, "span", 2);
  put(first.children[0], `Do first, for ${worst.name}: `);
  putRunbook(first.children[1], worst.runbook);
}

function table({ points }) {
  if (!$("all-points").open) return;
  const columns = [["at", (cell, { at }) => putTime(cell, at, clock)]];
  for (const { format, series } of PLOTS)
    for (const [field, name] of Object.entries(series)) columns.push([name, data(field, format)]);
  many($("points").tHead.rows[0], "th", columns.length).forEach((heading, place) => {
    put(heading, columns[place][0]).scope = "col";
    heading.classList.toggle("number", place > 0);
  });
  fill($("points"), [...points].reverse(), columns.map(([, column]) => column));
}

// Asking

class Refused extends Error {}
class Failed extends Error {}

async function ask(path) {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch(path, {
    headers: { Accept: "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
    cache: "no-store",
    signal: AbortSignal.timeout(GIVE_UP),
  });
  const body = await response.json();
  if (response.status === 401 || response.status === 403) throw new Refused(body.detail);
  if (!response.ok) throw new Failed(`Its answer is ${response.status}: ${body.detail}`);
  return body;
}

async function refresh() {
  const mine = ++asked;
  const span = document.querySelector("#span :checked").value;
  const answers = await Promise.allSettled([ask("ops/status"), ask(`ops/history?span=${span}`)]);
  if (mine !== asked) return; // overtaken by a younger question
  const error = answers.find(({ reason }) => reason)?.reason;
  if (error instanceof Refused) refuse(error.message);
  else if (error) lose(error);
  else {
    const [status, history] = answers.map(({ value }) => value);
    answered = new Date().toISOString();
    reveal(true);
    show(status);
    draw(history);
    table(history);
  }
  note();
}

function reveal(known) {
  $("entry").hidden = known;
  $("content").hidden = !known;
  $("forget").hidden = !sessionStorage.getItem(KEY);
  document.body.classList.remove("old");
}

function refuse(why) {
  const tried = sessionStorage.getItem(KEY);
  sessionStorage.removeItem(KEY);
  reveal(false);
  document.title = "Dashboard";
  say("asking", tried ? "This key does not do" : "A key is needed", null);
  put($("reason"), why);
  put($("not-asked"), "");
  $("first").hidden = true;
  $("key").focus();
}

function lose(error) {
  const spoke = error instanceof Failed;
  document.title = "gone · Dashboard";
  document.body.classList.add("old");
  say("gone", spoke ? "The service does not say how it is" : "The service does not answer", answered);
  const what = spoke ? error.message : "It is asked again every few seconds.";
  put($("reason"), answered ? `${what} What is below is from then.` : what);
  put($("not-asked"), "");
  advise(spoke ? [] : [{ name: "ServiceDown", runbook: "RUNBOOK.md#alert-servicedown" }]);
}

function note() {
  if (answered) putTime($("updated"), answered, (at) => `updated ${ago(at)}`);
}

// Not for a page that nobody sees
let timer;
async function go() {
  clearTimeout(timer);
  try {
    if (!document.hidden && $("entry").hidden) await refresh();
  } finally {
    clearTimeout(timer);
    timer = setTimeout(go, EVERY);
  }
}

prepare();
document.addEventListener("visibilitychange", go);
$("span").addEventListener("change", go);
$("all-points").addEventListener("toggle", go);
setInterval(note, 1000);
$("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  $("entry").hidden = true;
  go();
});
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});
go();
