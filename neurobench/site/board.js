// Sorting, filters and search on top of tables that are whole without them. What is looked at stands in the address
// (#q=…&kind=…&sort=score:desc), so that a link shows it again.
(() => {
  "use strict";
  const $$ = (what, where = document) => [...where.querySelectorAll(what)];
  const form = document.querySelector(".controls");
  const tables = $$("table.board:not(.plain)").map(build);
  if (!form || !tables.length) return;
  form.hidden = false;
  const q = document.getElementById("q");
  const status = document.getElementById("status");
  const picks = $$("select[data-filter]", form);
  const boxes = $$("input[data-filter]", form);
  const sorter = document.getElementById("sort");
  let sort = [];
  let quiet = false;

  function build(table) {
    const heads = $$("thead th", table);
    const keys = heads.map((h, i) => h.dataset.key || h.textContent.trim().split(/\s/)[0] || String(i));
    const size = Number(table.dataset.size);
    const columns = heads.map((h) => ({
      orderable: h.dataset.sort !== "off",
      searchable: h.dataset.sort !== "off",
      type: h.classList.contains("num") || ["rank", "verification"].includes(h.dataset.key) ? "num" : "string",
      orderSequence: h.dataset.first === "desc" ? ["desc", "asc", ""] : ["asc", "desc", ""],
    }));
    const many = table.tBodies[0].rows.length > size;
    const api = new DataTable(table, {
      autoWidth: false, columns, info: false, order: [], orderClasses: false, paging: many, pageLength: size, searching: true,
      layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: many ? "paging" : null },
      language: { zeroRecords: "No row is left: reset the filters.", emptyTable: "No rows." },
    });
    api.search.fixed("filters", (_text, _data, index) => shown(api.row(index).node()));
    return { api, keys, total: table.tBodies[0].rows.length, table };
  }

  function shown(row) {
    if (!row || !boxes) return true;
    const kinds = boxes.filter((b) => b.checked).map((b) => b.value);
    if (boxes.length && kinds.length < boxes.length && !kinds.includes(row.dataset.kind)) return false;
    // What has no backbone or no mask is a control: it stays, or a filter would hide what a row has to beat.
    return picks.every((p) => {
      const own = row.dataset[p.dataset.filter];
      const control = own === "" && ["backbone", "mask"].includes(p.dataset.filter);
      return !p.value || own === p.value || control;
    });
  }

  function draw() {
    let left = 0, total = 0;
    for (const t of tables) {
      t.api.search(q.value);
      const index = sort.length ? t.keys.indexOf(sort[0]) : -1;
      t.api.order(index < 0 ? [] : [[index, sort[1]]]);
      t.api.draw();
      left += t.api.rows({ search: "applied" }).count();
      total += t.total;
    }
    const what = (document.body.classList.contains("page-index") ? "board" : "row") + (total === 1 ? "" : "s");
    status.textContent = left === total ? `${total} ${what}` : `${left} of ${total} ${what}`;
    if (sorter) {
      const now = sort.join(":");
      sorter.value = [...sorter.options].some((o) => o.value === now) ? now : "";
    }
    if (!quiet) write();
  }

  function write() {
    const state = new URLSearchParams();
    if (q.value) state.set("q", q.value);
    const kinds = boxes.filter((b) => b.checked).map((b) => b.value);
    if (kinds.length < boxes.length) state.set("kind", kinds.join(",") || "none");
    for (const p of picks) if (p.value) state.set(p.dataset.filter, p.value);
    if (sort.length) state.set("sort", sort.join(":"));
    const text = state.toString();
    const now = location.hash.slice(1);
    if (text === now || (!text && !now.includes("="))) return;
    history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
  }

  function read() {
    if (location.hash && !location.hash.includes("=")) return draw();  // a place on the page, and no state
    const state = new URLSearchParams(location.hash.slice(1));
    q.value = state.get("q") || "";
    const kinds = state.has("kind") ? state.get("kind").split(",") : null;
    for (const b of boxes) b.checked = !kinds || kinds.includes(b.value);
    for (const p of picks) {
      const value = state.get(p.dataset.filter) || "";
      p.value = [...p.options].some((o) => o.value === value) ? value : "";
    }
    const [key, direction] = (state.get("sort") || "").split(":");
    sort = key && ["asc", "desc"].includes(direction) && tables.some((t) => t.keys.includes(key)) ? [key, direction] : [];
    quiet = true;
    draw();
    quiet = false;
  }

  // The table of a click sorts itself; the others of the page follow.
  for (const t of tables) {
    t.table.addEventListener("click", (event) => sorted(t, event));
    t.table.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") setTimeout(() => sorted(t, event)); });
  }
  function sorted(t, event) {
    if (!event.target.closest("thead")) return;
    setTimeout(() => {
      const order = t.api.order()[0];
      sort = order && order[1] ? [t.keys[order[0]], order[1]] : [];
      draw();
    });
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target === sorter) sort = sorter.value ? sorter.value.split(":") : [];
    draw();
  });
  document.getElementById("reset").addEventListener("click", () => {
    q.value = "";
    for (const b of boxes) b.checked = true;
    for (const p of picks) p.value = "";
    sort = [];
    draw();
  });
  const copy = document.getElementById("copy");
  copy.addEventListener("click", async () => {
    const before = copy.textContent;
    try {
      await navigator.clipboard.writeText(location.href);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Copy it from the address bar";
    }
    setTimeout(() => { copy.textContent = before; }, 1600);
  });
  const csv = document.getElementById("view-csv");
  if (csv) csv.addEventListener("click", () => {
    const lines = [["rank", "row", "kind", "score", "interval", "skill", "parameters", "time", "verification"]];
    const own = (cell) => [...cell.childNodes].filter((n) => !n.classList?.contains("sub")).map((n) => n.textContent).join("").trim();
    const sub = (cell) => cell.querySelector(".sub")?.textContent.trim() || "";
    for (const t of tables) for (const row of t.api.rows({ search: "applied", order: "applied" }).nodes()) {
      const c = row.cells;
      lines.push([own(c[0]), c[1].querySelector("a").textContent.trim(), row.dataset.kind, own(c[2]), sub(c[2]), own(c[4]), own(c[5]), own(c[6]), own(c[7])]);
    }
    // A spreadsheet would compute what starts like a formula.
    const safe = (v) => /^[=@\t\r]|^[+-](?![\d.])/.test(v) ? "'" + v : v;
    const text = lines.map((l) => l.map((v) => `"${safe(v).replaceAll('"', '""')}"`).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = (location.pathname.split("/").pop() || "board").replace(/\.html$/, "") + "-view.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  window.addEventListener("hashchange", read);
  read();
})();
