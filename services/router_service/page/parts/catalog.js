// Experts and releases, as several views want them together.
import { list } from "../api.js";
import { expertColours } from "../colours.js";
import { useMemo } from "../html.js";
import { useLoaded } from "../loading.js";

/** {experts, releases, colours, names, again, error}: empty lists until they are there. */
export function useCatalog() {
  const loaded = useLoaded(async (signal) => {
    const [experts, releases] = await Promise.all([list("/experts", { signal }), list("/releases", { most: 200, signal })]);
    return { experts, releases };
  }, []);
  const experts = loaded.value?.experts ?? [];
  const names = experts.map((expert) => expert.name);
  const colours = useMemo(() => expertColours(names), [names.join()]);
  return { ...loaded, experts, releases: loaded.value?.releases ?? [], names, colours };
}
