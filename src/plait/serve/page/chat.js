// The chat page: conversation, thinking trace against its budget, tool calls, stop.
"use strict";

const $ = (id) => document.getElementById(id);
const UNLIMITED = 13;
let messages = [];          // what is sent, in OpenAI's form
let running = null;         // AbortController of the answer that is being written
let modelName = null;

function make(parent, tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// 0, 8, 16, ... doubling, 16384, no limit
function budget() {
  const step = Number($("budget").value);
  if (step === UNLIMITED) return null;
  return step === 0 ? 0 : 4 * 2 ** step;
}

function showBudget() {
  const tokens = budget();
  $("budget-value").textContent = tokens === null ? "no limit" : `${tokens.toLocaleString()} tokens`;
  document.querySelector(".budget").classList.toggle("off", !$("thinking").checked);
  $("budget").disabled = !$("thinking").checked;
}

function readTools() {
  $("tools-error").textContent = "";
  const text = $("tools").value.trim();
  if (!text) return [];
  try {
    const value = JSON.parse(text);
    return (Array.isArray(value) ? value : [value]).map((tool) =>
      tool.function ? tool : { type: "function", function: tool });
  } catch (error) {
    $("tools-error").textContent = `not valid JSON: ${error.message}`;
    openSettings(true);
    throw error;
  }
}

function request() {
  const tools = readTools();
  const system = $("system").value.trim();
  const body = {
    model: modelName,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    temperature: Number($("temperature").value),
    top_p: Number($("top-p").value),
    chat_template_kwargs: { enable_thinking: $("thinking").checked },
  };
  if ($("max-tokens").value) body.max_tokens = Number($("max-tokens").value);
  if ($("thinking").checked && budget() !== null) {
    body.max_thinking_tokens = budget();
    body.budget_grace_tokens = Math.ceil(budget() / 10);  // to finish a line, as NIM does
  }
  if (tools.length) {
    body.tools = tools;
    body.tool_choice = $("tool-choice").value;
  }
  return body;
}

// One answer on the page, and the message that it becomes.
class Answer {
  constructor(limit) {
    this.turn = make($("chat"), "div", "turn assistant");
    this.limit = limit;
    this.message = { role: "assistant", content: "" };
    this.calls = [];
    this.started = performance.now();
    this.firstToken = null;
    this.note = make(this.turn, "div", "note");
  }

  take(chunk) {
    const choice = chunk.choices[0];
    if (choice) {
      const delta = choice.delta;
      if (delta.reasoning) this.think(delta.reasoning);
      if (delta.content) this.say(delta.content);
      for (const call of delta.tool_calls ?? []) this.call(call);
      if (choice.finish_reason) this.reason = choice.finish_reason;
    }
    if (chunk.usage) this.count(chunk.usage);
  }

  think(text) {
    if (!this.trace) {
      this.trace = make(this.turn, "details", "trace live");
      this.trace.open = true;
      const summary = make(this.trace, "summary");
      make(summary, "span", "label", "Thinking");
      this.counter = make(summary, "span", "count");
      if (this.limit !== null) this.bar = make(make(summary, "span", "meter"), "i");
      this.traceText = make(this.trace, "div", "text");
    }
    this.traceText.textContent += text;
    this.traceText.scrollTop = this.traceText.scrollHeight;
  }

  say(text) {
    this.endTrace();
    this.text ??= make(this.turn, "div", "text");
    this.text.textContent += text;
    this.message.content += text;
  }

  call(delta) {
    this.endTrace();
    const call = this.calls[delta.index] ??= { id: delta.id, type: "function", function: { name: "", arguments: "" } };
    call.function.name += delta.function.name ?? "";
    call.function.arguments += delta.function.arguments ?? "";
  }

  endTrace() {
    if (!this.trace?.classList.contains("live")) return;
    this.trace.classList.remove("live");
    this.trace.open = false;
    this.trace.querySelector(".label").textContent = "Thought";
  }

  count(usage) {
    const now = performance.now(), tokens = usage.completion_tokens;
    if (tokens && !this.firstToken) this.firstToken = { at: now, tokens };
    const thought = usage.completion_tokens_details?.reasoning_tokens ?? 0;
    if (this.counter) {
      const of = this.limit === null ? "" : ` of ${this.limit.toLocaleString()}`;
      this.counter.textContent = `${thought.toLocaleString()}${of} tokens`;
      if (this.bar) this.bar.style.width = `${Math.min(100, 100 * thought / Math.max(this.limit, 1))}%`;
    }
    const seconds = (now - (this.firstToken?.at ?? now)) / 1000;
    this.speed = seconds > 0 ? (tokens - this.firstToken.tokens) / seconds : 0;
    this.usage = usage;
    this.note.textContent = this.counts().join(" · ");
    this.turn.append(this.note);  // below what was added meanwhile
  }

  counts() {
    const parts = this.usage ? [`${this.usage.completion_tokens.toLocaleString()} tokens`] : [];
    if (this.speed) parts.push(`${this.speed.toFixed(this.speed < 10 ? 1 : 0)} tokens/s`);
    return parts;
  }

  finish(note) {
    this.endTrace();
    const parts = note ? [note] : [];
    if (this.reason === "length") parts.push("cut at the limit of tokens");
    parts.push(...this.counts());
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${cached} of ${this.usage.prompt_tokens} prompt tokens from the cache`);
    if (this.calls.length) this.message.tool_calls = this.calls;
    if (this.message.content || this.calls.length) messages.push(this.message);
    else if (!note && !this.trace) parts.unshift("an empty answer");
    for (const call of this.calls) showCall(this.turn, call);
    this.note.textContent = parts.join(" · ");
    this.turn.append(this.note);
  }
}

function showCall(turn, call) {
  const box = make(turn, "div", "call");
  box.dataset.id = call.id;
  make(box, "header", "", call.function.name);
  let shown = call.function.arguments;
  try { shown = JSON.stringify(JSON.parse(shown), null, 2); } catch { /* shown as it is */ }
  make(box, "pre", "", shown);
  const answer = make(box, "div", "answer");
  const field = make(answer, "textarea");
  field.rows = 1;
  field.placeholder = "Result";
  const button = make(answer, "button", "", "Return");
  button.type = "button";
  button.onclick = () => {
    answer.remove();
    make(box, "pre", "result", `→ ${field.value}`);
    messages.push({ role: "tool", tool_call_id: call.id, content: field.value });
    if (!turn.querySelector(".answer")) generate();
  };
}

async function generate() {
  let body;
  try { body = request(); } catch { return; }
  $("welcome")?.remove();
  const answer = new Answer($("thinking").checked ? budget() : null);
  running = new AbortController();
  busy(true);
  let problem = null, stopped = false;
  try {
    await streamChat(body, $("key").value, running.signal, (chunk) => {
      const chat = $("chat"), atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 80;
      answer.take(chunk);
      if (atEnd) chat.scrollTop = chat.scrollHeight;
    });
  } catch (error) {
    stopped = error.name === "AbortError";
    if (!stopped) problem = error.message;
  }
  running = null;
  if (answer.turn.isConnected) {
    answer.finish(stopped ? "stopped" : "");
    if (problem) make(answer.turn, "p", "problem", problem);
    $("chat").scrollTop = $("chat").scrollHeight;
  }
  busy(false);
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  if (!on) $("input").focus({ preventScroll: true });
}

function submit(event) {
  event?.preventDefault();
  const text = $("input").value.trim();
  if (!text || running) return;
  $("welcome")?.remove();
  for (const unanswered of document.querySelectorAll(".answer")) unanswered.remove();
  make(make($("chat"), "div", "turn user"), "div", "text", text);
  messages.push({ role: "user", content: text });
  $("input").value = "";
  grow();
  $("chat").scrollTop = $("chat").scrollHeight;
  generate();
}

function clearChat() {
  running?.abort();
  messages = [];
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("toggle-settings").setAttribute("aria-expanded", String(open));
}

function grow() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight}px`;
}

async function connect() {
  try {
    const key = $("key").value;
    const response = await fetch("v1/models", key ? { headers: { Authorization: `Bearer ${key}` } } : {});
    if (response.status === 401) {
      $("model").textContent = "this server asks for an API key: see Settings";
      return openSettings(true);
    }
    const [model] = (await response.json()).data;
    modelName = model.id;
    $("model").textContent = `${modelName} · context ${model.max_model_len.toLocaleString()} tokens`;
  } catch {
    $("model").textContent = "no server";
  }
}

$("form").onsubmit = submit;
$("stop").onclick = () => running?.abort();
$("clear").onclick = clearChat;
$("toggle-settings").onclick = () => openSettings($("settings").hidden);
$("budget").oninput = $("thinking").onchange = showBudget;
$("input").oninput = grow;
$("key").onchange = connect;
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
};
showBudget();
connect();
