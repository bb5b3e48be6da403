// Sends the token once, for a cookie that opens the page.
"use strict";
const token = document.getElementById("token");
const problem = document.getElementById("problem");

function show(text) {
  const words = document.createElement("p");
  words.className = "lf-error";
  words.setAttribute("role", "alert");
  words.textContent = text;
  problem.replaceChildren(words);
}

async function logIn() {
  try {
    const headers = { Authorization: `Bearer ${token.value}` };
    const response = await fetch("/login", { method: "POST", headers });
    if (response.ok) location.reload();
    else show(response.status === 429 ? (await response.json()).error : problem.dataset.wrong);
  } catch {
    show(problem.dataset.lost);
  }
}

document.getElementById("login").addEventListener("submit", (event) => {
  event.preventDefault();
  logIn();
});
