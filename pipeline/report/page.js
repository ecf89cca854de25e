// The only script of the page: the switch between light and dark. Without it the page follows the system.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("zero2r1-theme", value);
      return localStorage.getItem("zero2r1-theme");
    } catch {
      return null; // storage is closed to files in some browsers: then nothing is remembered
    }
  };
  const shown = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const known = remembered();
  if (known === "dark" || known === "light") root.dataset.theme = known;
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => (button.textContent = shown() === "dark" ? "Light" : "Dark");
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = shown() === "dark" ? "light" : "dark";
      remembered(root.dataset.theme);
      name();
    });
    dark.addEventListener("change", name);
    name();
  });
})();
