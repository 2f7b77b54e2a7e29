/** The elements' names and events, which JSDoc can't declare. */

import type { OutlastJob, OutlastProgress, OutlastText } from "./elements.js";
import type { JobEvent } from "./protocol.js";

declare global {
  interface HTMLElementTagNameMap {
    "outlast-job": OutlastJob;
    "outlast-progress": OutlastProgress;
    "outlast-text": OutlastText;
  }

  interface HTMLElementEventMap {
    /** Every event of an `outlast-job`. */
    "outlast-event": CustomEvent<JobEvent>;
  }
}
