// How the server is, in a few figures; what somebody should see to, in sentences.

import { askIfThere } from './api.js';
import { h, show } from './dom.js';
import { bytes, count, plural, span } from './format.js';
import { bySeverity, status } from './lists.js';
import { state, to } from './place.js';

const MOST_APPLICATIONS = 10;
// Characters of a warning that is shown whole everywhere.
const SHORT = 140;

/** Ask how the server is; what it told before stays where it does not tell. */
export async function askHead() {
  try {
    state.status = await askIfThere('status') ?? state.status;
  } catch { /* the view below says what is wrong */ }
}

/** Show in a container what was told last: all of it, or the warnings alone. */
export function showHead(container, isWhole) {
  const told = state.status;
  if (!told) return;
  show(container, warnings(told, isWhole), isWhole ? [figures(told), quiet(told.self_preservation)] : null);
}

function warnings(told, isWhole) {
  const { self_preservation: kept } = told;
  const others = told.warnings.filter((text) => text !== kept?.sentence);
  const rows = others.map((text) => ({ key: text, text }));
  if (kept?.active) rows.unshift({ key: 'self-preservation', text: kept.sentence, action: acceptance(kept) });
  if (!rows.length) return null;
  return h('ul', { class: 'warnings', 'aria-label': 'To be seen to' }, rows.map(({ key, text, action }) => {
    if (!action && text.length < SHORT) return h('li', { 'data-key': key }, text);
    // On other views, and on a phone, its beginning is enough until somebody wants more.
    const end = text.search(/[:.;](\s|$)/);
    return h('li', { 'data-key': key }, h('details', { open: isWhole && innerWidth > 700 },
      h('summary', {}, end > 0 ? text.slice(0, end) : text),
      h('div', {}, h('p', {}, text), action)));
  }));
}

/** What lets the expired go: of each application where they are kept so, or of all. */
function acceptance({ applications }) {
  if (!state.account?.may_write) return null;
  const shown = applications.slice(0, MOST_APPLICATIONS);
  if (!shown.length) return h('button', { type: 'button', 'data-do': 'accept-loss' }, 'Accept the loss');
  return h('ul', { class: 'plain' }, shown.map(({ application, ended }) =>
    h('li', { 'data-key': application }, `${application}: ${plural(ended, 'instance')} kept. `,
      h('button', { type: 'button', 'data-do': 'accept-loss', 'data-app': application.toLowerCase() }, 'Accept the loss'))));
}

function figures(told) {
  const { total, ...statuses } = told.instances;
  const present = bySeverity(statuses).filter(([, many]) => many);
  const { renewals, store, peers, catalogs } = told;
  return h('dl', { class: 'figures', 'aria-label': 'The server' },
    figure('Instances', count(total), h('span', { class: 'counts' }, present.map(([word, many]) =>
      h('a', { class: 'pair', 'data-go': true, href: to({ view: 'instances', q: `status=${word}` }) }, status(word), ` ${count(many)}`))), 'wide'),
    figure('Applications', count(told.applications)),
    renewals ? figure('Renewals a minute', count(renewals.last_minute),
      `of ${count(renewals.expected)}; threshold ${count(renewals.threshold)}`) : null,
    figure('Uptime', span(told.uptime_ms / 1000), [plural(told.workers, 'worker'), told.version === 'unknown' ? null : `, version ${told.version}`]),
    figure('Revision', h('span', { class: 'long' }, String(told.revision))),
    store ? figure('Store', store.url.split(':')[0], store.size_bytes === null ? null : bytes(store.size_bytes)) : null,
    peers ? figure('Peers', `${peers.peers.filter((each) => each.state === 'up').length} of ${peers.peers.length} up`, peers.mode === 'shadow' ? 'shadow: nothing is sent' : null) : null,
    catalogs.length ? figure('Catalogs', plural(catalogs.length, 'catalog'),
      plural(catalogs.reduce((sum, each) => sum + each.entries, 0), 'entry', 'entries')) : null);
}

/** Self-preservation, while there is nothing to be done about it. */
function quiet(kept) {
  return kept && !kept.active ? h('p', { class: 'sentence' }, kept.sentence) : null;
}

function figure(name, value, more = null, kind = null) {
  return h('div', { 'data-key': name, class: kind }, h('dt', {}, name), h('dd', { class: 'value' }, value), more ? h('dd', { class: 'more' }, more) : null);
}
