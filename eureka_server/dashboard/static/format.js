// Numbers, spans of time and instants, as people read them.

import { h } from './dom.js';
import { serverNow } from './api.js';

const number = new Intl.NumberFormat('en');
const clock = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'medium' });

export const count = (value) => number.format(value);

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** A span of seconds in its two largest units at most. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  if (whole < 172_800) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** A size in bytes. */
export function bytes(size) {
  if (size < 10_240) return `${count(size)} B`;
  if (size < 10 * 1024 ** 2) return `${count(Math.round(size / 1024))} KiB`;
  return `${count(Math.round(size / 1024 ** 2))} MiB`;
}

/** A text that goes on changing with time: `renewed 5 s ago`, `ends in 80 s`. */
export function ticking(instant, before, after = before) {
  const node = h('time', { datetime: instant, 'data-before': before, 'data-after': after });
  node.textContent = told(node);
  node.classList.toggle('over', isOver(node));
  node.setAttribute('title', exact(instant));
  return node;
}

/** The instant itself. */
export function exact(instant) {
  return clock.format(new Date(instant));
}

const isOver = (node) => Date.parse(node.dateTime) < serverNow();

function told(node) {
  const ahead = (Date.parse(node.dateTime) - serverNow()) / 1000;
  const pattern = ahead > 0 ? node.dataset.before : node.dataset.after;
  return pattern.replace('*', span(Math.abs(ahead)));
}

setInterval(() => {
  if (document.hidden) return;
  for (const node of document.querySelectorAll('time[data-before]')) {
    const text = told(node);
    if (node.textContent !== text) node.textContent = text;
    node.classList.toggle('over', isOver(node));
  }
}, 1000);
