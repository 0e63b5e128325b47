// How figures went over the last hours: drawings, and the same as words.

import { h, svg } from './dom.js';
import { count } from './format.js';

const WIDTH = 640;
const HEIGHT = 164;
const LEFT = 1;
const TOP = 24;
const BOTTOM = 26;

const time = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit' });

/**
 * A plot of one figure: `times` are epoch milliseconds, `values` a number for each. Where more than
 * two steps are missing nobody counted, and the line has a gap.
 */
export function plot(title, unit, times, step, values) {
  const most = Math.round(Math.max(...values));
  const least = Math.round(Math.min(...values));
  const last = Math.round(values.at(-1));
  const top = roundUp(most);
  const x = (at) => LEFT + ((at - times[0]) / Math.max(1, times.at(-1) - times[0])) * (WIDTH - 2 * LEFT);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const said = `${title}: ${count(last)} ${unit} now; between ${count(least)} and ${count(most)} since ${time.format(times[0])}.`;
  return h('figure', { class: 'plot', 'data-key': title },
    h('figcaption', {}, h('span', {}, title), h('span', { class: 'value' }, count(last)),
      h('span', { class: 'dim' }, `${unit}, at most ${count(most)}`)),
    svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': said },
      [0, top].map((value) => svg('line', { class: 'rule', x1: LEFT, x2: WIDTH - LEFT, y1: y(value), y2: y(value) })),
      svg('text', { class: 'mark', x: LEFT, y: y(top) - 3 }, count(top)),
      areas(times, step, values, x, y).flatMap(({ line, area }) => [
        svg('path', { class: 'area', d: area }), svg('path', { class: 'line', d: line }),
      ]),
      marks(times).map((at) => svg('text', { class: 'mark', x: x(at), y: HEIGHT - 6, 'text-anchor': 'middle' }, time.format(at)))));
}

/** A line, and what lies below it, for each stretch without a gap. */
function areas(times, step, values, x, y) {
  const found = [];
  let stretch = [];
  const close = () => {
    if (stretch.length) {
      const line = `M${stretch.map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join('L')}`;
      const [first, last] = [stretch[0][0], stretch.at(-1)[0]];
      found.push({ line, area: `${line}L${x(last).toFixed(1)} ${y(0)}L${x(first).toFixed(1)} ${y(0)}Z` });
    }
    stretch = [];
  };
  values.forEach((value, at) => {
    if (at && times[at] - times[at - 1] > 2.5 * step) close();
    stretch.push([times[at], value]);
  });
  close();
  return found;
}

/** Some instants between the first and the last, for the axis. */
function marks(times) {
  const [first, last] = [times[0], times.at(-1)];
  return [0.15, 0.5, 0.85].map((share) => first + share * (last - first));
}

/** The next number that is easy to read. */
function roundUp(value) {
  if (value <= 1) return 1;
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * step).find((each) => each >= value);
}
