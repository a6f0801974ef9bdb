// Numbers and times as people read them. Whatever is not known is a dash.

export const UNKNOWN = "–";

const known = (format) => (value) => (value === null || value === undefined ? UNKNOWN : format(value));

const rounded = (value, digits) => Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });

export const count = known((value) => value.toLocaleString("en", { maximumFractionDigits: 2 }));

export const ratio = known((value) => {
  const percent = Number((value * 100).toFixed(3));
  const shown = value < 1 && percent === 100 ? 99.999 : percent; // what is missing is not rounded away
  return `${shown} %`.replace("-", "−");
});

export const perDay = known((value) => `${count(value)} a day`);

export const perSecond = known((value) => `${rounded(value, 3)}/s`);

export const bytes = known((value) => {
  const unit = ["B", "kB", "MB", "GB", "TB"].find((name, power) => value < 1000 ** (power + 1) || name === "TB");
  return `${rounded(value / 1000 ** ["B", "kB", "MB", "GB", "TB"].indexOf(unit), 3)} ${unit}`;
});

export const seconds = known((value) => {
  if (value === 0) return "0 s";
  if (value < 1) return `${rounded(value * 1000, value < 0.1 ? 2 : 3)} ms`;
  if (value < 100) return `${rounded(value, value < 10 ? 2 : 3)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 48 * 3600) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
});

export const ago = known((at) => {
  const passed = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
  return passed < 1.5 ? "now" : `${seconds(Math.round(passed))} ago`;
});

const CLOCK = { hour: "2-digit", minute: "2-digit" };

export const clock = known((at) => {
  const today = new Date(at).toDateString() === new Date().toDateString();
  return new Date(at).toLocaleString("en-GB", today ? CLOCK : { day: "numeric", month: "short", ...CLOCK });
});

// By Prometheus's convention a metric's name ends in its unit
export function gauge(name, value) {
  if (name.endsWith("_bytes")) return bytes(value);
  if (name.endsWith("_timestamp_seconds") || name === "process_start_time_seconds") return ago(new Date(value * 1000).toISOString());
  if (name.endsWith("_seconds")) return seconds(value);
  return count(value);
}
