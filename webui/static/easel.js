// Small things that a page of forms lacks: Ctrl+Enter draws, buttons that are only an icon say what they do.
(() => {
  "use strict";

  const shown = (element) => element !== null && element.offsetParent !== null && !element.disabled;

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
    const tab = event.target.closest("[id^='tab_']");
    const button = tab && document.getElementById(tab.id.slice("tab_".length) + "_generate");
    if (!button || !shown(button)) return;
    event.preventDefault();
    event.stopPropagation();
    // The box hands its text on when typing pauses; let it do so before the button reads it.
    event.target.dispatchEvent(new Event("change", { bubbles: true }));
    setTimeout(() => button.click(), 0);
  }, true);

  const label = (button) => {
    const text = button.textContent.trim();
    if (text && button.title !== text) button.title = text;
  };
  const labelAll = () => document.querySelectorAll("button.icon").forEach(label);
  new MutationObserver(labelAll).observe(document.documentElement, { childList: true, subtree: true });
  labelAll();
})();
