// What happened to replicas lately.

import { bodyOf, h, keyed } from "./dom.js";
import { scroll } from "./flow.js";
import { clock } from "./units.js";

export class Events {
  constructor() {
    this.list = h("ol", { class: "events" });
    bodyOf("events").append(scroll("Events", this.list));
  }

  update(overview) {
    keyed(
      this.list,
      overview.events,
      (event) => `${overview.started} ${event.number}`,
      (event) => h("li", {}, h("time", {}, clock(event.at)), " ", h("strong", {}, event.replica), ` ${event.what}`),
      () => {},
    );
  }
}
