// A picture of a page as a browser of that width shows it (Debian's Chromium, without a window):
//   node shot.mjs URL OUT.png WIDTH light|dark

import puppeteer from 'puppeteer-core';

const [url, out, width, scheme] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  // Root has no use of the sandbox.
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
});
try {
  const page = await browser.newPage();
  await page.setViewport({ width: Number(width), height: 300, deviceScaleFactor: 1 });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  const answer = await page.goto(url, { waitUntil: 'load', timeout: 20000 });
  // What is wider than the screen must scroll in a box of its own, never the page.
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (!answer.ok() || wide > 0) throw new Error(`HTTP ${answer.status()}, ${wide} px wider than ${width}`);
  await page.screenshot({ path: out, fullPage: true });
} finally {
  await browser.close();
}
