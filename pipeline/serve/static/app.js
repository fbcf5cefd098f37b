// The page. Whatever comes from the server or a file enters as text (textContent), never as markup.
const $ = (id) => document.getElementById(id);
const STEP = 24;
const LIMIT = 200;
const HOVER_MS = 180;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const canHover = matchMedia("(hover: hover)");

const state = { q: "", not: "", like: "", where: "", merge: false, perFile: 0, top: STEP, picture: null, hits: [], open: -1, asked: 0 };
const clips = new Map(); // id -> promise of its details

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

const momentOf = (hit) => hit.moment ?? hit.start ?? 0;
const within = (hit) => (hit.start === null ? "" : `${clock(hit.start)} – ${clock(hit.end)}`);

async function ask(url, options) {
  const response = await fetch(url, { headers: { accept: "application/json" }, ...options });
  const answer = await response.json().catch(() => ({}));
  if (response.status === 401) location.href = "/static/login.html";
  if (!response.ok) throw new Error(answer.error ?? `the server answered ${response.status}`);
  return answer;
}

function details(hit) {
  if (!clips.has(hit.clip)) {
    const asked = ask(hit.clip);
    asked.catch(() => clips.delete(hit.clip));
    clips.set(hit.clip, asked);
  }
  return clips.get(hit.clip);
}

// -- searching

function search(changes, { push = true } = {}) {
  Object.assign(state, { top: STEP }, changes);
  if (push && link() !== location.pathname + location.search) history.pushState(null, "", link());
  run();
}

function link(extra = {}) {
  const parts = new URLSearchParams();
  for (const name of ["q", "like"]) if (state[name]) parts.set(name, state[name]);
  narrow(parts);
  if (state.top > STEP) parts.set("top", state.top);
  for (const [name, value] of Object.entries(extra)) parts.set(name, value);
  const text = parts.toString();
  return text ? `/?${text}` : "/";
}

// What narrows a search, in the page's address and in the API's: the same names.
function narrow(parts) {
  if (state.q && state.not) parts.set("not", state.not);
  if (state.where) parts.set("where", state.where);
  if (state.merge) parts.set("merge", "true");
  if (state.perFile) parts.set("per_file", state.perFile);
}

function fromLocation() {
  const given = new URLSearchParams(location.search);
  const top = Number.parseInt(given.get("top") ?? STEP, 10);
  Object.assign(state, {
    q: given.get("q") ?? "",
    like: given.get("like") ?? "",
    not: given.get("not") ?? "",
    where: given.get("where") ?? "",
    merge: given.get("merge") === "true",
    perFile: perFile(given.get("per_file")),
    top: Math.min(LIMIT, Math.max(1, Number.isFinite(top) ? top : STEP)),
    picture: null,
  });
  return given.get("play");
}

function perFile(text) {
  const number = Number.parseInt(text, 10);
  return number >= 1 ? Math.min(LIMIT, number) : 0;
}

async function run() {
  const number = ++state.asked;
  closePlayer();
  $("q").value = state.q;
  $("where").value = state.where;
  $("not").value = state.not;
  $("merge").checked = state.merge;
  $("per-file").value = state.perFile || "";
  const narrowed = Boolean(state.where || state.not || state.merge || state.perFile);
  $("filter-toggle").classList.toggle("on", narrowed);
  if (narrowed) openFilters(true);
  $("problem").hidden = true;
  const searching = Boolean(state.q || state.like || state.picture);
  $("welcome").hidden = searching;
  $("summary").hidden = !searching;
  if (!searching) {
    state.hits = [];
    show();
    return;
  }
  describe();
  $("status").textContent = "Searching…";
  $("results").classList.add("busy");
  const parts = new URLSearchParams({ top: state.top });
  narrow(parts);
  try {
    let answer;
    if (state.picture) {
      const form = new FormData();
      form.set("image", state.picture);
      answer = await ask(`/api/search/image?${parts}`, { method: "POST", body: form });
    } else if (state.like) {
      parts.set("id", state.like);
      answer = await ask(`/api/similar?${parts}`);
    } else {
      parts.set("q", state.q);
      answer = await ask(`/api/search?${parts}`);
    }
    if (number !== state.asked) return;
    state.hits = answer.hits;
    const count = answer.hits.length;
    $("status").textContent = count ? `${count} ${count === 1 ? "moment" : "moments"}` : "Nothing found";
  } catch (error) {
    if (number !== state.asked) return;
    state.hits = [];
    $("status").textContent = "";
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
  $("results").classList.remove("busy");
  show();
}

function describe() {
  const subject = $("subject");
  subject.replaceChildren();
  if (state.picture) {
    const url = URL.createObjectURL(state.picture);
    subject.append(make("img", { src: url, alt: "Your picture", onload: () => URL.revokeObjectURL(url) }), make("span", {}, "Like your picture"));
  } else if (state.like) {
    const key = encodeURIComponent(state.like);
    const at = /#t=([\d.]+),/.exec(state.like)?.[1] ?? 0;
    subject.append(make("img", { src: `/thumbnail/${key}?t=${at}`, alt: "" }), make("span", {}, `Like ${state.like}`));
  } else {
    subject.append(make("span", {}, state.not ? `${state.q} – not ${state.not}` : state.q));
  }
  document.title = `${subject.textContent} · Video search`;
}

// -- the grid

function show() {
  const known = new Map([...$("results").children].map((item) => [item.dataset.key, item]));
  $("results").replaceChildren(...state.hits.map((hit, place) => {
    const key = `${hit.video_id} ${hit.moment} ${hit.score}`;
    return card(hit, place, key, known.get(key));
  }));
  $("more").hidden = state.hits.length < state.top || state.top >= LIMIT;
}

function card(hit, place, key, there) {
  const item = there ?? make("li", { className: "hit" });
  item.dataset.place = place;
  if (there) return there;
  item.dataset.key = key;
  const picture = make("img", { src: hit.thumbnail, alt: "", loading: "lazy", decoding: "async" });
  picture.addEventListener("load", () => picture.classList.add("there"));
  picture.addEventListener("error", () => picture.replaceWith(make("span", { className: "no-picture" }, "No picture")));
  const shot = make("button", { type: "button", className: "shot" }, picture,
    make("span", { className: "time" }, clock(momentOf(hit))), make("span", { className: "bar-time" }, make("i")));
  shot.setAttribute("aria-label", `Play ${hit.name} from ${clock(momentOf(hit))}`);
  shot.addEventListener("click", () => openPlayer(Number(item.dataset.place)));
  const similar = make("button", { type: "button", className: "ghost similar", title: "Similar" }, icon("similar"));
  similar.setAttribute("aria-label", `Similar to ${hit.name}`);
  similar.addEventListener("click", () => search({ q: "", like: hit.video_id, picture: null }));
  const more = [within(hit), hit.score.toFixed(3)].filter(Boolean).join(" · ");
  item.append(shot, make("div", { className: "hit-foot" },
    make("div", { className: "hit-text" },
      make("div", { className: "hit-name", title: hit.video_id }, hit.name), make("div", { className: "hit-more" }, more)),
    similar));
  preview(shot, hit);
  return item;
}

// Play in the card while the pointer rests on it, from the moment on, round the clip.
function preview(shot, hit) {
  let timer = 0;
  let video = null;
  const stop = () => {
    clearTimeout(timer);
    shot.classList.remove("playing");
    if (video) {
      video.removeAttribute("src");
      video.load();
      video.remove();
    }
    video = null;
  };
  const start = async () => {
    const clip = await details(hit).catch(() => null);
    if (!clip?.media || !shot.matches(":hover")) return;
    const playing = film(hit, clip, { muted: true });
    video = playing;
    playing.addEventListener("playing", () => shot.classList.add("playing"));
    playing.addEventListener("timeupdate", () => {
      const [from, to] = bounds(hit, clip, playing);
      if (playing.currentTime >= to) playing.currentTime = from;
      shot.querySelector("i").style.width = `${(100 * (playing.currentTime - from)) / Math.max(0.1, to - from)}%`;
    });
    shot.insertBefore(video, shot.querySelector(".time"));
  };
  shot.addEventListener("pointerenter", () => {
    if (canHover.matches && !calm.matches) timer = setTimeout(start, HOVER_MS);
  });
  shot.addEventListener("pointerleave", stop);
}

function bounds(hit, clip, video) {
  const offset = clip.media.offset;
  const end = hit.end === null ? video.duration : hit.end - offset;
  return [Math.max(0, momentOf(hit) - offset), Math.min(end, video.duration || Number.POSITIVE_INFINITY)];
}

function film(hit, clip, attributes) {
  const at = Math.max(0, momentOf(hit) - clip.media.offset);
  const video = make("video", { playsInline: true, autoplay: true, preload: "auto", poster: `${hit.thumbnail}&width=640`, ...attributes });
  video.src = `${clip.media.url}#t=${at.toFixed(3)}`;
  return video;
}

// -- the player

async function openPlayer(place) {
  const hit = state.hits[place];
  if (!hit) return;
  state.open = place;
  const player = $("player");
  $("player-title").textContent = hit.name;
  $("player-where").textContent = [`Moment ${clock(momentOf(hit))}`, within(hit) && `clip ${within(hit)}`].filter(Boolean).join(" · ");
  $("player-captions").replaceChildren();
  $("player-metadata").replaceChildren();
  $("player-previous").disabled = place === 0;
  $("player-next").disabled = place === state.hits.length - 1;
  emptyStage(make("img", { src: `${hit.thumbnail}&width=640`, alt: "" }));
  if (!player.open) player.showModal();
  let clip;
  try {
    clip = await details(hit);
  } catch (error) {
    clip = { problem: error.message, captions: [], metadata: {} };
  }
  if (state.open !== place || state.hits[place] !== hit) return;
  if (clip.media) {
    const video = film(hit, clip, { controls: true });
    video.setAttribute("aria-label", `${hit.name}, from ${clock(momentOf(hit))}`);
    if (clip.media.how !== "original") {
      const note = make("span", {}, " · converting for the browser…");
      $("player-where").append(note);
      video.addEventListener("loadeddata", () => { note.textContent = " · converted for the browser"; });
    }
    video.addEventListener("error", () => fail("The browser could not play this video."));
    emptyStage(video);
    video.focus();
  } else {
    fail(clip.problem ?? "This video cannot be played.");
  }
  $("player-captions").replaceChildren(...clip.captions.map((text) => make("li", {}, text)));
  for (const [name, value] of Object.entries(clip.metadata)) {
    if (value !== null) $("player-metadata").append(make("dt", {}, name), make("dd", {}, String(value)));
  }
}

function fail(text) {
  emptyStage(make("p", { role: "alert" }, text));
}

function emptyStage(...children) {
  const video = $("stage").querySelector("video");
  if (video) {
    video.pause();
    video.removeAttribute("src");
    video.load();
  }
  $("stage").replaceChildren(...children);
}

function closePlayer() {
  if ($("player").open) $("player").close();
}

$("player").addEventListener("close", () => {
  emptyStage();
  const place = state.open;
  state.open = -1;
  shots()[place]?.focus();
});
$("player").addEventListener("click", (event) => {
  if (event.target === $("player")) closePlayer();
});
$("player-close").addEventListener("click", closePlayer);
$("player-previous").addEventListener("click", () => openPlayer(state.open - 1));
$("player-next").addEventListener("click", () => openPlayer(state.open + 1));
$("player-similar").addEventListener("click", () => search({ q: "", like: state.hits[state.open].video_id, picture: null }));
$("player-again").addEventListener("click", async () => {
  const hit = state.hits[state.open];
  const video = $("stage").querySelector("video");
  if (!video) return;
  video.currentTime = Math.max(0, momentOf(hit) - (await details(hit)).media.offset);
  video.play();
});
$("player-link").addEventListener("click", async () => {
  const url = new URL(link({ play: state.hits[state.open].video_id }), location.href).href;
  const label = $("player-link").querySelector("span");
  try {
    await navigator.clipboard.writeText(url);
    label.textContent = "Copied";
  } catch {
    prompt("The link", url); // no clipboard without HTTPS
  }
  setTimeout(() => { label.textContent = "Copy link"; }, 1600);
});

// -- filters

function openFilters(open) {
  $("filters").hidden = !open;
  $("filter-toggle").setAttribute("aria-expanded", String(open));
}

$("filter-toggle").addEventListener("click", () => {
  openFilters($("filters").hidden);
  if (!$("filters").hidden) $("where").focus();
});
const filters = () => ({
  where: $("where").value.trim(), not: $("not").value.trim(), merge: $("merge").checked, perFile: perFile($("per-file").value),
});
const applyFilter = () => search(filters());
$("where-apply").addEventListener("click", applyFilter);
for (const name of ["where", "not", "per-file"]) {
  $(name).addEventListener("keydown", (event) => {
    if (event.key === "Enter") applyFilter();
  });
}
for (const name of ["merge", "per-file"]) $(name).addEventListener("change", applyFilter);
$("where-clear").addEventListener("click", () => search({ where: "", not: "", merge: false, perFile: 0 }));

function offer(columns) {
  $("where-help").textContent = columns.length
    ? "Columns of this index; conditions are SQL: =, <, >=, AND, OR, NOT, LIKE, IN (…)."
    : "This index has no columns to filter by. Give a captions file more columns when you extract.";
  $("filter-fields").replaceChildren(...columns.map(({ name, type }) => {
    const chip = make("button", { type: "button", className: "chip", title: `Add ${name} to the condition` }, name, make("span", { className: "muted" }, type.toLowerCase()));
    chip.addEventListener("click", () => {
      const plain = /^[A-Za-z_]\w*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
      const text = /CHAR|TEXT|STRING/i.test(type) ? `${plain} = ''` : `${plain} = `;
      const before = $("where").value.trim();
      $("where").value = before ? `${before} AND ${text}` : text;
      $("where").focus();
      const end = $("where").value.length - (text.endsWith("''") ? 1 : 0);
      $("where").setSelectionRange(end, end);
    });
    return chip;
  }));
}

// -- pictures

function byPicture(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) {
    $("problem").textContent = `${file.name} is not a picture.`;
    $("problem").hidden = false;
    return;
  }
  search({ q: "", like: "", picture: file }, { push: false });
}

$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  byPicture($("file").files[0]);
  $("file").value = "";
});
let inside = 0;
const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => {
  if (holdsFiles(event)) $("drop").hidden = ++inside < 1;
});
addEventListener("dragleave", (event) => {
  if (holdsFiles(event)) $("drop").hidden = --inside < 1;
});
addEventListener("dragover", (event) => {
  if (holdsFiles(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  inside = 0;
  $("drop").hidden = true;
  byPicture(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) byPicture(file);
});

// -- keyboard

const shots = () => [...document.querySelectorAll(".shot")];

function columnsShown() {
  const all = shots();
  const first = all[0]?.getBoundingClientRect().top;
  const below = all.findIndex((shot) => shot.getBoundingClientRect().top > first + 4);
  return below < 0 ? all.length : below;
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, textarea, select");
  if ($("player").open) {
    if (event.target.matches?.("video") && event.key.startsWith("Arrow")) return; // seeks
    if (event.key === "ArrowLeft" && state.open > 0) openPlayer(state.open - 1);
    if (event.key === "ArrowRight" && state.open < state.hits.length - 1) openPlayer(state.open + 1);
    return;
  }
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("q").focus();
    $("q").select();
    return;
  }
  if (event.key === "Escape" && event.target === $("q")) $("q").blur();
  const all = shots();
  if (!all.length) return;
  const at = all.indexOf(document.activeElement);
  if (at < 0) {
    if (event.key === "ArrowDown" && (!typing || event.target === $("q"))) {
      event.preventDefault();
      all[0].focus();
    }
    return;
  }
  if (event.key === "s") search({ q: "", like: state.hits[at].video_id, picture: null });
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columnsShown(), ArrowDown: columnsShown(), Home: -at, End: all.length - 1 - at };
  if (event.key in steps) {
    event.preventDefault();
    all[Math.min(all.length - 1, Math.max(0, at + steps[event.key]))].focus();
  }
});

// -- start

$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const q = $("q").value.trim();
  if (!q) return;
  $("q").blur();
  search({ q, like: "", picture: null, ...filters() });
});
$("more").addEventListener("click", () => {
  state.top = Math.min(LIMIT, state.top + STEP);
  history.replaceState(null, "", link());
  run();
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
addEventListener("popstate", () => {
  fromLocation();
  run();
});

const played = fromLocation();
const searched = run();
ask("/api/info").then((info) => {
  const number = new Intl.NumberFormat("en").format(info.videos);
  $("stats").textContent = `${number} ${info.videos === 1 ? "clip" : "clips"} in the index`;
  $("index-name").textContent = `${info.index} · ${info.generation}`;
  offer(info.columns);
}).catch((error) => { $("stats").textContent = error.message; });
await searched;
if (played) openPlayer(state.hits.findIndex((hit) => hit.video_id === played));
if (!state.q && !state.like) $("q").focus();
