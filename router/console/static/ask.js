// What the page asks its router for. Paths are relative: the page may stand behind a proxy's prefix.

const PATIENCE_MS = 5000;

/** The answer's JSON. Throws where there is none; `error.status` is HTTP's, where that was the reason. */
export async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  if (response.ok) return response.json();
  throw await refusal(response);
}

export async function refusal(response) {
  const said = await response.json().catch(() => null);
  const error = new Error(said?.error?.message ?? `HTTP ${response.status}`);
  error.status = response.status;
  return error;
}

/** Asks for `path` every `everyMs` while the page is seen; `got(answer)`, or `failed(error)`. */
export function follow(path, everyMs, got, failed) {
  let timer = null;
  let asking = false;
  async function turn() {
    clearTimeout(timer);
    if (document.hidden || asking) return;
    asking = true;
    const answer = await ask(path).catch((error) => {
      failed(error);
      return null;
    });
    asking = false;
    timer = setTimeout(turn, everyMs);
    if (answer !== null) got(answer);
  }
  document.addEventListener("visibilitychange", turn);
  turn();
}
