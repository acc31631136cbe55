"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  const column = (values, i) => ("levels" in values ? values.levels[values.codes[i]] : values[i]);

  function rows(chart) {
    const names = Object.keys(chart.data);
    return Array.from({ length: chart.rows }, (_, i) =>
      Object.fromEntries(names.map((name) => [name, column(chart.data[name], i)])));
  }

  function theme(width) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const text = { labelColor: color("--quiet"), titleColor: color("--quiet"), labelFontSize: 12, titleFontSize: 12,
      titleFontWeight: "normal" };
    return {
      background: "transparent",
      font: style.getPropertyValue("font-family") || "sans-serif",
      view: { stroke: null },
      axis: { ...text, domainColor: color("--line"), tickColor: color("--line"), gridColor: color("--grid"),
        labelOverlap: "greedy", labelSeparation: 8, titlePadding: 8 },
      axisX: { grid: false, tickCount: Math.max(3, Math.floor(width / 90)) },
      axisY: { tickCount: 5, domain: false, ticks: false },
      legend: { ...text, labelColor: color("--text"), orient: "bottom", direction: "horizontal", symbolSize: 90,
        symbolStrokeWidth: 2, symbolBaseFillColor: color("--text"), symbolBaseStrokeColor: color("--text"), columns: Math.max(1, Math.floor(width / 170)), labelLimit: Math.max(120, width - 60) },
      text: { color: color("--text") },
      bar: { color: color("--quiet") },
      style: { quiet: { stroke: color("--quiet") } },
      range: {
        category: Array.from({ length: 8 }, (_, i) => color(`--series-${i + 1}`)),
        heatmap: [color("--panel"), color("--series-1")],
        ramp: [color("--panel"), color("--series-1")],
      },
    };
  }

  // Colours stand in specifications by name, as series-2, so that they follow the scheme.
  const coloured = (part) => Array.isArray(part) ? part.map(coloured)
    : part && typeof part === "object" ? Object.fromEntries(Object.entries(part).map(([key, each]) =>
      [key, key === "range" && Array.isArray(each) ? each.map(named) : coloured(each)]))
    : part;
  const named = (text) => /^series-[1-8]$/.test(text)
    ? getComputedStyle(document.documentElement).getPropertyValue(`--${text}`).trim() : text;

  async function draw(chart) {
    const element = document.getElementById(chart.id);
    if (!element || !element.clientWidth) return;
    const width = element.clientWidth;
    const spec = {
      $schema: "https://vega.github.io/schema/vega-lite/v6.json",
      ...coloured(chart.spec),
      description: chart.title,
      width: "container",
      autosize: { type: "fit-x", contains: "padding" },
      data: { values: rows(chart) },
      config: theme(width),
    };
    try {
      if (element.view) element.view.finalize();
      const result = await window.vegaEmbed(element, spec, {
        ast: true,
        renderer: chart.rows > 3000 ? "canvas" : "svg",
        actions: { export: true, source: false, compiled: false, editor: false },
        tooltip: { theme: dark.matches ? "dark" : "light" },
        downloadFileName: "decoct",
      });
      element.view = result.view;
      element.dataset.drawn = "yes";
    } catch (error) {
      element.textContent = "This picture could not be drawn; its numbers are below.";
      console.error(error);
    }
  }

  const drawAll = async () => { for (const chart of charts) await draw(chart); document.body.dataset.drawn = "yes"; };
  const drawMissing = async () => {
    for (const chart of charts) if (!document.getElementById(chart.id)?.dataset.drawn) await draw(chart);
  };

  for (const run of document.querySelectorAll("details.run")) run.addEventListener("toggle", drawMissing);
  dark.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
  drawAll();
})();
