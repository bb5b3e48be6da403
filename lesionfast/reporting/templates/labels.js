// Shows one image after the other and sends what is answered, by key or button.
"use strict";
const item = document.getElementById("item");
const problem = document.getElementById("problem");
const who = document.getElementById("who");
const why = document.getElementById("why");
let busy = false;

function complain(text) {
  const words = document.createElement("p");
  words.className = "lf-error";
  words.setAttribute("role", "alert");
  words.textContent = text.charAt(0).toUpperCase() + text.slice(1);
  problem.replaceChildren(words);
}

function wait(isBusy) {
  busy = isBusy;
  item.setAttribute("aria-busy", String(isBusy));
}

async function reasonOf(response) {
  const told = await response.json().catch(() => ({}));
  return told.error || `the page failed with status ${response.status}. Its terminal says why.`;
}

async function send(path, asked) {
  if (busy) return;
  wait(true);
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(asked) });
    if (!response.ok) throw new Error(await reasonOf(response));
    const focused = item.contains(document.activeElement);
    item.innerHTML = await response.text(); // escaped by the server's template
    if (focused) item.querySelector("h2").focus(); // else the next Tab begins at the top
    problem.replaceChildren();
    if (path === "/answer") why.value = "";
  } catch (error) {
    const lost = "the answer could not be sent. See whether the page still runs, and load it again.";
    complain(error instanceof TypeError ? lost : error.message);
  }
  wait(false);
}

function press(button) {
  const image = item.querySelector("section").dataset.image || "";
  const asked = { image, who: who.value, why: why.value };
  if (button.dataset.answer) asked.answer = button.dataset.answer;
  send(button.dataset.path, asked);
}

item.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-path]");
  if (button) press(button);
});

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input")) {
    if (event.key === "Enter" || event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "w") {
    event.preventDefault();
    why.focus();
    return;
  }
  const key = CSS.escape(event.key.toLowerCase());
  const button = event.key.length === 1 && item.querySelector(`button[data-key="${key}"]`);
  if (button) {
    event.preventDefault();
    press(button);
  }
});

document.getElementById("about").addEventListener("submit", (event) => event.preventDefault());
send("/item", {});
