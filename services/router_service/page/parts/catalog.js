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
  // In the order of their coming, so that a newcomer changes no other's colour.
  const names = [...experts].sort((a, b) => a.created_at.localeCompare(b.created_at) || a.name.localeCompare(b.name)).map((expert) => expert.name);
  const colours = useMemo(() => expertColours(names), [names.join()]);
  return { ...loaded, experts, releases: loaded.value?.releases ?? [], names, colours };
}
