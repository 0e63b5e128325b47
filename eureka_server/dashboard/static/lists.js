// Applications and instances, searched and page by page.

import { ask, askIfThere, below } from './api.js';
import { breakable, h, table } from './dom.js';
import { count, plural, ticking } from './format.js';
import { state, to } from './place.js';

const LIMIT = 50;
const FIELDS = [
  'service_name', 'status', 'override', 'zone', 'address', 'host', 'source', 'vips', 'secure_vips',
  'metadata', 'tags', 'ttl', 'last_heartbeat', 'expires', 'revision', 'app',
].join(',');
const MOST_ENTRIES = 4;
const HELP = 'app:shop  zone=eu-1  meta.version=2  -status=UP  override:';

/** A status: a shape and a word, so that it does not take colours to tell it. */
export function status(word, more = {}) {
  return h('span', { class: 'status', 'data-status': ORDER.includes(word) ? word : 'OTHER', ...more }, word);
}

const ORDER = ['UP', 'STARTING', 'OUT_OF_SERVICE', 'DOWN', 'UNKNOWN'];

/** Statuses with their numbers, always in the same order; words of one's own come last. */
export function bySeverity(statuses) {
  const place = (word) => (ORDER.includes(word) ? ORDER.indexOf(word) : ORDER.length);
  return Object.entries(statuses).sort(([a], [b]) => place(a) - place(b) || (a < b ? -1 : 1));
}

/** The field for a search, with what can be typed. */
function searchField(place, what) {
  return h('form', { id: 'search', role: 'search', class: 'search', 'data-key': 'search' },
    h('label', { for: 'q' }, `Search ${what}`),
    h('div', { class: 'field' },
      h('input', {
        id: 'q', name: 'q', type: 'search', value: place.q, autocomplete: 'off', spellcheck: 'false',
        maxlength: '500', placeholder: HELP, 'aria-describedby': 'search-help',
      }),
      h('button', { type: 'submit' }, 'Search')),
    h('details', { class: 'help' }, h('summary', {}, 'What can be searched'),
      h('p', { id: 'search-help' },
        'Any text, which may stand in any field. ', h('code', {}, 'zone:eu'), ' for a part of a field, ',
        h('code', {}, 'zone=eu-1'), ' for all of it, ', h('code', {}, 'override:'), ' for any value, ',
        h('code', {}, '-'), ' before a term for what does not answer it. All terms have to be answered. Fields: ',
        ['app', 'id', 'status', 'override', 'zone', 'address', 'host', 'port', 'vip', 'source', 'tag', 'group', 'meta', 'meta.KEY']
          .flatMap((name, at) => [at ? ', ' : '', h('code', {}, name)]), '.')));
}

function pages(place, told) {
  if (!place.after && !told.next) return null;
  return h('nav', { class: 'pages', 'aria-label': 'Pages' },
    place.after ? h('a', { 'data-go': true, href: to({ ...place, after: '' }) }, 'First page') : null,
    told.next ? h('a', { 'data-go': true, href: to({ ...place, after: told.next }) }, 'Next page') : null);
}

function nothing(place) {
  return h('p', { class: 'empty' }, place.q
    ? ['Nothing answers this search. ', h('a', { 'data-go': true, href: to({ ...place, q: '', after: '' }) }, 'Show all')]
    : 'No instance is registered here.');
}

/** All applications, or those with instances that answer the search. */
export async function applicationsView(place, signal) {
  const told = await ask('services', { query: { q: place.q, limit: LIMIT, after: place.after }, signal });
  state.revision ??= told.revision;
  return [
    h('div', { class: 'title' }, h('h1', {}, 'Applications'),
      h('p', { class: 'dim', role: 'status' },
        `${plural(told.total, 'application')}, ${plural(told.instances, 'instance')}`)),
    searchField(place, 'applications by their instances'),
    told.services.length ? table('Applications', ['Application', 'Instances', 'Status', 'Zones', 'Sources'],
      told.services.map((each) => ({
        key: each.service_name,
        cells: [
          h('a', { class: 'name', 'data-go': true, href: to({ app: each.service_name, q: place.q }) }, each.service_name),
          h('span', { class: 'number' }, count(each.instances)),
          [proportions(each), h('span', { class: 'counts' }, bySeverity(each.statuses).map(([word, many]) =>
            h('span', { class: 'pair' }, status(word), ` ${count(many)}`))),
          each.overrides ? h('span', { class: 'overridden' }, plural(each.overrides, 'override')) : null],
          each.zones.join(', ') || h('span', { class: 'dim' }, 'none'),
          each.sources.join(', '),
        ],
      }))) : nothing(place),
    pages(place, told),
  ];
}

/** How the statuses share an application, as a bar that says no more than the numbers beside it. */
function proportions(each) {
  return h('span', { class: 'shares', 'aria-hidden': 'true' },
    bySeverity(each.statuses).map(([word, many]) => {
      // Twelfths, since a style of its own is what the page's policy forbids.
      const share = Math.max(1, Math.round((12 * many) / each.instances));
      return h('i', { 'data-status': word, 'data-share': String(share) });
    }));
}

/** Instances that answer the search: all, or those of an application. */
export async function instancesView(place, signal) {
  const query = { q: place.q, limit: LIMIT, after: place.after, fields: FIELDS, service_name: place.app };
  const told = await ask('instances', { query, signal });
  state.revision ??= told.revision;
  const overrides = await whoSet(told.instances.filter((each) => each.override), signal);
  const mayWrite = state.account?.may_write;
  return [
    place.app ? h('p', { class: 'back' }, h('a', { 'data-go': true, href: to({}) }, 'All applications')) : null,
    h('div', { class: 'title' },
      h('h1', {}, place.app ?? 'Instances'),
      h('p', { class: 'dim', role: 'status' }, plural(told.total, 'instance'))),
    place.app && told.total && mayWrite ? applicationActions(place.app) : null,
    searchField(place, place.app ? `among the instances of ${place.app}` : 'instances'),
    told.instances.length ? table('Instances',
      ['Instance', 'Status', 'Address', 'Zone', 'Lease', 'VIPs and metadata', 'Source'],
      told.instances.map((each) => ({
        key: `${each.app}/${each.id}`,
        'data-revision': String(each.revision),
        cells: [
          [h('a', { class: 'name', 'data-go': true, href: to({ app: each.service_name, id: each.id }) }, breakable(each.id)),
            place.app ? null : h('span', { class: 'dim' }, each.service_name)],
          [status(each.status), each.override ? overrideOf(each, overrides.get(each)) : null],
          [h('span', {}, breakable(each.endpoint.value)), h('span', { class: 'dim' }, each.address)],
          each.zone ?? h('span', { class: 'dim' }, 'none'),
          lease(each),
          [h('span', {}, [...new Set([...each.vips, ...each.secure_vips])].join(', ')), metadata(each.metadata)],
          each.source,
        ],
      }))) : nothing(place),
    pages(place, told),
  ];
}

function applicationActions(app) {
  return h('div', { class: 'actions', role: 'group', 'aria-label': `All instances of ${app}`, 'data-key': 'actions' },
    h('span', { class: 'dim' }, 'All instances:'),
    h('button', { type: 'button', 'data-do': 'app-out', 'data-app': app }, 'Out of service'),
    h('button', { type: 'button', 'data-do': 'app-back', 'data-app': app }, 'Back in service'),
    h('button', { type: 'button', 'data-do': 'app-drain', 'data-app': app }, 'Drain'),
    h('button', { type: 'button', class: 'danger', 'data-do': 'app-remove', 'data-app': app }, 'Remove'));
}

/** When a lease was renewed and when it ends. */
export function lease(each) {
  const renewed = ticking(each.last_heartbeat, 'renewed just now', 'renewed * ago');
  if (!each.expires) return h('span', { class: 'dim' }, 'no lease');
  const ends = ticking(each.expires, 'ends in *', 'ended * ago');
  ends.classList.add('ends');
  return [renewed, ends];
}

function metadata(told) {
  const entries = typeof told === 'object' && told !== null && !Array.isArray(told) ? Object.entries(told) : [['metadata', told]];
  // The zone has a column of its own.
  const shown = entries.filter(([name]) => name !== 'zone');
  if (!shown.length) return null;
  return h('span', { class: 'entries' },
    shown.slice(0, MOST_ENTRIES).map(([name, value]) => h('span', { class: 'entry' }, `${name}=${text(value)}`)),
    shown.length > MOST_ENTRIES ? h('span', { class: 'dim' }, `and ${shown.length - MOST_ENTRIES} more`) : null);
}

/** A value of metadata as a text. */
export const text = (value) => (typeof value === 'string' ? value : JSON.stringify(value));

// Who set an override, and when: by instance, until it changes again.
const known = new Map();
const MOST_KNOWN = 500;

async function whoSet(instances, signal) {
  const found = new Map();
  await Promise.all(instances.map(async (each) => {
    const key = `${each.app}/${each.id}/${each.revision}`;
    if (!known.has(key)) {
      const told = await overrideEntry(each, signal);
      if (known.size >= MOST_KNOWN) known.clear();
      known.set(key, told);
    }
    found.set(each, known.get(key));
  }));
  return found;
}

/** The entry of the history that tells of an instance's override; null where there is none. */
export async function overrideEntry(each, signal) {
  const told = await askIfThere(`${below('instances', each.id)}/history`, {
    query: { service_name: each.service_name, kind: 'override', limit: 1 }, signal,
  });
  return told?.entries[0] ?? null;
}

/** An override with who set it and when, as far as that is known. */
export function overrideOf(each, entry) {
  const who = entry && (entry.by?.account || entry.by?.address);
  return h('span', { class: 'override' }, `set by ${who || 'an operator'}`,
    entry ? [' ', ticking(entry.at, 'just now', '* ago')] : null);
}
