// The form and its request. Texts go into the page as text nodes and values alone, never as HTML.

import { show } from "./results.js";

const FEWEST = 2;
const EXAMPLE = {
  prompt: "Sort from smallest to largest: 72, 15, 48, 31",
  responses: ["15, 31, 48, 72", "72, 48, 31, 15", "15, 48, 31, 72", "31, 15, 48, 72", "15, 31, 72, 48"],
};

const find = (id) => document.getElementById(id);
const items = () => [...find("candidates").children];
const boxes = () => [...find("candidates").querySelectorAll("textarea")];

let asking = null; // the AbortController of the request that is under way

// Candidates

function add(text = "") {
  const item = find("candidate-template").content.firstElementChild.cloneNode(true);
  item.querySelector("textarea").value = text;
  item.querySelector("button").addEventListener("click", () => remove(item));
  find("candidates").append(item);
}

function remove(item) {
  const place = items().indexOf(item);
  item.remove();
  number();
  boxes()[Math.min(place, boxes().length - 1)].focus();
}

function number() {
  for (const [k, item] of items().entries()) {
    const [label, box, button] = ["label", "textarea", "button"].map((name) => item.querySelector(name));
    label.textContent = `Candidate ${k + 1}`;
    label.htmlFor = box.id = `candidate-${k + 1}`;
    button.setAttribute("aria-label", `Remove candidate ${k + 1}`);
    button.disabled = items().length <= FEWEST;
  }
}

function fill({ prompt, responses }) {
  complain("");
  find("prompt").value = prompt;
  find("candidates").replaceChildren();
  responses.forEach((text) => add(text));
  number();
}

// JSON lines

function rowOf(line) {
  try {
    const { prompt, responses } = JSON.parse(line);
    const areTexts = [prompt, ...responses].every((text) => typeof text === "string");
    return areTexts && responses.length >= FEWEST ? { prompt, responses } : null;
  } catch {
    return null;
  }
}

function read(text, name) {
  const lines = text.split("\n").filter((line) => line.trim());
  const row = rowOf(text) ?? rowOf(lines[0]);
  if (row === null) {
    complain(`${name}: expected a first line {"prompt": "…", "responses": ["…", "…"]} with texts, of two responses or more`);
    return;
  }
  fill(row);
  say(lines.length > 1 && !rowOf(text) ? `${name}: the first of ${lines.length} lines` : `${name}: one line`);
}

async function readFile(file) {
  try {
    read(await file.text(), file.name);
  } catch (error) {
    complain(`${file.name}: ${error.message}`);
  }
}

const isField = (element) => element instanceof Element && element.closest("textarea, input") !== null;

document.addEventListener("dragover", (event) => {
  // Over a field the browser itself moves text; a file it would open in place of the page.
  if (event.dataTransfer.types.includes("Files") || !isField(event.target)) event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  const text = event.dataTransfer.getData("text/plain");
  if (!file && !rowOf(text) && isField(event.target)) return;
  event.preventDefault();
  if (file) readFile(file);
  else read(text, "What was dropped");
});
document.addEventListener("paste", (event) => {
  const text = event.clipboardData.getData("text/plain");
  if ((isField(event.target) && event.target !== find("prompt")) || !rowOf(text)) return;
  event.preventDefault();
  read(text, "What was pasted");
});

// Messages

function say(text) {
  find("status").textContent = text;
}

function complain(text, places = []) {
  find("alert").textContent = text;
  say("");
  find("prompt").setAttribute("aria-invalid", places.includes("prompt"));
  boxes().forEach((box, k) => box.setAttribute("aria-invalid", places.includes(`responses[${k}]`)));
}

// Requests

class Refusal extends Error {
  constructor(message, places = []) {
    super(message);
    this.places = places;
  }
}

async function ask(path, options = {}) {
  const key = find("key").value.trim();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Refusal(`the server cannot be asked: ${error.message}`);
  });
  const body = await response.json().catch(() => null);
  options.signal?.throwIfAborted();
  if (response.ok && body !== null) return body;
  if (response.status === 401) find("key-field").hidden = false;
  const error = body?.error;
  throw new Refusal(error?.message ?? `the server answered with status ${response.status}`, [
    ...Object.keys(error?.reasons ?? {}),
    error?.param,
  ]);
}

async function introduce() {
  try {
    const { model_id, version, max_client_batch_size } = await ask("info");
    find("about").textContent = `${model_id} · up to ${max_client_batch_size} candidates · version ${version}`;
  } catch {
    find("about").textContent = "";
  }
}

function setBusy(isBusy) {
  find("rank").disabled = isBusy;
  find("stop").hidden = find("progress").hidden = !isBusy;
  find("results").setAttribute("aria-busy", isBusy);
}

async function rank() {
  const asked = {
    prompt: find("prompt").value,
    responses: boxes().map((box) => box.value),
    strategy: find("strategy").value,
    orders: find("orders").value,
    ...(!find("k").disabled && { k: Number(find("k").value) }),
  };
  complain("");
  say(`Judging ${asked.responses.length} candidates`);
  asking = new AbortController();
  setBusy(true);
  const hadFocus = document.activeElement === find("rank") || document.activeElement === document.body;
  if (hadFocus) find("stop").focus();
  try {
    const answer = await ask("v1/rank", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
      signal: asking.signal,
    });
    show(asked, answer);
    const [best] = answer.order;
    say(best === undefined ? "Nothing was judged." : `Ranked: candidate ${best + 1} is the best of ${answer.order.length}.`);
    if (!find("about").textContent) introduce();
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else complain(error.message, error.places);
  } finally {
    const stopHadFocus = document.activeElement === find("stop");
    setBusy(false);
    if (stopHadFocus) find("rank").focus();
  }
}

// The form

function choose() {
  const { least, k } = find("strategy").selectedOptions[0].dataset;
  find("k-field").hidden = find("k").disabled = k === undefined;
  if (k !== undefined) {
    find("k").min = least;
    find("k").value = k;
  }
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!find("rank").disabled) rank();
});
find("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
});
find("add").addEventListener("click", () => {
  add();
  number();
  boxes().at(-1).focus();
});
find("example").addEventListener("click", () => {
  fill(EXAMPLE);
  say("An example: press Rank.");
});
find("file").addEventListener("change", async () => {
  const [file] = find("file").files;
  find("file").value = ""; // so that the same file can be chosen again
  if (file) await readFile(file);
});
find("stop").addEventListener("click", () => asking.abort());
find("strategy").addEventListener("change", choose);
find("key").addEventListener("change", introduce);

fill({ prompt: "", responses: ["", ""] });
choose();
introduce();
