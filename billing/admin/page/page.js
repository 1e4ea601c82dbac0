// Keeps the page fresh: parts made by the server replace old ones, cells of moved buckets change, one balance counts down.
"use strict";

const at = (id) => document.getElementById(id);
const live = at("live");
let aheadMs = 0; // billing time minus this page's clock
let heardMs = performance.now();

function put(id, markup) {
  const element = at(id);
  if (element && element.dataset.shown !== markup) {
    element.innerHTML = markup; // made and escaped by the server
    element.dataset.shown = markup;
  }
}

function plain(markup) {
  const text = document.createElement("textarea"); // its content is text, whatever it looks like
  text.innerHTML = markup;
  return text.value;
}

function nowNs() {
  return BigInt(Math.round((performance.now() + aheadMs) * 1000)) * 1000n;
}

const events = new EventSource("/events");

events.addEventListener("parts", (event) => {
  const told = JSON.parse(event.data);
  aheadMs = Number(BigInt(told.now_ns) / 1000n) / 1000 - performance.now();
  heardMs = performance.now();
  for (const [id, markup] of Object.entries(told.parts)) {
    if (id === "title") document.title = plain(markup);
    else put(id, markup);
  }
});

events.addEventListener("moved", (event) => {
  const cells = document.querySelectorAll(".buckets i");
  at("cells").open = true;
  for (const [bucket, shard] of JSON.parse(event.data)) {
    const cell = cells[bucket - 1];
    if (!cell) continue;
    cell.setAttribute("class", "s" + (shard % 8));
    cell.getBoundingClientRect(); // a second move of the same bucket flashes again
    cell.classList.add("moved");
  }
});

setInterval(() => {
  const silentS = Math.round((performance.now() - heardMs) / 1000);
  const lost = silentS > 3;
  live.classList.toggle("lost", lost);
  live.textContent = lost ? "no news for " + silentS + " s; trying again" : "live";
}, 500);

// One account. The server is asked every two seconds; in between the balance follows from its rate.
document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (button) button.textContent = (await copied(button.dataset.copy)) ? "copied" : "not copied";
});

// Over plain HTTP from another host a browser has no clipboard; then a field's content is copied, as of old.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch (error) {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

const form = at("ask");
const NANO = 3600n * 1000000000n;
let user = at("user").value;

async function ask() {
  if (!user) return;
  const asked = user;
  try {
    const answer = await fetch("/account?user=" + encodeURIComponent(asked));
    if (asked === user) put("account", await answer.text());
  } catch (error) {
    // the line above says that there is no news
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  user = at("user").value.trim();
  history.replaceState(null, "", user ? "/?user=" + encodeURIComponent(user) : "/");
  if (user) ask();
  else put("account", "");
});
setInterval(ask, 2000);

function coins(nanos) {
  const sign = nanos < 0n ? "-" : "";
  const whole = nanos < 0n ? -nanos : nanos;
  const grouped = String(whole / 1000000000n).replace(/\B(?=(\d{3})+$)/g, ",");
  return sign + grouped + "." + String(whole % 1000000000n).padStart(9, "0");
}

function spanOf(ns) {
  const seconds = Number(ns / 1000000n) / 1000;
  const days = Math.floor(seconds / 86400), hours = Math.floor((seconds % 86400) / 3600), minutes = Math.floor((seconds % 3600) / 60);
  const rest = (seconds % 60).toFixed(3).padStart(6, "0");
  return (days ? days + " d " : "") + (days || hours ? hours + " h " : "") + (days || hours || minutes ? minutes + " min " : "") + rest + " s";
}

function tick() {
  const shown = document.querySelector(".account");
  const ticking = at("ticking");
  if (shown && ticking && shown.dataset.state === "active" && shown.dataset.rate !== "0") {
    const now = nowNs();
    const since = now > BigInt(shown.dataset.at) ? now - BigInt(shown.dataset.at) : 0n;
    const available = BigInt(shown.dataset.available);
    const spent = (BigInt(shown.dataset.rate) * since) / NANO;
    const left = spent < available ? available - spent : 0n;
    ticking.textContent = coins(left);
    at("balance").textContent = coins(BigInt(shown.dataset.balance) - (available - left));
    const runway = at("runway");
    if (runway && shown.dataset.ends) {
      const until = BigInt(shown.dataset.ends) - now;
      runway.textContent = spanOf(until > 0n ? until : 0n);
    }
  }
  requestAnimationFrame(tick);
}
requestAnimationFrame(tick);
