// Sends the form and shows the answer. An answer goes as soon as what it was about changes.
"use strict";
const form = document.getElementById("form");
const image = document.getElementById("image");
const drop = document.getElementById("drop");
const button = document.getElementById("predict");
const answer = document.getElementById("answer");
const words = answer.dataset; // what is said to a person, in the language of the page
let asked = null; // what stops the request whose answer is awaited

function show(text, isError = false) {
  const words = document.createElement("p");
  if (isError) {
    words.className = "lf-error";
    words.setAttribute("role", "alert");
  }
  words.textContent = text.charAt(0).toUpperCase() + text.slice(1);
  answer.replaceChildren(words);
}

function forget() {
  asked?.abort();
  wait(null);
  answer.replaceChildren();
}

function wait(request) {
  asked = request;
  button.setAttribute("aria-disabled", String(request !== null));
  answer.setAttribute("aria-busy", String(request !== null));
}

function problem() {
  const file = image.files[0];
  if (!file) return words.chooseFirst;
  const most = Number(image.dataset.mostBytes);
  if (file.size > most) return words.tooLarge.replace("{most}", most / 1e6);
  return "";
}

async function reasonOf(response) {
  const problem = await response.json().catch(() => ({}));
  return problem.error || words.failed.replace("{status}", response.status);
}

async function predict() {
  const request = new AbortController();
  wait(request);
  show(words.predicting);
  try {
    const sent = { method: "POST", body: new FormData(form), signal: request.signal };
    const response = await fetch("/answer", sent);
    if (!response.ok) throw new Error(await reasonOf(response));
    const section = await response.text();
    if (asked === request) answer.innerHTML = section; // escaped by the server's template
  } catch (error) {
    if (asked === request) show(error instanceof TypeError ? words.lost : error.message, true);
  }
  if (asked === request) wait(null);
}

form.addEventListener("input", forget);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (asked) return;
  const found = problem();
  if (found) show(found, true);
  else predict();
});

for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("lf-over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("lf-over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("lf-over");
  forget();
  const files = event.dataTransfer.files;
  if (files.length === 1) image.files = files;
  else show(words.oneAtATime, true);
});
