"use strict";
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  document.body.append(tip);
  const show = (event) => {
    const at = event.target.closest("[title],[data-t]");
    if (!at) { tip.style.display = "none"; return; }
    if (at.title) { at.dataset.t = at.title; at.setAttribute("aria-label", at.title); at.removeAttribute("title"); }
    tip.textContent = at.dataset.t;
    tip.style.display = "block";
    const box = tip.getBoundingClientRect(), gap = 14;
    const x = Math.min(event.clientX + gap, innerWidth - box.width - 6);
    const below = event.clientY + gap + box.height < innerHeight;
    tip.style.left = Math.max(6, x) + "px";
    tip.style.top = (below ? event.clientY + gap : event.clientY - gap - box.height) + "px";
  };
  const mark = (event) => {
    for (const old of document.querySelectorAll(".gantt.on, .gantt .on")) old.classList.remove("on");
    const at = event.target.closest("[data-f]"), chart = at && at.closest(".gantt");
    if (!chart) return;
    chart.classList.add("on");
    for (const part of chart.querySelectorAll("[data-f]")) {
      if (part.dataset.f === at.dataset.f) part.classList.add("on");
    }
  };
  for (const kind of ["pointerover", "pointermove", "click"]) document.addEventListener(kind, show);
  for (const kind of ["pointerover", "click"]) document.addEventListener(kind, mark);
  document.addEventListener("scroll", () => { tip.style.display = "none"; }, true);
})();
