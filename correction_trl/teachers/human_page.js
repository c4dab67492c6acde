// The page for human teachers, inside a Gradio HTML component: `element` is its root, and `server.act` calls the methods
// of `HumanCollection` (human.py). One request at a time; every reply says what to show.

const part = (name) => element.querySelector(`[data-is="${name}"]`);
const editor = part("editor");
const buttons = ["save", "right", "skip", "back", "undo", "again", "finish", "rest-back"].map(part);
const isMac = navigator.platform.startsWith("Mac");
if (isMac) part("save").querySelector("kbd").textContent = "⌘";

let item = null; // {key, prompt, response, columns}
let conflict = null; // somebody else's answer to it
let shownResponse = ""; // the response with the line ends of a browser's editor
let view = null; // the last reply
let busy = false;
let highlightTimer = null;
let active = false; // since the last sign of life

// A tab is a session, and stays one when it is reloaded. A duplicated tab starts with a copy of the other's storage.
if (!sessionStorage.getItem("session") || sessionStorage.getItem("in use")) {
  sessionStorage.setItem("session", crypto.randomUUID());
  sessionStorage.removeItem("open");
}
sessionStorage.setItem("in use", "yes");
addEventListener("pagehide", () => sessionStorage.removeItem("in use"));
addEventListener("pageshow", () => sessionStorage.setItem("in use", "yes"));
const session = sessionStorage.getItem("session");

part("name").value = localStorage.getItem("name") ?? "";
part("name").addEventListener("input", () => localStorage.setItem("name", part("name").value));

// ------------------------------------------------------------------ asking the program

const SILENCE = "The program does not answer: it has ended, or was stopped. What you saved is on the disk, and what you " +
  "have typed is kept in this browser. Start it again and reload this page.";

// For what a person does: one thing at a time.
async function ask(method, more = {}) {
  if (busy) return;
  busy = true;
  update();
  const reply = await call(method, more);
  busy = false;
  if (reply?.error) notify(reply.error, "error");
  else if (reply) show(reply, method);
  update();
}

// For what the page does by itself: it must not come in between.
async function askAside(method, more = {}) {
  const wasItem = item;
  const reply = await call(method, more);
  if (busy || !reply || reply.error || item !== wasItem) return;
  if (reply.item !== undefined) show(reply, method);
  else view.progress = reply.progress;
  update();
}

async function call(method, more) {
  const reply = await server.act({ method, arguments: { session, ...more } });
  if (!reply) notify(SILENCE, "error"); // Gradio gives `undefined` where the connection fails
  return reply;
}

const withName = (more = {}) => ({ key: item.key, name: part("name").value, ...more });

function save() {
  if (!isEdited()) return notify("Nothing is changed yet. If the response is right as it is, that is the button beside this one.");
  if (!editor.value.trim()) return notify("An empty correction cannot be trained on. Skip it, or write what it should be.");
  ask("save", withName({ text: editor.value, replace: conflict !== null }));
}

function right() {
  if (isEdited()) return notify("You have changed the text: save it, or undo your changes (U) first.");
  ask("right", withName({ replace: conflict !== null }));
}

const skip = () => ask("skip", withName());
const back = () => ask("back", { key: item?.key ?? null });

function undo() {
  // Through the browser, so that its own undo (Ctrl+Z) brings the text back
  editor.focus();
  editor.select();
  if (!document.execCommand("insertText", false, item.response)) editor.value = item.response;
  edited();
  editor.blur();
}

// ------------------------------------------------------------------ showing

function show(reply, method) {
  view = reply;
  if (item && ["save", "right"].includes(method) && !reply.conflict) localStorage.removeItem(draftOf(item));
  conflict = reply.conflict;
  const isNew = item?.key !== reply.item?.key || method === "back";
  item = reply.item;
  sessionStorage.setItem("open", item?.key ?? "");
  part("work").hidden = !item;
  part("rest").hidden = !!item;
  if (item && isNew) showItem(reply.earlier);
  if (!item) showRest();
  if (conflict) showConflict();
  else notify(reply.notice ?? (reply.earlier !== null ? "You have answered this one; saving replaces your answer." : ""));
}

function showItem(earlier) {
  part("prompt").replaceChildren(...item.prompt.map(({ role, text }) => {
    const message = tag("div", "ct-message");
    const body = tag("div", "ct-text", text);
    body.dir = "auto";
    message.append(tag("h2", "", role), body);
    return message;
  }));
  part("columns-box").hidden = !item.columns.length;
  part("columns").replaceChildren(
    ...item.columns.flatMap(([name, text]) => [tag("dt", "", name), tag("dd", "ct-text", text)]),
  );
  editor.value = item.response;
  shownResponse = editor.value;
  editor.value = localStorage.getItem(draftOf(item)) ?? earlier ?? item.response;
  editor.setSelectionRange(0, 0);
  document.activeElement?.blur();
  part("prompt").scrollTop = 0;
  scrollTo(0, 0);
  highlight();
}

function showRest() {
  const { done, elsewhere, skipped, progress } = view;
  const plural = (n) => `${n} response${n === 1 ? "" : "s"}`;
  part("rest-title").textContent = done ? "Thank you, that was all." : "Nothing left for you at the moment.";
  part("rest-text").textContent = done
    ? `${plural(progress.answered)} answered: ` +
      `${progress.corrected} corrected, ${progress.unchanged} right as they were. Everything is on the disk; you can ` +
      "close this page."
    : [
        elsewhere ? `${plural(elsewhere)} open on other pages; what is left there comes here.` : "",
        skipped ? `You skipped ${plural(skipped)}; what stays skipped is asked again next time.` : "",
      ].join(" ");
  part("again").hidden = done || !skipped;
  part("finish").hidden = done || elsewhere > 0;
  part("rest-back").hidden = done || !view.can_go_back;
}

function showConflict() {
  const who = conflict.name || "Somebody else";
  const what = conflict.correction === item.response ? "says it is right as it is" : "corrected it as shown below";
  notify(`This one lay open for long, and ${who} has answered it meanwhile: ${who} ${what}. Yours is not stored. ` +
    "Save again to put yours in its place, or skip to leave it.", "error");
  if (conflict.correction !== item.response) part("notice").append(tag("pre", "ct-text", conflict.correction));
}

function highlight() {
  const old = document.createDocumentFragment();
  const corrected = document.createDocumentFragment();
  const parts = changes(shownResponse, editor.value);
  let edits = 0;
  parts.forEach(([kind, text], i) => {
    if (kind === "=") {
      old.append(text);
      corrected.append(text);
      return;
    }
    const isSecond = kind === "+" && i > 0 && parts[i - 1][0] === "-";
    if (!isSecond) edits++;
    (kind === "-" ? old : corrected).append(tag(kind === "-" ? "del" : "ins", "", text));
    // A place on the other side where something is missing
    if (kind === "-" && parts[i + 1]?.[0] !== "+") corrected.append(tag("span", "ct-gap ct-gap-removed"));
    if (kind === "+" && !isSecond) old.append(tag("span", "ct-gap ct-gap-added"));
  });
  part("response").replaceChildren(old);
  part("highlights").replaceChildren(corrected);
  part("edits").textContent = edits ? `${edits} change${edits === 1 ? "" : "s"}` : "";
}

function update() {
  const edited = item !== null && isEdited();
  buttons.forEach((button) => (button.disabled = busy));
  part("save").disabled ||= !edited;
  part("right").disabled ||= edited;
  part("undo").disabled ||= !edited;
  part("back").disabled ||= !view?.can_go_back;
  if (!view) return;
  const { total, answered, corrected, unchanged, yours } = view.progress;
  part("bar").setAttribute("aria-valuemax", total);
  part("bar").setAttribute("aria-valuenow", answered);
  part("bar-corrected").style.width = `${(100 * corrected) / total}%`;
  part("bar-right").style.width = `${(100 * unchanged) / total}%`;
  part("answered").textContent = `${answered} of ${total} answered`;
  part("corrected").textContent = `${corrected} corrected`;
  part("unchanged").textContent = `${unchanged} right as they are`;
  part("yours").textContent = answered > yours ? `${yours} by you` : "";
}

function notify(text, kind = "hint") {
  part("notice").textContent = text;
  part("notice").className = `ct-notice ct-${kind}`;
  part("notice").hidden = !text;
}

function tag(name, className, text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

// ------------------------------------------------------------------ typing

const draftOf = ({ key }) => `draft ${key}`;
const isEdited = () => editor.value !== shownResponse;

function edited() {
  try {
    if (isEdited()) localStorage.setItem(draftOf(item), editor.value);
    else localStorage.removeItem(draftOf(item));
  } catch {
    // The browser's storage is full: a reload would lose what was typed into this one, nothing else
  }
  if (!conflict) notify("");
  // The layout of a very long text takes a browser a while: it waits for a pause in the typing
  clearTimeout(highlightTimer);
  if (editor.value.length > 50_000) highlightTimer = setTimeout(highlight, 250);
  else highlight();
  update();
}

editor.addEventListener("input", edited);
part("save").addEventListener("click", save);
part("right").addEventListener("click", right);
part("skip").addEventListener("click", skip);
part("back").addEventListener("click", back);
part("undo").addEventListener("click", undo);
part("again").addEventListener("click", () => ask("again"));
part("finish").addEventListener("click", () => ask("finish"));
part("rest-back").addEventListener("click", back);

document.addEventListener("keydown", (event) => {
  active = true;
  if (event.repeat || event.isComposing || event.altKey || busy || !view) return;
  const command = event.ctrlKey || event.metaKey;
  const isTyping = ["INPUT", "TEXTAREA"].includes(document.activeElement?.tagName);
  // The letter on the key; on a keyboard of another script, the letter that a Latin one has there
  const letter = /^[a-z]$/i.test(event.key) ? event.key.toLowerCase() : event.code.replace("Key", "").toLowerCase();
  let action = null;
  if (command && event.key === "Enter" && item) action = event.shiftKey ? right : save;
  else if (event.key === "Escape" && isTyping) action = () => document.activeElement.blur();
  else if (!command && !isTyping && item) {
    action = { e: () => editor.focus(), r: right, s: skip, b: view.can_go_back ? back : null, u: isEdited() ? undo : null }[letter];
  } else if (!command && !isTyping && letter === "b" && view.can_go_back && !view.done) action = back;
  if (!action) return;
  event.preventDefault();
  action();
});
document.addEventListener("pointerdown", () => (active = true));
document.addEventListener("scroll", () => (active = true), true);

// ------------------------------------------------------------------ signs of life

let lastSign = Date.now();
setInterval(() => {
  if (!view || view.done) return;
  if (busy) return;
  if (!item) return askAside("next");
  if (active && Date.now() - lastSign > 1000 * view.keep_seconds) {
    active = false;
    lastSign = Date.now();
    askAside("keep", { key: item.key });
  }
}, 3000);

ask("next", { key: sessionStorage.getItem("open") || null });
