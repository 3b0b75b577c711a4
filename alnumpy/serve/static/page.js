// The page of alnumpy serve. Its address says what it shows, except for pictures that were dropped on it: `uploads` has
// those. Elements are made one by one, never from HTML as text.
"use strict";

const STEP = 60; // results and pictures at a time, as the server gives them
const MOST = 500; // results
const FILTERS = ["in", "since", "until"];
const SEARCH_ONLY = ["max-distance", "skip-same"];
const KEPT = [...FILTERS, ...SEARCH_ONLY];

const $ = (id) => document.getElementById(id);
const uploads = new Map(); // dropped pictures, as files, by number
let state = { pictures: 0, levels: null, indexing: null };
let items = []; // what the grid shows
let groups = [];
let wanted = STEP; // results asked for
let turn = 0; // number of the view that is shown: late answers to earlier views are ignored
let picture = null; // the query: {width, height} of the whole picture

function make(tag, { label, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (label) element.setAttribute("aria-label", label);
  element.append(...children);
  return element;
}

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("alnumpy serve does not answer; has it been stopped?");
  }
  const answer = await response.json().catch(() => ({ error: `answered with status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// The address

const parameters = () => new URLSearchParams(location.search);
const upload = () => uploads.get(Number(parameters().get("upload")));
const asked = () => Boolean(parameters().get("like") || upload());

function address(changes, kept = [...parameters().keys()]) {
  const now = parameters();
  const next = new URLSearchParams([...now].filter(([name]) => kept.includes(name)));
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    for (const one of [value].flat()) if (one) next.append(name, one);
  }
  return String(next) ? `/?${next}` : "/";
}

function go(to, replace = false) {
  if (replace) history.replaceState(null, "", to);
  else history.pushState(null, "", to);
  show();
}

const like = (id) => address({ like: id }, KEPT);

// Texts

const name = (path) => path.slice(path.lastIndexOf("/") + 1);
const folder = (path) => path.slice(0, path.lastIndexOf("/"));
const places = (path, depth = 2) => folder(path).split("/").slice(-depth).join(" / ");
const count = (number, noun) => `${number.toLocaleString()} ${noun}${number === 1 ? "" : "s"}`;
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function when(date, format = day) {
  const time = new Date(date);
  return Number.isNaN(time.getTime()) ? "" : format.format(time);
}

function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  const unit = bytes < 1000 ? 0 : bytes < 1e6 ? 1 : bytes < 1e9 ? 2 : 3;
  return `${(bytes / 1000 ** unit).toLocaleString(undefined, { maximumFractionDigits: unit ? 1 : 0 })} ${units[unit]}`;
}

function nearness(item) {
  if (item.same) return "identical";
  if (!state.levels || item.distance > state.levels[1]) return "";
  return item.distance <= state.levels[0] ? "nearly the same" : "a version";
}

// Pictures

function thumbnail(item) {
  const image = make("img", { src: `/thumbnails/${item.id}`, alt: name(item.path), loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => {
    image.parentElement?.classList.add("gone");
    image.replaceWith(`${name(item.path)}: missing, or changed since`);
  });
  return image;
}

function bar(item, largest) {
  const fill = make("span");
  fill.style.width = `${largest ? (100 * item.distance) / largest : 0}%`;
  const line = make("p", { className: "distance" }, make("span", { className: "bar" }, fill));
  line.append(make("span", { className: "number" }, item.distance.toFixed(3)));
  return line;
}

function tile(item, index) {
  const enlarge = make("button", { type: "button", className: "enlarge", label: `View ${name(item.path)} large` }, "⤢");
  enlarge.addEventListener("click", () => view(index));
  const facts = make("div", { className: "facts" });
  if (item.distance !== undefined) {
    const scale = Math.max(items.at(-1).distance, state.levels ? state.levels[1] : 0);
    facts.append(bar(item, scale));
    const words = [nearness(item), item.missing && "missing now"].filter(Boolean).join(", ");
    if (words) facts.append(make("p", { className: "word" }, words));
  }
  facts.append(make("p", { title: item.path }, places(item.path)));
  facts.append(make("p", { className: "quiet" }, when(item.date)));
  const link = make("a", { className: "go", href: like(item.id), label: `Find pictures like ${name(item.path)}` });
  link.append(thumbnail(item));
  return make("li", { className: "tile" }, link, enlarge, facts);
}

function fill(found) {
  const focused = document.activeElement?.closest?.("#grid li");
  const at = focused ? [...$("grid").children].indexOf(focused) : -1;
  items = found;
  $("grid").replaceChildren(...items.map(tile));
  if (at >= 0) $("grid").children[Math.min(at, items.length - 1)]?.querySelector(".go").focus();
}

function say(text, fault = false) {
  $("status").textContent = text;
  $("status").classList.toggle("fault", fault);
}

// What is shown

async function show() {
  const mine = ++turn;
  const now = parameters();
  const duplicates = now.get("duplicates");
  if (now.get("upload") && !upload()) return go(address({ upload: "" }), true); // the page was reloaded
  wanted = STEP;
  document.body.classList.toggle("asked", asked());
  $("drop").hidden = asked() || Boolean(duplicates);
  $("narrow").hidden = Boolean(duplicates);
  $("levels").hidden = !duplicates;
  const [here, there] = duplicates ? ["to-duplicates", "to-search"] : ["to-search", "to-duplicates"];
  $(here).setAttribute("aria-current", "page");
  $(there).removeAttribute("aria-current");
  for (const field of $("filters").elements) {
    if (field.type === "checkbox") field.checked = now.get(field.name) === "1";
    else if (field.name) field.value = now.get(field.name) ?? "";
  }
  $("clear").hidden = !KEPT.some((field) => now.get(field));
  $("again").hidden = $("more").hidden = true;
  $("groups").replaceChildren();
  $(asked() ? "query-buttons" : "drop-buttons").append($("choose"), $("camera"));
  showQuery();
  try {
    if (duplicates) await showDuplicates(mine);
    else if (asked()) await search(mine);
    else await browse(mine);
  } catch (error) {
    if (mine === turn) {
      fill([]);
      say(error.message, true);
    }
  }
}

async function browse(mine) {
  $("heading").textContent = "Your pictures";
  const found = await ask(address({ skip: "" }, FILTERS).replace("/", "/pictures"));
  if (mine !== turn) return;
  fill(found);
  const filtered = FILTERS.some((field) => parameters().get(field));
  say(found.length ? "the latest first" : filtered ? "No picture passes these filters." : "No pictures yet.");
  $("more").hidden = found.length < STEP;
}

async function search(mine) {
  const file = upload();
  $("heading").textContent = "Most like it";
  if (!items.length || !items[0].rank) say("Searching…");
  const options = address({ k: String(wanted) }, [...KEPT, "not", "region", ...(file ? [] : ["like"])]);
  const [answer] = await ask(options.replace("/", "/search"), file ? { method: "POST", body: file } : {});
  if (mine !== turn) return;
  fill(answer.results);
  if (!file) {
    picture = { width: answer.width, height: answer.height };
    $("query-name").textContent = name(answer.query);
    $("query-name").title = answer.query;
    $("query-about").textContent = [places(answer.query, 3), when(answer.date), `${answer.width} × ${answer.height}`].join(" · ");
  }
  drawRegion();
  say(items.length ? count(items.length, "picture") + ", the nearest first" : "No picture passes these filters.");
  $("more").hidden = items.length < wanted || wanted >= MOST;
}

$("more").addEventListener("click", async () => {
  const mine = turn;
  const before = items.length;
  try {
    if (parameters().get("duplicates")) {
      await moreGroups(mine);
    } else if (asked()) {
      wanted = Math.min(wanted + STEP, MOST);
      await search(mine);
    } else {
      const found = await ask(address({ skip: String(before) }, FILTERS).replace("/", "/pictures"));
      if (mine !== turn) return;
      const known = new Set(items.map((item) => item.path));
      fill([...items, ...found.filter((item) => !known.has(item.path))]);
      $("more").hidden = found.length < STEP;
    }
    $("grid").children[before]?.querySelector(".go").focus();
  } catch (error) {
    say(error.message, true);
  }
});

// The query

function showQuery() {
  const now = parameters();
  const file = upload();
  const shown = $("query-picture");
  $("query").hidden = !asked() || Boolean(now.get("duplicates"));
  $("unlike").replaceChildren(...now.getAll("not").map(unlikeButton));
  choosing(false);
  drawRegion();
  const source = file ? file.url : now.get("like") ? `/pictures/${now.get("like")}` : "";
  if (shown.getAttribute("src") === source) return;
  picture = null;
  $("frame").hidden = $("choose-region").hidden = !source;
  $("query-missing").hidden = true;
  if (source) shown.src = source;
  else shown.removeAttribute("src");
  if (file) {
    $("query-name").textContent = file.name || "A picture";
    $("query-name").title = "";
    $("query-about").textContent = size(file.size);
  }
}

$("query-picture").addEventListener("load", () => {
  const { naturalWidth: width, naturalHeight: height } = $("query-picture");
  $("query-picture").alt = "The picture that is searched with";
  if (upload()) picture = { width, height };
  drawRegion();
});

$("query-picture").addEventListener("error", () => {
  $("frame").hidden = $("choose-region").hidden = true;
  $("query-missing").hidden = !upload();
});

function unlikeButton(id) {
  const rest = parameters().getAll("not").filter((other) => other !== id);
  const image = make("img", { src: `/thumbnails/${id}`, alt: "" });
  const button = make("button", { type: "button" }, image, "Include again");
  button.addEventListener("click", () => go(address({ not: rest })));
  return make("li", {}, button);
}

function take(file) {
  if (!file) return;
  const number = uploads.size + 1;
  file.url = URL.createObjectURL(file);
  uploads.set(number, file);
  go(address({ upload: String(number) }, KEPT));
  $("results").scrollIntoView({ block: "nearest" });
}

for (const input of [$("file"), $("photo")]) {
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = ""; // so that the same picture can be chosen again
  });
}

const brings = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  $("dropping").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("dropping").hidden = true;
});
document.addEventListener("drop", (event) => {
  $("dropping").hidden = true;
  if (!brings(event)) return;
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));

// A region of the query, as fractions of its width and height

let region = null; // {left, top, right, bottom} from 0 to 1

function regionOfAddress() {
  const numbers = parameters().get("region")?.split(",").map(Number);
  if (!picture || numbers?.length !== 4 || numbers.some(Number.isNaN)) return null;
  const [x, y, width, height] = numbers;
  return {
    left: x / picture.width, top: y / picture.height,
    right: Math.min(1, (x + width) / picture.width), bottom: Math.min(1, (y + height) / picture.height),
  };
}

function drawRegion(drawn = regionOfAddress()) {
  region = drawn;
  $("region").hidden = !region;
  $("choose-region").textContent = parameters().get("region") ? "Search for all of it" : "Search for a part";
  if (!region) return;
  $("region").style.left = `${100 * region.left}%`;
  $("region").style.top = `${100 * region.top}%`;
  $("region").style.width = `${100 * (region.right - region.left)}%`;
  $("region").style.height = `${100 * (region.bottom - region.top)}%`;
}

function choosing(on) {
  $("frame").classList.toggle("drawing", on);
  $("choose-region").setAttribute("aria-pressed", String(on));
  $("region-hint").hidden = !on;
}

function searchRegion() {
  if (!region || !picture) return;
  const at = [region.left * picture.width, region.top * picture.height].map(Math.round);
  const end = [region.right * picture.width, region.bottom * picture.height].map(Math.round);
  const extent = end.map((value, i) => Math.max(1, value - at[i]));
  go(address({ region: [...at, ...extent].join(",") }));
}

$("choose-region").addEventListener("click", () => {
  if (parameters().get("region")) return go(address({ region: "" }));
  const on = $("choose-region").getAttribute("aria-pressed") !== "true";
  choosing(on);
  drawRegion(on ? { left: 0.25, top: 0.25, right: 0.75, bottom: 0.75 } : null);
  if (on) $("region").focus();
});

const within = (value) => Math.min(1, Math.max(0, value));

function place(event) {
  const box = $("frame").getBoundingClientRect();
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
}

let grip = null; // where drawing began
$("frame").addEventListener("pointerdown", (event) => {
  const finger = event.pointerType !== "mouse" && !$("frame").classList.contains("drawing"); // a finger scrolls
  if (!picture || event.button || finger) return;
  event.preventDefault();
  $("frame").setPointerCapture(event.pointerId);
  grip = place(event);
});
$("frame").addEventListener("pointermove", (event) => {
  if (!grip) return;
  const [x, y] = place(event);
  drawRegion({
    left: Math.min(x, grip[0]), top: Math.min(y, grip[1]), right: Math.max(x, grip[0]), bottom: Math.max(y, grip[1]),
  });
});
$("frame").addEventListener("pointerup", () => {
  const large = region && region.right - region.left > 0.03 && region.bottom - region.top > 0.03;
  if (grip && large) searchRegion();
  else if (grip) drawRegion();
  grip = null;
});
$("frame").addEventListener("pointercancel", () => {
  grip = null;
  drawRegion();
});

$("region").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Enter") searchRegion();
  else if (event.key === "Escape") {
    choosing(false);
    if (parameters().get("region")) go(address({ region: "" }));
    else drawRegion(null);
    $("choose-region").focus();
  } else if (event.key in moves) {
    const [x, y] = moves[event.key].map((step) => step * 0.05);
    const { left, top, right, bottom } = region;
    if (event.shiftKey) {
      drawRegion({ left, top, right: within(Math.max(left + 0.05, right + x)), bottom: within(Math.max(top + 0.05, bottom + y)) });
    } else {
      const dx = Math.max(-left, Math.min(x, 1 - right));
      const dy = Math.max(-top, Math.min(y, 1 - bottom));
      drawRegion({ left: left + dx, top: top + dy, right: right + dx, bottom: bottom + dy });
    }
    event.preventDefault();
  }
});

// Filters

$("filters").addEventListener("change", () => {
  if (!$("filters").reportValidity()) return;
  const chosen = new FormData($("filters"));
  go(address(Object.fromEntries(KEPT.map((field) => [field, chosen.get(field) ?? ""]))));
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => go(address(Object.fromEntries(KEPT.map((field) => [field, ""])))));

let listed = false;
$("filters").elements.in.addEventListener("focus", async () => {
  if (listed) return;
  listed = true;
  const { folders } = await ask("/folders").catch(() => ({ folders: [] }));
  $("folders").replaceChildren(...folders.map((value) => make("option", { value })));
});

// Duplicates

async function showDuplicates(mine, anew = false) {
  const level = parameters().get("duplicates");
  const named = ["exact", "near", "similar"].includes(level);
  $("heading").textContent = "Duplicates";
  for (const choice of document.querySelectorAll("[name=level]")) {
    choice.checked = choice.value === level;
    choice.parentElement.hidden = choice.value !== "exact" && !state.levels;
  }
  $("threshold").value = named ? "" : level;
  fill([]);
  groups = [];
  say("Comparing all pictures with each other…");
  const query = `/duplicates?${named ? "like" : "threshold"}=${encodeURIComponent(level)}`;
  let answer = await ask(query + (anew ? "&anew=1" : ""));
  while (answer.working && mine === turn) {
    await new Promise((done) => setTimeout(done, 700));
    answer = await ask(query);
  }
  if (mine !== turn) return;
  if (answer.error) throw new Error(answer.error);
  addGroups(answer);
}

async function moreGroups(mine) {
  const level = parameters().get("duplicates");
  const kind = ["exact", "near", "similar"].includes(level) ? "like" : "threshold";
  const answer = await ask(`/duplicates?${kind}=${encodeURIComponent(level)}&skip=${groups.length}`);
  if (mine === turn) addGroups(answer);
}

function addGroups(answer) {
  $("groups").append(...answer.groups.map((group, index) => groupElement(group, groups.length + index)));
  groups.push(...answer.groups);
  say(answer.total ? `${count(answer.total, "group")}; the one to keep comes first; nothing is ever deleted` : "None found.");
  $("more").hidden = groups.length >= answer.total;
}

function groupElement(group, index) {
  const saved = group.filter((member) => !member.kept).reduce((sum, member) => sum + member.bytes, 0);
  const members = group.map((member, at) => {
    const link = make("a", { className: "go", href: `/pictures/${member.id}`, label: `Compare ${name(member.path)}` });
    link.append(thumbnail(member));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      compare(index, at);
    });
    return make("li", { className: "member" }, link, facts(member, group[0]));
  });
  const title = `${count(group.length, "picture")}, ${size(saved)} besides the first`;
  return make("section", { className: "group", label: name(group[0].path) }, make("h3", {}, title), make("ul", {}, ...members));
}

// Facts of a picture, and which of them differ from those of another.
function facts(member, first) {
  const part = (ours, theirs) => {
    const share = Math.round((100 * ours) / theirs);
    return share !== 100 && theirs > 0 && `${share || "<1"}%`;
  };
  const kept = member === first;
  const rows = [
    ["Name", name(member.path), name(member.path) !== name(first.path)],
    ["Folder", folder(member.path), folder(member.path) !== folder(first.path)],
    ["Pixels", `${member.width} × ${member.height}`, member.width !== first.width || member.height !== first.height,
      part(member.width * member.height, first.width * first.height)],
    ["Size", size(member.bytes), member.bytes !== first.bytes, part(member.bytes, first.bytes)],
    ["Date", when(member.date, moment), member.date !== first.date],
    ["Content", kept ? "the one to keep" : member.same ? "identical" : `distance ${member.distance.toFixed(3)}`, !member.same],
  ];
  const list = make("dl", { className: "facts" });
  for (const [term, text, differs, more] of rows) {
    const shown = more ? `${text} (${more})` : text;
    const value = make("dd", { title: shown }, shown);
    if (differs && !kept) {
      value.className = "differs";
      value.prepend(make("span", { className: "unseen" }, "differs: "));
    }
    list.append(make("dt", {}, term), value);
  }
  return list;
}

$("levels").addEventListener("change", (event) => {
  if (event.target.name === "level") go(`/?duplicates=${event.target.value}`);
  else if ($("threshold").value && $("threshold").reportValidity()) go(`/?duplicates=${Number($("threshold").value)}`);
});
$("anew").addEventListener("click", async () => {
  const mine = ++turn;
  $("groups").replaceChildren();
  await showDuplicates(mine, true).catch((error) => say(error.message, true));
});

// The large view

let large = { list: [], at: 0, beside: false };

function view(at) {
  large = { list: items, at, beside: false };
  openLarge();
}

function compare(group, at) {
  large = { list: groups[group], at: at || 1, beside: true };
  openLarge();
}

function openLarge() {
  drawLarge();
  if (!$("large").open) $("large").showModal();
}

function figure(element, item, caption) {
  const image = element.querySelector("img");
  image.src = `/pictures/${item.id}`;
  image.alt = name(item.path);
  element.querySelector("figcaption").replaceChildren(caption);
}

function drawLarge() {
  const { list, at, beside } = large;
  const item = list[at];
  const first = beside ? 1 : 0;
  $("reference").hidden = !beside;
  if (beside) figure($("reference"), list[0], facts(list[0], list[0]));
  const about = [name(item.path), places(item.path), when(item.date, moment), `${item.width} × ${item.height}`];
  if (item.distance !== undefined) about.push(`distance ${item.distance.toFixed(3)}`);
  figure($("shown"), item, beside ? facts(item, list[0]) : `${at + 1} of ${list.length}: ${about.filter(Boolean).join(" · ")}`);
  $("before").disabled = at <= first;
  $("after").disabled = at >= list.length - 1;
  $("like-this").href = like(item.id);
  $("not-this").hidden = beside || !asked();
  for (const near of [list[at + 1], list[at - 1]]) if (near) new Image().src = `/pictures/${near.id}`;
}

function step(by) {
  const first = large.beside ? 1 : 0;
  large.at = Math.max(first, Math.min(large.list.length - 1, large.at + by));
  drawLarge();
}

$("close").addEventListener("click", () => $("large").close());
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
$("not-this").addEventListener("click", () => {
  const id = large.list[large.at].id;
  $("large").close();
  go(address({ not: [...new Set([...parameters().getAll("not"), id])] }));
});
$("large").addEventListener("close", () => {
  if (!large.beside) $("grid").children[large.at]?.querySelector(".go").focus();
});
$("large").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -MOST, End: MOST };
  if (!(event.key in steps)) return;
  step(steps[event.key]);
  event.preventDefault();
});

let swiped = null;
$("stage").addEventListener("pointerdown", (event) => { swiped = event.clientX; });
$("stage").addEventListener("pointerup", (event) => {
  const moved = swiped === null ? 0 : event.clientX - swiped;
  if (Math.abs(moved) > 50) step(moved < 0 ? 1 : -1);
  swiped = null;
});

// Links within the page, and keys in the grid

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/']");
  const within = link && new URL(link.href).pathname === "/";
  if (!within || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if ($("large").open) $("large").close();
  go(link.getAttribute("href"));
  window.scrollTo(0, 0);
  $("results").focus({ preventScroll: true });
});

$("grid").addEventListener("keydown", (event) => {
  const tiles = [...$("grid").children];
  const at = tiles.indexOf(event.target.closest("li"));
  const columns = Math.max(1, tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: tiles.length - 1 - at };
  if (event.ctrlKey || event.metaKey || event.altKey || at < 0) return;
  if (event.key in steps) tiles[at + steps[event.key]]?.querySelector(".go").focus();
  else if (event.key.toLowerCase() === "v") view(at);
  else return;
  event.preventDefault();
});

window.addEventListener("popstate", show);

// The gallery, and an index that runs in the same process

async function watch() {
  try {
    const before = state.pictures;
    state = await ask("/state");
    $("count").textContent = count(state.pictures, "picture");
    const indexing = state.indexing;
    $("indexing").hidden = !(indexing?.running || indexing?.fault);
    if (indexing?.fault) {
      $("indexing-text").textContent = `Indexing has stopped: ${indexing.fault}`;
    } else if (indexing?.running) {
      const known = indexing.total > 0;
      $("indexing-text").textContent = known
        ? `Indexing: ${indexing.done.toLocaleString()} of ${count(indexing.total, "picture")}`
        : "Looking for new pictures";
      $("indexing-bar").max = indexing.total || 1;
      if (known) $("indexing-bar").value = indexing.done;
      else $("indexing-bar").removeAttribute("value");
    }
    $("indexing-bar").hidden = !indexing?.running;
    if (turn && before !== state.pictures) appear();
  } catch (error) {
    $("count").textContent = error.message;
  }
  setTimeout(watch, state.indexing?.running ? 1500 : state.indexing ? 4000 : 15000);
}

function appear() {
  if (parameters().get("duplicates")) return;
  if (asked()) $("again").hidden = false;
  else if (items.length <= STEP && !$("large").open) browse(turn).catch((error) => say(error.message, true));
}

$("again").addEventListener("click", () => {
  $("again").hidden = true;
  search(turn).catch((error) => say(error.message, true));
});

const roomy = matchMedia("(min-width: 40.01rem)"); // as in page.css
const unfold = () => { $("narrow").open = roomy.matches || KEPT.some((field) => parameters().get(field)); };
roomy.addEventListener("change", unfold);
unfold();

(async () => {
  await Promise.race([watch(), new Promise((done) => setTimeout(done, 1000))]); // what distances mean
  show();
})();
