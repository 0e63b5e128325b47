// What happened, in words.

import { breakable, h } from './dom.js';
import { exact, ticking } from './format.js';
import { to } from './place.js';

export const KINDS = {
  registered: 'Registered',
  changed: 'Changed',
  metadata: 'Metadata changed',
  override: 'Override set',
  'override-removed': 'Override removed',
  cancelled: 'Cancelled',
  evicted: 'Evicted',
  'expired-but-kept': 'Expired, but kept',
  'preservation-entered': 'Self-preservation began',
  'preservation-left': 'Self-preservation ended',
  'budget-reached': 'Eviction limit reached',
  'loss-accepted': 'Loss accepted',
  drained: 'Drained',
};

/** Entries of the history, newest first; those of one instance need not name it. */
export function historyList(entries, { isOne = false } = {}) {
  if (!entries.length) return h('p', { class: 'empty' }, 'Nothing is remembered.');
  return h('ol', { class: 'history' }, entries.map((entry, at) =>
    h('li', { 'data-kind': entry.kind, 'data-key': `${entry.revision}/${entry.at}/${entry.id}/${entry.kind}/${at}` },
      h('span', { class: 'when' }, ticking(entry.at, exact(entry.at), '* ago')),
      h('span', { class: 'what' }, KINDS[entry.kind] ?? entry.kind),
      isOne || !entry.id ? null : h('a', { class: 'name', 'data-go': true, href: to({ app: entry.service_name, id: entry.id }) }, breakable(entry.id)),
      isOne || !entry.service_name ? null : h('span', { class: 'dim' }, entry.service_name),
      details(entry))));
}

function details(entry) {
  const told = [
    ...Object.entries(entry.detail ?? {}).map(([name, value]) =>
      `${name.replaceAll('_', ' ')}: ${typeof value === 'string' ? value : JSON.stringify(value)}`),
    entry.rule ? `rule: ${entry.rule}` : null,
    who(entry.by),
  ].filter(Boolean);
  return told.length ? h('span', { class: 'detail' }, told.join(' · ')) : null;
}

function who(by) {
  if (!by) return null;
  const named = by.account ? `${by.account} at ${by.address}` : by.address;
  return [named ? `by ${named}` : null, by.client || null].filter(Boolean).join(', ');
}
