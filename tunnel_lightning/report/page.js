"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const touch = matchMedia("(pointer: coarse), (max-width: 640px)").matches;
  const narrow = matchMedia("(max-width: 640px)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  const short = (v) => (Math.abs(v) >= 1e-3 || v === 0 ? String(+v.toPrecision(4)) : v.toExponential(2));

  // A map's texts, one for each cell, from the names of its rows and columns.
  const cellTexts = (z, { rows, columns, unit, se }) =>
    z.map((line, i) =>
      line.map((v, j) => {
        const error = se && se[i][j] !== null ? " ± " + short(se[i][j]) : "";
        return `<b>${rows[i]}</b><br>${columns[j]}<br>${v === null ? "no value" : short(v) + unit + error}`;
      }));

  // A band is a closed line behind its own.
  const bandOf = (trace) => ({
    type: "scatter", mode: "none", fill: "toself", hoverinfo: "skip", showlegend: false,
    legendgroup: trace.legendgroup, visible: trace.visible ?? true, yaxis: trace.yaxis ?? "y", opacity: 0.18,
    fillcolor: trace.line.color,
    x: [...trace.x, ...[...trace.x].reverse()], y: [...trace.band.high, ...[...trace.band.low].reverse()],
  });

  // A phone has room for twelve numbers under a chart, and for a map's colours above it; many names need height.
  const fit = (div, traces, { xaxis, showlegend }) => {
    const names = traces.filter((trace) => trace.name && trace.showlegend !== false).length;
    if (showlegend && names > 3 && !div.closest(".wide")) div.style.height = `${320 + 24 * (names - 3)}px`;
    const { tickvals, ticktext } = xaxis, every = Math.ceil((tickvals?.length ?? 0) / 12);
    if (every > 1 && ticktext.slice(1).every((text, k) => text === String(tickvals[k + 1]))) {
      const stays = (_, k) => tickvals[k] % (every * (tickvals[2] - tickvals[1])) === 0;
      Object.assign(xaxis, { tickvals: tickvals.filter(stays), ticktext: ticktext.filter(stays) });
    }
    for (const { type, colorbar } of traces) {
      if (type === "heatmap") {
        const above = { orientation: "h", y: 1.01, yanchor: "bottom", ypad: 2, x: 0.5, xanchor: "center", len: 0.8 };
        Object.assign(colorbar, above);
      }
    }
  };

  const draw = (div) => {
    const { data, layout } = figures[div.dataset.figure];
    const traces = data.flatMap((trace) => (trace.band ? [bandOf(trace), trace] : [trace]));
    const numbers = traces[0].cells?.short;
    for (const trace of traces) {
      if (trace.cells) trace.text = cellTexts(trace.z, trace.cells);
      delete trace.cells;
      delete trace.band;
    }
    if (narrow) fit(div, traces, layout);
    if (touch) {
      layout.dragmode = false;  // a finger on a plot scrolls the page
      // names would leave a map no room: numbers do, and a tap on a cell says the name
      if (div.classList.contains("map")) {
        if (numbers) layout.yaxis.ticktext = layout.yaxis.tickvals.map((k) => numbers[k]);
        else layout.yaxis.showticklabels = false;
      }
    }
    Plotly.newPlot(div, traces, layout, config);
  };

  // Plots are drawn when they come near, so that a long page opens at once on a phone.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "800px" });
  document.querySelectorAll(".plot").forEach((div) => near.observe(div));
  addEventListener("beforeprint", () => {
    for (const div of document.querySelectorAll(".plot:empty")) {
      near.unobserve(div);
      draw(div);
    }
  });

  const valueOf = (row, k) => row.cells[k].dataset.v ?? row.cells[k].textContent;
  const compare = (a, b) => (isNaN(a) || isNaN(b) || a === "" || b === "" ? a.localeCompare(b, "en", { numeric: true }) : a - b);

  document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0], k = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((p, q) => {
      const a = valueOf(p, k), b = valueOf(q, k);
      if (a === "" || b === "") return (a === "") - (b === "");  // what is not there stays at the end
      return down ? compare(b, a) : compare(a, b);
    });
    body.append(...rows);
  }));

  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  document.querySelectorAll("button[data-csv]").forEach((button) => button.addEventListener("click", () => {
    const table = button.closest(".card").querySelector("table");
    const lines = [...table.rows].map((row) =>
      [...row.cells].map((cell, k) => quoted(cell.tagName === "TH" ? cell.textContent : valueOf(row, k))).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = button.dataset.csv + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }));
})();
