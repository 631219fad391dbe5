// Drawing over a picture with plain canvas strokes. (Gradio's own editor needs scripts made of text, which our content policy forbids.)
// It stands in #img2img_canvas, shows what #img2img_image holds, and leaves the strokes as a PNG in the hidden box #img2img_drawing.
(() => {
  "use strict";

  const MOST = 2048;                                        // pixels of the longer side of what is handed on
  const WHITE = "#ffffff";

  const part = (name, kind, more = {}) => Object.assign(document.createElement(name), { className: kind }, more);

  const build = (place) => {
    const canvas = part("canvas", "drawing-canvas");
    const image = part("img", "drawing-image", { alt: "The picture that is drawn on" });
    const sheet = part("div", "drawing-sheet");
    const tools = part("div", "drawing-tools");
    const size = part("input", "", { type: "range", min: 1, max: 100, value: 20, title: "Brush size" });
    const colour = part("input", "", { type: "color", value: WHITE, title: "Colour" });
    const buttons = ["Erase", "Undo", "Clear"].map((words) => part("button", "drawing-button", { type: "button", textContent: words }));
    const hint = part("p", "drawing-hint", { textContent: "Give a picture first; then draw on it here." });
    size.setAttribute("aria-label", "Brush size");
    colour.setAttribute("aria-label", "Colour");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "What is drawn; a mask may be given from a file instead");
    sheet.append(image, canvas);
    tools.append(size, colour, ...buttons);
    place.append(hint, tools, sheet);
    return { canvas, image, sheet, tools, size, colour, hint, erase: buttons[0], undo: buttons[1], clear: buttons[2] };
  };

  const wire = (place) => {
    const { canvas, image, sheet, tools, size, colour, hint, erase, undo, clear } = build(place);
    const pen = canvas.getContext("2d");
    let strokes = [], stroke = null;

    const trace = ({ points, width, ink }) => {
      pen.globalCompositeOperation = ink ? "source-over" : "destination-out";
      pen.strokeStyle = ink || WHITE;
      pen.lineWidth = width;
      pen.lineCap = pen.lineJoin = "round";
      pen.beginPath();
      pen.moveTo(...points[0]);
      points.forEach((point) => pen.lineTo(...point));
      pen.stroke();
    };
    const redraw = () => {
      pen.clearRect(0, 0, canvas.width, canvas.height);
      strokes.forEach(trace);
    };
    const handOn = () => {
      const box = document.querySelector("#img2img_drawing textarea, #img2img_drawing input");
      if (!box) return;
      box.value = strokes.length ? canvas.toDataURL("image/png") : "";
      box.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const at = (event) => {
      const frame = canvas.getBoundingClientRect();
      return [(event.clientX - frame.left) * canvas.width / frame.width, (event.clientY - frame.top) * canvas.height / frame.height];
    };

    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      const width = size.value / 100 * Math.max(canvas.width, canvas.height) / 2;
      stroke = { points: [at(event)], width, ink: erase.getAttribute("aria-pressed") === "true" ? "" : colour.value };
      strokes.push(stroke);
      redraw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!stroke) return;
      stroke.points.push(at(event));
      redraw();
    });
    const end = () => {
      if (!stroke) return;
      stroke = null;
      handOn();
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    erase.setAttribute("aria-pressed", "false");
    erase.addEventListener("click", () => erase.setAttribute("aria-pressed", String(erase.getAttribute("aria-pressed") !== "true")));
    undo.addEventListener("click", () => { strokes.pop(); redraw(); handOn(); });
    clear.addEventListener("click", () => { strokes = []; redraw(); handOn(); });
    image.addEventListener("load", () => {
      const scale = Math.min(1, MOST / Math.max(image.naturalWidth, image.naturalHeight));
      canvas.width = Math.round(image.naturalWidth * scale);
      canvas.height = Math.round(image.naturalHeight * scale);
      redraw();
    });

    const follow = () => {
      const shown = document.querySelector("#img2img_image img");
      const source = shown ? shown.src : "";
      sheet.hidden = tools.hidden = !source;
      hint.hidden = Boolean(source);
      if ((image.getAttribute("src") || "") === source) return;
      if (strokes.length) { strokes = []; handOn(); }       // they belong to the picture before
      if (source) image.src = source; else image.removeAttribute("src");
    };
    return follow;
  };

  let follow = null, where = null;
  const look = () => {
    const place = document.getElementById("img2img_canvas");
    if (place && place !== where) { where = place; follow = wire(place); }
    if (follow) follow();
  };
  new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true, attributes: true, attributeFilter: ["src"] });
  look();
})();
