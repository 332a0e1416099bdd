// The page: asks the router once a second, and says so when it does not answer.

import { follow } from "./ask.js";
import { Chat } from "./chat.js";
import { Classes } from "./classes.js";
import { announce, attribute, byId, say } from "./dom.js";
import { Events } from "./events.js";
import { Detail } from "./explain.js";
import { Flow } from "./flow.js";
import { Now } from "./now.js";
import { Plan } from "./plan.js";
import { Pools } from "./pools.js";
import { Requests } from "./requests.js";
import { state } from "./table.js";
import { age, clock, plural } from "./units.js";

const GONE_AFTER = 2; // answers that did not come

class Connection {
  constructor() {
    this.missing = 0;
    this.heard = null; // when the router last answered, by this machine's clock
    this.started = null;
    setInterval(() => this.tick(), 1000);
  }

  got(overview) {
    if (this.missing >= GONE_AFTER) announce("The router answers again.");
    else if (this.started !== null && this.started !== overview.started) announce("The router was started again.");
    this.missing = 0;
    this.heard = Date.now() / 1000;
    this.started = overview.started;
    byId("gone").hidden = true;
    document.body.dataset.state = "live";
    const [word, kind] = told(overview);
    show(word, kind);
    say(byId("model"), overview.model);
    say(byId("about"), about(overview));
  }

  failed(error) {
    this.missing += 1;
    this.reason = error.status ? error.message : "no answer";
    if (this.missing === GONE_AFTER) announce("The router does not answer.");
    this.tick();
  }

  tick() {
    if (this.missing < GONE_AFTER) return;
    document.body.dataset.state = this.heard === null ? "loading" : "gone";
    show("router away, trying again", "bad");
    const since = this.heard === null ? "" : ` What you see is ${age(Date.now() / 1000 - this.heard)} old, of ${clock(this.heard)}.`;
    const text = `The router does not answer (${this.reason}).${since} Trying again each second.`;
    say(this.heard === null ? byId("loading") : byId("gone"), text);
    byId("gone").hidden = this.heard === null;
  }
}

function show(word, kind) {
  const element = byId("connection");
  element.dot ??= element.querySelector(".dot");
  element.word ??= element.querySelector(".word");
  state(element, word, kind);
}

function told(overview) {
  if (!overview.ready) return ["live, cannot serve: no replica for every role", "bad"];
  if (!overview.redis_up) return ["live, Redis is away", "busy"];
  return ["live", "good"];
}

function about(overview) {
  const parts = [
    overview.router ? `router ${overview.router}` : "router",
    `up for ${age(overview.at - overview.started)}`,
    plural(overview.requests, "request"),
    `${overview.failed} failed by our fault`,
    `${plural(overview.index_blocks, "block")} in the prefix index`,
    ...overview.others.map((other) => `also router ${other.id}, heard ${age(other.heard_s)} ago`),
  ];
  return parts.join("; ");
}

const connection = new Connection();
const detail = new Detail();
const shown = [new Now(), new Pools(), new Classes(), new Events(), new Chat()];
const flow = new Flow();
const plan = new Plan();
const requests = new Requests(open);

function open(id) {
  location.hash = `#request/${encodeURIComponent(id)}`;
}

function route() {
  if (location.hash.startsWith("#request/")) detail.open(decoded(location.hash.slice(9)));
  else if (detail.dialog.open) detail.dialog.close();
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody typed a %
  }
}

function quietly() {} // the overview, asked for more often, says that the router is away

function noPlan(error) {
  if (error.status) plan.update({ plan: null, error: error.message });
}

window.addEventListener("hashchange", route);
follow("api/overview", 1000, (overview) => {
  for (const part of shown) part.update(overview);
  flow.update(overview);
  plan.at(overview);
  connection.got(overview);
}, (error) => connection.failed(error));
follow("api/requests", 2000, (answer) => requests.update(answer), quietly);
follow("api/tickets", 2000, (answer) => flow.updateTickets(answer), quietly);
follow("api/plan", 3000, (answer) => plan.update(answer), noPlan);
attribute(document.documentElement, "data-ready", "");
route();
