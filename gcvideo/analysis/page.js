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

// Timelines: the slider says what the window at that moment answered, and shows the picture nearest to it. A click on a
// block or a picture moves the slider there.
for (const slider of document.querySelectorAll("input[data-timeline]")) {
  const data = JSON.parse(document.getElementById(slider.dataset.timeline).textContent);
  const card = slider.closest(".card");
  const output = card.querySelector("[data-now]");
  const blocks = [...card.querySelectorAll(".timeline span")];
  const pictures = [...card.querySelectorAll("[data-seconds]")];
  const nearest = (items, distance) => items.reduce((a, b) => (distance(b) < distance(a) ? b : a), items[0]);
  const show = () => {
    const now = Number(slider.value);
    const window_ = nearest(data.windows, (w) => Math.abs((w.start + w.end) / 2 - now));
    const answers = window_.predictions.map((p) => `${p.label} ${(100 * p.score).toFixed(1)} %`);
    output.textContent = `${now.toFixed(1)} s: ${answers.join(", ")}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    blocks.forEach((block, i) => {
      const segment = data.timeline[i];
      const last = i === data.timeline.length - 1;
      block.classList.toggle("now", segment.start <= now && (now < segment.end || last));
    });
    if (pictures.length) {
      const shown = nearest(pictures, (picture) => Math.abs(Number(picture.dataset.seconds) - now));
      pictures.forEach((picture) => picture.classList.toggle("now", picture === shown));
    }
  };
  const go = (seconds) => { slider.value = seconds; show(); };
  blocks.forEach((block, i) => block.addEventListener("click", () => go(data.timeline[i].start)));
  pictures.forEach((picture) => picture.addEventListener("click", () => go(Number(picture.dataset.seconds))));
  slider.addEventListener("input", show);
  show();
}
