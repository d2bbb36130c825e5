"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const palette = {
    light: ["#2463c4", "#c2570c", "#0c8a5b", "#b4235a", "#7040c0", "#0b7f95", "#8a6d00", "#4d5b6c", "#c0392b"],
    dark: ["#6aa5f5", "#f0a05a", "#4fcf98", "#f07aa5", "#b394f0", "#55c8dc", "#dcc04a", "#a9b5c4", "#ff8a7a"],
  };
  const ramps = { light: ["#20308f", "#0d8a8a", "#d08700"], dark: ["#7f9bff", "#3fd0b8", "#ffe169"] };
  const tones = { restart: "note", topology: "warn", settings: "warn", warn: "warn", code: "good", fault: "bad", bad: "bad", note: "note" };
  const axisTitles = { tokens: "tokens", step: "steps", hours: "hours since the first start" };

  function kept(name, otherwise) {
    try { return sessionStorage.getItem(name) || otherwise; } catch (e) { return otherwise; }
  }
  function keep(name, value) {
    try { sessionStorage.setItem(name, value); } catch (e) { /* a page from a file may not */ }
  }
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  let theme = kept("theme", system), axis = kept("axis", "tokens");

  function css(name) { return getComputedStyle(root).getPropertyValue("--" + name).trim(); }
  function channel(colour, at) { return parseInt(colour.slice(1 + 2 * at, 3 + 2 * at), 16); }
  function mixed(place) {
    const ends = ramps[theme], part = place * (ends.length - 1);
    const n = Math.min(ends.length - 2, Math.floor(part)), share = part - n;
    const mix = [0, 1, 2].map(c => Math.round(channel(ends[n], c) * (1 - share) + channel(ends[n + 1], c) * share));
    return "rgb(" + mix.join(",") + ")";
  }
  function colourOf(line) {
    return line.ramp >= 0 ? mixed(line.ramp) : palette[theme][line.colour % palette[theme].length];
  }
  function faded(colour) {
    return "rgba(" + [0, 1, 2].map(c => channel(colour, c)).join(",") + ",0.18)";
  }
  function shares(values) {
    const whole = values.reduce((sum, value) => sum + value, 0) || 1;
    return values.map(value => (value / whole < 0.01 ? "< 1" : Math.round(100 * value / whole)) + " %");
  }
  function placesOf(line) { return data.places[line.x["" in line.x ? "" : axis]]; }
  function traces(panel) {
    const found = [];
    for (const line of panel.lines) {
      const x = placesOf(line), colour = colourOf(line);
      if (panel.bars) {
        found.push({ type: "bar", orientation: "h", y: x, x: line.y, name: line.name, marker: { color: colour }, text: shares(line.y), textposition: "outside", textangle: 0, cliponaxis: false });
        continue;
      }
      if (line.low.length) {
        const none = { type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
        found.push({ ...none, x, y: line.low }, { ...none, x, y: line.high, fill: "tonexty", fillcolor: faded(colour) });
      }
      found.push({
        type: "scatter", mode: line.points ? "lines+markers" : "lines", x, y: line.y, name: line.name,
        line: { color: colour, width: line.ramp >= 0 ? 1.6 : 2, dash: line.dashed ? "dot" : "solid" },
        marker: { size: 5, color: colour }, connectgaps: true,
      });
    }
    return found;
  }
  function marked(panel, narrow) {
    const shapes = [], annotations = [], ends = panel.marks.map(mark => mark.x[axis]);
    const far = Math.max(...ends, ...panel.lines.flatMap(line => placesOf(line))) * (narrow ? 0.08 : panel.wide ? 0.02 : 0.045);
    const last = [];  // where the newest number of each height stands
    for (const mark of panel.marks) {
      const x = mark.x[axis], colour = mark.colour >= 0 ? palette[theme][mark.colour] : css(tones[mark.kind]);
      let height = 0;
      while (height < 2 && x - (height in last ? last[height] : -Infinity) < far) { height += 1; }
      last[height] = x;
      shapes.push({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: colour, width: 1, dash: "dash" } });
      annotations.push({
        x, yref: "paper", y: 1, yanchor: "bottom", yshift: 15 * height, text: "<b>" + mark.number + "</b>", showarrow: false,
        hovertext: mark.text, bgcolor: colour, borderpad: 1, font: { color: css("card"), size: 10 },
        hoverlabel: { bgcolor: css("card"), bordercolor: colour, font: { color: css("text") } },
      });
    }
    return { shapes, annotations };
  }
  function legendOf(panel, width) {  // its height
    const longest = Math.max(...panel.lines.map(line => line.name.length));
    const row = Math.max(1, Math.floor((width - 60) / (48 + 6.5 * longest)));
    return panel.lines.length > 1 && panel.lines[0].ramp < 0 ? 8 + 19 * Math.ceil(panel.lines.length / row) : 0;
  }
  function ticks(panel) {  // of a logarithmic axis: as many as there is room for, in one size
    const known = panel.lines.flatMap(line => [...line.y, ...line.low, ...line.high]).filter(value => value > 0);
    const lowest = Math.min(...known), decades = Math.log10(Math.max(...known) / lowest);
    const step = decades > 2.5 ? Math.ceil(decades / 7) : decades > 0.3 ? "D2" : undefined;
    return { dtick: step, tickformat: lowest < 1e-3 ? "~e" : "~g", nticks: 7 };
  }
  function layout(panel, width) {
    const narrow = width < 420;
    const line = { gridcolor: css("grid"), zerolinecolor: css("grid"), linecolor: css("line"), automargin: true };
    const x = panel.x_title.trim() || (panel.bars ? panel.unit : panel.x_title ? "" : axisTitles[axis]);
    const made = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("text"), size: narrow ? 11 : 12 },
      margin: { l: 44, r: 10, t: panel.marks.length ? 48 : 12, b: 40 + legendOf(panel, width) }, hovermode: panel.bars ? "closest" : "x unified", barmode: "group",
      hoverlabel: { bgcolor: css("card"), bordercolor: css("line"), font: { color: css("text") } },
      showlegend: legendOf(panel, width) > 0, legend: { orientation: "h", traceorder: "normal", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } },
      xaxis: { ...line, title: { text: x, font: { size: 12, color: css("faint") }, standoff: 6 }, nticks: narrow ? 5 : 8 },
      yaxis: { ...line, type: panel.log ? "log" : "linear", exponentformat: "SI", minexponent: 4 },
    };
    if (panel.bars) { made.yaxis.autorange = "reversed"; made.yaxis.type = "category"; }
    else { Object.assign(made, marked(panel, narrow)); }
    if (panel.log) { Object.assign(made.yaxis, ticks(panel)); }
    if (panel.key === "lr") { made.yaxis.tickformat = "~g"; }
    return made;
  }
  function draw(div) {
    const panel = data.panels[div.dataset.panel];
    const options = { responsive: true, displayModeBar: false };
    const height = parseFloat(getComputedStyle(div).getPropertyValue("--height"));
    div.style.height = height + legendOf(panel, div.clientWidth) + (panel.marks.length ? 34 : 0) + "px";
    Plotly.react(div, traces(panel), layout(panel, div.clientWidth), options);
  }
  function visible() {
    return [...document.querySelectorAll(".plot")].filter(div => div.offsetParent !== null);
  }
  function pressed(name, value) {
    document.querySelectorAll("[data-" + name + "]").forEach(button => {
      if (button.tagName === "BUTTON") { button.setAttribute("aria-pressed", String(button.dataset[name] === value)); }
    });
  }
  function show() {
    root.dataset.theme = theme;
    pressed("axis", axis);
    pressed("theme", theme);
    document.querySelectorAll("[data-colour]").forEach(dot => { dot.style.background = palette[theme][dot.dataset.colour]; });
    document.querySelectorAll(".ramp i").forEach(bar => {
      bar.style.background = "linear-gradient(90deg, " + ramps[theme].join(", ") + ")";
    });
    visible().forEach(draw);
  }
  document.querySelectorAll("button[data-axis]").forEach(button => button.addEventListener("click", () => {
    axis = button.dataset.axis; keep("axis", axis); show();
  }));
  document.querySelectorAll("button[data-theme]").forEach(button => button.addEventListener("click", () => {
    theme = button.dataset.theme; keep("theme", theme); show();
  }));
  document.querySelectorAll("details").forEach(part => part.addEventListener("toggle", () => {
    if (part.open) { part.querySelectorAll(".plot").forEach(draw); }
  }));
  show();
  root.dataset.drawn = "yes";
  if (data.again) { setTimeout(() => location.reload(), data.again * 1000); }
})();
