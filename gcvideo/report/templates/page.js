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

// Overlays: a menu shows one of several panels.
for (const menu of document.querySelectorAll("select[data-panels]")) {
  const panels = [...document.getElementById(menu.dataset.panels).children];
  const show = () => panels.forEach((panel, i) => { panel.hidden = i !== menu.selectedIndex; });
  menu.addEventListener("change", show);
  show();
}

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
