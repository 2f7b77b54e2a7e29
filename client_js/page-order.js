/**
 * The order of what is compared part by part: a job's pages, the kinds of work. Pure.
 */

/**
 * Which of two comes first, as words do in a dictionary; negative for the first.
 * @template {(number | string)[]} Parts
 * @param {Parts} one
 * @param {Parts} other
 */
export function compareParts(one, other) {
  const at = one.findIndex((part, place) => part !== other[place]);
  if (at < 0) return one.length - other.length;
  return at >= other.length || /** @type {any} */ (one[at]) > /** @type {any} */ (other[at]) ? 1 : -1;
}
