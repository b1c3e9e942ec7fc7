// Server-sent events over fetch: EventSource can neither POST nor carry a key.
import { ask } from "./api.js";

/** How OpenAI's streams end. */
const END = "[DONE]";

/** The JSON of each event of the answer, as it comes; `options` are those of `ask`. */
export async function* eventStream(path, options) {
  const response = await ask(path, { ...options, headers: { accept: "text/event-stream", ...options?.headers } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length && data[0] !== END) yield JSON.parse(data.join("\n"));
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
