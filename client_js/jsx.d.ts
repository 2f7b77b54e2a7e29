/** The elements in JSX, for React 19, which sets `client` and `job` as properties. */

import type { DetailedHTMLProps, HTMLAttributes } from "react";
import type { GatewayClient } from "./client.js";
import type { OutlastJob, OutlastProgress, OutlastText } from "./elements.js";
import type { JobEvent } from "./protocol.js";
import type { TransportName } from "./transports.js";

type Props<Element extends HTMLElement, Own> = DetailedHTMLProps<HTMLAttributes<Element>, Element> & Partial<Own>;

interface JobProps {
  /** The id of the job to follow. */
  job: string | undefined;
  /** The gateway's address, if it is another than the page's. */
  base: string | undefined;
  transport: TransportName | undefined;
  /** A client of your own, such as one with a key. */
  client: GatewayClient | undefined;
  /** Called with every event of the job. */
  "onoutlast-event": ((event: CustomEvent<JobEvent>) => void) | undefined;
}

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "outlast-job": Props<OutlastJob, JobProps>;
      "outlast-progress": Props<OutlastProgress, Record<"value" | "max", number | undefined> & { text: string | undefined }>;
      "outlast-text": Props<OutlastText, { channel: string | undefined }>;
    }
  }
}
