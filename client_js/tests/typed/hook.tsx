/** A component with a typed result, and the elements in JSX. */

import * as React from "react";
import { GatewayClient } from "outlast-client";
import { defineElements, type OutlastJob } from "outlast-client/elements";
import { createUseJob, type JobView } from "outlast-client/react";

interface Words {
  words: number;
}
interface Line {
  line: string;
}

const useJob = createUseJob(React);
const client = new GatewayClient("http://127.0.0.1:8080");

export function Count({ id, snapshot }: { id: string | null; snapshot?: boolean }) {
  const job = useJob<Words, Line>(client, id, { snapshot });
  const untyped = useJob(client, id);
  const element = React.useRef<OutlastJob>(null);
  React.useEffect(() => defineElements(), []);
  if (!job) return null;
  // @ts-expect-error: nobody said what this job returns
  console.log(untyped?.result.words);
  // @ts-expect-error: the result has no such member
  console.log(job.result?.letters);
  return (
    <>
      <progress value={job.progress?.current} max={job.progress?.total ?? undefined} />
      <p>{job.problem?.detail ?? job.state}: {job.result?.words.toFixed()}</p>
      {job.outputs.map(({ data }) => <p key={data.index}>{data.value?.line}</p>)}
      <outlast-job ref={element} job={job.id} client={client} onoutlast-event={({ detail }) => console.log(detail.type)}>
        <outlast-progress className="bar" />
        <outlast-text channel="text" />
      </outlast-job>
      {/* @ts-expect-error: there is no such transport */}
      <outlast-job transport="polling" />
    </>
  );
}

export const wordsOf = (view: JobView<Words>): number => view.result?.words ?? 0;

export function listen(): void {
  const job = document.querySelector("outlast-job");
  job?.addEventListener("outlast-event", ({ detail }) => {
    if (detail.type === "delta") console.log(detail.data.text);
  });
  job?.addEventListener("progress", ({ loaded, total }) => console.log(loaded / total));
  if (job) job.client = client;
  // @ts-expect-error: a client is no address
  if (job) job.client = "http://127.0.0.1:8080";
}
