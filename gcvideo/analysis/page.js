"use strict";

// Lists that sort: each button of a list names the data-* value to sort by.
for (const group of document.querySelectorAll("[data-sorts]")) {
  const list = document.getElementById(group.dataset.sorts);
  const buttons = [...group.querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const key = button.dataset.key;
      const items = [...list.children];
      const value = (item) => (key === "place" ? Number(item.dataset.place) : Number(item.dataset[key]));
      items.sort((a, b) => value(a) - value(b) || Number(a.dataset.place) - Number(b.dataset.place));
      list.append(...items);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
}

// Overlays: a menu shows one of several panels.
for (const menu of document.querySelectorAll("select[data-panels]")) {
  const panels = [...document.getElementById(menu.dataset.panels).children];
  const show = () => panels.forEach((panel, i) => { panel.hidden = i !== menu.selectedIndex; });
  menu.addEventListener("change", show);
  show();
}

// Timelines: the slider says what the window at that moment answered, and shows the picture nearest to it.
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
      pictures.forEach((picture) => { picture.style.outline = picture === shown ? "3px solid var(--bar)" : ""; });
    }
  };
  slider.addEventListener("input", show);
  show();
}
