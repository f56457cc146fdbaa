"use strict";
// Reviewing by keyboard, and looking for news. Without this script the page can be read, and its forms work.
(() => {
  const { hold, every, of } = document.body.dataset;
  const find = (id) => document.getElementById(id);
  const list = find("cases"), toast = find("toast"), help = find("help"), keys = find("keys-on");
  const json = { accept: "application/json" };
  document.documentElement.classList.add("js");

  // ---- the list: one item is open; `done` is what can be undone, `held` what is not sent yet
  const done = [], held = new Set(), gone = new Set();
  let current = null;
  const shown = () => [...list.children].filter((c) => !c.hidden);
  const say = (text) => { find("spoken").textContent = text; };

  const prepare = (card) => {
    const body = card.querySelector(".body");
    const skip = card.querySelector(".skip-case");
    skip.hidden = false;
    skip.addEventListener("click", () => putBack(card));
    card.querySelector(".case-head").addEventListener("click", () => go(card));
    card.querySelector(".decide").addEventListener("submit", (event) => {
      event.preventDefault();
      decide(card, event.submitter.value);
    });
    if (!body) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append("", Object.assign(document.createElement("kbd"), { textContent: "t" }));
    button.className = "reveal";
    const veil = body.querySelector(".veil");
    const set = (open) => {
      body.classList.toggle("shown", open);
      veil.inert = !open;
      button.setAttribute("aria-expanded", String(open));
      button.firstChild.data = open ? "Hide the text " : "Show the text ";
    };
    button.addEventListener("click", () => set(!body.classList.contains("shown")));
    body.querySelector(".cover").addEventListener("click", () => { if (!body.classList.contains("shown")) set(true); });
    body.open = true;
    card.querySelector(".decide").append(button);
    card.cover = () => set(false);
    set(false);
  };

  const go = (card, focus = true) => {
    current?.classList.remove("current");
    current?.removeAttribute("aria-current");
    current?.cover?.();
    current = card ?? null;
    const all = shown();
    find("empty").hidden = all.length > 0;
    find("position").textContent = card ? `${all.indexOf(card) + 1} of ${all.length} here` : "";
    if (!card) return;
    card.classList.add("current");
    card.setAttribute("aria-current", "true");
    if (focus) card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  };
  const beside = (card, step) => { const all = shown(); return all[all.indexOf(card) + step]; };
  const after = (card) => beside(card, 1) ?? beside(card, -1);

  const tell = (text, undo) => {
    find("toast-text").textContent = text;
    find("undo").hidden = !undo;
    toast.hidden = !text;
    say(text);
  };

  const decide = (card, unsafe) => {
    const said = { card, unsafe, verdict: card.dataset.verdict };
    const next = after(card);
    card.hidden = true;
    held.add(said);
    done.push(said);
    said.timer = setTimeout(() => send(said), 1000 * hold);
    go(next);
    tell(`Said ${unsafe === "1" ? "unsafe" : "safe"}.`, true);
  };

  const putBack = (card) => {
    const next = beside(card, 1) ?? shown()[0];
    done.push({ card, place: card.nextElementSibling });
    list.append(card);
    go(next);
    tell("Skipped: it is at the end of the list.", true);
  };

  const undo = () => {
    const said = done.pop();
    if (!said) return tell("There is nothing to undo.", false);
    if (said.place !== undefined) list.insertBefore(said.card, said.place);
    else if (held.delete(said)) {
      clearTimeout(said.timer);
      said.card.hidden = false;
    } else return tell("That is in the log already, and stays there.", false);
    go(said.card);
    tell("Taken back.", false);
  };

  const send = async (said, keepalive = false) => {
    held.delete(said);
    gone.add(said.verdict);
    const body = new URLSearchParams({ verdict: said.verdict, unsafe: said.unsafe, of });
    try {
      const answer = await fetch("feedback", { method: "POST", headers: json, body, keepalive });
      if (answer.status === 401) return location.reload();
      const told = await answer.json();
      if (answer.ok || answer.status === 409) {
        said.card.remove();
        if (told.status !== "new") tell(told.said, false);
        else if (done[done.length - 1] === said) toast.hidden = true;
        return undefined;
      }
      throw new Error(String(answer.status));
    } catch (problem) { // the same again later: it counts once
      tell("Not taken yet: the service is not there. It is sent again.", false);
      said.timer = setTimeout(() => send(said), 3000);
    }
  };
  addEventListener("pagehide", () => {
    for (const said of [...held]) {
      clearTimeout(said.timer);
      send(said, true);
    }
  });

  const refill = async () => {
    const answer = await fetch(`queue?of=${of}&limit=${Math.min(500, 50 + list.children.length)}`);
    if (!answer.ok) return;
    const fresh = document.createElement("ol");
    fresh.innerHTML = await answer.text();
    const known = new Set([...gone, ...[...list.children].map((c) => c.dataset.verdict)]);
    for (const card of [...fresh.children].filter((c) => !known.has(c.dataset.verdict))) {
      list.append(card);
      prepare(card);
    }
    if (!current && shown().length) go(shown()[0], false);
    find("empty").hidden = shown().length > 0;
  };

  const actions = {
    j: () => go(beside(current, 1) ?? current),
    k: () => go(beside(current, -1) ?? current),
    t: () => current.querySelector(".reveal")?.click(),
    o: () => { const said = current.querySelector(".opinions"); said.open = !said.open; },
    s: () => decide(current, "0"),
    u: () => decide(current, "1"),
    x: () => putBack(current),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || help.open || !keys.checked) return;
    if (event.target.closest("input, textarea, select")) return;
    if (event.key === "?") help.showModal();
    else if (event.key === "z") undo();
    else if (Object.hasOwn(actions, event.key)) { if (current) actions[event.key](); } else return;
    event.preventDefault();
  });
  find("undo").addEventListener("click", undo);
  find("help-open").hidden = false;
  find("help-open").addEventListener("click", () => help.showModal());
  keys.checked = localStorage.getItem("guardkeel-keys") !== "off";
  keys.addEventListener("change", () => localStorage.setItem("guardkeel-keys", keys.checked ? "on" : "off"));
  for (const card of list.children) prepare(card);
  if (list.firstElementChild) go(list.firstElementChild, location.hash === "#review");

  // ---- news: parts whose HTML has changed are put in place of the old, unless someone is busy in them
  let seen = document.body.dataset.seen;
  const parts = new Map();
  const busy = (part) => part.contains(document.activeElement) || (!getSelection().isCollapsed && part.contains(getSelection().anchorNode));
  const place = (id, html) => {
    const part = find(id);
    if (!part || parts.get(id) === html) return true;
    if (busy(part)) return false;
    const open = new Set([...part.querySelectorAll("details[open]")].map((d) => d.dataset.keep));
    part.innerHTML = html;
    for (const d of part.querySelectorAll("details")) d.open = open.has(d.dataset.keep);
    parts.set(id, html);
    return true;
  };
  const status = (text, state) => {
    find("live").textContent = text;
    find("live").className = `live soft ${state}`;
  };
  let last = "";
  const look = async () => {
    try {
      const answer = await fetch(`live?seen=${seen}`, { headers: json });
      if (answer.status === 401 || answer.status === 403) return location.reload();
      if (!answer.ok) throw new Error(String(answer.status));
      if (answer.status !== 204) {
        const news = await answer.json();
        const placed = Object.entries(news.fragments).map(([id, html]) => place(id, html));
        seen = placed.every(Boolean) ? news.seen : "";
        if (shown().length < 10 && (of !== "drawn" || news.audits > list.children.length)) await refill();
      }
      last = new Date().toLocaleTimeString();
      status(`live, ${last}`, "on");
    } catch (problem) {
      status(`not reached${last ? ` since ${last}` : ""}`, "off");
    }
    return undefined;
  };
  const rounds = async () => {
    if (!document.hidden) await look();
    setTimeout(rounds, 1000 * every);
  };
  setTimeout(rounds, 1000 * every);
})();
