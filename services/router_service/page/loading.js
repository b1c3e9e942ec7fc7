// What a view knows of the API while it waits, when it has it, and when it cannot get it.
import { onKeyGiven } from "./api.js";
import { useCallback, useEffect, useRef, useState } from "./html.js";

/**
 * Ask once, and again whenever `keys` change, `again()` is called or the user gives a key; every `everyMs` if given,
 * but not while nobody looks. What was there stays there while it is asked for again.
 */
export function useLoaded(read, keys, { everyMs = null } = {}) {
  const [state, setState] = useState({ value: null, error: null, isLoading: true });
  const [count, setCount] = useState(0);
  const again = useCallback(() => setCount((before) => before + 1), []);
  const latest = useRef(read);
  latest.current = read;
  useEffect(() => onKeyGiven(again), []);
  useEffect(() => {
    const controller = new AbortController();
    let timer = null;
    const run = async () => {
      if (!document.hidden || !everyMs) {
        try {
          const value = await latest.current(controller.signal);
          if (!controller.signal.aborted) setState({ value, error: null, isLoading: false });
        } catch (error) {
          if (controller.signal.aborted) return;
          setState((before) => ({ value: before.value, error, isLoading: false }));
        }
      }
      if (everyMs && !controller.signal.aborted) timer = setTimeout(run, everyMs);
    };
    run();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [...keys, count]);
  return { ...state, again };
}

/** An action of the user: {run, isRunning, error}; `run` gives what it did, or undefined after an error. */
export function useAction(act) {
  const [state, setState] = useState({ isRunning: false, error: null });
  const latest = useRef(act);
  latest.current = act;
  const run = useCallback(async (...given) => {
    setState({ isRunning: true, error: null });
    try {
      const value = await latest.current(...given);
      setState({ isRunning: false, error: null });
      return value;
    } catch (error) {
      setState({ isRunning: false, error });
      return undefined;
    }
  }, []);
  return { ...state, run, forget: () => setState({ isRunning: false, error: null }) };
}
