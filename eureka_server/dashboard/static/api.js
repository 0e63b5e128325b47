// What the page asks of the registry, in whose name, and how it hears of changes.

const ROOT = new URL(
  `${document.querySelector('meta[name=registry]').content}api/v1/`, location.href.split('?')[0]);
const COOKIE = 'registry-page';
const CREDENTIALS = 'registry credentials';
const NAMESPACE = 'registry namespace';

/** An answer that is a refusal: its status, and in words what is wrong. */
export class Refusal extends Error {
  constructor(status, detail, challenge) {
    super(detail);
    this.status = status;
    this.challenge = challenge;
  }
}

let ahead = 0;

/** What the registry's clock shows, in epoch milliseconds: a browser's may be wrong. */
export const serverNow = () => Date.now() + ahead;

// Who asks. It is kept for this tab alone, and only if it was typed in here; what the browser
// itself asked for (Basic) it sends by itself.

export const account = {
  get credentials() { return sessionStorage.getItem(CREDENTIALS); },
  get namespace() { return sessionStorage.getItem(NAMESPACE); },
  signIn(credentials, namespace) {
    for (const [name, value] of [[CREDENTIALS, credentials], [NAMESPACE, namespace]]) {
      if (value) sessionStorage.setItem(name, value);
      else sessionStorage.removeItem(name);
    }
  },
};

function fields(method, more) {
  // With the second field a refusal does not make the browser ask for a name and a password: the
  // page does it, in one way for all kinds of accounts.
  const found = { Accept: 'application/json', 'X-Requested-With': 'XMLHttpRequest', ...more };
  if (account.credentials) found.Authorization = account.credentials;
  if (account.namespace) found['Registry-Namespace'] = account.namespace;
  // A page of another site can neither read the cookie nor send the field.
  if (method !== 'GET') found['X-Registry-Page'] = token();
  return found;
}

function token() {
  const kept = document.cookie.split('; ').find((each) => each.startsWith(`${COOKIE}=`));
  if (kept) return kept.slice(COOKIE.length + 1);
  const made = [...crypto.getRandomValues(new Uint8Array(18))]
    .map((each) => each.toString(16).padStart(2, '0')).join('');
  const secure = location.protocol === 'https:' ? '; Secure' : '';
  document.cookie = `${COOKIE}=${made}; Path=/; SameSite=Strict${secure}`;
  return document.cookie.includes(made) ? made : '';
}

function address(path, query = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== '') url.searchParams.set(name, value);
  }
  return url;
}

/** A path below the API, each part of it a text of any kind. */
export const below = (...parts) => parts.map(encodeURIComponent).join('/');

/** The answer's document, or null where it has none; throws `Refusal`. */
export async function ask(path, { method = 'GET', query, body, signal } = {}) {
  const more = body === undefined ? {} : { 'Content-Type': 'application/json' };
  const sent = Date.now();
  const answer = await fetch(address(path, query), {
    method,
    headers: fields(method, more),
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: 'no-store',
  });
  const told = Date.parse(answer.headers.get('date'));
  // The field has whole seconds: on the average half of one is cut off.
  const found = told + 500 - (sent + Date.now()) / 2;
  if (Math.abs(found - ahead) > 1500) ahead = found;
  if (!answer.ok) throw await refusal(answer);
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

/** As `ask`, but null where the registry has no such thing, or not for this account. */
export async function askIfThere(path, options) {
  try {
    return await ask(path, options);
  } catch (error) {
    if (error instanceof Refusal && [403, 404, 405, 410].includes(error.status)) return null;
    throw error;
  }
}

async function refusal(answer) {
  let detail = '';
  try {
    const told = await answer.json();
    detail = told.detail ?? '';
    for (const { field, message } of told.errors ?? []) {
      if (!detail.includes(message)) detail += ` (${field}: ${message})`;
    }
  } catch { /* most refusals of the protocol have no body */ }
  const challenge = answer.headers.get('www-authenticate') ?? '';
  return new Refusal(answer.status, detail || inWords(answer), challenge);
}

function inWords(answer) {
  if (answer.headers.get('x-refused') === 'https') return 'this registry asks for HTTPS';
  return {
    401: 'an account is needed for this',
    403: 'this account may not do that',
    404: 'the registry knows nothing of it',
    429: 'too many passwords at once; try again in a moment',
    503: 'the registry cannot answer just now',
  }[answer.status] ?? `the registry answered ${answer.status}`;
}

/**
 * Follow the changes: `heard` is called for each, and with null where some were missed. `state` is
 * told 'live', 'waiting' (with the reason) or 'refused'. Returns what ends it.
 *
 * A stream that is read by hand, for an `EventSource` cannot name an account.
 */
export function follow(since, heard, state) {
  const ended = new AbortController();
  let known = since;
  (async () => {
    for (let wait = 500; !ended.signal.aborted; wait = Math.min(wait * 2, 15_000)) {
      try {
        const more = { Accept: 'text/event-stream' };
        if (known !== null) more['Last-Event-ID'] = known;
        const answer = await fetch(address('watch', { snapshot: false }), {
          headers: fields('GET', more), signal: ended.signal, cache: 'no-store',
        });
        if (!answer.ok) throw await refusal(answer);
        wait = 500;
        state('live');
        for await (const event of events(answer.body)) {
          if (event.id) known = event.id;
          if (event.event === 'missed') heard(null);
          else if (event.data) heard({ kind: event.event, instance: JSON.parse(event.data) });
        }
      } catch (error) {
        if (ended.signal.aborted) return;
        const isRefused = error instanceof Refusal && [401, 403].includes(error.status);
        state(isRefused ? 'refused' : 'waiting', error.message);
        if (isRefused) return;
      }
      await new Promise((resolve) => { setTimeout(resolve, wait); });
    }
  })();
  return () => ended.abort();
}

/** The events of a stream: their `id`, `event` and `data`, as far as they have them. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const event = {};
      for (const line of block.split('\n')) {
        const colon = line.indexOf(': ');
        if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 2);
      }
      yield event;
    }
  }
}
