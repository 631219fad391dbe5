"""The page that answers while the engine and the real page load. One file, nothing fetched but /easel/ready."""
from __future__ import annotations

import html

STYLE = """
:root { color-scheme: light dark; --paper: #faf9f7; --ink: #1c1b19; --soft: #736e67; --line: #e5e2dd; --paint: #b8481f; }
@media (prefers-color-scheme: dark) { :root { --paper: #131211; --ink: #f3f1ee; --soft: #a39e96; --line: #292724; --paint: #dc7c58; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { width: min(24rem, calc(100vw - 3rem)); }
svg { display: block; width: 76px; height: 76px; margin-bottom: 1.25rem; color: var(--ink); }
.stroke { stroke: var(--paint); stroke-dasharray: 60; animation: paint 2.4s ease-in-out infinite; }
@keyframes paint { 0% { stroke-dashoffset: 60; } 55%, 80% { stroke-dashoffset: 0; } 100% { stroke-dashoffset: -60; } }
h1 { margin: 0; font-size: 1.6rem; font-weight: 650; letter-spacing: -0.02em; }
p { margin: 0.2rem 0 1.5rem; color: var(--soft); }
ul { list-style: none; margin: 0; padding: 0; border-top: 1px solid var(--line); }
li { display: flex; justify-content: space-between; gap: 1rem; padding: 0.55rem 0; border-bottom: 1px solid var(--line); }
li span:last-child { color: var(--soft); font-size: 0.9rem; }
li[data-state="ready"] span:last-child { color: var(--ink); }
li[data-state="loading"] span:last-child { color: var(--paint); }
#failed { margin-top: 1.25rem; color: var(--paint); }
@media (prefers-reduced-motion: reduce) { .stroke { animation: none; stroke-dasharray: none; } }
"""
SCRIPT = """
const words = { waiting: "waiting", loading: "loading", ready: "ready" };
const list = document.getElementById("stages"), failed = document.getElementById("failed");
let missed = 0;
function row(stage) {
  const line = document.createElement("li"), name = document.createElement("span"), state = document.createElement("span");
  const known = stage.state in words;
  line.dataset.state = known ? stage.state : "failed";
  name.textContent = stage.label;
  state.textContent = known ? words[stage.state] : stage.state;
  line.append(name, state);
  return line;
}
async function look() {
  try {
    const reply = await fetch("easel/ready", { cache: "no-store", credentials: "same-origin" });
    const now = await reply.json();
    missed = 0;
    if (now.page) { location.reload(); return; }
    list.replaceChildren(...now.stages.map(row));
    failed.textContent = now.failed || "";
  } catch (error) {
    missed += 1;
    if (missed > 4) { failed.textContent = "Easel has ended. Look at the terminal it was started from."; }
  }
  setTimeout(look, missed ? 1000 : 200);
}
look();
"""
PICTURE = """<svg viewBox="0 0 76 76" fill="none" stroke="currentColor" stroke-width="3" stroke-linecap="round" stroke-linejoin="round"
 aria-hidden="true"><path d="M38 6v8M16 70 30 52M60 70 46 52M38 52v14"/><rect x="12" y="14" width="52" height="38" rx="3"/>
<path class="stroke" stroke-width="4" d="M22 42c6-14 10-16 14-8s8 6 18-8"/></svg>"""


def page(nonce: str, *, base: str = "/", api_only: bool = False) -> bytes:
    """The shell as UTF-8 HTML. base: the path it is served under, with a slash at the end."""
    about = "The API is loading." if api_only else "The page opens by itself when it has loaded."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Easel</title><base href="{html.escape(base, quote=True)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{STYLE}</style></head>
<body><main>{PICTURE}<h1>Easel</h1><p>{about}</p>
<ul id="stages" aria-live="polite"></ul><div id="failed" role="alert"></div>
<noscript>Easel's page needs JavaScript.</noscript></main>
<script nonce="{nonce}">{SCRIPT}</script></body></html>
""".encode()


def locked(nonce: str) -> bytes:
    """What a person sees who comes without credentials."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Easel</title><meta name="viewport" content="width=device-width, initial-scale=1">
<style nonce="{nonce}">{STYLE}</style></head>
<body><main>{PICTURE}<h1>Easel is locked</h1><p>Open the address that the terminal printed: it carries the token.
Or reload this page and give a name and password.</p></main></body></html>
""".encode()
