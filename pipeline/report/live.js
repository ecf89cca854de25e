// A report that is served: it asks its server every few seconds what is new, and shows the parts anew that have changed.
(() => {
  const EVERY = 2000; // milliseconds
  const sign = document.createElement("span");
  const parts = new Map(); // of the page as it was sent: key -> its source
  let version = null;

  const key = (part, place) => part.id || `${part.tagName}.${part.className}.${place}`;
  const say = (text, good) => {
    sign.textContent = text;
    sign.className = good ? "live" : "live lost";
  };
  const opened = (part) => new Map([...part.querySelectorAll("details")].map((one) => [one.querySelector("summary")?.textContent, one.open]));

  const show = (fresh) => {
    const main = document.querySelector("main");
    const shown = new Map([...main.children].map((part) => [part.dataset.key, part]));
    const wanted = [...fresh.querySelector("main").children].map((part, place) => {
      const name = key(part, place);
      const old = shown.get(name);
      const source = part.outerHTML;
      if (old && parts.get(name) === source) return old;
      const fits = document.importNode(part, true);
      fits.dataset.key = name;
      parts.set(name, source);
      const open = old ? opened(old) : new Map();
      for (const one of fits.querySelectorAll("details")) one.open = open.get(one.querySelector("summary")?.textContent) ?? one.open;
      return fits;
    });
    wanted.forEach((part, place) => {
      if (main.children[place] !== part) main.insertBefore(part, main.children[place] ?? null);
    });
    while (main.children.length > wanted.length) main.lastElementChild.remove();
    const links = document.importNode(fresh.querySelector("nav .links"), true);
    document.querySelector("nav .links").replaceWith(links);
    zero2r1.open();
  };
  const page = () =>
    new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("GET", "report.html");
      request.responseType = "document";
      request.onload = () => (request.response ? resolve(request.response) : reject(new Error("no page")));
      request.onerror = () => reject(new Error("no answer"));
      request.send();
    });
  const look = async () => {
    try {
      const state = await (await fetch("state", { cache: "no-store" })).json();
      if (version !== null && state.version !== version) show(await page());
      version = state.version;
      say(state.trouble ? `live, but ${state.trouble}` : `live · ${state.written}`, !state.trouble);
    } catch {
      say("no longer live: the server has ended", false);
    }
    setTimeout(look, EVERY);
  };
  addEventListener("DOMContentLoaded", () => {
    [...document.querySelector("main").children].forEach((part, place) => {
      const name = key(part, place);
      parts.set(name, part.outerHTML);
      part.dataset.key = name;
    });
    sign.setAttribute("role", "status");
    document.querySelector("nav .links").after(sign);
    look();
  });
})();
