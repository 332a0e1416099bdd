// A conversation with the model, streamed from /v1/chat/completions of this same port.

import { refusal } from "./ask.js";
import { bodyOf, h, keyed, say } from "./dom.js";
import { plural, rate, seconds } from "./units.js";

export class Chat {
  constructor() {
    this.messages = [];
    this.model = "";
    this.abort = null;
    this.log = h("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: "0" });
    this.text = h("textarea", { id: "chat-text", rows: "2", "aria-label": "Message", placeholder: "What is the capital of France?" });
    this.send = h("button", {}, "Send");
    this.stop = h("button", { type: "button", disabled: true }, "Stop");
    this.fresh = h("button", { type: "button" }, "New");
    this.slo = h("select", { "aria-label": "Service class" });
    this.most = h("input", { type: "number", min: "1", max: "100000", value: "200", "aria-label": "Most tokens" });
    this.form = h(
      "form",
      {},
      this.text,
      h("div", { class: "row" }, this.send, this.stop, this.fresh),
      h("div", { class: "row" }, h("label", {}, "class ", this.slo), h("label", {}, "most tokens ", this.most)),
    );
    bodyOf("chat").append(this.log, this.form);
    this.listen();
  }

  listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.say();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.form.requestSubmit();
      }
    });
    this.stop.addEventListener("click", () => this.abort?.abort());
    this.fresh.addEventListener("click", () => {
      this.abort?.abort();
      this.messages = [];
      this.log.replaceChildren();
      this.text.focus();
    });
  }

  update(overview) {
    this.model = overview.model;
    const names = overview.classes.map((each) => each.name);
    const standard = overview.classes.find((each) => each.default)?.name;
    keyed(this.slo, names, (name) => name, (name) => h("option", { value: name, selected: name === standard }, name), () => {});
  }

  async say() {
    const text = this.text.value.trim() || (this.messages.length ? "" : this.text.placeholder);
    if (!text || this.abort) return;
    this.text.value = "";
    const messages = this.messages; // of this conversation, whatever is begun meanwhile
    messages.push({ role: "user", content: text });
    this.show("user", "You", text);
    const box = this.show("assistant", this.model, "");
    this.busy(true);
    try {
      await this.stream(box, messages);
    } catch (error) {
      failed(box, messages, error);
    } finally {
      this.busy(false);
    }
  }

  async stream(box, messages) {
    const began = performance.now();
    this.abort = new AbortController();
    const answer = await fetch("v1/chat/completions", {
      method: "POST",
      signal: this.abort.signal,
      headers: { "content-type": "application/json", "x-kvasir-class": this.slo.value },
      body: JSON.stringify({
        model: this.model,
        messages,
        max_tokens: Number(this.most.value) || undefined,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!answer.ok) throw await refusal(answer);
    const seen = { text: "", first: null, usage: null, id: "" };
    for await (const chunk of events(answer.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      seen.id = chunk.id;
      seen.usage = chunk.usage ?? seen.usage;
      const more = chunk.choices[0]?.delta?.content;
      if (!more) continue;
      seen.first ??= performance.now() - began;
      seen.text += more;
      say(box.text, seen.text);
      this.log.scrollTop = this.log.scrollHeight;
    }
    messages.push({ role: "assistant", content: seen.text });
    this.measured(box, seen, performance.now() - began);
  }

  measured(box, seen, total) {
    const tokens = seen.usage?.completion_tokens ?? 0;
    const parts = [`first token after ${seconds((seen.first ?? total) / 1e3)}`];
    if (tokens > 1) parts.push(`${plural(tokens, "token")}, ${rate((1e3 * (tokens - 1)) / Math.max(1, total - seen.first))}`);
    const cached = seen.usage?.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${cached} of ${seen.usage.prompt_tokens} prompt tokens cached`);
    box.note.append(`${parts.join("; ")}; `, h("a", { href: `#request/${encodeURIComponent(seen.id)}` }, "why it went where it went"));
    this.log.scrollTop = this.log.scrollHeight;
  }

  busy(on) {
    if (!on) this.abort = null;
    this.send.disabled = on;
    this.stop.disabled = !on;
    this.log.setAttribute("aria-busy", on); // read out when it is complete, not token by token
  }

  show(who, name, text) {
    const box = h("div", { class: `message ${who}` });
    box.text = h("p", {}, text);
    box.note = h("p", { class: "quiet note" });
    box.append(h("h3", {}, name), box.text, box.note);
    this.log.append(box);
    this.log.scrollTop = this.log.scrollHeight;
    return box;
  }
}

/** What was said before it was stopped stays part of the conversation. */
function failed(box, messages, error) {
  const stopped = error.name === "AbortError";
  const said = box.text.textContent;
  if (stopped && said) messages.push({ role: "assistant", content: said });
  else messages.pop();
  box.note.append(stopped ? "stopped" : error.message);
  if (!stopped) box.classList.add("warn");
}

/** The JSON of each server-sent event, until [DONE]. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const whole = rest.split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
