/**
 * A Worker in front of a site whose slow routes an Outlast gateway answers; everything else goes on as before.
 *
 * It holds nothing and reads nothing: bodies stream both ways, WebSockets are passed on, and the client's leaving ends the
 * request behind it. Two variables say what goes where (wrangler.toml):
 *
 *   GATEWAY   https://jobs.example.com, the gateway's own address
 *   ROUTES    a line for each route: the path here, and the path there. A path that ends with a slash stands for all
 *             below it: "/v1/ /v1/" and "/api/report /api/report".
 *   ORIGIN    where everything else goes; not set: to the zone's own origin, as if there were no Worker.
 *
 * @typedef {{ GATEWAY: string, ROUTES: string, ORIGIN?: string }} Env
 */

/** @type {{ fetch(request: Request, env: Env): Promise<Response> }} */
export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    const path = gatewayPath(url.pathname, env.ROUTES);
    if (path === undefined) {
      return fetch(env.ORIGIN ? elsewhere(request, env.ORIGIN, url.pathname + url.search) : request);
    }
    try {
      return await fetch(elsewhere(request, env.GATEWAY, path + url.search, url));
    } catch {
      return unreachable();
    }
  },
};

/** @type {{ text: string, routes: [string, string][] }} */
let parsed = { text: "", routes: [] };

/**
 * The gateway's path for one of ours, or undefined where it is not the gateway's.
 *
 * @param {string} path
 * @param {string} text
 */
export function gatewayPath(path, text) {
  if (parsed.text !== text) {
    // Once for each isolate, not for each request.
    parsed = { text, routes: parseRoutes(text) };
  }
  for (const [here, there] of parsed.routes) {
    if (here === path) return there;
    if (here.endsWith("/") && path.startsWith(here)) return there + path.slice(here.length);
  }
  return undefined;
}

/**
 * @param {string} text
 * @returns {[string, string][]}
 */
function parseRoutes(text) {
  return text
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter(([here]) => here)
    .map(([here, there, ...rest]) => {
      if (!here.startsWith("/") || !there?.startsWith("/") || rest.length || here.endsWith("/") !== there.endsWith("/")) {
        throw new Error(`ROUTES: write "/path/here /path/there", both with a slash at their end or both without: ${here}`);
      }
      return /** @type {[string, string]} */ ([here, there]);
    });
}

/**
 * The same request to another server; its body is not touched, and no redirect is followed on the client's behalf.
 *
 * @param {Request} request
 * @param {string} base
 * @param {string} path
 * @param {URL} [asked] what the client asked for, where the other server should know it
 */
function elsewhere(request, base, path, asked) {
  const moved = new Request(new URL(path, base), new Request(request, { redirect: "manual" }));
  if (asked) {
    moved.headers.set("X-Forwarded-Host", asked.host);
  }
  return moved;
}

/** Said with 503: an edge replaces the bodies of 502 and 504. Our clients come back by themselves. */
function unreachable() {
  const problem = {
    type: "about:blank",
    title: "The gateway can't be reached",
    status: 503,
    code: "gateway_unreachable",
    detail: "The gateway behind this route does not answer; send the request again, with the same Idempotency-Key.",
  };
  return new Response(JSON.stringify(problem), {
    status: 503,
    headers: { "Content-Type": "application/problem+json", "Cache-Control": "no-store", "Retry-After": "2" },
  });
}
