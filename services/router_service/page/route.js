// Where the user is: the part of the address behind "#", so that every view can be linked to and gone back to.
import { useEffect, useState } from "./html.js";

/** `#/jobs/job-1?kind=expert` as {parts: ["jobs", "job-1"], query: URLSearchParams}. */
function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

/** An address that somebody has cut short may end within an escape. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** The address of a view. */
export function linkTo(parts, query = {}) {
  const set = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  const text = set.toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

export const goTo = (parts, query) => { location.hash = linkTo(parts, query); };

/** Change some of the query without a step in the history; the view is the same. */
export function refine(changes) {
  const { parts, query } = read();
  history.replaceState(null, "", linkTo(parts, { ...Object.fromEntries(query), ...changes }));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useRoute() {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const changed = () => setRoute(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
