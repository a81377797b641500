// Watches a pool while it runs: which token lies in the credential directory when, and whether a token shows itself
// anywhere else.
//
//   node witness.mjs --credentials DIR --init PID --logs PATH[,PATH...] [--codes URL] [--for 900]
//
// On standard output, one line for each new content of a .top or .use, with the time at which it came into place:
// `TIME spool USER/FILE sha256 DIGEST`, with the digest (12 hex digits) of the token in it, never the token. Every token
// seen so is a canary: looked for in argv and environment of every process in the pid namespace of PID, all the time, and
// on SIGTERM in every file below the PATHs. So are the consent and polling codes of approvals under way, which our own
// issuer tells at URL. A find is one line: `leak argv|environ|log WHERE sha256 DIGEST`, told once. The last line counts
// what was looked at; exit 0 also with leaks, for whoever runs it knows which it planted.

import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const { values: args } = parseArgs({
  options: {
    credentials: { type: 'string' },
    init: { type: 'string' },
    logs: { type: 'string', default: '' },
    codes: { type: 'string' },
    for: { type: 'string', default: '900' },
  },
});

const digest = (text) => createHash('sha256').update(text).digest('hex').slice(0, 12);
const say = (text) => process.stdout.write(`${text}\n`);
const stamp = (time) => new Date(time).toISOString().slice(0, 23);
/** What goes away while it is looked at is nothing to look at. */
const unless = (gone, look) => { try { return look(); } catch { return gone; } };

const canaries = new Map(); // token -> digest
const contents = new Map(); // path -> digest
const told = new Set();
const looked = { spool: 0, processes: 0, pids: new Set(), files: 0, codes: 0 };

function token(text) {
  const object = unless(undefined, () => JSON.parse(text));
  if (typeof object !== 'object' || object === null) return text.trim();
  return object.access_token ?? object.refresh_token ?? object.mytoken ?? object.subject_token ?? '';
}

/** What a file holds, and when it came into place: a job may have it before it is looked at. */
function fileInPlace(path) {
  const file = openSync(path);
  try {
    // The kernel's time of a rename is behind by up to a tick.
    return { text: readFileSync(file, 'utf8'), since: Math.min(fstatSync(file).ctimeMs + 5, Date.now()) };
  } finally {
    closeSync(file);
  }
}

function lookAtSpool() {
  looked.spool += 1;
  for (const user of unless([], () => readdirSync(args.credentials, { withFileTypes: true }))) {
    if (!user.isDirectory()) continue;
    for (const file of unless([], () => readdirSync(join(args.credentials, user.name)))) {
      if (!/\.(top|use)$/.test(file)) continue;
      const path = `${user.name}/${file}`;
      const { text, since } = unless({ text: '' }, () => fileInPlace(join(args.credentials, path)));
      const found = token(text);
      // Shorter ones are names, and would be found everywhere.
      if (found.length < 16) continue;
      const sum = digest(found);
      canaries.set(found, sum);
      if (contents.get(path) !== sum) say(`${stamp(since)} spool ${path} sha256 ${sum}`);
      contents.set(path, sum);
    }
  }
}

async function lookAtCodes() {
  // An issuer that is not up yet, or not any more, has none.
  const codes = await fetch(args.codes).then((answer) => answer.json()).catch(() => []);
  for (const code of codes.filter((one) => !canaries.has(one))) {
    looked.codes += 1;
    canaries.set(code, digest(code));
  }
  setTimeout(lookAtCodes, 100);
}

function search(kind, where, text) {
  for (const [canary, sum] of canaries) {
    const key = `${kind} ${where} ${sum}`;
    if (!told.has(key) && text.includes(canary)) {
      told.add(key);
      say(`leak ${kind} ${where} sha256 ${sum}`);
    }
  }
}

const namespace = readlinkSync(`/proc/${args.init}/ns/pid`);

function lookAtProcesses() {
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    if (unless('', () => readlinkSync(`/proc/${pid}/ns/pid`)) !== namespace) continue;
    looked.processes += 1;
    looked.pids.add(pid);
    const name = unless('?', () => readFileSync(`/proc/${pid}/comm`, 'utf8').trim());
    search('argv', name, unless('', () => readFileSync(`/proc/${pid}/cmdline`, 'latin1')));
    search('environ', name, unless('', () => readFileSync(`/proc/${pid}/environ`, 'latin1')));
  }
}

function lookAtFiles(path) {
  const stat = unless(undefined, () => statSync(path));
  if (stat?.isDirectory()) readdirSync(path).forEach((name) => lookAtFiles(join(path, name)));
  else if (stat?.isFile()) {
    looked.files += 1;
    search('log', path, unless('', () => readFileSync(path, 'latin1')));
  }
}

function end() {
  lookAtSpool();
  lookAtProcesses();
  args.logs.split(',').filter(Boolean).forEach(lookAtFiles);
  say(`looked ${looked.spool} times at the spool, at ${looked.pids.size} processes (${looked.processes} looks), `
    + `at ${looked.files} files, for ${canaries.size - looked.codes} tokens and ${looked.codes} codes`);
  process.exit(0);
}

if (args.codes) lookAtCodes();
setInterval(lookAtSpool, 50);
setInterval(lookAtProcesses, 200);
setTimeout(end, Number(args.for) * 1000);
process.on('SIGTERM', end);
