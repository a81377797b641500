// A person with a browser (Debian's Chromium, without a window): opens the link that condor_submit printed, approves
// every service at npm oidc-provider's development pages, and waits until the page says that all is in place.
//
//   node approve.mjs --url LINK --user NAME [--shots DIR] [--deny] [--only] [--narrow] [--dark] [--map 'HOST ADDRESS']
//
// --deny   declines at the issuer instead          --shots  pictures of each step go there, as PNG
// --refused  approves, and the page does not take it
// --only   looks at the page and approves nothing      --map    HOST is at ADDRESS:PORT, whatever names say
//
// One line of JSON: what the page said at the end (title, states), its cookies as the browser keeps them, and
// everything that the browser complained about. Exit 0 if the page came to the end that was asked for.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import puppeteer from 'puppeteer-core';

const { values: args } = parseArgs({
  options: {
    url: { type: 'string' },
    user: { type: 'string', default: 'alice' },
    shots: { type: 'string' },
    deny: { type: 'boolean', default: false },
    refused: { type: 'boolean', default: false },
    only: { type: 'boolean', default: false },
    narrow: { type: 'boolean', default: false },
    dark: { type: 'boolean', default: false },
    map: { type: 'string' },
    chromium: { type: 'string', default: process.env.CHROMIUM ?? '/usr/bin/chromium' },
  },
});

const browser = await puppeteer.launch({
  executablePath: args.chromium,
  // The issuer's certificate is of a CA made for the test. Root has no use of the sandbox.
  args: [
    '--ignore-certificate-errors', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
    ...(args.map ? [`--host-resolver-rules=MAP ${args.map}`] : []),
  ],
});
const complaints = [];
let ok = false;
try {
  const page = await browser.newPage();
  await page.setViewport({ width: args.narrow ? 400 : 720, height: 760, deviceScaleFactor: 1 });
  if (args.dark) await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
  const ours = new URL(args.url).origin;
  page.on('console', (message) => {
    if (['error', 'warn'].includes(message.type()) && page.url().startsWith(ours)) complaints.push(message.text());
  });
  page.on('request', (request) => {
    const referrer = request.headers().referer;
    if (referrer?.startsWith(ours)) complaints.push(`referrer sent to ${new URL(request.url()).origin}`);
  });
  let count = 0;
  const shot = async (name) => {
    if (!args.shots) return;
    mkdirSync(args.shots, { recursive: true });
    count += 1;
    await page.screenshot({ path: join(args.shots, `${count}-${name}.png`), fullPage: true });
  };

  const response = await page.goto(args.url, { waitUntil: 'load' });
  if (page.url().includes('/key/')) complaints.push('the key stays in the address bar');
  await shot('request');
  const mine = () => page.url().startsWith(ours);
  const click = (selector) => Promise.all([page.waitForNavigation({ waitUntil: 'load' }), page.click(selector)]);
  for (let step = 0; !args.only && step < 40; step += 1) {
    if (mine()) {
      const button = await page.$('main form button');
      const failed = await page.$('li.failed form button');
      if (!button || ((args.deny || args.refused) && failed)) break;
      await click('main form button');
    } else if (args.deny) {
      await click('a[href$="/abort"]');
    } else if (await page.$('input[name=login]')) {
      await page.type('input[name=login]', args.user);
      await page.type('input[name=password]', 'any');
      await shot('issuer-login');
      await click('button[type=submit]');
    } else {
      await click('button[type=submit]');
    }
    if (mine() && step < 39) await shot('back');
  }
  const end = Date.now() + 30000;
  const moving = () => page.$('meta[http-equiv=refresh]');
  while (mine() && (await moving().catch(() => true)) && Date.now() < end) await new Promise((r) => setTimeout(r, 250));
  await page.waitForSelector('h1');
  await shot('end');
  const text = (selector) => page.$$eval(selector, (all) => all.map((one) => one.textContent.trim()));
  const cookies = (await browser.cookies()).filter((cookie) => cookie.name.endsWith('evercred-approval'));
  const [title] = await text('h1');
  const states = await text('.state');
  const all = args.only || title === 'All approved';
  ok = args.deny || args.refused ? states.some((state) => state.includes(args.deny ? 'declined' : 'Not approved')) : all;
  process.stdout.write(`${JSON.stringify({
    status: response.status(),
    title,
    states,
    text: (await text('header')).join(' '),
    scripts: (await page.$$('script')).length,
    cookies: cookies.map(({ name, path, httpOnly, sameSite, secure }) => ({ name, path, httpOnly, sameSite, secure })),
    wide: await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth),
    complaints,
  })}\n`);
} catch (error) {
  const [page] = (await browser.pages()).slice(-1);
  const seen = await page?.evaluate(() => document.body.innerText).catch(() => '');
  process.stderr.write(`approve.mjs: ${error.message}\nat ${page && new URL(page.url()).origin}: ${seen}\n`);
} finally {
  await browser.close();
}
process.exit(ok ? 0 : 1);
