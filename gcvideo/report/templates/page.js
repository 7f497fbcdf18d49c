"use strict";

// Lists that sort: each button of a list names the data-* value to sort by, "-" before it for the largest first. A
// search box keeps the items whose name holds what is typed.
for (const group of document.querySelectorAll("[data-sorts]")) {
  const list = document.getElementById(group.dataset.sorts);
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const sign = button.dataset.key.startsWith("-") ? -1 : 1;
      const value = (item) => sign * Number(item.dataset[button.dataset.key.replace("-", "")]);
      const items = [...list.children];
      items.sort((a, b) => value(a) - value(b) || Number(a.dataset.place) - Number(b.dataset.place));
      list.append(...items);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
  const search = group.querySelector("input");
  search?.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const item of list.children) item.hidden = !item.firstChild.textContent.toLowerCase().includes(wanted);
  });
}

// Attention over frames. Each box holds the frames of a clip, then a row of canvases for each layer. Its data are {query,
// grid, length, shown, colours, layers: [{size, byQuery, maps}]}: maps are bytes in base64, one map of size T x H x W for
// the query, then one for each query of the grid. All boxes of a page show the same query.
const boxes = [...document.querySelectorAll("[data-looks]")].map((box) => {
  const data = JSON.parse(document.getElementById(box.dataset.looks).textContent);
  const [first, ...strips] = [...box.querySelectorAll(".frames")].map((strip) => [...strip.querySelectorAll("figure > div")]);
  const layers = data.layers.map((layer, i) => ({
    ...layer, cells: strips[i], bytes: Uint8Array.from(atob(layer.maps), (letter) => letter.charCodeAt(0)),
  }));
  const pictures = first.map((cell) => cell.firstChild);
  const slider = box.querySelector("[data-strength]");
  const small = document.createElement("canvas");
  const cellOf = (fraction, count) => Math.min(Math.floor(fraction * count), count - 1);
  const ring = (cells, [t, y, x]) => {
    const moment = cellOf(t, data.length);
    const nearest = data.shown.reduce((a, b) => (Math.abs(b - moment) < Math.abs(a - moment) ? b : a));
    cells.forEach((cell, i) => {
      cell.lastElementChild.hidden = data.shown[i] !== nearest;
      Object.assign(cell.lastElementChild.style, { left: `${100 * x}%`, top: `${100 * y}%` });
    });
  };
  let place = null;
  const draw = () => {
    const query = place || data.query;
    if (layers.some((layer) => layer.byQuery)) ring(first, query);
    for (const { size: [T, H, W], byQuery, bytes, cells } of layers) {
      const number = byQuery && place && data.grid
        ? 1 + data.grid.reduce((sum, count, i) => sum * count + cellOf(query[i], count), 0) : 0;
      small.width = W;
      small.height = H;
      cells.forEach((cell, i) => {
        const start = (number * T + cellOf((data.shown[i] + 0.5) / data.length, T)) * H * W;
        const pixels = new ImageData(W, H);
        for (let k = 0; k < H * W; k += 1) {
          const value = bytes[start + k];
          pixels.data.set([...data.colours[value], value], 4 * k);
        }
        small.getContext("2d").putImageData(pixels, 0, 0);
        const canvas = cell.firstChild;
        canvas.width = pictures[i].naturalWidth;
        canvas.height = pictures[i].naturalHeight;
        const context = canvas.getContext("2d");
        context.drawImage(pictures[i], 0, 0);
        context.globalAlpha = Number(slider.value);
        context.imageSmoothingQuality = "high";
        context.drawImage(small, 0, 0, canvas.width, canvas.height);
      });
      if (byQuery) ring(cells, query);
    }
    const said = box.querySelector("[data-now]");
    if (said) {
      const [t, y, x] = query;
      said.textContent = `Query: frame ${cellOf(t, data.length) + 1} of ${data.length}, `
        + `${Math.round(100 * y)} % down, ${Math.round(100 * x)} % across`;
    }
  };
  slider.addEventListener("input", draw);
  addEventListener("load", draw); // all pictures are there then
  const move = (to) => { place = to; draw(); };
  const pad = box.querySelector("[data-pad]");
  const go = (to) => boxes.forEach((other) => other.move(to.map((value) => Math.min(Math.max(value, 0), 1))));
  const point = (event) => {
    const i = first.indexOf(event.target.closest("figure > div"));
    if (i < 0) return;
    const { left, top, width, height } = first[i].getBoundingClientRect();
    go([(data.shown[i] + 0.5) / data.length, (event.clientY - top) / height, (event.clientX - left) / width]);
  };
  pad?.addEventListener("pointermove", point);
  pad?.addEventListener("pointerdown", point);
  pad?.addEventListener("keydown", (event) => {
    const steps = { PageUp: [0, -1], PageDown: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1], ArrowLeft: [2, -1], ArrowRight: [2, 1] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [axis, sign] = steps[event.key];
    const to = [...(place || data.query)];
    to[axis] += sign / data.grid[axis];
    go(to);
  });
  return { move };
});

// A moment as a player shows it: 0:03.5, 1:02:03.4.
const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  const [hours, minutes, rest] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, (tenths % 600) / 10];
  return `${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${rest.toFixed(1).padStart(4, "0")}`;
};

// Timelines: the slider shows the predictions of the window at that moment and the picture nearest to it. A click on a
// segment, a row or a picture moves the slider there. The data are {segments: [[start, label]], windows: [[middle, text]]}.
for (const slider of document.querySelectorAll("input[data-timeline]")) {
  const data = JSON.parse(document.getElementById(slider.dataset.timeline).textContent);
  const card = slider.closest(".card");
  const output = card.querySelector("[data-now]");
  const blocks = [...card.querySelectorAll(".timeline span")];
  const pictures = [...card.querySelectorAll("[data-seconds]")];
  const list = card.querySelector(".segments .scroll");
  const rows = [...list.querySelectorAll("tbody tr")];
  const nearest = (items, distance) => items.reduce((a, b) => (distance(b) < distance(a) ? b : a), items[0]);
  const show = () => {
    const now = Number(slider.value);
    const [, says] = nearest(data.windows, ([middle]) => Math.abs(middle - now));
    const place = data.segments.findLastIndex(([start]) => start <= now);
    output.textContent = `${clock(now)}, segment ${place + 1} (${data.segments[place][1]}). The window there says: ${says}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    for (const parts of [blocks, rows]) parts.forEach((part, i) => part.classList.toggle("now", i === place));
    list.scrollTop = rows[place].offsetTop - list.clientHeight / 2;
    if (pictures.length) {
      const shown = nearest(pictures, (picture) => Math.abs(Number(picture.dataset.seconds) - now));
      pictures.forEach((picture) => picture.classList.toggle("now", picture === shown));
    }
  };
  // Up to the slider's next step: it would round to the nearest, which may lie before the segment.
  const go = (seconds) => { slider.value = Math.ceil(seconds / slider.step - 1e-6) * slider.step; show(); };
  for (const parts of [blocks, rows]) {
    parts.forEach((part, i) => part.addEventListener("click", () => go(data.segments[i][0])));
  }
  pictures.forEach((picture) => picture.addEventListener("click", () => go(Number(picture.dataset.seconds))));
  slider.addEventListener("input", show);
  show();
}
