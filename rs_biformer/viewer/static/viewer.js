"use strict";
// The page of `rs-biformer view`. Positions are pixels of the map: Leaflet's latitude is the row, its longitude the
// column, and zoom 0 shows each pixel as one of the screen. Texts from files are set as text, never as HTML.
(async () => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const digits = (value, most = 4, least = 1) =>
    value.toLocaleString("en-GB", { maximumSignificantDigits: most, minimumSignificantDigits: least });
  const percent = (share) => `${(100 * share).toFixed(share >= 0.0995 || share === 0 ? 0 : 1)} %`;
  const fetched = async (path) => {
    const answer = await fetch(path);
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.error);
    return data;
  };
  let shown = "";
  const say = (text) => {
    shown = text;
    $("message").textContent = text;
    $("message").hidden = !text;
  };
  const gone = "The server does not answer any more; start rs-biformer view again.";

  if (matchMedia("(hover: none)").matches) document.querySelector("#cursor .empty").textContent = "Tap the map to see what a pixel holds.";
  let view;
  try {
    view = await fetched("/api/view");
  } catch (error) {
    say(error.message || gone);
    return;
  }
  const first = view.layers.find((layer) => layer.key === "map");
  document.title = `${first.title} – rs-biformer`;
  $("title").textContent = first.title;

  // The map ----------------------------------------------------------------------------------------------------------
  const sharp = window.devicePixelRatio >= 1.5 ? 1 : 0; // one level finer on a screen of small pixels
  const crs = L.extend({}, L.CRS.Simple, { transformation: new L.Transformation(1, 0, 1, 0) });
  const whole = L.latLngBounds([0, 0], [view.height, view.width]);
  const looks = {
    crs, attributionControl: false, minZoom: -view.levels - 1, maxZoom: 6, maxBounds: whole.pad(1), maxBoundsViscosity: 0.6,
    zoomControl: false, zoomSnap: 0.25, fadeAnimation: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  };
  const map = L.map("map", looks);
  L.control.zoom({ position: "topleft" }).addTo(map);
  // Between two levels a smooth picture looks best; enlarged, each pixel is to be seen.
  map.on("zoomend", () => $("map").classList.toggle("enlarged", map.getZoom() > 0.5));
  const Pictures = L.TileLayer.extend({
    _clampZoom(zoom) { // `redraw` forgets that levels are whole numbers
      return L.TileLayer.prototype._clampZoom.call(this, Math.round(zoom));
    },
    getTileUrl(at) {
      const only = this.options.only === null ? "" : `&only=${this.options.only}`;
      return `/tiles/${this.options.key}/${-(at.z + sharp)}/${at.y}/${at.x}.png?run=${view.run}${only}&v=${this.options.version}`;
    },
  });

  const pictureOn = (target, about, place) => {
    target.createPane(about.key).style.zIndex = 210 + place;
    const picture = new Pictures("", {
      key: about.key, pane: about.key, only: null, version: 0, bounds: whole, tileSize: 256 >> sharp, minZoom: -view.levels - 1,
      maxZoom: 6, minNativeZoom: -view.levels - sharp, maxNativeZoom: -sharp, keepBuffer: 3,
    });
    picture.on("tileerror", () => problem(`A part of ${about.role.toLowerCase()} (${about.title}) cannot be read.`));
    return picture;
  };
  const layers = view.layers.map((about, place) => {
    const picture = pictureOn(map, about, place);
    return { ...about, picture, pictures: [picture], on: false, opacity: 1, side: "both" };
  });
  const byKey = Object.fromEntries(layers.map((layer) => [layer.key, layer]));
  const has = (key) => key in byKey;
  const start = () => {
    for (const layer of layers) {
      Object.assign(layer, { on: ["scene", "map"].includes(layer.key), opacity: 1, side: "both" });
    }
    byKey.map.side = has("other") ? "left" : "right";
    byKey.map.opacity = has("scene") && !has("other") ? 0.75 : 1;
    if (has("other")) Object.assign(byKey.other, { on: true, side: "right" });
    if (has("label")) Object.assign(byKey.label, { on: !has("other"), side: "left", opacity: byKey.map.opacity });
  };
  const state = { swipe: false, beside: false, divider: 0.5, only: null };
  start();
  state.swipe = has("other") || has("label");
  const swept = () => layers.length > 1;

  // Two maps of one place: left what is on the left side or both, right what is on the right side or both ------------
  let twin = null;
  const ghosts = new Map(); // on each map, where the cursor is on the other
  const makeTwin = () => {
    twin = L.map("twin", looks);
    twin.setView(map.getCenter(), map.getZoom(), { animate: false });
    layers.forEach((layer, place) => {
      const picture = pictureOn(twin, layer, place);
      Object.assign(picture.options, { only: state.only, version: layer.picture.options.version });
      layer.pictures.push(picture);
    });
    let following = false;
    const lead = (one, other) => one.on("move zoom", () => {
      if (following || !state.beside) return;
      following = true;
      other.setView(one.getCenter(), one.getZoom(), { animate: false });
      following = false;
    });
    lead(map, twin);
    lead(twin, map);
    for (const [one, other] of [[map, twin], [twin, map]]) {
      ghosts.set(other, L.circleMarker([0, 0], { radius: 6, color: "#ffffff", weight: 2, fill: false, interactive: false, className: "place" }));
      one.on("mousemove", (event) => { if (state.beside) ghosts.get(other).setLatLng(event.latlng).addTo(other); });
      one.on("mouseout", () => ghosts.get(other).remove());
    }
    twin.on("zoomend", () => $("twin").classList.toggle("enlarged", twin.getZoom() > 0.5));
    twin.on("mousemove click", (event) => ask(event.latlng));
  };
  const showBeside = (on) => {
    const at = map.getCenter();
    const zoom = map.getZoom();
    state.beside = on;
    if (on) state.swipe = false;
    document.querySelector("main").classList.toggle("beside", on);
    $("twin").hidden = !on;
    if (on && !twin) makeTwin();
    for (const one of [map, ...(twin ? [twin] : [])]) {
      one.invalidateSize({ animate: false, pan: false });
      one.setView(at, zoom, { animate: false });
    }
    for (const ghost of ghosts.values()) ghost.remove();
  };
  const toggleBeside = () => {
    if (!swept()) return;
    showBeside(!state.beside);
    change();
  };
  $("beside").addEventListener("click", toggleBeside);

  const put = (target, picture, on) => {
    const present = target.hasLayer(picture);
    if (on && !present) picture.addTo(target);
    if (!on && present) picture.remove();
  };
  const draw = () => {
    const size = map.getSize();
    const top = map.containerPointToLayerPoint([0, 0]);
    const bottom = map.containerPointToLayerPoint(size);
    const middle = top.x + size.x * state.divider;
    for (const layer of layers) {
      put(map, layer.picture, layer.on && !(state.beside && layer.side === "right"));
      if (twin) put(twin, layer.pictures[1], layer.on && state.beside && layer.side !== "left");
      for (const picture of layer.pictures) picture.setOpacity(layer.opacity);
      const [left, right] = { both: [top.x, bottom.x], left: [top.x, middle], right: [middle, bottom.x] }[layer.side];
      const clip = `polygon(${left}px ${top.y}px, ${right}px ${top.y}px, ${right}px ${bottom.y}px, ${left}px ${bottom.y}px)`;
      map.getPane(layer.key).style.clipPath = state.swipe && layer.side !== "both" ? clip : "";
    }
    $("divider").hidden = !state.swipe;
    $("divider").style.left = `${100 * state.divider}%`;
    $("divider").setAttribute("aria-valuenow", Math.round(100 * state.divider));
    $("swipe").setAttribute("aria-pressed", state.swipe);
    $("beside").setAttribute("aria-pressed", state.beside);
  };
  const change = () => {
    draw();
    fill();
    remember();
  };

  // The list of layers -------------------------------------------------------------------------------------------------
  const rows = layers.map((layer, place) => {
    const row = make("li");
    const label = make("label");
    const box = Object.assign(make("input"), { type: "checkbox" });
    box.addEventListener("change", () => { layer.on = box.checked; change(); });
    const name = make("span", layer.role);
    name.title = layer.title;
    name.append(make("small", layer.title));
    label.append(box, name);
    row.append(label, make("kbd", place + 1));
    if (layer.ramp) {
      const ramp = make("div", null, "ramp");
      const bar = make("i");
      bar.style.background = `linear-gradient(90deg, ${layer.ramp.join(", ")})`;
      ramp.append(make("span", "0"), bar, make("span", "1"));
      row.append(ramp);
    }
    if (layer.colour) {
      const swatch = make("i", null, "swatch");
      swatch.style.background = layer.colour;
      name.prepend(swatch);
    }
    const controls = make("div", null, "controls");
    const range = Object.assign(make("input"), { type: "range", min: 0, max: 100 });
    range.setAttribute("aria-label", `Opacity of ${layer.role.toLowerCase()}`);
    range.addEventListener("input", () => { layer.opacity = range.value / 100; change(); });
    const side = make("select");
    side.setAttribute("aria-label", `Side of ${layer.role.toLowerCase()}`);
    for (const choice of ["both", "left", "right"]) side.append(Object.assign(make("option", choice), { value: choice }));
    side.addEventListener("change", () => { layer.side = side.value; change(); });
    controls.append(range, side);
    const note = make("p", null, "note");
    note.hidden = true;
    row.append(controls, note);
    return { row, box, range, side, note };
  });
  $("layers").append(...rows.map((part) => part.row).reverse()); // the uppermost first
  const fill = () => {
    rows.forEach(({ row, box, range, side }, place) => {
      const layer = layers[place];
      row.classList.toggle("off", !layer.on);
      box.checked = layer.on;
      range.value = Math.round(layer.opacity * 100);
      side.value = layer.side;
      side.hidden = !state.swipe && !state.beside;
    });
  };
  $("swipe").hidden = $("beside").hidden = !swept();
  const toggleSwipe = () => {
    if (!swept()) return;
    if (state.beside) showBeside(false);
    state.swipe = !state.swipe;
    change();
  };
  $("swipe").addEventListener("click", toggleSwipe);

  const moveDivider = (share) => {
    state.divider = clamp(share, 0, 1);
    draw();
    remember();
  };
  $("divider").addEventListener("pointerdown", (event) => {
    event.preventDefault();
    $("divider").focus();
    $("divider").setPointerCapture(event.pointerId);
  });
  $("divider").addEventListener("pointermove", (event) => {
    ask(map.mouseEventToLatLng(event)); // what lies under it is under the cursor too
    if (!$("divider").hasPointerCapture(event.pointerId)) return;
    const box = $("map").getBoundingClientRect();
    moveDivider((event.clientX - box.left) / box.width);
  });
  $("divider").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    moveDivider(state.divider + step);
  });

  // The legend -----------------------------------------------------------------------------------------------------------
  const classLayers = layers.filter((layer) => layer.kind === "classes").sort((a, b) => (b.key === "map") - (a.key === "map"));
  const isolate = (index) => {
    state.only = state.only === index ? null : index;
    for (const layer of classLayers) {
      for (const picture of layer.pictures) {
        picture.options.only = state.only;
        picture.redraw();
      }
    }
    for (const [place, row] of [...$("legend").tBodies[0].rows].entries()) {
      row.classList.toggle("faint", state.only !== null && state.only !== place);
      row.querySelector("button").setAttribute("aria-pressed", state.only === place);
    }
    $("all").hidden = state.only === null;
    remember();
  };
  $("all").addEventListener("click", () => isolate(state.only));
  const swatchOf = (index) => {
    const swatch = make("i", null, "swatch");
    swatch.style.background = view.classes[index].colour;
    return swatch;
  };
  const area = (size, unit) => {
    if (unit === "pixels") return `${Math.round(size).toLocaleString("en-GB")} px`;
    if (size >= 1e7) return `${digits(size / 1e6, 3, 3)} km²`;
    return size >= 1e4 ? `${digits(size / 1e4, 3, 3)} ha` : `${digits(size, 3)} m²`;
  };
  const head = $("legend").createTHead().insertRow();
  head.append(make("th", ""), ...classLayers.map((layer) => make("th", classLayers.length > 1 ? layer.role : "Area")));
  const body = $("legend").createTBody();
  const cells = view.classes.map((one, index) => {
    const row = body.insertRow();
    const name = make("th");
    const button = Object.assign(make("button"), { type: "button", title: "Show this class alone" });
    button.append(swatchOf(index), make("span", one.name));
    name.append(button);
    row.append(name);
    row.addEventListener("click", () => isolate(index));
    return classLayers.map(() => row.appendChild(make("td", "…")));
  });
  const showAreas = (areas, done) => {
    classLayers.forEach((layer, column) => {
      const found = areas[layer.key];
      cells.forEach((row, index) => {
        const cell = row[column];
        cell.textContent = found ? `${area(found.sizes[index], found.unit)} ` : done ? "–" : "…";
        if (found) {
          cell.title = percent(found.shares[index]);
          cell.append(make("small", percent(found.shares[index])));
          if (classLayers.length > 1) cell.lastChild.hidden = true;
        }
      });
    });
    const every = Math.max(0, ...Object.values(areas).map((found) => found.every));
    const where = Object.values(areas).some((found) => found.unit === "m2") ? "" : " The size of a pixel is not known.";
    $("counted").textContent = !every ? "" : (every === 1
      ? "Counted on all pixels."
      : `Estimated from an overview: about one pixel in ${every.toLocaleString("en-GB")} was counted.`) + where;
  };

  // What is under the cursor -----------------------------------------------------------------------------------------------
  const wide = () => matchMedia("(min-width: 761px)").matches;
  const entry = (list, term, what, main) => {
    const about = make("dd", null, main ? "main" : "");
    about.append(...[what].flat());
    list.append(make("dt", term), about);
  };
  const probabilities = (values) => {
    const bars = make("div", null, "bars");
    const order = values.map((_, index) => index).sort((a, b) => values[b] - values[a]).slice(0, wide() ? 6 : 3);
    for (const index of order) {
      const bar = make("i");
      const part = make("b");
      part.style.width = `${100 * clamp(values[index], 0, 1)}%`;
      bar.append(part);
      bars.append(make("span", view.classes[index]?.name ?? index), bar, make("em", values[index].toFixed(2)));
    }
    return bars;
  };
  const tell = (facts, at) => {
    const list = make("dl");
    for (const layer of [...classLayers, ...layers.filter((one) => one.kind !== "classes")]) {
      const told = facts.layers[layer.key];
      if (layer.kind === "classes") {
        const main = layer.key === "map";
        if (told) entry(list, layer.role, [swatchOf(told.class), view.classes[told.class].name], main);
        else entry(list, layer.role, "no class here", main);
      } else if (told?.score) entry(list, layer.role, told.score[0].toFixed(3));
      else if (told?.probabilities) entry(list, wide() ? "Probable" : "", probabilities(told.probabilities));
      else if (told?.values) entry(list, layer.role, told.values.map((value, band) => `${layer.bands[band]} ${value}`).join(", "));
    }
    $("cursor").replaceChildren(list);
    $("cursor").style.minHeight = `${$("cursor").offsetHeight}px`; // what stands below must not jump
    const where = [];
    if (facts.position) {
      const most = Math.abs(facts.position[0]) < 400 && Math.abs(facts.position[1]) < 400 ? 6 : 2;
      where.push(facts.position.map((part) => part.toFixed(most)).join(", "));
    } else where.push(`row ${Math.floor(at.lat)}, column ${Math.floor(at.lng)}`);
    if (facts.lonlat) {
      const [lon, lat] = facts.lonlat;
      where.push(`${Math.abs(lat).toFixed(6)}° ${lat < 0 ? "S" : "N"} ${Math.abs(lon).toFixed(6)}° ${lon < 0 ? "W" : "E"}`);
    }
    $("position").textContent = where.join("  ·  ");
  };
  let wanted = null;
  let asking = false;
  const ask = async (at) => {
    wanted = at;
    if (asking) return;
    asking = true;
    while (wanted) {
      const now = wanted;
      wanted = null;
      if (!whole.contains(now)) continue;
      try {
        tell(await fetched(`/api/point?col=${now.lng}&row=${now.lat}`), now);
      } catch (error) {
        problem(error instanceof TypeError ? gone : error.message);
      }
    }
    asking = false;
  };
  map.on("mousemove click", (event) => ask(event.latlng));

  // The scale bar --------------------------------------------------------------------------------------------------------------
  const showScale = async () => {
    const at = map.getCenter();
    const facts = await fetched(`/api/point?col=${at.lng}&row=${at.lat}`).catch(() => null);
    if (!facts) return;
    const metres = facts.metres ? facts.metres[0] : null;
    const each = (metres ?? 1) / map.getZoomScale(map.getZoom(), 0); // per pixel of the screen
    const most = each * 130;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = power * [5, 2, 1].find((part) => part * power <= most);
    const [size, unit] = metres === null ? [length, "px"] : length >= 1000 ? [length / 1000, "km"]
      : length >= 1 ? [length, "m"] : [length * 100, "cm"];
    $("scale").querySelector("i").style.width = `${length / each}px`;
    $("scale").querySelector("span").textContent = `${digits(size)} ${unit}`;
  };

  // Places worth a look ------------------------------------------------------------------------------------------------------------
  let places = {};
  let frames = [];
  let placed = -1;
  const titles = { errors: "Most errors", changes: "Most differences" };
  const showPlace = () => {
    const list = places[$("placesOf").value] ?? [];
    const layer = byKey[$("placesOf").value];
    $("placesTitle").textContent = layer ? titles[layer.key] ?? "Least certain" : "";
    const here = list[placed];
    const mean = here && (layer.kind === "difference" ? `${percent(here.mean)} differ` : `${layer.role.toLowerCase()} ${here.mean.toFixed(2)}`);
    $("place").textContent = here ? `${placed + 1} of ${list.length} · ${mean}` : list.length ? `${list.length} places` : "none";
    $("previous").disabled = $("next").disabled = !list.length;
  };
  const visit = (step) => {
    const list = places[$("placesOf").value] ?? [];
    if (!list.length) return;
    placed = placed < 0 && step < 0 ? list.length - 1 : (placed + step + list.length) % list.length;
    const { row, col, side } = list[placed];
    const box = L.latLngBounds([row - side / 2, col - side / 2], [row + side / 2, col + side / 2]);
    for (const one of frames) one.remove();
    frames = [map, ...(twin ? [twin] : [])].map((one) =>
      L.rectangle(box, { color: "#ffffff", weight: 2, fill: false, interactive: false, className: "place" }).addTo(one));
    map.flyToBounds(box.pad(2), { duration: 0.4, maxZoom: 1 });
    showPlace();
  };
  const showPlaces = (found) => {
    const before = $("placesOf").value;
    places = found;
    const options = layers.filter((layer) => layer.key in found).map((layer) =>
      Object.assign(make("option", layer.role), { value: layer.key }));
    $("placesOf").replaceChildren(...options);
    if (before in found) $("placesOf").value = before;
    $("placesOf").hidden = options.length < 2;
    $("places").hidden = !options.length;
    showPlace();
  };
  $("placesOf").addEventListener("change", () => { placed = -1; showPlace(); });
  $("next").addEventListener("click", () => visit(1));
  $("previous").addEventListener("click", () => visit(-1));

  // A link that restores the view ------------------------------------------------------------------------------------------------------
  let pending = null;
  const hash = () => {
    const at = map.getCenter();
    const listed = layers.filter((layer) => layer.on || layer.opacity !== 1).map((layer) =>
      `${layer.on ? "" : "-"}${layer.key}:${layer.opacity.toFixed(2)}:${layer.side}`);
    const parts = new URLSearchParams({ at: `${at.lng.toFixed(1)},${at.lat.toFixed(1)}`, zoom: map.getZoom(), layers: listed.join(",") });
    if (state.swipe) parts.set("swipe", state.divider.toFixed(3));
    if (state.beside) parts.set("beside", "yes");
    if (state.only !== null) parts.set("only", state.only);
    return `#${parts.toString().replaceAll("%2C", ",").replaceAll("%3A", ":")}`;
  };
  const remember = () => {
    clearTimeout(pending);
    pending = setTimeout(() => history.replaceState(null, "", hash()), 150);
  };
  const restore = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    const at = (parts.get("at") ?? "").split(",").map(Number);
    const zoom = Number(parts.get("zoom") ?? NaN);
    if (at.length === 2 && [...at, zoom].every(Number.isFinite)) map.setView([at[1], at[0]], clamp(zoom, -view.levels - 1, 6), { animate: false });
    else map.fitBounds(whole, { animate: false });
    if (parts.has("layers")) {
      for (const layer of layers) layer.on = false;
      for (const text of parts.get("layers").split(",")) {
        const [key, opacity, side] = text.replace(/^-/, "").split(":");
        const layer = Object.hasOwn(byKey, key) ? byKey[key] : null;
        if (!layer) continue;
        layer.on = !text.startsWith("-");
        if (Number.isFinite(Number(opacity))) layer.opacity = clamp(Number(opacity), 0, 1);
        if (["both", "left", "right"].includes(side)) layer.side = side;
      }
      state.swipe = parts.has("swipe") && swept();
    }
    const beside = parts.has("beside") && swept();
    if (beside !== state.beside) showBeside(beside);
    const divider = Number(parts.get("swipe") ?? NaN);
    if (Number.isFinite(divider)) state.divider = clamp(divider, 0, 1);
    const only = parts.has("only") ? Number(parts.get("only")) : null;
    if (only !== state.only && (only === null || view.classes[only])) isolate(only ?? state.only);
    change();
  };
  addEventListener("hashchange", restore);
  const copyLink = async () => {
    history.replaceState(null, "", hash());
    try {
      await navigator.clipboard.writeText(location.href);
      $("link").textContent = "Copied";
    } catch {
      $("link").textContent = "It is in the address bar"; // the clipboard is for secure pages
    }
    setTimeout(() => { $("link").textContent = "Copy link"; }, 1600);
  };
  $("link").addEventListener("click", copyLink);
  const fit = () => map.flyToBounds(whole, { duration: 0.3 });
  $("fit").addEventListener("click", fit);

  // Keys ------------------------------------------------------------------------------------------------------------------------------------
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox") return;
    const number = "123456789".indexOf(event.key);
    const pan = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] }[event.key];
    if (document.activeElement === document.body) { // where the map has the focus, Leaflet moves it
      if (pan) map.panBy(pan);
      if ("+=".includes(event.key)) map.zoomIn(1);
      if (event.key === "-") map.zoomOut(1);
    }
    const act = {
      s: toggleSwipe, b: toggleBeside, n: () => visit(1), p: () => visit(-1), f: fit, c: copyLink,
      ",": () => moveDivider(state.divider - 0.02), ".": () => moveDivider(state.divider + 0.02),
      Escape: () => { if (state.only !== null) isolate(state.only); },
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) act();
    else if (number >= 0 && layers[number]) {
      layers[number].on = !layers[number].on;
      change();
    }
  });

  const fold = () => {
    const open = $("panel").classList.toggle("open");
    $("fold").setAttribute("aria-expanded", open);
    $("fold").textContent = open ? "Close" : "Layers";
    map.invalidateSize();
    if (twin) twin.invalidateSize();
  };
  $("fold").addEventListener("click", fold);

  // What the server finds out meanwhile ----------------------------------------------------------------------------------------------------------
  let trouble = "";
  const problem = (text) => {
    trouble = text;
    if (text !== shown) say(text);
  };
  const reading = {};
  const watch = async () => {
    let news;
    try {
      news = await fetched("/api/state");
    } catch {
      problem(gone);
      return;
    }
    showAreas(news.areas, news.done);
    showPlaces(news.places);
    for (const [place, layer] of layers.entries()) {
      const share = news.reading[layer.key];
      rows[place].note.hidden = share === undefined;
      if (share !== undefined) rows[place].note.textContent = `No overviews: read once to be seen from afar, ${percent(share)}; zoom in to see it now.`;
      if (layer.key in reading && share === undefined) {
        for (const one of layers.filter((other) => other === layer || other.kind === "difference")) {
          for (const picture of one.pictures) {
            picture.options.version += 1;
            picture.redraw();
          }
        }
      }
      if (share === undefined) delete reading[layer.key];
      else reading[layer.key] = share;
    }
    if (news.problems.length) problem(news.problems[0]);
    if (!news.done) setTimeout(watch, 700);
  };

  map.on("move zoom resize viewreset", draw);
  map.on("moveend", () => { showScale(); remember(); });
  restore();
  const metres = await fetched(`/api/point?col=${view.width / 2}&row=${view.height / 2}`).then((facts) => facts.metres, () => null);
  $("facts").textContent = [
    `${view.width.toLocaleString("en-GB")} × ${view.height.toLocaleString("en-GB")} px`,
    metres ? `${digits(metres[0], 3)} m per pixel` : null,
    view.crs ?? "no CRS",
  ].filter(Boolean).join(" · ");
  watch();
  document.documentElement.dataset.ready = "yes";
})();
