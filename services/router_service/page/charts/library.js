// Observable Plot and d3, fetched with the first figure: half a megabyte that the first view does without.
let fetched = null;

/** {Plot, d3}; both are written to put themselves into the window. */
export function library() {
  fetched ??= (async () => {
    await import("../vendor/d3.min.js");
    await import("../vendor/plot.umd.min.js");
    return { Plot: globalThis.Plot, d3: globalThis.d3 };
  })();
  return fetched;
}
