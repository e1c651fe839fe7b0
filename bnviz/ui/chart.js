// A Plotly chart that is mounted once and updated in place, so that zoom, hover and legend
// choices survive new points. Figures come in paper style (white ground); in a dark theme they
// are recoloured here, and saved images stay white.

const NARROW_PX = 880;
const DARK = { "#222222": "#E6E6E6", "#4D4D4D": "#C4C4C4", "#7A7A7A": "#A0A0A0",
               "#A6A6A6": "#808080", "#0072B2": "#56B4E9", "#004A75": "#2F8FCB",
               "#56B4E9": "#9AD3F5", "#8FC7EA": "#C9E7F8" };
const charts = new WeakMap();

function loadPlotly(url) {
  window.bnvizPlotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error("cannot load " + url));
    document.head.appendChild(script);
  });
  return window.bnvizPlotly;
}

function isDark(element) {
  const probe = document.createElement("span");
  probe.style.color = getComputedStyle(element).getPropertyValue("--st-background-color");
  element.appendChild(probe);
  const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
  probe.remove();
  return 0.299 * r + 0.587 * g + 0.114 * b < 128;
}

function darken(figure) {
  const marks = [...(figure.layout.shapes ?? []), ...(figure.layout.annotations ?? [])];
  for (const part of [...figure.data, ...marks]) {
    for (const ink of [part.line, part.marker, part.font]) {
      if (ink?.color) ink.color = DARK[ink.color] ?? ink.color;
    }
  }
  figure.layout.font.color = DARK["#222222"];
  figure.layout.hoverlabel = { bgcolor: "#262730" };
}

// The figure as it was sent, with the layout that fits the width.
function parse(chart) {
  const figure = JSON.parse(chart.payload);
  if (figure.narrow && chart.plot.clientWidth < NARROW_PX) figure.layout = figure.narrow;
  return figure;
}

async function draw(chart) {
  const Plotly = await loadPlotly(chart.plotlyUrl);
  const width = chart.plot.clientWidth;
  if (!width) {
    chart.drawnWidth = -1;  // hidden: `fit` draws it when it is shown
    return;
  }
  const figure = parse(chart);
  figure.layout.paper_bgcolor = "rgba(0,0,0,0)";
  if (isDark(chart.root)) darken(figure);
  chart.plot.style.height = figure.layout.height + "px";
  await Plotly.react(chart.plot, figure.data, figure.layout,
                     { displaylogo: false, doubleClick: "reset+autosize",
                       modeBarButtonsToRemove: ["lasso2d", "select2d", "toImage"] });
  if (!chart.listens) {
    chart.listens = true;
    chart.plot.on("plotly_click", (event) => {
      const clicked = event.points[0]?.customdata;
      if (clicked) chart.reportClick("clicked", Array.from(clicked));
    });
    chart.plot.on("plotly_relayout", () => reportView(chart));
  }
  reportView(chart);
  chart.drawnWidth = width;
  const ours = chart.plot.calcdata.filter((points) => points[0].trace.legendgroup !== "paper");
  chart.plot.dataset.points = ours.reduce((n, points) => n + points.length, 0);
  chart.plot.dataset.drawn = "true";
}

// Tells which part of each x axis is looked at, where the figure has more points to show there.
function reportView(chart) {
  const sent = parse(chart).layout;
  const view = {};
  if (sent.meta?.thinned) {
    for (const [name, axis] of Object.entries(chart.plot._fullLayout)) {
      if (!/^xaxis\d*$/.test(name) || !axis.range) continue;
      const whole = sent[name]?.range;
      if (whole ? sameEnds(axis.range, whole) : axis.autorange) continue;
      const ends = axis.type === "log" ? axis.range.map((end) => 10 ** end) : axis.range;
      view[name.replace("axis", "")] = ends.map(Number);
    }
  }
  const text = JSON.stringify(view);
  if (text === chart.reportedView) return;
  chart.reportedView = text;
  chart.reportState("view", view);
}

function sameEnds(a, b) {
  return Math.abs(a[0] - b[0]) + Math.abs(a[1] - b[1]) < 1e-9 * Math.abs(b[1] - b[0]);
}

// Follows every change of width, also that from hidden to shown, which is no resize of the window.
function fit(chart) {
  const width = chart.plot.clientWidth;
  if (!chart.drawnWidth || !width || width === chart.drawnWidth) return;
  if (chart.drawnWidth < 0 || (width < NARROW_PX) !== (chart.drawnWidth < NARROW_PX)) {
    draw(chart);
  } else {
    chart.drawnWidth = width;
    window.Plotly.Plots.resize(chart.plot);
  }
}

// Saves what is seen (the current zoom), on white, in the look chosen.
async function save(chart, format) {
  if (!chart.drawnWidth) return;  // there is nothing yet
  const Plotly = await loadPlotly(chart.plotlyUrl);
  const figure = chart.saved ? JSON.parse(chart.saved) : parse(chart);
  const origin = JSON.stringify({ ...JSON.parse(chart.origin),
                                  exported_at: new Date().toISOString() });
  for (const [name, axis] of Object.entries(chart.plot.layout)) {
    if (/^[xy]axis\d*$/.test(name) && figure.layout[name]) {
      figure.layout[name].range = axis.range;
      figure.layout[name].autorange = false;
    }
  }
  figure.data.forEach((trace, i) => { trace.visible = chart.plot.data[i]?.visible ?? true; });
  const url = await Plotly.toImage(figure, { format, height: figure.layout.height,
    width: figure.layout.width ?? chart.plot.clientWidth, scale: chart.saved ? 300 / 96 : 2 });
  const image = await (await fetch(url)).blob();
  const named = format === "svg" ? await svgWith(image, origin) : await pngWith(image, origin);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(named);
  link.download = `${chart.filename}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function svgWith(image, origin) {
  const escaped = origin.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const text = (await image.text()).replace(">", () => `><metadata>${escaped}</metadata>`);
  return new Blob([text], { type: "image/svg+xml" });
}

// PNG specification, 11.3.3.4: an uncompressed iTXt chunk, put before the last one, IEND.
async function pngWith(image, origin) {
  const body = new TextEncoder().encode(`iTXtDescription\0\0\0\0\0${origin}`);
  const chunk = new DataView(new ArrayBuffer(body.length + 8));
  chunk.setUint32(0, body.length - 4);
  new Uint8Array(chunk.buffer).set(body, 4);
  chunk.setUint32(body.length + 4, crc32(body));
  const end = image.size - 12;
  return new Blob([image.slice(0, end), chunk, image.slice(end)], { type: "image/png" });
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

export default function (component) {
  const { data, parentElement, setTriggerValue, setStateValue } = component;
  const root = parentElement.querySelector(".bnviz-chart");
  let chart = charts.get(root);
  if (!chart) {
    chart = { root, plot: root.querySelector(".plot"), payload: null };
    charts.set(root, chart);
    for (const button of root.querySelectorAll("button")) {
      button.onclick = () => save(chart, button.dataset.format).catch((error) => {
        window.alert("The figure cannot be saved: " + error.message);
      });
    }
    new ResizeObserver(() => fit(chart)).observe(chart.plot);
  }
  chart.reportClick = setTriggerValue;
  chart.reportState = setStateValue;
  chart.saved = data.saved;
  chart.reportedView ??= JSON.stringify(data.views);  // what an older mount has told
  chart.plot.dataset.look = data.saved ? "print" : "screen";
  chart.origin = data.origin;
  chart.plotlyUrl = new URL(data.plotly_url, document.baseURI).href;
  chart.filename = data.filename;
  chart.plot.setAttribute("aria-label", data.alt);
  const dark = isDark(root);
  if (data.figure !== chart.payload || dark !== chart.dark) {
    chart.payload = data.figure;
    chart.dark = dark;
    draw(chart).catch((error) => { chart.plot.textContent = "The chart cannot be drawn: " + error.message; });
  }
}
