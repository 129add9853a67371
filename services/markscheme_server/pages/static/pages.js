// The pages work without this file. It adds tooltips, the choice of a criterion, times such as
// "14 s ago", the switch of the theme, and the refresh of a page whose run is under way.
(() => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent || "null");
  const count = (n) => n.toLocaleString("en-GB");

  // Theme: kept by the browser where it may.
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("markscheme-theme", value);
      return localStorage.getItem("markscheme-theme");
    } catch {
      return null;
    }
  };
  if (stored()) root.dataset.theme = stored();
  document.getElementById("theme")?.addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    stored(root.dataset.theme);
  });

  // Tooltip
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const show = (text, event) => {
    tip.textContent = text;
    tip.hidden = false;
    const x = Math.min(innerWidth - tip.offsetWidth - 4, event.clientX + 12);
    const below = event.clientY + 14;
    const y = below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : below;
    tip.style.left = `${Math.max(4, x)}px`;
    tip.style.top = `${y}px`;
  };
  const hide = () => { tip.hidden = true; };
  const steps = ([first, last], offset) =>
    first === last ? `step ${count(first + offset)}` : `steps ${count(first + offset)}–${count(last + offset)}`;
  const within = (svg, event) => {
    const box = svg.getBoundingClientRect();
    return (event.clientX - box.left) / box.width;
  };

  const charts = () => {
    const data = read("reward-data");
    if (data && data.steps.length) {
      document.querySelectorAll("svg[data-series]").forEach((svg) => {
        const [left, right] = svg.dataset.plot.split(",").map(Number);
        const [first, last] = svg.dataset.steps.split(",").map(Number);
        const middle = data.steps.map(([a, b]) => (a + b) / 2);
        const cross = svg.querySelector(".cross");
        svg.addEventListener("pointermove", (event) => {
          const x = within(svg, event) * svg.viewBox.baseVal.width;
          const step = first + ((x - left) / (right - left)) * (last - first);
          let near = 0;
          middle.forEach((at, i) => { if (Math.abs(at - step) < Math.abs(middle[near] - step)) near = i; });
          const at = left + ((middle[near] - first) / Math.max(1, last - first)) * (right - left);
          cross.setAttribute("x1", at);
          cross.setAttribute("x2", at);
          cross.classList.add("on");
          const lines = Object.entries(data.series).map(
            ([name, values]) => `${name} ${values[near] === null ? "not known" : values[near].toFixed?.(3) ?? values[near]}`);
          if (data.unscored[near]) lines.push(`${count(data.unscored[near])} rollouts not known`);
          show([steps(data.steps[near], data.offset), ...lines].join("\n"), event);
        });
        svg.addEventListener("pointerleave", () => { hide(); cross.classList.remove("on"); });
      });
    }
    const heat = read("heat-data");
    if (heat) {
      document.querySelectorAll("tr[data-key] .heat-row").forEach((svg) => {
        const row = svg.closest("tr");
        const cells = heat.rows[row.dataset.key] || [];
        const cellAt = (event) => {
          const step = heat.first + within(svg, event) * (heat.last - heat.first + 1);
          return cells.find(([bin]) => step >= heat.bins[bin][0] && step < heat.bins[bin][1] + 1);
        };
        svg.addEventListener("pointermove", (event) => {
          const cell = cellAt(event);
          if (!cell) return show("not asked in these steps", event);
          const [bin, met, judged, unknown = 0] = cell;
          const share = judged ? `${((100 * met) / judged).toFixed(0)} % met (${met} of ${judged})` : "no verdict is known";
          return show([steps(heat.bins[bin], heat.offset), share, unknown ? `${unknown} not known` : "",
            row.dataset.teacher].filter(Boolean).join("\n"), event);
        });
        svg.addEventListener("pointerleave", hide);
        svg.addEventListener("click", (event) => {
          const cell = cellAt(event);
          if (!cell || !row.dataset.href) return;
          const url = new URL(row.dataset.href, location.href);
          url.searchParams.set("first_step", heat.bins[cell[0]][0]);
          url.searchParams.set("last_step", heat.bins[cell[0]][1]);
          url.hash = "groups";
          location.assign(url);
        });
      });
    }
  };

  // A group: one criterion at a time, by click or with j and k.
  const groups = () => document.querySelectorAll(".group").forEach((group) => {
    const rows = [...group.querySelectorAll("tr[data-criterion]")];
    let chosen = -1;
    const choose = (index) => {
      chosen = index === chosen ? -1 : index;
      const id = chosen < 0 ? null : rows[chosen].dataset.criterion;
      group.classList.toggle("chosen", id !== null);
      rows.forEach((row, i) => {
        row.classList.toggle("on", i === chosen);
        row.querySelector("button").setAttribute("aria-pressed", i === chosen);
      });
      group.querySelectorAll("mark").forEach((mark) =>
        mark.classList.toggle("on", mark.dataset.criteria.split(" ").includes(id)));
      group.querySelectorAll(".missed b").forEach((chip) =>
        chip.classList.toggle("on", chip.dataset.criterion === id));
    };
    rows.forEach((row, i) => row.querySelector("button").addEventListener("click", () => choose(i)));
    if (document.querySelectorAll(".group").length === 1) {
      addEventListener("keydown", (event) => {
        if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.key === "j" && chosen < rows.length - 1) choose(chosen + 1);
        else if (event.key === "k" && chosen > 0) choose(chosen - 1);
        else if (event.key === "Escape" && chosen >= 0) choose(chosen);
      });
    }
  });

  const ago = () => document.querySelectorAll("time[datetime]").forEach((time) => {
    time.title ||= time.textContent;
    const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"]].find(([s]) => seconds >= 2 * s) || [1, "s"];
    if (seconds >= 0 && seconds < 14 * 86400) time.textContent = `${Math.floor(seconds / size)} ${unit} ago`;
  });

  // The server answers 304 while nothing has changed, and the browser then gives what it has.
  const refresh = async () => {
    const main = document.querySelector("main");
    if (document.hidden || !main.dataset.refresh) return;
    const banner = document.getElementById("banner");
    try {
      const answer = await fetch(location.href, { cache: "no-cache", redirect: "error" });
      if (!answer.ok) throw new Error(String(answer.status));
      banner.hidden = true;
      const etag = answer.headers.get("etag");
      if (!main.dataset.etag || etag === main.dataset.etag) { main.dataset.etag = etag; return; }
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      fresh.dataset.etag = etag;
      hide();
      const ticked = new Set([...main.querySelectorAll(":checked")].map((box) => box.value));
      fresh.querySelectorAll("[type=checkbox]").forEach((box) => { box.checked = ticked.has(box.value); });
      main.replaceWith(document.adoptNode(fresh));
      start();
    } catch (error) {
      const at = new Date().toLocaleTimeString("en-GB");
      banner.textContent = `The service does not answer (${error.message}, tried at ${at}). The figures below are older.`;
      banner.hidden = false;
    }
  };
  const start = () => { charts(); groups(); ago(); };
  start();
  setInterval(ago, 5000);
  const every = Number(document.querySelector("main").dataset.refresh);
  if (every) setInterval(refresh, 1000 * every);
})();
