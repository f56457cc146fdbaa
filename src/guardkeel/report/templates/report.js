"use strict";
// Without this script every text opens through its <details>. With it, texts lie open but blurred until asked for.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const items = [...document.querySelectorAll("details.body")].map((body) => {
    const cover = body.querySelector(".cover");
    const veil = body.querySelector(".veil");
    const button = document.createElement("button");
    const label = body.querySelector("summary").textContent.replace(/^Show the text/, "").trim();
    button.type = "button";
    button.className = "reveal";
    const set = (open) => {
      body.classList.toggle("shown", open);
      veil.inert = !open;
      button.setAttribute("aria-expanded", String(open));
      button.textContent = (open ? "Hide the text " : "Show the text ") + label;
    };
    button.addEventListener("click", () => set(!body.classList.contains("shown")));
    cover.addEventListener("click", () => { if (!body.classList.contains("shown")) set(true); });
    body.parentElement.querySelector("header").append(button);
    body.open = true;
    set(false);
    return set;
  });
  const tools = document.getElementById("flip-tools");
  if (tools && items.length) {
    for (const [text, open] of [["Show every text", true], ["Hide every text", false]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => items.forEach((set) => set(open)));
      tools.append(button);
    }
  }
})();
