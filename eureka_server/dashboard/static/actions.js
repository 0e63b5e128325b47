// What an operator does: asked for in words, told when it is done, and undone where that can be.

import { Refusal, account, ask, below } from './api.js';
import { h } from './dom.js';
import { plural } from './format.js';
import { page, state } from './place.js';

const NOTICE_MS = 12_000;
const DRAIN_MS = 2000;

/** Who looks; null where nobody may without an account. */
export async function askAccount() {
  try {
    return await ask('account');
  } catch (error) {
    if (error instanceof Refusal) return null;
    throw error;
  }
}

// Each is what a button does. `ask` is what is asked first, where it cannot be undone or concerns
// many; `done` says what has been done, and `undo` takes it back.

const deeds = {
  out: ({ id, app, override, status }) => ({
    run: () => ask(`${below('instances', id)}/override`, { method: 'PUT', query: { service_name: app }, body: { status: 'OUT_OF_SERVICE' } }),
    done: `${id} is out of service.`,
    undo: () => restored(id, app, override, status),
  }),
  back: ({ id, app, override }) => ({
    run: () => ask(`${below('instances', id)}/override`, { method: 'DELETE', query: { service_name: app, status: 'UP' } }),
    done: `${id} is back in service.`,
    undo: () => ask(`${below('instances', id)}/override`, { method: 'PUT', query: { service_name: app }, body: { status: override } }),
  }),
  drain: ({ id, app, override, status }) => ({
    run: (since) => ask(`${below('instances', id)}/drain`, { method: 'POST', query: { service_name: app, since } }),
    done: (told) => `${id} is out of service. ${told.sentence}`,
    undo: () => restored(id, app, override, status),
    isOut: async () => (await ask(below('instances', id), { query: { service_name: app, fields: 'status' } })).status === 'OUT_OF_SERVICE',
  }),
  remove: ({ id, app }) => ({
    ask: {
      title: `Remove ${id}?`,
      text: 'It is taken out of the registry with its override. If it still lives, it registers again with its next heartbeat; to keep clients away from it, take it out of service.',
      yes: 'Remove',
    },
    run: () => ask(below('instances', id), { method: 'DELETE', query: { service_name: app } }),
    done: `${id} is removed.`,
  }),
  'app-out': ({ app }) => ({
    ask: {
      title: `Take all of ${app} out of service?`,
      text: 'Clients find no instance of it any more until you bring it back.',
      yes: 'Out of service',
    },
    run: () => ask(`${below('services', app)}/override`, { method: 'PUT', body: { status: 'OUT_OF_SERVICE' } }),
    done: (told) => ofMany(told, 'out of service'),
    undo: () => ask(`${below('services', app)}/override`, { method: 'DELETE', query: { status: 'UP' } }),
  }),
  'app-back': ({ app }) => ({
    ask: {
      title: `Bring all of ${app} back in service?`,
      text: 'The overrides of all its instances are removed, whoever set them.',
      yes: 'Back in service',
    },
    run: () => ask(`${below('services', app)}/override`, { method: 'DELETE', query: { status: 'UP' } }),
    done: (told) => ofMany(told, 'back in service'),
  }),
  'app-drain': ({ app }) => ({
    ask: {
      title: `Drain all of ${app}?`,
      text: 'All its instances are taken out of service; then you are told whether every client has heard of it.',
      yes: 'Drain',
    },
    run: (since) => ask(`${below('services', app)}/drain`, { method: 'POST', query: { since } }),
    done: (told) => `All of ${app} is out of service. ${told.sentence}`,
    undo: () => ask(`${below('services', app)}/override`, { method: 'DELETE', query: { status: 'UP' } }),
    isOut: async () => (await ask('instances', { query: { service_name: app, q: '-status=OUT_OF_SERVICE', limit: 1 } })).total === 0,
  }),
  'app-remove': ({ app }) => ({
    ask: {
      title: `Remove all instances of ${app}?`,
      text: 'They are taken out of the registry with their overrides. Those that still live register again with their next heartbeat.',
      yes: 'Remove all',
    },
    run: () => ask(below('services', app), { method: 'DELETE' }),
    done: (told) => ofMany(told, 'removed'),
  }),
  'accept-loss': ({ app }) => ({
    ask: {
      title: app ? `Let the expired instances of ${app} go?` : 'Let all expired instances go?',
      text: 'Instances whose leases have ended, and which self-preservation keeps, are evicted. Those that still live register again with their next heartbeat.',
      yes: 'Accept the loss',
    },
    run: () => ask('self-preservation/accept-loss', { method: 'POST', body: app ? { service_name: app } : {} }),
    done: (told) => told.sentence,
  }),
};

const restored = (id, app, override, status) => (override
  ? ask(`${below('instances', id)}/override`, { method: 'PUT', query: { service_name: app }, body: { status: override } })
  : ask(`${below('instances', id)}/override`, { method: 'DELETE', query: { service_name: app, status } }));

function ofMany(told, what) {
  const refused = told.refused?.length ?? 0;
  return `${plural(told.done.length, 'instance')} ${told.done.length === 1 ? 'is' : 'are'} ${what}.`
    + (refused ? ` ${plural(refused, 'instance')} could not be changed: ${told.refused[0].detail}.` : '');
}

/** Do what a button says. */
export async function perform(name, button) {
  if (name === 'metadata') return changeMetadata(button);
  const deed = deeds[name]?.({ ...button.dataset });
  if (!deed) return undefined;
  if (deed.ask && !(await confirmed(deed.ask))) return undefined;
  button.disabled = true;
  try {
    await attempt(deed);
  } finally {
    button.disabled = false;
  }
  return undefined;
}

async function attempt({ run, done, undo, isOut }) {
  let told;
  try {
    told = await run();
  } catch (error) {
    failed(error);
    return;
  }
  const box = notice(typeof done === 'function' ? done(told) : done, undo);
  await page.refresh();
  if (isOut) await followDrain(box, told, { run, done, isOut });
}

/** Say in a notice when what is drained may be stopped, as long as the notice is there. */
async function followDrain(box, told, { run, done, isOut }) {
  const { since } = told;
  while (!told.safe) {
    await new Promise((resolve) => { setTimeout(resolve, DRAIN_MS); });
    if (!box.isConnected) return;
    try {
      // Who has brought it back meanwhile meant it.
      if (!(await isOut())) return;
      told = await run(since);
    } catch (error) {
      failed(error);
      return;
    }
    box.firstChild.textContent = done(told);
  }
  box.classList.add('good');
}

function failed(error) {
  if (error instanceof Refusal && error.status === 401) {
    signIn('An account is needed for this.');
    return;
  }
  notice(`It was refused: ${error.message}.`, null, true);
}

// Notices

function notice(text, undo, isTrouble = false) {
  const box = h('div', { class: isTrouble ? 'notice trouble' : 'notice' }, h('span', {}, text));
  const close = () => box.remove();
  if (undo) {
    const button = h('button', { type: 'button' }, 'Undo');
    button.addEventListener('click', async () => {
      close();
      await attempt({ run: undo, done: 'It is undone.' });
    });
    box.append(button);
  }
  const dismiss = h('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss' }, '×');
  dismiss.addEventListener('click', close);
  box.append(dismiss);
  document.getElementById('notices').append(box);
  // What can be undone, or went wrong, stays until it was read.
  if (!undo && !isTrouble) setTimeout(close, NOTICE_MS);
  return box;
}

// Dialogs

const dialog = document.getElementById('dialog');

/** Show a form in the dialog; what was filled in, or null where it was given up. */
function asked(title, nodes, yes, isDanger) {
  const form = h('form', { method: 'dialog' },
    h('h2', { id: 'dialog-title' }, title), nodes,
    h('div', { class: 'buttons' },
      h('button', { type: 'button', id: 'cancel' }, 'Cancel'),
      h('button', { type: 'submit', value: 'yes', class: isDanger ? 'danger' : 'primary' }, yes)));
  dialog.replaceChildren(form);
  dialog.returnValue = '';
  dialog.showModal();
  const cancel = form.querySelector('#cancel');
  cancel.addEventListener('click', () => dialog.close());
  // What would be done by mistake is not what has the focus.
  (form.querySelector('input, textarea') ?? cancel).focus();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      resolve(dialog.returnValue === 'yes' ? new FormData(form) : null);
      dialog.replaceChildren();
    }, { once: true });
  });
}

async function confirmed({ title, text, yes }) {
  return (await asked(title, h('p', {}, text), yes, true)) !== null;
}

async function changeMetadata(button) {
  const { id, app, metadata } = button.dataset;
  const before = JSON.parse(metadata);
  const rows = Object.entries(before).map(([name, value]) =>
    `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`).join('\n');
  const found = await asked(`Metadata of ${id}`, [
    h('label', { for: 'entries' }, 'An entry a line, as name=value; a line that is taken away removes its entry.'),
    h('textarea', { id: 'entries', name: 'entries', rows: '10', spellcheck: 'false' }, rows),
    h('p', { class: 'help' }, 'When the instance registers again, its own metadata count.'),
  ], 'Change');
  if (found === null) return;
  const { patch, undo } = differences(before, found.get('entries'));
  if (!Object.keys(patch).length) return;
  const send = (body) => ask(`${below('instances', id)}/metadata`, { method: 'PATCH', query: { service_name: app }, body });
  await attempt({ run: () => send(patch), done: `The metadata of ${id} are changed.`, undo: () => send(undo) });
}

/** What a text of entries changes, and what would change it back. */
function differences(before, text) {
  const lines = text.split('\n').map((line) => line.trimEnd()).filter(Boolean);
  const wanted = new Map(lines.map((line) => {
    const mark = line.indexOf('=');
    return mark < 0 ? [line, ''] : [line.slice(0, mark).trim(), line.slice(mark + 1)];
  }));
  const patch = {};
  const undo = {};
  for (const [name, value] of wanted) {
    const old = before[name];
    const spelled = typeof old === 'string' || old === undefined ? old : JSON.stringify(old);
    if (spelled === value) continue;
    patch[name] = old === undefined || typeof old === 'string' ? value : typed(value);
    undo[name] = old ?? null;
  }
  for (const [name, old] of Object.entries(before)) {
    if (!wanted.has(name)) {
      patch[name] = null;
      undo[name] = old;
    }
  }
  return { patch, undo };
}

function typed(text) {
  try { return JSON.parse(text); } catch { return text; }
}

/** Ask for an account, and begin anew with it. */
export async function signIn(reason = '') {
  const mode = state.account?.mode ?? await challenged();
  const found = await asked(mode === 'none' ? 'Namespace' : 'Sign in', [
    reason ? h('p', {}, reason) : null,
    mode === 'none' ? null : mode === 'basic'
      ? [field('user', 'Name', { autocomplete: 'username' }), field('password', 'Password', { type: 'password', autocomplete: 'current-password' })]
      : field('token', 'Token', { type: 'password', autocomplete: 'off' }),
    state.account && !state.account.is_admin ? null : namespaceField(),
    h('p', { class: 'help' }, 'It is kept for this tab, until the tab is closed.', mode === 'none' ? '' : ' To sign out, leave all empty.'),
  ], 'Go on');
  if (found === null) return;
  const basic = found.get('user') ? `Basic ${encoded(`${found.get('user')}:${found.get('password')}`)}` : '';
  const bearer = found.get('token') ? `Bearer ${found.get('token').trim()}` : '';
  account.signIn(basic || bearer, (found.get('namespace') ?? '').trim());
  await page.begin();
}

/** Where an administrator looks; those with instances are proposed. */
function namespaceField() {
  return [
    field('namespace', 'Namespace', { placeholder: 'your own', value: account.namespace ?? '', list: 'namespaces', autocomplete: 'off' }),
    h('datalist', { id: 'namespaces' }, state.namespaces.map((name) => h('option', { value: name }))),
  ];
}

function field(name, label, more) {
  return [h('label', { for: `sign-in-${name}` }, label), h('input', { id: `sign-in-${name}`, name, spellcheck: 'false', ...more })];
}

/** Base64 of a text in UTF-8, as Basic has it. */
const encoded = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

async function challenged() {
  try {
    await ask('account');
  } catch (error) {
    return /scheme="basic"/i.test(error.challenge ?? '') ? 'basic' : 'jwt';
  }
  return 'none';
}
