// A person with a browser, and a client, for tests against an issuer of issuer.mjs, by plain HTTP.
//
//   node client.mjs approve    --dir DIR --issuer URL [--client ID] --user U --scope 'S ...' [--resource R] [--top]
//       The device flow from end to end: asks for a code, walks through the issuer's pages as a browser does (forms,
//       cookies, redirects; signs in as U, consents), fetches the tokens. Prints the token endpoint's answer;
//       with --top what a .top holds: {"refresh_token":…}.
//   node client.mjs page       --dir DIR --user U  < verification URI
//       The person's part alone, for a code that somebody else asked for.
//   node client.mjs revoke     --dir DIR --issuer URL [--client ID]  < token      prints {}
//   node client.mjs introspect --dir DIR --issuer URL [--client ID]  < token      prints the issuer's answer
//
// DIR is the issuer's: its ca.pem is trusted, its secret is the client's. Tokens come and go by standard input and
// output, never as arguments. Exit 1 with one line where the issuer says no.

import { readFileSync } from 'node:fs';
import { request } from 'node:https';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const DEVICE_GRANT = 'urn:ietf:params:oauth:grant-type:device_code';
const STEPS = 12; // pages between the verification URI and the end

const { values: args, positionals: [command] } = parseArgs({
  allowPositionals: true,
  options: {
    dir: { type: 'string' },
    issuer: { type: 'string' },
    client: { type: 'string', default: 'evercred' },
    user: { type: 'string' },
    scope: { type: 'string', default: 'openid offline_access' },
    resource: { type: 'string' },
    top: { type: 'boolean', default: false },
  },
});

class Refused extends Error {}

const ca = readFileSync(join(args.dir ?? '.', 'ca.pem'));

/** One request; no redirects, 20 s. */
function send(url, { form, headers = {} } = {}) {
  const body = form && new URLSearchParams(form).toString();
  const type = body === undefined ? {} : { 'content-type': 'application/x-www-form-urlencoded' };
  return new Promise((resolve, reject) => {
    const call = request(url, { method: form ? 'POST' : 'GET', ca, headers: { ...type, ...headers }, timeout: 20_000 });
    call.on('timeout', () => call.destroy(new Refused(`${url}: no answer in 20 s`))).on('error', reject);
    call.on('response', async (response) => resolve({
      status: response.statusCode,
      headers: response.headers,
      body: await text(response),
    }));
    call.end(body);
  });
}

/** As the client: authenticated as it is registered. */
async function asClient(endpoint, form) {
  const secret = readFileSync(join(args.dir, 'secret'), 'utf8').trim();
  const headers = {};
  let credentials = { client_id: args.client };
  if (args.client.endsWith('-post')) credentials.client_secret = secret;
  else if (!args.client.endsWith('-public')) {
    credentials = {};
    headers.authorization = `Basic ${Buffer.from(`${args.client}:${secret}`).toString('base64')}`;
  }
  const { status, body } = await send(endpoint, { form: { ...form, ...credentials }, headers });
  return { status, answer: body ? JSON.parse(body) : {} };
}

async function endpoints() {
  const { body } = await send(`${args.issuer}/.well-known/openid-configuration`);
  return JSON.parse(body);
}

const plain = (html) => html.replaceAll('&quot;', '"').replaceAll('&#39;', "'").replaceAll('&lt;', '<')
  .replaceAll('&gt;', '>').replaceAll('&amp;', '&');
const attribute = (tag, name) => plain(new RegExp(`\\b${name}="([^"]*)"`).exec(tag)?.[1] ?? '');

/** The fields of the page's form, as a person would fill them in. */
function filled(page) {
  const form = /<form\b[^>]*method="post"[^>]*>([\s\S]*?)<\/form>/i.exec(page);
  if (!form) return undefined;
  const fields = {};
  for (const [tag] of form[1].matchAll(/<input\b[^>]*>/gi)) {
    const name = attribute(tag, 'name');
    fields[name] = { login: args.user, password: 'any' }[name] ?? attribute(tag, 'value');
  }
  return { action: attribute(form[0], 'action'), fields };
}

/** Walk from a verification URI to the page without a form. */
async function walk(uri) {
  const jar = new Map();
  let [url, form] = [uri, undefined];
  for (let step = 0; step < STEPS; step += 1) {
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ');
    const page = await send(url, { form, headers: cookie ? { cookie } : {} });
    for (const line of page.headers['set-cookie'] ?? []) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (value) jar.set(name, value);
      else jar.delete(name);
    }
    if (page.headers.location) {
      [url, form] = [new URL(page.headers.location, url).href, undefined];
    } else if (page.status !== 200) {
      throw new Refused(`the page answers HTTP ${page.status}`);
    } else {
      const next = filled(page.body);
      if (!next) return;
      [url, form] = [new URL(next.action, url).href, next.fields];
    }
  }
  throw new Refused(`no end after ${STEPS} pages`);
}

async function approve() {
  const { device_authorization_endpoint: device, token_endpoint: token } = await endpoints();
  const resource = args.resource ? { resource: args.resource } : {};
  const asked = await asClient(device, { scope: args.scope, ...resource });
  if (asked.status !== 200) throw new Refused(`no device code: ${asked.answer.error_description}`);
  await walk(asked.answer.verification_uri_complete);
  for (let tries = 0; tries < 20; tries += 1) {
    const got = await asClient(token, { grant_type: DEVICE_GRANT, device_code: asked.answer.device_code, ...resource });
    if (got.status === 200) return args.top ? { refresh_token: got.answer.refresh_token } : got.answer;
    if (got.answer.error !== 'authorization_pending') throw new Refused(`no token: ${got.answer.error_description}`);
    await sleep(250);
  }
  throw new Refused('the approval did not arrive');
}

const input = async () => (await text(process.stdin)).trim();

async function ask(member) {
  const { [member]: endpoint } = await endpoints();
  const { status, answer } = await asClient(endpoint, { token: await input() });
  if (status !== 200) throw new Refused(`HTTP ${status} ${answer.error ?? ''}`);
  return answer;
}

const commands = {
  approve,
  page: async () => { await walk(await input()); return {}; },
  revoke: () => ask('revocation_endpoint'),
  introspect: () => ask('introspection_endpoint'),
};

try {
  if (!commands[command] || !args.dir) throw new Refused('no such command, or no --dir; see the head of the file');
  process.stdout.write(`${JSON.stringify(await commands[command]())}\n`);
} catch (error) {
  process.stderr.write(`client.mjs: ${error.message}\n`);
  process.exitCode = 1;
}
