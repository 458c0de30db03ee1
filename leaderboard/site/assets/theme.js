// Before anything is drawn, so that no page flashes: the theme that was chosen, or the system's.
(() => {
  const known = ["light", "dark"];
  let chosen = "";
  try { chosen = localStorage.getItem("neurobench-theme") || ""; } catch { /* not every host allows it */ }
  if (known.includes(chosen)) document.documentElement.dataset.theme = chosen;
  document.documentElement.classList.add("js");
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = document.getElementById("theme-name");
    if (!button) return;
    button.hidden = false;
    const say = () => { name.textContent = "Theme: " + (document.documentElement.dataset.theme || "system"); };
    say();
    button.addEventListener("click", () => {
      const order = ["", ...known];
      const next = order[(order.indexOf(document.documentElement.dataset.theme || "") + 1) % order.length];
      if (next) document.documentElement.dataset.theme = next; else delete document.documentElement.dataset.theme;
      try { localStorage.setItem("neurobench-theme", next); } catch { /* then it holds for this page only */ }
      say();
    });
  });
})();
