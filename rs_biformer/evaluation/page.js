"use strict";

// Tables: a click on a heading sorts the body, numbers downwards first; empty cells stay last.
for (const table of document.querySelectorAll("table.list")) {
  const headings = [...table.tHead.rows[0].cells];
  const original = new Map([...table.tBodies[0].rows].map((row, place) => [row, place]));
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
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
document.querySelectorAll(".scene").forEach((scene, number) => {
  const layers = [...scene.querySelectorAll(".panels figure")].map((panel) => ({
    name: panel.querySelector("figcaption").textContent,
    source: panel.querySelector("img").src,
  }));
  const ratio = Number(scene.dataset.ratio);
  const compare = element("div", { className: "compare" });
  compare.style.setProperty("--cut", "50%");
  compare.style.aspectRatio = String(ratio);
  compare.style.width = `min(100%, calc(80vh * ${ratio}))`;
  const slider = element("input", { type: "range", min: 0, max: 100, step: 0.1, value: 50 });
  slider.setAttribute("aria-label", `${scene.querySelector("h3").textContent}: where the left picture ends, in per cent`);
  slider.addEventListener("input", () => compare.style.setProperty("--cut", `${slider.value}%`));
  const controls = element("div", { className: "layers" });
  const side = (title, picture, tag, chosen) => {
    const show = (layer) => {
      picture.src = layer.source;
      picture.alt = tag.textContent = layer.name;
    };
    const set = element("fieldset", {}, element("legend", { textContent: title }));
    layers.forEach((layer, place) => {
      const radio = element("input", { type: "radio", name: `${title}-${number}`, checked: place === chosen });
      radio.addEventListener("change", () => show(layer));
      set.append(element("label", {}, radio, layer.name));
    });
    show(layers[chosen]);
    controls.append(set);
  };
  const under = element("img"), over = element("img", { className: "over" });
  const left = element("span", { className: "tag left" }), rest = element("span", { className: "tag rest" });
  compare.append(under, over, left, rest, slider, element("span", { className: "edge" }));
  const prediction = layers.findIndex((layer) => layer.name === "Prediction");
  side("Left", under, left, 0);
  side("Right", over, rest, prediction);
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
