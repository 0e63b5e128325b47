// How the server is, in a few figures; what somebody should see to, in sentences.

import { askIfThere } from './api.js';
import { h, show } from './dom.js';
import { bytes, count, plural, span, ticking } from './format.js';
import { status } from './lists.js';
import { state, to } from './place.js';

/** Show the head in its place, as of now; nothing where the server does not tell. */
export async function head(container) {
  let told = null;
  try {
    told = await askIfThere('status');
  } catch { /* the list below says what is wrong */ }
  if (!told) return;
  state.status = told;
  show(container, warnings(told), figures(told));
}

function warnings(told) {
  const { self_preservation: kept } = told;
  const texts = told.warnings.filter((text) => text !== kept?.sentence);
  if (kept?.active) texts.unshift(null);
  if (!texts.length) return null;
  return h('ul', { class: 'warnings', 'aria-label': 'To be seen to' }, texts.map((text) => (text === null
    ? h('li', { 'data-key': 'self-preservation' }, h('span', {}, kept.sentence),
      state.account?.may_write ? h('button', { type: 'button', 'data-do': 'accept-loss' }, 'Accept the loss') : null)
    : h('li', { 'data-key': text }, text))));
}

function figures(told) {
  const { total, ...statuses } = told.instances;
  const present = Object.entries(statuses).filter(([, many]) => many);
  const { renewals, self_preservation: kept, store, peers, catalogs } = told;
  return h('dl', { class: 'figures', 'aria-label': 'The server' },
    figure('Instances', count(total), h('span', { class: 'counts' }, present.map(([word, many]) =>
      h('a', { class: 'pair', 'data-go': true, href: to({ view: 'instances', q: `status=${word}` }) }, status(word), ` ${count(many)}`)))),
    figure('Applications', count(told.applications)),
    renewals ? figure('Renewals in the last minute', count(renewals.last_minute),
      `expected ${count(renewals.expected)}, threshold ${count(renewals.threshold)}`) : null,
    kept ? figure('Self-preservation', kept.mode === 'off' ? 'off' : kept.active ? 'active' : 'not active',
      kept.active ? (kept.since ? ticking(kept.since, 'since now', 'for *') : null) : kept.sentence, 'wide') : null,
    figure('Revision', count(told.revision)),
    figure('Workers', count(told.workers), `up ${span(told.uptime_ms / 1000)}`),
    store ? figure('Store', store.url.split(':')[0], store.size_bytes === null ? null : bytes(store.size_bytes)) : null,
    peers ? figure('Peers', `${peers.peers.filter((each) => each.state === 'up').length} of ${peers.peers.length} up`, peers.mode === 'shadow' ? 'shadow: nothing is sent' : null) : null,
    catalogs.length ? figure('Catalogs', plural(catalogs.length, 'catalog'),
      `${count(catalogs.reduce((sum, each) => sum + each.entries, 0))} entries`) : null);
}

function figure(name, value, more = null, kind = null) {
  return h('div', { 'data-key': name, class: kind }, h('dt', {}, name), h('dd', { class: 'value' }, value), more ? h('dd', { class: 'more' }, more) : null);
}
