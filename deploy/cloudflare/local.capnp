# The Worker on this machine, in Cloudflare's own runtime:
#   GATEWAY=http://127.0.0.1:8080 ROUTES="/v1/ /v1/" ORIGIN=http://127.0.0.1:8000 npx workerd serve local.capnp
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "outlast", worker = .outlast),
    # Servers on this machine have private addresses.
    (name = "network", network = (allow = ["private", "public"], tlsOptions = (trustBrowserCas = true))),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8787", http = (), service = "outlast")],
);

const outlast :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2026-11-01",
  globalOutbound = "network",
  bindings = [
    (name = "GATEWAY", fromEnvironment = "GATEWAY"),
    (name = "ROUTES", fromEnvironment = "ROUTES"),
    (name = "ORIGIN", fromEnvironment = "ORIGIN"),
  ],
);
