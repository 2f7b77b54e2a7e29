/** The package as it is published: its declarations, met by a strict TypeScript project that installed it. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

const SOURCE = fileURLToPath(new URL("..", import.meta.url));
const MODULES = join(SOURCE, "node_modules");
const STRICT = { strict: true, noUncheckedIndexedAccess: true, exactOptionalPropertyTypes: true, skipLibCheck: false, noEmit: true };

let folder = "";
before(() => {
  folder = mkdtempSync(join(tmpdir(), "outlast-client-"));
  // A copy, since packing leaves declarations behind.
  const copy = join(folder, "client_js");
  cpSync(SOURCE, copy, { recursive: true, filter: (path) => !/[\\/](node_modules|types|tests)$/.test(path) });
  cpSync(join(SOURCE, "..", "LICENSE"), join(folder, "LICENSE"));
  symlinkSync(MODULES, join(copy, "node_modules"), "junction");
  npm(["pack", "--pack-destination", folder], copy);
  const packed = readdirSync(folder).find((name) => name.endsWith(".tgz")) ?? "";

  mkdirSync(join(folder, "project"));
  writeFileSync(join(folder, "project", "package.json"), JSON.stringify({ name: "project", private: true, type: "module" }));
  npm(["install", "--offline", "--no-audit", "--no-fund", join(folder, packed)], join(folder, "project"));
  cpSync(join(SOURCE, "tests", "typed"), join(folder, "project", "src"), { recursive: true });
  for (const [name, text] of Object.entries(told())) writeFileSync(join(folder, "project", "src", name), text);
  mkdirSync(join(folder, "project", "node_modules", "@types"));
  for (const name of ["@types/react", "@types/node"]) symlinkSync(join(MODULES, name), join(folder, "project", "node_modules", name), "junction");
});
after(() => rmSync(folder, { recursive: true, force: true }));

/** @param {string[]} words @param {string} cwd */
function npm(words, cwd) {
  // The test may itself be run by npm, whose settings are in the environment.
  const clean = Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name));
  return execFileSync("npm", words, { cwd, encoding: "utf8", env: Object.fromEntries(clean), stdio: ["ignore", "pipe", "pipe"], shell: process.platform === "win32" });
}

/** The TypeScript of the README. */
function told() {
  const page = readFileSync(join(SOURCE, "README.md"), "utf8");
  /** @param {RegExp} block */
  const one = (block) => block.exec(page)?.[1] ?? "";
  return { "readme.ts": one(/## Types[\s\S]*?```ts\n([\s\S]*?)```/), "readme.tsx": one(/## React[\s\S]*?```tsx\n([\s\S]*?)```/) };
}

/** What TypeScript has to say of the project. @param {Record<string, unknown>} options @param {string[]} files */
function complaints(options, files) {
  const project = join(folder, "project");
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions: { ...STRICT, types: [], ...options }, files }));
  try {
    execFileSync(process.execPath, [join(MODULES, "typescript", "bin", "tsc"), "--project", project], { encoding: "utf8" });
    return "";
  } catch (error) {
    return /** @type {{stdout: string}} */ (error).stdout;
  }
}

const DECLARED = () => join(folder, "project", "node_modules", "outlast-client");

for (const [moduleResolution, module] of [["bundler", "esnext"], ["nodenext", "nodenext"]]) {
  test(`a strict project finds every type, and what is wrong is refused: ${moduleResolution}`, () => {
    const options = { module, moduleResolution, target: "es2022", lib: ["es2022", "dom", "dom.iterable", "dom.asynciterable"], jsx: "react-jsx" };

    assert.equal(complaints(options, ["client.ts", "hook.tsx", "readme.ts", "readme.tsx"].map((name) => `src/${name}`)), "");
  });
}

test("a project for Node, which knows no DOM, finds every type that it needs", () => {
  const options = { module: "nodenext", target: "es2022", lib: ["es2022"], types: ["node"] };

  assert.equal(complaints(options, ["src/node.ts"]), "");
});

test("every entry can be imported where there is no page, as a server that renders one does", () => {
  const script = `
    await Promise.all(["", "/sse", "/fold", "/react"].map((entry) => import("outlast-client" + entry)));
    const { defineElements } = await import("outlast-client/elements");
    defineElements();
    console.log(typeof HTMLElement, typeof window);`;

  const said = execFileSync(process.execPath, ["--input-type=module", "--eval", script], { cwd: join(folder, "project"), encoding: "utf8" });

  assert.equal(said, "undefined undefined\n");
});

test("every entry has its declarations, and nothing is packed that is not for users", () => {
  const { exports } = JSON.parse(readFileSync(join(DECLARED(), "package.json"), "utf8"));
  const packed = readdirSync(DECLARED(), { recursive: true }).map(String);

  const entries = Object.values(exports).filter((entry) => typeof entry === "object");
  const missing = entries.flatMap(Object.values).filter((path) => !packed.includes(path.slice("./".length)));

  assert.equal(entries.length, 5);
  assert.deepEqual(missing, []);
  assert.deepEqual(packed.filter((name) => /^page|^tests|\.mjs$|config/.test(name)), []);
  assert.ok(packed.includes("LICENSE"));
});

test("every type that users meet says in words what it is", () => {
  for (const name of ["client", "protocol", "fetch", "subscription", "transports", "react", "sse", "index"]) {
    const text = readFileSync(join(DECLARED(), "types", `${name}.d.ts`), "utf8");
    const silent = [...text.matchAll(/(?<!\*\/)\nexport (?:type|declare class) (\w+)/g)].map(([, type]) => type);

    assert.deepEqual(silent, [], name);
    assert.doesNotMatch(text, /@typedef|@import/, name);
  }
});
