"use strict";

// Tables: a click on a heading sorts the body, numbers downwards first; empty cells stay last.
for (const table of document.querySelectorAll("table.list")) {
  const headings = [...table.tHead.rows[0].cells];
  const original = new Map([...table.tBodies[0].rows].map((row, place) => [row, place]));
  headings.forEach((heading, column) => heading.querySelector("button")?.addEventListener("click", () => {
    const words = heading.dataset.kind === "text";
    const was = heading.getAttribute("aria-sort");
    const next = was === null ? (words ? "ascending" : "descending") : was === "descending" ? "ascending" : "descending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...original.keys()].sort((a, b) => {
      const one = value(a), other = value(b);
      if (words) return sign * one.localeCompare(other);
      if (one === "" || other === "") return (one === "") - (other === "") || original.get(a) - original.get(b);
      return sign * (Number(one) - Number(other)) || original.get(a) - original.get(b);
    });
    table.tBodies[0].append(...rows);
  }));
}

// Scenes: two of the panels under a slider. The pictures are in the page once, in the panels; the viewer borrows them.
const element = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const LARGEST_ZOOM = 16;

document.querySelectorAll(".scene").forEach((scene, number) => {
  const layers = [...scene.querySelectorAll(".panels figure")].map((panel) => ({
    name: panel.querySelector("figcaption").textContent,
    source: panel.querySelector("img").src,
  }));
  const ratio = Number(scene.dataset.ratio);
  const title = scene.querySelector("h3").textContent;
  const compare = element("div", { className: "compare" });
  compare.style.aspectRatio = String(ratio);
  compare.style.width = `min(100%, calc(80vh * ${ratio}))`;

  // Where the left picture ends, in per cent of the viewer.
  const slider = element("input", { type: "range", min: 0, max: 100, step: 0.1, value: 50 });
  slider.setAttribute("aria-label", `${title}: where the left picture ends, in per cent`);
  const cut = (percent) => {
    slider.value = percent;
    compare.style.setProperty("--cut", `${slider.value}%`);
  };
  slider.addEventListener("input", () => cut(slider.value));

  // Which part of the pictures is seen: `zoom` times as large, its left top corner at (x, y), both from 0 to 1.
  const view = { zoom: 1, x: 0, y: 0 };
  const shown = element("output", { className: "zoom-value" });
  const draw = () => {
    view.x = clamp(view.x, 0, 1 - 1 / view.zoom);
    view.y = clamp(view.y, 0, 1 - 1 / view.zoom);
    compare.style.setProperty("--move", `scale(${view.zoom}) translate(${-100 * view.x}%, ${-100 * view.y}%)`);
    compare.classList.toggle("zoomed", view.zoom > 1);
    compare.classList.toggle("pixels", view.zoom >= 4);
    shown.textContent = `${view.zoom.toFixed(view.zoom < 10 ? 1 : 0)}×`;
  };
  // The point (u, v) of the viewer, from 0 to 1, stays where it is.
  const zoomTo = (zoom, u = 0.5, v = 0.5) => {
    const wanted = clamp(zoom, 1, LARGEST_ZOOM);
    view.x += u / view.zoom - u / wanted;
    view.y += v / view.zoom - v / wanted;
    view.zoom = wanted;
    draw();
  };
  const place = (event) => {
    const box = compare.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  // One pointer moves the line, or the picture once it is zoomed; two pointers zoom.
  const pointers = new Map();
  let dragsLine = false;
  compare.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    compare.setPointerCapture(event.pointerId);
    const [u, v] = place(event);
    pointers.set(event.pointerId, [u, v]);
    const near = Math.abs(u - slider.value / 100) * compare.clientWidth < 28;
    dragsLine = pointers.size === 1 && (view.zoom === 1 || near);
    if (dragsLine && event.pointerType === "mouse") cut(100 * u);
  });
  compare.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (before === undefined) return;
    const now = place(event);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other !== undefined) {
      const apart = (point) => Math.hypot(point[0] - other[0], (point[1] - other[1]) / ratio);
      zoomTo(view.zoom * apart(now) / Math.max(apart(before), 1e-3), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (dragsLine) {
      cut(100 * now[0]);
    } else {
      view.x -= (now[0] - before[0]) / view.zoom;
      view.y -= (now[1] - before[1]) / view.zoom;
      draw();
    }
    pointers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    compare.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
  compare.addEventListener("dblclick", (event) => zoomTo(view.zoom >= LARGEST_ZOOM ? 1 : 2 * view.zoom, ...place(event)));
  // Only with Ctrl, which is also what a touch pad's pinch gives: the wheel alone scrolls the page.
  compare.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoomTo(view.zoom * Math.exp(-event.deltaY / 200), ...place(event));
  }, { passive: false });

  const controls = element("div", { className: "layers" });
  const side = (words, picture, tag, chosen) => {
    const show = (layer) => {
      picture.src = layer.source;
      picture.alt = `${layer.name} of ${title}`;
      tag.textContent = layer.name;
    };
    const set = element("fieldset", { className: layers.length > 4 ? "many" : "" }, element("legend", { textContent: words }));
    layers.forEach((layer, index) => {
      const radio = element("input", { type: "radio", name: `${words}-${number}`, checked: index === chosen });
      radio.addEventListener("change", () => show(layer));
      set.append(element("label", {}, radio, layer.name));
    });
    show(layers[chosen]);
    controls.append(set);
  };
  const under = element("img", { draggable: false }), over = element("img", { draggable: false });
  const left = element("span", { className: "tag left" }), rest = element("span", { className: "tag rest" });
  const button = (text, label, act) => {
    const made = element("button", { type: "button", textContent: text });
    made.setAttribute("aria-label", `${title}: ${label}`);
    made.addEventListener("click", act);
    return made;
  };
  const zoom = element("div", { className: "zoom" },
    button("−", "zoom out", () => zoomTo(view.zoom / 2)), shown,
    button("+", "zoom in", () => zoomTo(view.zoom * 2)),
    button("Reset", "the whole picture", () => zoomTo(1)));
  compare.append(
    element("div", { className: "under" }, under), element("div", { className: "over" }, over),
    left, rest, slider, element("span", { className: "edge" }));
  side("Left", under, left, 0);
  side("Right", over, rest, Math.min(layers.length - 1, layers.findIndex((layer) => layer.name === "Truth") + 1));
  controls.append(zoom);
  cut(50);
  draw();
  scene.querySelector(".panels").before(controls, compare);
});

// Commands: copied by a button, where the browser allows it.
for (const button of document.querySelectorAll(".command button")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
