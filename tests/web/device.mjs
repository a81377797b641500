// Approve a device flow at oidc-provider as a human does: in a browser, page by page.
//
//   ACT_URL=… ACT_CODE=… node device.mjs [--picture FILE.png]
//
// The pages: the code (typed), "continue" after it, log in, consent. Exit 0 once the last page says that it is done.

import puppeteer from 'puppeteer-core';

const { ACT_URL: url, ACT_CODE: code } = process.env;
const picture = process.argv[2] === '--picture' ? process.argv[3] : undefined;

const browser = await puppeteer.launch({
  executablePath: '/usr/bin/chromium',
  headless: true,
  acceptInsecureCerts: true,
  args: ['--no-sandbox', '--disable-gpu'],
});
try {
  const page = await browser.newPage();
  await page.goto(url);
  for (let step = 0; step < 8; step += 1) {
    const text = await page.evaluate(() => document.body.innerText);
    process.stdout.write(`${new URL(page.url()).pathname}: ${text.split('\n')[0]}\n`);
    if (/sign-in success|continue on your device/i.test(text)) process.exit(0);
    const field = async (name, value) => {
      const found = await page.$(`input[name=${name}]:not([type=hidden])`);
      if (found && !(await page.evaluate((input) => input.value, found))) await found.type(value);
    };
    await field('user_code', code);
    await field('login', 'alice');
    await field('password', 'anything');
    if (picture) await page.screenshot({ path: picture });
    const button = (await page.$('button[type=submit]')) ?? (await page.$('button'));
    if (!button) throw new Error(`no button on: ${text}`);
    await Promise.all([page.waitForNavigation({ timeout: 30000 }), button.click()]);
  }
  throw new Error('the last page never came');
} finally {
  await browser.close();
}
