"use strict";
// Labelling by keyboard. Without this script the page can be read, and its forms work.
(() => {
  const find = (id) => document.getElementById(id);
  const main = () => document.querySelector("main");
  const root = document.documentElement, help = find("help"), keys = find("keys-on"), toast = find("toast");
  root.classList.add("js");

  // ---- what is on the page now: all of it is new after every answer
  let shown = false, armed = "", busy = false, votes = false;
  const say = (text) => { find("spoken").textContent = text; };
  const tell = (text) => {
    toast.textContent = text;
    toast.hidden = !text;
    say(text);
  };

  const cover = (open) => {
    const body = document.querySelector(".body");
    if (!body) return;
    shown = open;
    body.classList.toggle("shown", open);
    find("text").inert = !open;
    find("reveal").setAttribute("aria-expanded", String(open));
    find("reveal").firstChild.data = open ? "Cover " : "Show ";
  };

  const arm = (choice) => {
    armed = choice;
    for (const button of document.querySelectorAll(".answers [value=unsafe], .answers [value=caution]")) {
      button.classList.toggle("armed", button.value === choice);
      if (choice) button.setAttribute("aria-pressed", String(button.value === choice));
      else button.removeAttribute("aria-pressed");
    }
    const name = choice && document.querySelector(`.answers [value=${choice}]`).firstChild.data.trim();
    find("armed").hidden = !choice;
    find("armed").textContent = choice ? `${name}: find categories by number or name, Enter ticks one, Enter alone sends, Esc leaves.` : "";
    if (choice) find("find").focus();
    if (choice) say(find("armed").textContent);
  };

  // ---- categories by number or name
  const rank = (label, text) => {
    const { number, name } = label.dataset, low = name.toLowerCase();
    if (/^\d+$/.test(text)) return number === text ? 0 : number.startsWith(text) ? 1 : -1;
    if (low.startsWith(text)) return 0;
    if (low.split(/[^a-z0-9]+/).some((word) => word.startsWith(text))) return 1;
    return low.includes(text) ? 2 : -1;
  };
  const mark = () => {
    const text = find("find").value.trim().toLowerCase(), all = [...document.querySelectorAll(".category")];
    const ranks = new Map(all.map((label) => [label, text ? rank(label, text) : -1]));
    const best = all.filter((l) => ranks.get(l) >= 0).sort((a, b) => ranks.get(a) - ranks.get(b))[0];
    find("categories").classList.toggle("finding", Boolean(text));
    for (const label of all) {
      label.classList.toggle("match", ranks.get(label) >= 0);
      label.classList.toggle("first", label === best);
    }
    if (text) say(best ? `${best.dataset.number} ${best.dataset.name}: Enter ticks` : "no such category");
    return best;
  };
  const tick = () => {
    const best = mark();
    if (!best) return;
    const box = best.querySelector("input");
    box.checked = !box.checked;
    find("find").value = "";
    mark();
    say(`${best.dataset.name} ${box.checked ? "ticked" : "not ticked"}`);
  };

  const arrange = () => {
    shown = false;
    armed = "";
    for (const part of document.querySelectorAll(".needs-script")) part.hidden = false;
    const body = document.querySelector(".body");
    if (body) {
      body.open = true;
      cover(false);
    }
    if (find("votes")) {
      find("votes").open = votes;
      find("votes").addEventListener("toggle", (event) => { votes = event.target.open; });
    }
    guide(localStorage.getItem("guardkeel-guide") === "on");
  };
  const guide = (long) => {
    root.classList.toggle("brief", !long);
    find("guide")?.setAttribute("aria-pressed", String(long));
  };

  // ---- sending: the answer is the page after it. What could not be sent is sent again; it counts once.
  const put = (text) => {
    const made = new DOMParser().parseFromString(text, "text/html");
    main().replaceWith(document.adoptNode(made.querySelector("main")));
    document.title = made.title;
    arrange();
    const place = find("item") ?? find("nothing");
    place?.focus({ preventScroll: true });
    scrollTo(0, 0);
    say([find("said")?.textContent, (find("question") ?? find("nothing-h"))?.textContent].filter(Boolean).join(" "));
  };
  const ask = async (address, options) => {
    const answer = await fetch(address, options);
    if (answer.status === 401 || answer.url.endsWith("/login")) return location.assign("login");
    if (answer.status >= 500) throw new Error(String(answer.status));
    if (!answer.ok) return tell(`Not taken: ${(await answer.json()).detail}`);
    toast.hidden = true;
    return put(await answer.text());
  };
  const send = async (form, submitter) => {
    if (busy) return;
    busy = true;
    const body = new URLSearchParams(new FormData(form, submitter));
    for (let sent = false; !sent;) {
      try {
        await ask(form.getAttribute("action"), { method: "POST", body });
        sent = true;
      } catch (problem) {
        tell("Not written down yet: the server is not there. It is sent again.");
        await new Promise((resolve) => { setTimeout(resolve, 1500); });
      }
    }
    busy = false;
  };
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.id !== "decide" && form.id !== "undo") return;
    event.preventDefault();
    if (form.id === "decide" && !shown && event.submitter?.value !== "skip") tell("Look at the text first: Space shows it.");
    else send(form, event.submitter);
  });
  const answer = (choice) => document.querySelector(`.answers [value=${choice}]`)?.click();

  // ---- keys
  const typing = (target) => target.closest("input[type=text], input[type=password], textarea, select");
  const choose = (choice) => () => (shown ? arm(choice) : tell("Look at the text first: Space shows it."));
  const actions = {
    " ": () => cover(!shown),
    t: () => cover(!shown),
    s: () => answer("safe"),
    u: choose("unsafe"),
    c: choose("caution"),
    x: () => answer("unclear"),
    n: () => answer("skip"),
    m: () => find("note").focus(),
    "/": () => find("find").focus(),
    Enter: () => armed && answer(armed),
    Escape: () => arm(""),
  };
  const anywhere = {
    z: () => (find("undo") ? find("undo").requestSubmit() : tell("There is nothing to undo.")),
    v: () => { if (find("votes")) find("votes").open = !find("votes").open; },
    g: () => {
      localStorage.setItem("guardkeel-guide", root.classList.contains("brief") ? "on" : "off");
      guide(root.classList.contains("brief"));
    },
    "?": () => help.showModal(),
  };
  const inBox = (event) => {
    const box = event.target;
    if (event.key === "Escape") {
      if (box.id === "find" && box.value) {
        box.value = "";
        mark();
      } else {
        box.blur();
        if (box.id === "find") arm("");
      }
    } else if (event.key === "Enter" && box.id === "find" && box.value.trim()) tick();
    else if (event.key === "Enter" && armed) answer(armed);
    else if (event.key === "Enter") tell("Press u or c first, or a button.");
    else return;
    event.preventDefault();
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || help.open || !help) return;
    if (busy) return event.preventDefault();
    if (typing(event.target)) return event.target.closest("#decide") ? inBox(event) : undefined;
    if (!keys.checked || event.repeat) return;
    const native = event.key === " " || event.key === "Enter" ? "a, button, summary, input" : "dialog";
    if (event.target.closest(native)) return;
    if (Object.hasOwn(anywhere, event.key)) anywhere[event.key]();
    else if (!find("item")) return;
    else if (/^\d$/.test(event.key)) {
      find("find").focus();
      find("find").value += event.key;
      mark();
    } else if (Object.hasOwn(actions, event.key)) actions[event.key]();
    else return;
    event.preventDefault();
  });
  document.addEventListener("input", (event) => { if (event.target.id === "find") mark(); });
  document.addEventListener("click", (event) => {
    if (event.target.closest("#reveal")) cover(!shown);
    else if (event.target.closest(".cover") && !shown) cover(true);
    else if (event.target.closest("#guide")) anywhere.g();
    else if (event.target.closest("#help-open")) help.showModal();
  });
  keys.checked = localStorage.getItem("guardkeel-keys") !== "off";
  keys.addEventListener("change", () => localStorage.setItem("guardkeel-keys", keys.checked ? "on" : "off"));

  // ---- news: the item stays leased while somebody looks at it, and progress is everybody's
  const look = async () => {
    const token = main().dataset.token;
    try {
      const body = new URLSearchParams({ token });
      const told = await fetch("keep", { method: "POST", body });
      if (told.status === 401) return location.assign("login");
      if (!told.ok) return undefined;
      const news = await told.json();
      if (busy || main().dataset.token !== token) return undefined;
      find("progress").innerHTML = news.progress;
      if (!news.stale) return undefined;
      await ask("./", {});
      if (token) tell("Your time with that item was over, and somebody else has it.");
    } catch (problem) { /* the server is away: the next answer will say so */ }
    return undefined;
  };
  const rounds = async () => {
    if (!document.hidden && !busy) await look();
    setTimeout(rounds, 1000 * main().dataset.every);
  };
  arrange();
  setTimeout(rounds, 1000 * main().dataset.every);
})();
