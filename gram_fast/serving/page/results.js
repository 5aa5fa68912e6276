// What an answer of /v1/rank shows. Texts go into the page as text nodes alone, never as HTML.

const MOST_CELLS = 40; // candidates of a matrix, each with as many buttons
const MOST_LISTED = 6;

const name = (k) => `candidate ${k + 1}`;
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const number = (value) => value.toLocaleString("en");
const decimal = (value, digits = 2) => value.toFixed(digits);
const flip = (p) => (p === null ? null : 1 - p);

function make(tag, content = [], { className = "", ...attributes } = {}) {
  const element = document.createElement(tag);
  element.className = className;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...[content].flat());
  return element;
}

function bar(share) {
  const element = make("span", [], { className: "bar" });
  element.style.setProperty("--share", `${100 * share}%`);
  return element;
}

/** What is known of pairs: both ways round, equal texts as one. */
class Pairs {
  constructor(responses, comparisons) {
    const seen = new Map();
    this.same = responses.map((text, k) => seen.get(text) ?? (seen.set(text, k), k));
    this.known = new Map();
    this.wins = responses.map(() => new Set());
    for (const { i, j, p, p_ab, p_ba } of comparisons) {
      // `first`: P(i better than j) where i is shown first.
      this.known.set(`${i} ${j}`, { i, j, p, first: p_ab, second: p_ba });
      this.known.set(`${j} ${i}`, { i: j, j: i, p: 1 - p, first: flip(p_ba), second: flip(p_ab) });
      if (p !== 0.5) this.wins[p > 0.5 ? i : j].add(p > 0.5 ? j : i);
    }
  }

  of(i, j) {
    const pair = this.known.get(`${this.same[i]} ${this.same[j]}`);
    return pair && { ...pair, i, j };
  }

  areEqual(i, j) {
    return this.same[i] === this.same[j];
  }

  /** Pairs that were judged in both orders, once each. */
  twice() {
    return [...this.known.values()].filter((pair) => pair.i < pair.j && pair.first !== null && pair.second !== null);
  }

  /** Pairs whose winner changes with the order, the most different first. */
  flips() {
    const gap = (pair) => Math.abs(pair.first - pair.second);
    return this.twice().filter(changes).sort((x, y) => gap(y) - gap(x));
  }

  /** Triples i > j > k > i: how many there are, and the clearest of them. */
  circles() {
    const weakest = ([i, j, k]) => Math.min(this.of(i, j).p, this.of(j, k).p, this.of(k, i).p);
    const keepClearest = (triples) => triples.sort((x, y) => weakest(y) - weakest(x)).splice(MOST_LISTED);
    let [count, clearest] = [0, []];
    for (const i of this.wins.keys()) {
      for (const j of this.wins[i]) {
        for (const k of this.wins[j]) {
          if (i < j && i < k && this.wins[k].has(i)) {
            count += 1;
            if (clearest.push([i, j, k]) > 1000) keepClearest(clearest);
          }
        }
      }
    }
    keepClearest(clearest);
    return { count, clearest };
  }
}

function changes({ first, second }) {
  return first !== null && second !== null && first > 0.5 !== second > 0.5;
}

/** Shows an answer in the place of the one before. */
export function show(asked, answer) {
  const results = document.getElementById("results-template").content.cloneNode(true);
  const pairs = new Pairs(asked.responses, answer.comparisons);
  const sections = Object.fromEntries([...results.children].map((section) => [section.className, section]));
  drawRanking(sections.ranking, asked, answer);
  if (answer.comparisons.length > 0) {
    const select = drawMatrix(sections.pairs, asked, answer, pairs);
    drawContradictions(sections.contradictions, asked, pairs, select);
    drawCost(sections.cost, answer.stats);
  } else {
    for (const part of ["pairs", "contradictions", "cost"]) sections[part].remove();
  }
  document.getElementById("results").replaceChildren(results);
  for (const text of document.querySelectorAll(".text")) {
    if (text.scrollHeight > text.clientHeight) text.tabIndex = 0; // scrolls by the keyboard
  }
}

function drawRanking(section, { strategy, responses }, { order, scores, errors, flagged }) {
  const isRate = strategy === "round_robin";
  section.querySelector(".score").textContent = isRate ? "Win rate" : "Strength, log odds";
  const judged = order.map((k) => scores[k]);
  const [least, most] = isRate ? [0, 1] : [Math.min(...judged), Math.max(...judged)];
  for (const [place, k] of order.entries()) {
    const share = most > least ? (scores[k] - least) / (most - least) : 0.5;
    section.querySelector("tbody").append(
      make("tr", [
        make("th", `${place + 1}`, { scope: "row" }),
        make("td", `${k + 1}`),
        make("td", [decimal(scores[k], 3), bar(share)], { className: "score" }),
        make("td", make("div", responses[k] || "(empty)", { className: "text" })),
      ]),
    );
  }
  section.querySelector("table").hidden = order.length === 0;
  list(section.querySelector(".errors"), errors, (reason) => reason);
  list(section.querySelector(".flagged"), flagged, (found) => `contains ${found.join(", ")}`);
}

function list(part, byPlace, tell) {
  for (const [place, found] of Object.entries(byPlace)) {
    const k = /^responses\[(\d+)\]$/.exec(place)?.[1];
    part.querySelector("ul").append(make("li", `${capital(k === undefined ? place : name(Number(k)))}: ${tell(found)}`));
    part.hidden = false;
  }
}

/** Draws the matrix, best candidate first -> a function that goes to the cell of a pair. */
function drawMatrix(section, { responses }, { order }, pairs) {
  const shown = order.slice(0, MOST_CELLS);
  const cells = shown.map(() => []);
  const detail = (pair) => drawDetail(section.querySelector(".detail"), pair, responses);
  section.querySelector("thead tr").append(...shown.map((j) => make("th", `${j + 1}`, { scope: "col" })));
  if (order.length > shown.length) {
    section.querySelector(".more").textContent = `, of the best ${shown.length} of ${order.length}`;
  }
  for (const [r, i] of shown.entries()) {
    const row = make("tr", make("th", `${i + 1}`, { scope: "row" }));
    for (const [c, j] of shown.entries()) {
      const pair = pairs.of(i, j);
      if (pair) cells[r][c] = makeCell(pair);
      row.append(pair ? make("td", cells[r][c]) : makeEmptyCell(pairs, i, j));
    }
    section.querySelector("tbody").append(row);
  }

  let current = null;
  function select(cell, pair, hasFocus) {
    if (hasFocus) {
      if (current) current.tabIndex = -1;
      current = cell;
      current.tabIndex = 0;
    }
    section.querySelector(".shown")?.classList.remove("shown");
    cell.classList.add("shown");
    detail(pair);
  }
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  for (const [r, row] of cells.entries()) {
    for (const [c, cell] of row.entries()) {
      if (!cell) continue;
      const pair = pairs.of(shown[r], shown[c]);
      cell.addEventListener("mouseenter", () => select(cell, pair, false));
      cell.addEventListener("click", () => cell.focus());
      cell.addEventListener("focus", () => select(cell, pair, true));
      cell.addEventListener("keydown", (event) => {
        const [down, right] = moves[event.key] ?? [];
        if (down === undefined) return;
        event.preventDefault();
        let [y, x] = [r + down, c + right];
        while (y in cells && x >= 0 && x < shown.length && !cells[y][x]) [y, x] = [y + down, x + right];
        cells[y]?.[x]?.focus();
      });
    }
  }
  const r = cells.findIndex((row) => row.some(Boolean));
  if (r >= 0) {
    const c = cells[r].findIndex(Boolean);
    select(cells[r][c], pairs.of(shown[r], shown[c]), true);
  }
  return (i, j) => {
    const cell = cells[shown.indexOf(i)]?.[shown.indexOf(j)];
    cell?.focus();
    cell?.scrollIntoView({ block: "nearest" });
  };
}

function makeCell(pair) {
  const cell = make("button", decimal(pair.p), {
    type: "button",
    tabindex: "-1",
    className: `cell ${pair.p < 0.5 ? "worse" : "better"} ${changes(pair) ? "swap" : ""}`,
    "aria-label": tell(pair),
  });
  cell.style.setProperty("--strength", `${200 * Math.abs(pair.p - 0.5)}%`);
  return cell;
}

function makeEmptyCell(pairs, i, j) {
  if (i === j) return make("td", [], { className: "self" });
  const [mark, words] = pairs.areEqual(i, j) ? ["=", "equal texts"] : ["", "not compared"];
  const hidden = make("span", words, { className: "hidden" });
  return make("td", [make("span", mark, { "aria-hidden": "true" }), hidden], { className: "none", title: words });
}

function tell({ i, j, p, first, second }) {
  const orders = [
    first === null ? "" : `, ${decimal(first)} with ${name(i)} first`,
    second === null ? "" : `, ${decimal(second)} with ${name(j)} first`,
  ];
  const warning = changes({ first, second }) ? "; the winner changes with the order" : "";
  return `${capital(name(i))} better than ${name(j)}: ${decimal(p)}${orders.join("")}${warning}`;
}

function drawDetail(detail, pair, responses) {
  const { i, j, p, first, second } = pair;
  detail.querySelector("h3").textContent = `${capital(name(i))} better than ${name(j)}`;
  const rows = [
    ["p", "(mean)", p],
    ["p_ab", `(${i + 1} first)`, first],
    ["p_ba", `(${j + 1} first)`, second],
  ];
  detail.querySelector("tbody").replaceChildren(
    ...rows.map(([symbol, words, value]) =>
      make("tr", [
        make("th", [make("code", symbol), ` ${words}`], { scope: "row" }),
        make("td", value === null ? "not run" : decimal(value, 3)),
        make("td", value === null ? [] : bar(value)),
      ]),
    ),
  );
  detail.querySelector(".note").textContent = changes(pair) ? "⇄ The winner changes with the order." : "";
  detail.querySelector("dl").replaceChildren(
    ...[i, j].flatMap((k) => [make("dt", `${k + 1}`), make("dd", responses[k] || "(empty)")]),
  );
}

function drawContradictions(section, { orders }, pairs, select) {
  const [flipPart, circlePart] = section.querySelectorAll("ul");
  const [twice, flips, circles] = [pairs.twice(), pairs.flips(), pairs.circles()];
  const firstWon = twice.reduce((sum, { first, second }) => sum + (first > 0.5) + (second < 0.5), 0);
  section.querySelector(".flips").textContent =
    orders === "both"
      ? `${flips.length} of ${twice.length} pairs. What is shown first wins ${firstWon} of ${2 * twice.length} times.`
      : "One order was asked for; both orders would show it.";
  fillList(
    flipPart,
    flips.length,
    flips.slice(0, MOST_LISTED).map(({ i, j, first, second }) => {
      const text = `${i + 1} better than ${j + 1}: ${decimal(first)} with ${i + 1} first, ${decimal(second)} with ${j + 1} first`;
      return go(text, () => select(i, j));
    }),
  );
  section.querySelector(".circles").textContent =
    circles.count === 0
      ? "None: no three candidates beat each other in a circle."
      : `${number(circles.count)} ${circles.count === 1 ? "triple beats" : "triples beat"} each other in a circle.`;
  fillList(
    circlePart,
    circles.count,
    circles.clearest.map(([i, j, k]) => {
      const odds = [pairs.of(i, j), pairs.of(j, k), pairs.of(k, i)].map(({ p }) => decimal(p));
      return go(`${[i, j, k, i].map((x) => x + 1).join(" > ")} (${odds.join(", ")})`, () => select(i, j));
    }),
  );
}

function go(text, action) {
  const button = make("button", text, { type: "button", className: "quiet" });
  button.addEventListener("click", action);
  return button;
}

function fillList(part, count, entries) {
  part.append(...entries.map((entry) => make("li", entry)));
  if (count > entries.length) part.append(make("li", `and ${number(count - entries.length)} more`));
}

function drawCost(section, { comparisons, seconds, tokens_unshared, tokens_tree, tokens_computed }) {
  const times = tokens_computed > 0 ? tokens_unshared / tokens_computed : null;
  section.querySelector("p").textContent =
    `${number(comparisons)} comparisons in ${decimal(seconds)} s` +
    (times === null || Number.isNaN(times) ? "" : `; ${decimal(times, 1)} times as many tokens without sharing`);
  const rows = [
    ["all comparisons, one by one", tokens_unshared],
    ["distinct prefixes", tokens_tree],
    ["computed", tokens_computed],
  ].filter(([, tokens]) => tokens !== undefined);
  section.querySelector("tbody").append(
    ...rows.map(([words, tokens]) =>
      make("tr", [
        make("th", words, { scope: "row" }),
        make("td", `${number(tokens)} tokens`),
        make("td", bar(tokens / Math.max(...rows.map((row) => row[1])))),
      ]),
    ),
  );
}
