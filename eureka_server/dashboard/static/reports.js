// The views beside the lists: trends, what happened last, catalogs, peers, findings.

import { askIfThere } from './api.js';
import { breakable, h, table } from './dom.js';
import { count, plural, span, ticking } from './format.js';
import { historyList } from './history.js';
import { state, to } from './place.js';
import { plot } from './plot.js';

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

const HOURS = { 60: '1 hour', 180: '3 hours', 720: '12 hours', 1440: '1 day' };
const PLOTS = [
  ['Instances', 'instances', ['instances']],
  ['Of them UP', 'instances', ['up']],
  ['Renewals', 'a minute', ['renewals']],
  ['Registrations', 'a minute', ['registrations']],
  ['Evictions', 'a minute', ['evictions']],
  ['Cancels', 'a minute', ['cancellations']],
  ['Fetches of everything', 'a minute', ['full_fetches']],
  ['Fetches of changes', 'a minute', ['delta_fetches']],
];

async function trends(place, signal) {
  const minutes = place.kind in HOURS ? place.kind : '180';
  const told = await askIfThere('series', { query: { minutes }, signal });
  const times = told?.samples.map(([at]) => Date.parse(at)) ?? [];
  const values = (name) => {
    const column = told.columns.indexOf(name);
    return told.samples.map((sample) => sample[column] ?? null);
  };
  return [
    h('h1', {}, 'Trends'),
    h('p', { class: 'choice' }, h('label', { for: 'kind' }, 'The last'), ' ',
      h('select', { id: 'kind' }, Object.entries(HOURS).map(([value, label]) =>
        h('option', { value, selected: value === minutes }, label)))),
    times.length > 1
      ? h('div', { class: 'plots' }, PLOTS.map(([title, unit, [name]]) => plot(title, unit, times, told.step_secs * 1000, values(name))))
      : h('p', { class: 'empty' }, told ? 'Nothing has been counted yet.' : 'Only an administrator sees what was counted.'),
    h('p', { class: 'dim' }, 'All namespaces and all workers of this machine, each half minute.'),
  ];
}

async function findings(place, signal) {
  const told = await askIfThere('findings', { signal });
  const rows = told?.findings ?? [];
  state.findings = rows.length;
  return [
    h('h1', {}, 'Findings'),
    h('p', { class: 'dim' }, 'What is wrong with clients, as far as the registry sees it, and the setting to change.'),
    rows.length ? h('ul', { class: 'findings' }, rows.map(finding))
      : h('p', { class: 'empty' }, 'Nothing is wrong with any client.'),
  ];
}

function finding({ kind, sentence, count: many, settings, examples }) {
  return h('li', { 'data-key': kind },
    h('h2', {}, sentence),
    h('p', { class: 'dim' }, many > examples.length ? `${count(many)} in all, such as` : null),
    h('ul', { class: 'plain' }, examples.map(example)),
    settings.length ? h('dl', { class: 'facts' }, settings.map(({ client, name }) =>
      h('div', {}, h('dt', {}, client), h('dd', {}, h('code', {}, name))))) : null);
}

/** An instance, or a client, and what is told of it. */
function example({ service_name: app, id, ...told }) {
  const details = Object.entries(told).map(([name, value]) => {
    const unit = name.endsWith('_secs') ? ' s' : '';
    const label = name.replace(/_secs$/, '').replaceAll('_', ' ');
    return `${label} ${typeof value === 'string' ? value : JSON.stringify(value)}${unit}`;
  }).join(', ');
  return h('li', {},
    id ? h('a', { class: 'name', 'data-go': true, href: to({ app: app?.toLowerCase(), id }) }, breakable(id)) : app ?? null,
    id && app ? h('span', { class: 'dim' }, ` ${app.toLowerCase()}`) : null,
    details ? h('span', { class: 'dim' }, `${id || app ? ': ' : ''}${details}`) : null);
}

/** Ask how many findings there are, for the tab. */
export async function countFindings() {
  state.findings = (await askIfThere('findings'))?.findings.length ?? null;
}

export const reports = {
  trends: { title: 'Trends', load: trends },
  activity: { title: 'Activity', load: activity },
  catalogs: { title: 'Catalogs', load: catalogs, isThere: () => state.status?.catalogs.length > 0 },
  peers: { title: 'Peers', load: peers, isThere: () => !!state.status?.peers },
  findings: { title: 'Findings', load: findings, count: () => state.findings },
};
