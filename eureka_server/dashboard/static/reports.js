// The views beside the lists: what happened last, catalogs, peers, findings.

import { askIfThere } from './api.js';
import { h, table } from './dom.js';
import { count, plural, span, ticking } from './format.js';
import { historyList } from './history.js';
import { state } from './place.js';

const LAST = 1000;
const SELECTIONS = {
  'registered,cancelled': 'Registrations and cancels',
  registered: 'Registrations',
  cancelled: 'Cancels',
  'evicted,expired-but-kept,budget-reached': 'Evictions',
  'override,override-removed,metadata,loss-accepted,drained': 'What operators did',
  'preservation-entered,preservation-left': 'Self-preservation',
  '': 'Everything',
};

async function activity(place, signal) {
  const kind = place.kind in SELECTIONS && place.kind ? place.kind : place.kind === 'all' ? '' : 'registered,cancelled';
  const told = await askIfThere('history', { query: { kind, limit: LAST }, signal });
  if (!told) return [h('h1', {}, 'Activity'), h('p', { class: 'empty' }, 'This server keeps no history.')];
  return [
    h('div', { class: 'title' }, h('h1', {}, 'Activity'),
      h('p', { class: 'dim', role: 'status' }, `the last ${plural(told.entries.length, 'entry', 'entries')}`)),
    h('p', { class: 'choice' }, h('label', { for: 'kind' }, 'Show'), ' ',
      h('select', { id: 'kind' }, Object.entries(SELECTIONS).map(([value, label]) =>
        h('option', { value: value || 'all', selected: value === kind }, label)))),
    historyList(told.entries),
  ];
}

async function catalogs(place, signal) {
  const told = await askIfThere('catalogs', { signal });
  const rows = told?.catalogs ?? [];
  return [
    h('h1', {}, 'Catalogs'),
    rows.length ? table('Catalogs', ['Source', 'State', 'Entries', 'Last answer', 'Problems'], rows.map((each) => ({
      key: each.source,
      cells: [
        h('span', { class: 'name' }, each.source),
        h('span', { class: 'state', 'data-state': each.state }, each.state),
        [h('span', {}, count(each.entries)), each.shadowed ? h('span', { class: 'dim' }, `${count(each.shadowed)} belong to others here`) : null],
        each.last_success_ms ? ticking(new Date(each.last_success_ms).toISOString(), 'just now', '* ago') : 'never',
        [each.last_error && each.state !== 'following' ? h('span', { class: 'trouble' }, each.last_error) : null,
          each.problems.length ? h('ul', {}, each.problems.map((text) => h('li', {}, text))) : null,
          !each.problems.length && (!each.last_error || each.state === 'following') ? h('span', { class: 'dim' }, 'none') : null],
      ],
    }))) : h('p', { class: 'empty' }, 'No catalog is set up.'),
  ];
}

async function peers(place, signal) {
  const told = await askIfThere('peers', { signal });
  if (!told) return [h('h1', {}, 'Peers'), h('p', { class: 'empty' }, 'Only an administrator sees the peers.')];
  return [
    h('h1', {}, 'Peers'),
    h('p', { class: 'why' }, told.verdict),
    told.peers.length ? table('Peers', ['Peer', 'State', 'Behind', 'Differences', 'Problem'], told.peers.map((each) => ({
      key: each.url,
      cells: [
        h('span', { class: 'name' }, each.url),
        [h('span', { class: 'state', 'data-state': each.state }, each.state),
          each.last_exchange_ms ? ticking(new Date(each.last_exchange_ms).toISOString(), 'answered just now', 'answered * ago') : null],
        each.pending ? `${plural(each.pending, 'instance')}, for ${span(each.lag_ms / 1000)}` : 'not at all',
        differences(each.comparison),
        each.problem ? h('span', { class: 'trouble' }, each.problem) : h('span', { class: 'dim' }, 'none'),
      ],
    }))) : null,
  ];
}

function differences(told) {
  if (!told) return h('span', { class: 'dim' }, 'not compared yet');
  const parts = [
    told.missing && `${count(told.missing)} only here`,
    told.extra && `${count(told.extra)} only there`,
    told.differs && `${count(told.differs)} not alike`,
  ].filter(Boolean);
  return [h('span', {}, parts.join(', ') || 'none'),
    h('span', { class: 'dim' }, `${count(told.ours)} here, ${count(told.theirs)} there`)];
}

async function findings(place, signal) {
  const told = await askIfThere('findings', { signal });
  const rows = told?.findings ?? [];
  return [
    h('h1', {}, 'Findings'),
    rows.length ? h('ul', { class: 'findings' }, rows.map((each, at) => h('li', { 'data-key': String(at) }, JSON.stringify(each))))
      : h('p', { class: 'empty' }, 'Nothing is wrong with any client.'),
  ];
}

export const reports = {
  activity: { title: 'Activity', load: activity },
  catalogs: { title: 'Catalogs', load: catalogs, isThere: () => state.status?.catalogs.length > 0 },
  peers: { title: 'Peers', load: peers, isThere: () => !!state.status?.peers },
  findings: { title: 'Findings', load: findings, isThere: () => false },
};
