"use strict";
// Everything from the records goes onto the page as text (textContent), never as markup.
const records = JSON.parse(document.getElementById("data").textContent);

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Tables: a click on a heading sorts; rows of one kind stay together.
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("thead th").forEach((head, column) => head.firstChild.addEventListener("click", () => sort(table, head, column)));
}

function sort(table, head, column) {
  const ascending = head.getAttribute("aria-sort") === "descending";
  table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const groups = [];
  for (const row of [...body.rows]) {
    if (row.className === "kind" || !groups.length) groups.push({ head: row.className === "kind" ? row : null, rows: [] });
    if (row.className !== "kind") groups[groups.length - 1].rows.push(row);
  }
  const value = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if ((x === "–") !== (y === "–")) return x === "–" ? 1 : -1; // what is missing stays below
    const difference = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return ascending ? difference : -difference;
  };
  for (const group of groups) {
    if (group.head) body.append(group.head);
    body.append(...group.rows.sort(order));
  }
}

// The browser of records.
const list = document.getElementById("list");
const shown = document.getElementById("record");
const search = document.getElementById("search");
const found = document.getElementById("found");
const LISTED = 200;
const haystacks = records.map((record) =>
  [record.id, record.source.text, record.reference ? record.reference.text : "", ...record.candidates.flatMap((c) => [c.model, c.text])].join("\n").toLowerCase(),
);

function find() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = records.map((_, number) => number).filter((number) => words.every((word) => haystacks[number].includes(word)));
  list.replaceChildren(
    ...hits.slice(0, LISTED).map((number) => {
      const item = make("li");
      const button = make("button", "", `${records[number].id}: ${records[number].source.text.slice(0, 80)}`);
      button.type = "button";
      button.dir = "auto";
      button.dataset.number = number;
      button.addEventListener("click", () => show(number));
      item.append(button);
      return item;
    }),
  );
  const more = hits.length > LISTED ? `, the first ${LISTED} are listed` : "";
  found.textContent = `${hits.length} of ${records.length} records${more}`;
  if (hits.length) show(hits[0]);
  else shown.replaceChildren();
}

function block(text) {
  const element = make("div", "text", text.text);
  element.dir = "auto";
  if (text.text.length < text.characters) {
    element.append(make("span", "cut", `\n… ${(text.characters - text.text.length).toLocaleString("en")} more characters are not shown`));
  }
  return element;
}

function part(title, text) {
  const element = make("div", "part");
  element.append(make("h3", "", title), block(text));
  return element;
}

function against(verdicts, index) {
  let [won, lost, tied] = [0, 0, 0];
  for (const [a, b, verdict] of verdicts) {
    if (a !== index && b !== index) continue;
    if (verdict === "A" || verdict === "B") (verdict === "A") === (a === index) ? won++ : lost++;
    else if (verdict !== "unparsed") tied++;
  }
  return won + lost + tied ? `beats ${won}, loses to ${lost}, ties with ${tied}` : null;
}

function card(record, candidate, index) {
  const fused = Boolean(candidate.sources);
  const element = make("article", `card${record.top.includes(index) ? " top" : ""}${fused ? " fused" : ""}`);
  element.append(make("h3", "", `${index}: ${candidate.model}${fused ? `, fused from ${candidate.sources.join(", ")}` : ""}`));
  const chips = make("div", "chips");
  for (const [name, rank] of Object.entries(candidate.ranks)) chips.append(make("span", "", `${name} #${rank}`));
  for (const [name, value] of Object.entries(candidate.scores)) {
    if (value !== null) chips.append(make("span", "", `${name} ${Number(value.toPrecision(4))}`));
  }
  for (const [judge, verdicts] of Object.entries(record.verdicts)) {
    const line = against(verdicts, index);
    if (line) chips.append(make("span", "", `${judge}: ${line}`));
  }
  element.append(chips, block(candidate));
  return element;
}

function verdictTable(record) {
  const names = Object.keys(record.verdicts);
  if (!names.length) return [];
  const element = make("details");
  element.append(make("summary", "", "Verdicts, pair by pair"));
  for (const name of names) {
    const lines = record.verdicts[name].map(([a, b, verdict, probability]) => {
      const who = verdict === "A" ? `${a} over ${b}` : verdict === "B" ? `${b} over ${a}` : `${a} and ${b}: ${verdict}`;
      return probability === null ? who : `${who} (p ${probability.toFixed(2)} for ${a})`;
    });
    element.append(make("h3", "", name), make("p", "", lines.join(" · ")));
  }
  return [element];
}

function show(number) {
  const record = records[number];
  for (const button of list.querySelectorAll("button")) button.setAttribute("aria-current", String(Number(button.dataset.number) === number));
  const cards = make("div", "cards");
  const ranked = record.candidates.map((candidate, index) => [candidate, index]);
  const place = ([candidate]) => (candidate.sources ? -1 : (candidate.ranks.oracle ?? Object.values(candidate.ranks)[0] ?? 1e9));
  ranked.sort((a, b) => place(a) - place(b));
  cards.append(...ranked.map(([candidate, index]) => card(record, candidate, index)));
  const head = [make("h3", "", `Record ${record.id}`), part("Request", record.source)];
  if (record.reference) head.push(part("Reference", record.reference));
  shown.replaceChildren(...head, ...verdictTable(record), cards);
  location.hash.startsWith("#records") && shown.focus({ preventScroll: true });
}

search.addEventListener("input", find);
find();
