// One instance: everything that is known of it, why it is as it is, and what happened to it.

import { Refusal, ask, askIfThere, below } from './api.js';
import { h, outside } from './dom.js';
import { exact, span, ticking } from './format.js';
import { historyList } from './history.js';
import { lease, overrideEntry, overrideOf, status, text } from './lists.js';
import { state, to } from './place.js';

const FIELDS = [
  'service_name', 'status', 'override', 'zone', 'address', 'host', 'source', 'vips', 'secure_vips',
  'metadata', 'tags', 'ttl', 'last_heartbeat', 'expires', 'revision', 'app', 'renewal_interval',
  'registered', 'changed', 'urls',
].join(',');
const LINKS = { home: 'Home page', status: 'Status page', health: 'Health check', secure_health: 'Secure health check' };

/** The instance that the place names, or what is remembered of it once it is gone. */
export async function instanceView(place, signal) {
  const path = below('instances', place.id);
  const query = { service_name: place.app };
  const [found, why, past] = await Promise.all([
    shown(path, { ...query, fields: FIELDS }, signal),
    askIfThere(`${path}/why`, { query, signal }),
    askIfThere(`${path}/history`, { query: { ...query, limit: 100 }, signal }),
  ]);
  const back = h('p', { class: 'back' }, place.app
    ? h('a', { 'data-go': true, href: to({ app: place.app }) }, `All instances of ${place.app}`)
    : h('a', { 'data-go': true, href: to({ view: 'instances' }) }, 'All instances'));
  const title = h('div', { class: 'title' }, h('h1', {}, place.id),
    found ? status(found.status) : h('span', { class: 'status', 'data-status': 'GONE' }, 'not listed'));
  const reason = why ? h('p', { class: 'why' }, why.why) : null;
  const history = past ? section('History', historyList(past.entries, { isOne: true })) : null;
  if (!found) return [back, title, reason ?? h('p', { class: 'empty' }, 'No instance of this id is registered.'), history];
  state.revision ??= found.revision;
  const entry = found.override ? await overrideEntry(found, signal) : null;
  return [
    back, title, reason,
    state.account?.may_write ? actions(found) : null,
    h('div', { class: 'columns' },
      h('div', {},
        section('Registration', facts([
          ['Application', h('a', { 'data-go': true, href: to({ app: found.service_name }) }, found.service_name)],
          ['Status', [status(found.status), found.override ? overrideOf(found, entry) : null]],
          ['Endpoint', `${found.endpoint.value} (${found.endpoint.type})`],
          ['Address', found.address],
          ['Host', found.host],
          ['Zone', found.zone ?? 'none'],
          ['VIPs', [...found.vips].join(', ') || 'none'],
          found.secure_vips.length ? ['Secure VIPs', found.secure_vips.join(', ')] : null,
          found.tags.length ? ['Tags', found.tags.join(', ')] : null,
          ['Source', found.source],
        ])),
        links(found.urls)),
      h('div', {},
        section('Lease', facts([
          ['Lease', lease(found)],
          found.expires ? ['Length', `${span(found.ttl)}, renewed every ${span(found.renewal_interval)} by its own word`] : null,
          ['Registered', ticking(found.registered, exact(found.registered), '* ago')],
          ['Last change', [ticking(found.changed, exact(found.changed), '* ago'), ` (revision ${found.revision})`]],
        ])),
        metadata(found))),
    history,
    raw(found),
  ];
}

async function shown(path, query, signal) {
  try {
    return await ask(path, { query, signal });
  } catch (error) {
    if (error instanceof Refusal && error.status === 410) return null;
    throw error;
  }
}

function section(title, ...nodes) {
  return h('section', { 'data-key': title }, h('h2', {}, title), nodes);
}

function facts(rows) {
  return h('dl', { class: 'facts' }, rows.filter(Boolean).map(([name, ...value]) =>
    h('div', { 'data-key': name }, h('dt', {}, name), h('dd', {}, value))));
}

function links(urls) {
  const found = Object.entries(urls);
  if (!found.length) return null;
  return section('Links', h('ul', { class: 'plain' }, found.map(([name, url]) =>
    h('li', {}, h('span', { class: 'dim' }, `${LINKS[name] ?? name}: `), outside(url)))));
}

function actions(found) {
  const button = (name, label, more = {}) => h('button', {
    type: 'button', 'data-do': name, 'data-id': found.id, 'data-app': found.service_name,
    'data-status': found.status, 'data-override': found.override ?? '', ...more,
  }, label);
  if (!['eureka', 'native'].includes(found.source)) {
    return h('p', { class: 'dim' }, `It is listed by ${found.source}, where it can be changed or removed.`);
  }
  return h('div', { class: 'actions', role: 'group', 'aria-label': 'What can be done', 'data-key': 'actions' },
    found.override === 'OUT_OF_SERVICE' ? null : button('out', 'Take out of service'),
    found.override ? button('back', 'Back in service') : null,
    button('drain', 'Drain'),
    button('metadata', 'Change metadata', { 'data-metadata': JSON.stringify(found.metadata) }),
    button('remove', 'Remove', { class: 'danger' }));
}

function metadata(found) {
  const told = found.metadata;
  const isObject = typeof told === 'object' && told !== null && !Array.isArray(told);
  const rows = isObject ? Object.entries(told) : [['metadata', told]];
  return section('Metadata', rows.length
    ? h('dl', { class: 'facts entries' }, rows.map(([name, value]) =>
      h('div', {}, h('dt', {}, name), h('dd', {}, text(value)))))
    : h('p', { class: 'dim' }, 'none'));
}

function raw(found) {
  return h('details', { 'data-key': 'raw' }, h('summary', {}, 'All of it as JSON'),
    h('pre', { tabindex: '0' }, JSON.stringify(found, null, 2)));
}
