// The page as a whole: what its URL says is shown, what is clicked is done, changes arrive.
//
// All that one looks at stands in the URL: `?view=instances&q=zone%3Deu-1`, `?app=shop`, or
// `?app=shop&id=shop:1`. A view is a function that fetches what it shows and returns nodes; it is
// called again when something changed, and what it returns is merged into the page.

import { Refusal, account, askIfThere, follow } from './api.js';
import { askAccount, perform, signIn } from './actions.js';
import { h, show } from './dom.js';
import { askHead, showHead } from './head.js';
import { instanceView } from './instance.js';
import { applicationsView, instancesView } from './lists.js';
import { page, state, to } from './place.js';
import { countFindings, reports } from './reports.js';

const LEAST_PAUSE_MS = 1000;
const RENEWALS_EVERY_MS = 10_000;
const HEAD_EVERY_MS = 5000;
const BEGIN_AGAIN_MS = 3000;
const FINDINGS_EVERY_MS = 60_000;

const views = {
  applications: { title: 'Applications', load: applicationsView },
  instances: { title: 'Instances', load: instancesView },
  ...reports,
};

const main = document.getElementById('main');
let place = read();

function read() {
  const told = new URLSearchParams(location.search);
  const named = told.get('view');
  return {
    view: views[named] ? named : (told.get('q') && named === null ? 'instances' : 'applications'),
    q: told.get('q') ?? '',
    app: told.get('app'),
    id: told.get('id'),
    after: told.get('after') ?? '',
    kind: told.get('kind') ?? '',
  };
}

function go(url, { replace = false, keepsFocus = false } = {}) {
  // Whoever comes back wants to be where they were.
  if (!replace) history.replaceState({ y: scrollY }, '');
  history[replace ? 'replaceState' : 'pushState'](null, '', url);
  arrived(keepsFocus);
}

async function arrived(keepsFocus = false, y = 0) {
  place = read();
  frame();
  // On a phone not all of the tabs are seen at once.
  const nav = document.getElementById('tabs');
  nav.scrollLeft = (nav.querySelector('[aria-current]')?.offsetLeft ?? 0) - nav.offsetLeft - 16;
  if (!keepsFocus) main.replaceChildren(h('p', { class: 'loading' }, 'Loading …'));
  await refresh.now();
  if (!keepsFocus) {
    (main.querySelector('h1') ?? main).focus({ preventScroll: true });
    scrollTo(0, y);
  }
}

// Showing

let showing = null;

async function load() {
  showing?.abort();
  const control = new AbortController();
  showing = control;
  const asked = place;
  const view = asked.id ? instanceView : asked.app ? instancesView : views[asked.view].load;
  try {
    const nodes = await view(asked, control.signal);
    if (control.signal.aborted) return;
    show(main, nodes);
    main.querySelectorAll('h1').forEach((each) => each.setAttribute('tabindex', '-1'));
    document.title = `${asked.id ?? asked.app ?? views[asked.view].title} · Eureka registry`;
  } catch (error) {
    if (control.signal.aborted) return;
    // While the registry cannot be asked, what it told last stays; beside "Live" it says so.
    const isRefused = error instanceof Refusal && error.status < 500;
    if (isRefused || main.querySelector('.loading')) show(main, trouble(error));
  }
  frame();
}

function trouble(error) {
  if (error.status === 401) {
    return [
      h('h1', {}, 'Sign in'),
      h('p', {}, 'This registry shows itself to those who have an account.'),
      h('p', {}, h('button', { type: 'button', class: 'primary', 'data-do': 'account' }, 'Sign in')),
    ];
  }
  return [
    h('h1', {}, 'Nothing to show'),
    h('p', { class: 'trouble' }, error.message),
    h('p', {}, h('button', { type: 'button', 'data-do': 'refresh' }, 'Try again')),
  ];
}

/** Calls a function again when it is asked to, at once and then with pauses that suit its cost. */
function paced(work) {
  let running = null;
  let wanted = false;
  let next = 0;
  let timer = 0;
  async function run() {
    clearTimeout(timer);
    timer = 0;
    wanted = false;
    const began = performance.now();
    running = work();
    try { await running; } finally {
      running = null;
      const ended = performance.now();
      next = ended + Math.max(LEAST_PAUSE_MS, 5 * (ended - began));
      if (wanted) ask();
    }
  }
  function ask() {
    wanted = true;
    if (running || timer || document.hidden) return;
    timer = setTimeout(run, Math.max(30, next - performance.now()));
  }
  return { ask, now: run };
}

const refresh = paced(load);
const refreshHead = paced(async () => {
  await askHead();
  frame();
});

/** What stands around the view. */
function frame() {
  const isOverview = !place.id && !place.app && ['applications', 'instances'].includes(place.view);
  showHead(document.getElementById('head'), isOverview);
  tabs();
}

function tabs() {
  show(document.getElementById('tabs'), Object.entries(views).map(([name, view]) => {
    if (view.isThere && !view.isThere()) return null;
    const isHere = !place.id && !place.app && place.view === name;
    const count = view.count?.();
    return h('a', {
      'data-key': name, 'data-go': true, href: to({ view: name === 'applications' ? '' : name }),
      'aria-current': isHere ? 'page' : null,
    }, view.title, count ? h('span', { class: 'count' }, ` ${count}`) : null);
  }));
}

// Changes

let stop = null;

function listen() {
  stop?.();
  stop = follow(state.revision, (change) => {
    refreshHead.ask();
    if (change === null || concerns(change.instance)) refresh.ask();
  }, (name, reason) => {
    const words = { live: 'Live', waiting: 'Reconnecting', refused: 'Not live' };
    const live = document.getElementById('live');
    live.dataset.state = name;
    live.title = reason ?? 'Changes are shown as they happen';
    if (live.textContent !== words[name]) live.textContent = words[name];
    // What changed while nobody listened is told when the connection stands again.
  });
}

function concerns(instance) {
  if (place.id) return instance.id === place.id;
  if (place.app) return instance.service_name.toLowerCase() === place.app.toLowerCase();
  return true;
}

document.addEventListener('visibilitychange', () => {
  // A browser has few connections to a server; a page that nobody sees keeps none.
  if (document.hidden) {
    stop?.();
    stop = null;
  } else {
    listen();
    refresh.ask();
    refreshHead.ask();
  }
});

// A renewal is no change: leases on display are read again now and then, as are the head's figures.
setInterval(() => state.account && refresh.ask(), RENEWALS_EVERY_MS);
setInterval(() => state.account && refreshHead.ask(), HEAD_EVERY_MS);
setInterval(() => {
  if (state.account && !document.hidden) countFindings().then(frame, () => {});
}, FINDINGS_EVERY_MS);

// What is clicked

document.addEventListener('click', (event) => {
  const link = event.target.closest('a[data-go]');
  if (link && event.button === 0 && !(event.ctrlKey || event.metaKey || event.shiftKey)) {
    event.preventDefault();
    go(link.getAttribute('href'));
    return;
  }
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const { do: name } = button.dataset;
  if (name === 'account') signIn();
  else if (name === 'refresh') refresh.now();
  else perform(name, button);
});

let typing = 0;
document.addEventListener('input', (event) => {
  if (event.target.id !== 'q') return;
  clearTimeout(typing);
  typing = setTimeout(() => search(event.target.value, true), 250);
});
document.addEventListener('submit', (event) => {
  if (event.target.id !== 'search') return;
  event.preventDefault();
  clearTimeout(typing);
  search(event.target.elements.q.value, false);
});
document.addEventListener('change', (event) => {
  if (event.target.id === 'kind') go(to({ view: place.view, kind: event.target.value }), { keepsFocus: true });
});
document.addEventListener('keydown', (event) => {
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.nodeName);
  if (event.key === '/' && !isTyping && !event.ctrlKey && !event.metaKey) {
    const field = document.getElementById('q');
    if (field) {
      event.preventDefault();
      field.focus();
    }
  }
});

function search(text, isTyping) {
  if (text === place.q && !place.after) return;
  const wanted = to({ view: place.app ? '' : place.view, app: place.app, q: text });
  // While somebody types, the page before the search stays one step back.
  go(wanted, { replace: isTyping && place.q !== '', keepsFocus: true });
}

addEventListener('popstate', (event) => arrived(false, event.state?.y ?? 0));

async function begin() {
  state.revision = null;
  state.status = null;
  try {
    state.account = await askAccount();
  } catch (error) {
    show(main, trouble(error));
    setTimeout(begin, BEGIN_AGAIN_MS);
    return;
  }
  const { account: who } = state;
  state.namespaces = (who && (await askIfThere('namespaces'))?.namespaces) ?? [];
  const button = document.getElementById('account');
  button.hidden = who?.mode === 'none' && state.namespaces.length < 2 && who.namespace === 'default';
  button.textContent = who?.user || (who?.mode === 'none' ? 'Namespace' : account.credentials ? 'Account' : 'Sign in');
  document.getElementById('place').textContent =
    who && who.namespace !== 'default' ? who.namespace : '';
  listen();
  refreshHead.ask();
  if (who) countFindings().then(frame, () => {});
  await arrived();
}

Object.assign(page, { refresh: refresh.now, go, begin });
begin();
