"use strict";
/* Everything here builds nodes and sets textContent; no string from the page becomes markup. */
(() => {
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

  /* Trees: copy a path, toggle round-trip mode, open and close with the arrow keys. */
  const copyText = async (text) => {
    if (navigator.clipboard) {
      try { await navigator.clipboard.writeText(text); return true; } catch { /* next way */ }
    }
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  const copyPath = async (button) => {
    const done = await copyText(button.dataset.copy);
    button.title = (done ? "Copied: " : "Copy by hand: ") + button.dataset.copy;
    button.classList.add(done ? "pz-copied" : "pz-not-copied");
    setTimeout(() => button.classList.remove("pz-copied"), 2000);
  };
  for (const button of document.querySelectorAll(".copybutton")) {
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.title = "Copy path: " + button.dataset.copy;
    button.setAttribute("aria-label", button.title);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".copybutton");
    if (button) copyPath(button);
  });
  const toggles = (root) =>
    [...root.querySelectorAll(".foldable_node_toggle")].filter((box) => box.offsetParent !== null);
  document.addEventListener("keydown", (event) => {
    const tree = event.target.closest(".treescope_root");
    if (!tree || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (event.key === "r") {
      tree.classList.toggle("roundtrip_mode");
    } else if (event.key === "Enter" && target.matches(".copybutton")) {
      copyPath(target);
    } else if (target.matches(".foldable_node_toggle")) {
      if (event.key === "ArrowRight") target.checked = true;
      else if (event.key === "ArrowLeft") target.checked = false;
      else if (event.key === "Enter") target.checked = !target.checked;
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        const all = toggles(tree);
        const next = all[all.indexOf(target) + (event.key === "ArrowDown" ? 1 : -1)];
        if (next) next.focus();
      } else return;
      event.preventDefault();
    }
  });

  /* Grids of cells: one tab stop each, arrow keys inside. */
  for (const grid of document.querySelectorAll(".pz-grid")) {
    const rows = [...grid.querySelectorAll(".pz-line")].map((row) => [...row.querySelectorAll(".pz-more")]);
    rows.flat().forEach((cell, i) => { cell.tabIndex = i ? -1 : 0; });
    grid.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      const row = rows.findIndex((cells) => cells.includes(event.target));
      if (!step || row < 0) return;
      const nextRow = rows[clamp(row + step[0], 0, rows.length - 1)];
      const next = nextRow[clamp(rows[row].indexOf(event.target) + step[1], 0, nextRow.length - 1)];
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      event.preventDefault();
    });
  }
  const placeTip = (event) => {
    const cell = event.target.closest?.(".pz-more");
    const tip = cell?.querySelector(":scope > .pz-tip");
    if (!tip) return;
    const at = cell.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const below = at.bottom + 4 + size.height <= innerHeight;
    tip.style.left = `${clamp(at.left, 8, Math.max(8, innerWidth - size.width - 8))}px`;
    tip.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - size.height - 4)}px`;
  };
  document.addEventListener("mouseover", placeTip);
  document.addEventListener("focusin", placeTip);

  /* Heat-maps. */
  const decode = (data) => {
    const bytes = Uint8Array.from(atob(data.values), (c) => c.charCodeAt(0));
    if (data.encoding === "f32") return new Float32Array(bytes.buffer);
    const span = (data.high - data.low) / 254;
    return Float32Array.from(bytes, (b) => (b === 255 ? NaN : data.low + b * span));
  };
  const format = (x) => {
    if (Number.isNaN(x)) return "no value";
    const size = Math.abs(x);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? x.toExponential(2) : String(Number(x.toPrecision(3)));
  };
  const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
  const PALETTES = {
    light: { zero: [255, 255, 255], plus: [11, 61, 145], minus: [150, 40, 10], none: [214, 214, 214] },
    dark: { zero: [20, 22, 26], plus: [140, 190, 255], minus: [255, 160, 110], none: [70, 74, 82] },
  };
  const scheme = () => {
    const forced = document.documentElement.dataset.theme;
    if (forced === "light" || forced === "dark") return forced;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  };
  const colorOf = (data, palette) => (x) => {
    if (Number.isNaN(x)) return palette.none;
    if (data.diverging) {
      const t = clamp(x / Math.max(Math.abs(data.low), Math.abs(data.high), 1e-30), -1, 1);
      return t < 0 ? mix(palette.zero, palette.minus, -t) : mix(palette.zero, palette.plus, t);
    }
    return mix(palette.zero, palette.plus, clamp((x - data.low) / Math.max(data.high - data.low, 1e-30), 0, 1));
  };

  for (const host of document.querySelectorAll(".pz-heatmap")) {
    const data = JSON.parse(host.querySelector("script").textContent);
    const values = decode(data);
    const [rowAxis, columnAxis] = data.axes.slice(-2);
    const sliders = data.axes.slice(0, -2);
    const rows = rowAxis.labels.length, columns = columnAxis.labels.length;
    const at = sliders.map((axis) => axis.start || 0);
    let row = 0, column = 0;

    const controls = make("div", "pz-controls");
    sliders.forEach((axis, i) => {
      const label = make("label", "", axis.name + " ");
      const input = make("input"), output = make("output");
      Object.assign(input, { type: "range", min: 0, max: axis.labels.length - 1, step: 1 });
      input.value = at[i];
      const update = () => {
        at[i] = Number(input.value);
        output.textContent = " " + axis.labels[at[i]];
        input.setAttribute("aria-valuetext", `${axis.name} ${axis.labels[at[i]]}`);
      };
      update();
      input.addEventListener("input", () => { update(); draw(); });
      label.append(input, output);
      controls.append(label);
    });
    const legend = make("span", "pz-legend");
    const bar = make("i");
    legend.append(make("span", "", format(data.diverging ? -Math.max(-data.low, data.high) : data.low)), bar,
                  make("span", "", format(data.diverging ? Math.max(-data.low, data.high) : data.high)));
    controls.append(legend);

    const cell = Math.floor(clamp(640 / Math.max(rows, columns, 1), 2, 26));
    const labelled = cell >= 11;
    const plot = make("div", "pz-plot"), columnLabels = make("div", "pz-columns"), rowLabels = make("div", "pz-rows");
    const corner = make("div", "pz-corner", `${rowAxis.name} ↓  ${columnAxis.name} →`);
    const frame = make("div", "pz-canvas"), canvas = make("canvas"), cross = make("div", "pz-cross");
    if (labelled) {
      columnAxis.labels.forEach((text) => {
        const span = make("span", "", text); span.style.width = `${cell}px`; span.title = text; columnLabels.append(span);
      });
      rowAxis.labels.forEach((text) => {
        const span = make("span", "", text); span.style.height = `${cell}px`; span.title = text; rowLabels.append(span);
      });
    }
    canvas.width = columns; canvas.height = rows; canvas.tabIndex = 0;
    canvas.style.width = `${columns * cell}px`; canvas.style.height = `${rows * cell}px`;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${data.title}: ${rowAxis.name} by ${columnAxis.name}; arrow keys move`);
    cross.style.width = cross.style.height = `${Math.max(cell, 6)}px`;
    const readout = make("div", "pz-readout", "Point at a cell, or press Tab and use the arrow keys.");
    readout.setAttribute("role", "status");
    frame.append(canvas, cross);
    plot.append(corner, columnLabels, rowLabels, frame);
    const scroll = make("div", "pz-scroll");
    scroll.append(plot);
    host.append(controls, scroll, readout);

    const offset = () => at.reduce((sum, index, i) => sum * sliders[i].labels.length + index, 0) * rows * columns;
    const tell = () => {
      const value = values[offset() + row * columns + column];
      const where = sliders.map((axis, i) => `${axis.name} ${axis.labels[at[i]]}`);
      const place = (axis, i) => `${axis.name} ${i}` + (axis.labels[i] === String(i) ? "" : ` “${axis.labels[i]}”`);
      readout.textContent = [...where, place(rowAxis, row), place(columnAxis, column)].join(", ") + `: ${format(value)}`;
      cross.style.display = "block";
      cross.style.left = `${column * cell}px`; cross.style.top = `${row * cell}px`;
      [...rowLabels.children].forEach((span, i) => span.classList.toggle("pz-on", i === row));
      [...columnLabels.children].forEach((span, i) => span.classList.toggle("pz-on", i === column));
    };
    const draw = () => {
      const palette = PALETTES[scheme()], color = colorOf(data, palette), start = offset();
      const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
      for (let i = 0; i < rows * columns; i += 1) {
        const [r, g, b] = color(values[start + i]);
        image.data.set([r, g, b, 255], 4 * i);
      }
      context.putImageData(image, 0, 0);
      const stop = (c) => `rgb(${c.join(" ")})`;
      bar.style.background = data.diverging
        ? `linear-gradient(90deg, ${stop(palette.minus)}, ${stop(palette.zero)}, ${stop(palette.plus)})`
        : `linear-gradient(90deg, ${stop(palette.zero)}, ${stop(palette.plus)})`;
      if (cross.style.display === "block") tell();
    };
    canvas.addEventListener("mousemove", (event) => {
      column = clamp(Math.floor(event.offsetX / cell), 0, columns - 1);
      row = clamp(Math.floor(event.offsetY / cell), 0, rows - 1);
      tell();
    });
    canvas.addEventListener("focus", tell);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      row = clamp(row + step[0], 0, rows - 1);
      column = clamp(column + step[1], 0, columns - 1);
      tell();
      event.preventDefault();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  }
  document.documentElement.dataset.ready = "yes";
})();
