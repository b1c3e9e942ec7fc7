// Numbers and times as the page writes them.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${(share * 100).toFixed(digits)} %`);
export const count = (number) => (number === null || number === undefined ? "–" : number.toLocaleString("en"));

/** "1 prompt", "2 prompts". */
export const many = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Three significant digits, without powers of ten where they can be avoided. */
export function figure(number) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  if (typeof number !== "number") return String(number);
  if (Number.isInteger(number)) return count(number);
  const size = Math.abs(number);
  return size >= 0.001 && size < 1e6 ? String(Number(number.toPrecision(size >= 1000 ? 5 : 3))) : number.toExponential(2);
}

/** Nats per token, all with as many digits so that columns can be compared. */
export const loss = (nats) => (typeof nats === "number" ? nats.toFixed(3) : "–");

/** A p or q value. */
export const probability = (value) => (typeof value === "number" && value < 0.001 ? "< .001" : figure(value));

export const signed = (number) => (number > 0 ? `+${figure(number)}` : figure(number));

export function bytes(number) {
  if (number === null || number === undefined) return "–";
  let size = number;
  let unit = 0;
  while (size >= 1000 && unit < UNITS.length - 1) [size, unit] = [size / 1000, unit + 1];
  return `${unit ? size.toFixed(size < 10 ? 1 : 0) : size} ${UNITS[unit]}`;
}

/** "3 min" for seconds. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86_400)} days`;
}

/** "3 min ago" for an ISO time. */
export function ago(time) {
  if (!time) return "–";
  const seconds = (Date.now() - new Date(time)) / 1000;
  return seconds < 5 ? "just now" : `${duration(Math.round(seconds))} ago`;
}

export const dateTime = (time) => (time ? new Date(time).toLocaleString("sv").slice(0, 16) : "–");
