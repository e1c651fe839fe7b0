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
  for (const trace of figure.data) {
    if (trace.line) trace.line.color = DARK[trace.line.color] ?? trace.line.color;
  }
  figure.layout.font.color = DARK["#222222"];
  figure.layout.hoverlabel = { bgcolor: "#262730" };
}

// The figure as it was sent, with the layout that fits the width.
function parse(chart) {
  const figure = JSON.parse(chart.payload);
  if (chart.plot.clientWidth < NARROW_PX) figure.layout = figure.narrow;
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
      if (clicked) chart.report("clicked", Array.from(clicked));
    });
  }
  chart.drawnWidth = width;
  const ours = chart.plot.calcdata.filter((points) => points[0].trace.legendgroup !== "paper");
  chart.plot.dataset.points = ours.reduce((n, points) => n + points.length, 0);
  chart.plot.dataset.drawn = "true";
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

// Saves what is seen (the current zoom), in paper style.
async function save(chart, format) {
  const Plotly = await loadPlotly(chart.plotlyUrl);
  const figure = parse(chart);
  for (const [name, axis] of Object.entries(chart.plot.layout)) {
    if (/^[xy]axis\d*$/.test(name) && figure.layout[name]) {
      figure.layout[name].range = axis.range;
      figure.layout[name].autorange = false;
    }
  }
  figure.data.forEach((trace, i) => { trace.visible = chart.plot.data[i]?.visible ?? true; });
  await Plotly.downloadImage(figure, { format, filename: chart.filename, scale: 2,
    width: chart.plot.clientWidth, height: figure.layout.height });
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".bnviz-chart");
  let chart = charts.get(root);
  if (!chart) {
    chart = { root, plot: root.querySelector(".plot"), payload: null };
    charts.set(root, chart);
    for (const button of root.querySelectorAll("button")) {
      button.onclick = () => save(chart, button.dataset.format);
    }
    new ResizeObserver(() => fit(chart)).observe(chart.plot);
  }
  chart.report = setTriggerValue;
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
