// Prometheus' text format, as far as /metrics uses it.

/** {name: [{labels: {…}, value}]}. */
export function readMetrics(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value.replaceAll('\\"', '"')]));
    (found[match[1]] ??= []).push({ labels, value: Number(match[3]) });
  }
  return found;
}

export const total = (metrics, name) => (metrics[name] ?? []).reduce((sum, one) => sum + one.value, 0);

/** The cumulative buckets of a histogram: [[upper bound in seconds, count]], rising. */
export const buckets = (metrics, name) => (metrics[`${name}_bucket`] ?? []).map(({ labels, value }) => [labels.le === "+Inf" ? Infinity : Number(labels.le), value]).sort((a, b) => a[0] - b[0]);

/** The quantile of what was counted between two readings, by linear interpolation in its bucket; null if nothing was. */
export function quantile(share, now, before) {
  const counts = now.map(([bound, value], index) => [bound, value - (before?.[index]?.[1] ?? 0)]);
  const all = counts.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  const wanted = share * all;
  for (let index = 0; index < counts.length; index += 1) {
    const [bound, value] = counts[index];
    if (value < wanted) continue;
    const [low, below] = index ? counts[index - 1] : [0, 0];
    return bound === Infinity ? low : low + ((bound - low) * (wanted - below)) / (value - below || 1);
  }
  return null;
}
