// Sends the token once, for a cookie that opens the page.
"use strict";
const token = document.getElementById("token");

function show(text) {
  const words = document.createElement("p");
  words.className = "lf-error";
  words.setAttribute("role", "alert");
  words.textContent = text;
  document.getElementById("problem").replaceChildren(words);
}

async function logIn() {
  try {
    const headers = { Authorization: `Bearer ${token.value}` };
    const response = await fetch("/login", { method: "POST", headers });
    if (response.ok) location.reload();
    else show("This is not the token. Type it again.");
  } catch {
    show("The token could not be sent. Type it again, and see whether the page still runs.");
  }
}

document.getElementById("login").addEventListener("submit", (event) => {
  event.preventDefault();
  logIn();
});
