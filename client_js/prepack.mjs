/**
 * What a package has beside the modules, made when it is packed: the declarations, each type with the words that stand
 * before it in the source, and the licence. The modules themselves are published as they are.
 *
 * TypeScript leaves the comments of a module's types with the statement that comes after them, if anywhere.
 */

import { execFileSync } from "node:child_process";
import { copyFileSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

const FOLDER = "types";
const COMMENT = /\/\*\*[\s\S]*?\*\/\n?/g;
// What JSDoc can't say is written by hand, and lies beside the modules that refer to it.
const BY_HAND = ["tags.d.ts", "jsx.d.ts"];

rmSync(FOLDER, { recursive: true, force: true });
execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "--project", "types.json"], { stdio: "inherit" });
for (const name of readdirSync(FOLDER)) {
  const file = `${FOLDER}/${name}`;
  const source = readFileSync(name.replace(".d.ts", ".js"), "utf8");
  writeFileSync(file, withItsWords(readFileSync(file, "utf8"), source).replaceAll('path="../', 'path="./'));
}
for (const name of BY_HAND) copyFileSync(name, `${FOLDER}/${name}`);
copyFileSync("../LICENSE", "LICENSE");

/** A declaration file whose types have the comments that they have in the source. @param {string} text @param {string} source */
function withItsWords(text, source) {
  const words = new Map((source.match(COMMENT) ?? []).map(wordsOfType));
  // What is left of them would be read as another statement's. Types are imported below, in TypeScript's own way.
  const rest = text.replace(COMMENT, (comment) => (comment.includes("@typedef") ? "" : comment.replace(/( \*\n)?( \* @import .*\n)+/, "")));
  return rest.replace(/^export type (\w+)/gm, (declared, name) => (words.get(name) ?? "") + declared);
}

/** The type that a comment declares, if it does, and the comment without that. @param {string} comment @returns {[string, string]} */
function wordsOfType(comment) {
  const [before = "", typedef = ""] = comment.split(/(?: \* @template .*\n)* \* @typedef /);
  let [at, depth] = [0, 0];
  do {
    if (typedef[at] === "{") depth += 1;
    if (typedef[at] === "}") depth -= 1;
    at += 1;
  } while (depth > 0 && at < typedef.length);
  return [/^\s*\**\s*(\w+)/.exec(typedef.slice(at))?.[1] ?? "", `${before} */\n`];
}
