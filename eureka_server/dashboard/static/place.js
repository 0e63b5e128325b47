// What more than one part of the page knows, and how a part has the page do something.

/** Who looks, how the server is, and the revision of the first list that was shown. */
export const state = { account: null, namespaces: [], status: null, findings: null, revision: null };

/** What the page does for its parts; `page.js` fills it in. */
export const page = {
  /** Show what stands in the URL again. */
  refresh() {},
  /** Go to a URL of the page. */
  go() {},
  /** Begin anew as somebody else. */
  begin() {},
};

/** The URL of a place, relative to the page. */
export function to(wanted) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(wanted)) {
    if (value) query.set(name, value);
  }
  const text = query.toString();
  return text ? `./?${text}` : './';
}
