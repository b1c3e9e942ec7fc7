// Colours of experts, from the palette that reports in Matplotlib use too (services/shared/palette.py).
import { CATEGORICAL, NEUTRAL } from "./palette.js";

const BASE = "base";

/**
 * Name to {colour, isRepeated}: by the order of the names, the base model neutral. Beyond the palette's colours they
 * repeat, and `isRepeated` says that something else must tell two experts apart.
 */
export function expertColours(names) {
  const experts = names.filter((name) => name !== BASE);
  const colours = experts.map((name, index) => [name, { colour: CATEGORICAL[index % CATEGORICAL.length], isRepeated: index >= CATEGORICAL.length }]);
  return new Map([...colours, [BASE, { colour: NEUTRAL, isRepeated: false }]]);
}

/** The colour of a mixture: the mean of the experts' colours by weight, in linear light as lights mix. */
export function mixed(weights, colours) {
  const sum = [0, 0, 0];
  let total = 0;
  for (const [name, weight] of Object.entries(weights)) {
    const parts = channels(colours.get(name)?.colour ?? NEUTRAL);
    parts.forEach((part, index) => { sum[index] += weight * part ** 2.2; });
    total += weight;
  }
  if (!total) return NEUTRAL;
  return `rgb(${sum.map((part) => Math.round(255 * (part / total) ** (1 / 2.2))).join(" ")})`;
}

function channels(colour) {
  const number = parseInt(colour.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255].map((part) => part / 255);
}
