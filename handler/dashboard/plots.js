// The plots, drawn by Chart.js (`Chart` is its global), in the colours that the style sheet names.
import { putData } from "./elements.js";
import { bytes, clock, count, perSecond, seconds } from "./units.js";

// Which field of a point of /ops/history is drawn where; the table of all points has the same columns. `least`: how high
// a plot is at least, so that a little of something does not look like much
export const PLOTS = [
  { place: "performance", title: "Requests", format: perSecond, least: 1, series: { requests_per_second: "requests" } },
  {
    place: "performance",
    title: "Latency",
    format: seconds,
    least: 0.01,
    series: { p50_seconds: "p50", p95_seconds: "p95", p99_seconds: "p99" },
  },
  {
    place: "performance",
    title: "Errors",
    format: perSecond,
    least: 1,
    series: { errors_per_second: "errors" },
    colours: ["--bad"],
  },
  { place: "container", title: "Memory", format: bytes, least: 1e8, series: { memory_bytes: "resident" } },
  {
    place: "database",
    title: "Commits and conflicts",
    format: count,
    least: 4,
    series: { commits: "commits", conflicts: "conflicts" },
  },
  {
    place: "database",
    title: "Database and WAL",
    format: bytes,
    least: 1e6,
    series: { database_bytes: "database", wal_bytes: "WAL" },
  },
];

const SPANS = { hour: 3600_000, day: 86400_000 };
const COLOURS = ["--series-1", "--series-2", "--series-3"];
const DASHES = [[], [6, 3], [2, 2]]; // told apart without their colours, too

let drawn = [];

export function prepare() {
  drawn = PLOTS.map(build);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(dress));
}

export function draw({ span, points }) {
  for (const plot of drawn) {
    const { scales } = plot.chart.options;
    scales.x.max = Date.now();
    scales.x.min = scales.x.max - SPANS[span];
    Object.keys(plot.series).forEach((field, index) => {
      const dataset = plot.chart.data.datasets[index];
      dataset.data = points.map((point) => ({ x: Date.parse(point.at), y: point[field] }));
      const newest = points.at(-1)?.[field] ?? null;
      putData(plot.newest[index], newest, plot.format);
    });
    plot.chart.update("none");
    plot.canvas.setAttribute("aria-label", described(plot, span));
  }
}

function build(plot) {
  const figure = element("figure", document.getElementById(`plots-${plot.place}`));
  figure.className = "card";
  const caption = element("figcaption", figure);
  element("h3", caption).textContent = plot.title;
  const newest = Object.values(plot.series).map((name, index) => {
    const key = element("span", caption);
    key.className = "key";
    const swatch = element("i", key);
    swatch.style.setProperty("--colour", `var(${colour(plot, index)})`);
    swatch.dataset.line = index;
    key.append(`${name} `);
    return element("span", key);
  });
  const box = element("div", figure);
  box.className = "canvas";
  const canvas = element("canvas", box);
  canvas.setAttribute("role", "img");
  const chart = new Chart(canvas, { type: "line", data: { datasets: datasets(plot) }, options: options(plot) });
  const built = { ...plot, chart, canvas, newest };
  dress(built);
  return built;
}

const datasets = (plot) =>
  Object.values(plot.series).map((label, index) => ({
    label,
    data: [],
    borderWidth: 1.75,
    borderDash: DASHES[index],
    pointHitRadius: 8,
    pointRadius: ({ dataset: { data }, dataIndex: at }) => (alone(data, at) ? 2 : 0),
  }));

// No line leads to a point between two that are not known
const alone = (data, at) => data[at]?.y != null && data[at - 1]?.y == null && data[at + 1]?.y == null;

const options = (plot) => ({
  animation: false,
  maintainAspectRatio: false,
  normalized: true,
  interaction: { mode: "index", intersect: false },
  plugins: {
    legend: { display: false },
    tooltip: {
      callbacks: {
        title: ([item]) => clock(item.parsed.x),
        label: (item) => `${item.dataset.label} ${plot.format(item.parsed.y)}`,
      },
    },
  },
  scales: {
    x: {
      type: "linear",
      afterBuildTicks: (axis) => (axis.ticks = marks(axis)),
      ticks: { maxRotation: 0, autoSkipPadding: 14, callback: (at) => new Date(at).toLocaleTimeString("en-GB", { timeStyle: "short" }) },
      grid: { display: false },
    },
    y: { beginAtZero: true, suggestedMax: plot.least, ticks: { maxTicksLimit: 4, callback: (value) => plot.format(value) } },
  },
});

// Full quarters of an hour, or every sixth hour of the day
function marks({ min, max }) {
  const mark = new Date(min);
  const next =
    max - min > SPANS.hour
      ? () => mark.setHours(Math.floor(mark.getHours() / 6) * 6 + 6, 0, 0, 0)
      : () => mark.setMinutes(Math.floor(mark.getMinutes() / 15) * 15 + 15, 0, 0);
  const found = [];
  while (next() <= max) found.push({ value: mark.getTime() });
  return found;
}

function dress({ chart, ...plot }) {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  chart.data.datasets.forEach((dataset, index) => {
    dataset.borderColor = dataset.backgroundColor = value(colour(plot, index));
  });
  for (const scale of Object.values(chart.options.scales)) {
    scale.ticks.color = value("--muted");
    scale.ticks.font = { family: style.fontFamily, size: 11 };
    scale.grid.color = scale.border.color = value("--line");
  }
  chart.update("none");
}

function described({ title, series, format, chart }, span) {
  const parts = Object.values(series).map((name, index) => {
    const values = chart.data.datasets[index].data.map(({ y }) => y).filter((y) => y !== null);
    if (!values.length) return `${name}: nothing known`;
    return `${name}: ${format(values.at(-1))} now, ${format(Math.min(...values))} to ${format(Math.max(...values))}`;
  });
  return `${title} over the last ${span}. ${parts.join("; ")}.`;
}

const colour = (plot, index) => (plot.colours ?? COLOURS)[index];

function element(tag, parent) {
  return parent.appendChild(document.createElement(tag));
}
