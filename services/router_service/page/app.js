// The page: its head with the way to every view, and the view that the address names.
import { onKeyWanted } from "./api.js";
import { html, render, useEffect, useErrorBoundary, useRef, useState } from "./html.js";
import { KeyDialog } from "./parts/key_dialog.js";
import { Failure } from "./parts/notice.js";
import { useRoute } from "./route.js";
import { Playground } from "./views/playground.js";

// The first view comes with the page; the others when they are asked for.
const VIEWS = {
  playground: { title: "Playground", load: async () => Playground },
  experts: { title: "Experts", load: async () => (await import("./views/experts.js")).Experts },
  jobs: { title: "Jobs", load: async () => (await import("./views/jobs.js")).Jobs },
  analysis: { title: "Analysis", load: async () => (await import("./views/analysis.js")).Analysis },
  graph: { title: "Graph", load: async () => (await import("./views/graph.js")).Graph },
  gaps: { title: "Gaps", load: async () => (await import("./views/gaps.js")).Gaps },
  load: { title: "Load", load: async () => (await import("./views/load.js")).Load },
};

function App() {
  const route = useRoute();
  const [wantsKey, setWantsKey] = useState(false);
  const name = route.parts[0] in VIEWS ? route.parts[0] : "playground";
  useEffect(() => onKeyWanted(() => setWantsKey(true)), []);
  return html`
    <a class="skip" href="#main" onClick=${skipToMain}>Skip to the view</a>
    <header>
      <a class="brand" href="#/playground"><span class="mark" aria-hidden="true"></span>Adaptive MoE</a>
      <nav aria-label="Views">${Object.entries(VIEWS).map(([key, view]) => html`
        <a key=${key} href=${`#/${key}`} aria-current=${key === name ? "page" : null}>${view.title}</a>`)}
      </nav>
      <a class="docs" href="docs">API</a>
    </header>
    <main id="main" tabindex="-1"><${View} key=${name} name=${name} route=${route} /></main>
    ${wantsKey && html`<${KeyDialog} onClose=${() => setWantsKey(false)} />`}`;
}

function View({ name, route }) {
  const [Shown, setShown] = useState(name === "playground" ? () => Playground : null);
  const [failed, setFailed] = useState(null);
  const [bug, forget] = useErrorBoundary((error) => console.error(error));
  const place = useRef(null);
  useEffect(() => {
    document.title = `${VIEWS[name].title} · Adaptive MoE`;
    VIEWS[name].load().then((loaded) => setShown(() => loaded), setFailed);
  }, []);
  useEffect(forget, [route]);
  if (bug || failed) return html`<${Failure} error=${bug ?? failed} />`;
  return Shown ? html`<${Shown} route=${route} />` : html`<p class="quiet waiting" ref=${place}>Loading…</p>`;
}

/** The link's own way would change the address, which is where the view is told. */
function skipToMain(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

render(html`<${App} />`, document.body);
