// A real OpenID provider (npm oidc-provider) for tests, over TLS on loopback, with a CA of its own.
//
//   node issuer.mjs --dir DIR [--port 0] [--lifetime 3600] [--rotation on|off] [--refresh-lifetime 86400] [--for 3600]
//                   [--return-url URL]...
//
// DIR (made if missing, 0755) gets, and keeps for the next start:
//   ca.pem        what a client must trust (made by openssl, as are the server's own issuer.pem and issuer-key.pem)
//   secret        the client secret, mode 0600, one line
//
// --for 0 makes just that and ends.
//
// The first line on standard output is `ready https://127.0.0.1:PORT`; then one line for each answer of the token
// endpoint, with digests (first 12 hex digits of SHA-256) in the place of tokens. It ends at SIGTERM, or after --for
// seconds. Everything it issued lives in memory and ends with it.
//
// Clients, for the device flow and the refresh grant unless it says otherwise:
//   evercred         secret in the Authorization header        evercred-post     secret in the form
//   evercred-public  no secret
//   evercred-own     asks for itself (client credentials); secret in the header       evercred-own-post     in the form
//   evercred-web     with --return-url: the authorisation-code flow back to these URLs; secret in the form
// Resources (RFC 8707) get JWT access tokens of --lifetime: the two of RESOURCES, with the scopes of RESOURCE_SCOPES;
// without a resource the access token is opaque. --rotation on: each use of a refresh token gives another one, and a
// second use of the same revokes the whole grant. Any user and password are let in (client.mjs does it by plain HTTP,
// a test may do it in a browser): the pages are oidc-provider's development ones.

import { execFileSync } from 'node:child_process';
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Provider, errors } from 'oidc-provider';

const RESOURCES = ['https://storage.example.org', 'https://compute.example.org'];
const RESOURCE_SCOPES = 'storage.read:/ storage.modify:/ compute.read compute.create';

const { values: args } = parseArgs({
  options: {
    dir: { type: 'string' },
    port: { type: 'string', default: '0' },
    lifetime: { type: 'string', default: '3600' },
    'refresh-lifetime': { type: 'string', default: '86400' },
    rotation: { type: 'string', default: 'on' },
    for: { type: 'string', default: '3600' },
    'return-url': { type: 'string', multiple: true, default: [] },
  },
});

function usage(what) {
  process.stderr.write(`issuer.mjs: ${what}; see the head of the file\n`);
  process.exit(2);
}

function seconds(name) {
  const value = Number(args[name]);
  return Number.isInteger(value) && value >= 0 ? value : usage(`--${name} ${args[name]} is not a whole number`);
}

if (!args.dir) usage('--dir is missing');
if (!['on', 'off'].includes(args.rotation)) usage(`--rotation ${args.rotation} is neither on nor off`);
const [port, lifetime, refreshLifetime, runtime] = ['port', 'lifetime', 'refresh-lifetime', 'for'].map(seconds);

const digest = (token) => (token ? createHash('sha256').update(token).digest('hex').slice(0, 12) : '-');
const say = (text) => process.stdout.write(`${new Date().toISOString()} ${text}\n`);

/** A CA and a certificate for 127.0.0.1 and localhost, made once. */
function certificates(dir) {
  const path = (name) => join(dir, name);
  if (!existsSync(path('issuer.pem'))) {
    const openssl = (...command) => execFileSync('openssl', command, { cwd: dir, stdio: ['ignore', 'ignore', 'pipe'] });
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    openssl('req', '-x509', ...key, '-days', '3650', '-subj', '/CN=evercred test CA', '-keyout', 'ca-key.pem', '-out', 'ca.pem');
    openssl('req', ...key, '-subj', '/CN=localhost', '-keyout', 'issuer-key.pem', '-out', 'issuer.csr');
    writeFileSync(path('issuer.ext'), 'subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n');
    openssl('x509', '-req', '-in', 'issuer.csr', '-CA', 'ca.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial',
      '-days', '3650', '-extfile', 'issuer.ext', '-out', 'issuer.pem');
  }
  return { cert: readFileSync(path('issuer.pem')), key: readFileSync(path('issuer-key.pem')) };
}

function secretOf(dir) {
  const path = join(dir, 'secret');
  if (!existsSync(path)) writeFileSync(path, `${randomBytes(32).toString('base64url')}\n`, { mode: 0o600 });
  return readFileSync(path, 'utf8').trim();
}

function signingKey() {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid: 'test' };
}

function configuration(secret) {
  const client = (id, method) => ({
    client_id: id,
    ...(method === 'none' ? {} : { client_secret: secret }),
    token_endpoint_auth_method: method,
    application_type: 'native',
    grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token'],
    redirect_uris: [],
    response_types: [],
    id_token_signed_response_alg: 'ES256',
  });
  return {
    clients: [
      client('evercred', 'client_secret_basic'),
      client('evercred-post', 'client_secret_post'),
      client('evercred-public', 'none'),
      { ...client('evercred-own', 'client_secret_basic'), grant_types: ['client_credentials'] },
      { ...client('evercred-own-post', 'client_secret_post'), grant_types: ['client_credentials'] },
      ...(args['return-url'].length === 0 ? [] : [{
        ...client('evercred-web', 'client_secret_post'),
        grant_types: ['authorization_code', 'refresh_token'],
        redirect_uris: args['return-url'],
        response_types: ['code'],
      }]),
    ],
    jwks: { keys: [signingKey()] },
    cookies: { keys: [randomBytes(32).toString('hex')] },
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    features: {
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      introspection: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        // Renewals of this client ask for nothing: they get what was approved.
        useGrantedResource: (_ctx, model) => model.clientId === 'evercred-web',
        getResourceServerInfo(_ctx, resource) {
          if (!RESOURCES.includes(resource)) throw new errors.InvalidTarget();
          return {
            scope: RESOURCE_SCOPES,
            audience: resource,
            accessTokenFormat: 'jwt',
            accessTokenTTL: lifetime,
            jwt: { sign: { alg: 'ES256' } },
          };
        },
      },
    },
    rotateRefreshToken: args.rotation === 'on',
    ttl: {
      AccessToken: lifetime,
      ClientCredentials: lifetime,
      DeviceCode: 600,
      Grant: refreshLifetime,
      IdToken: 600,
      Interaction: 600,
      RefreshToken: refreshLifetime,
      Session: 600,
    },
  };
}

mkdirSync(args.dir, { recursive: true, mode: 0o755 });
const server = createServer(certificates(args.dir));
await new Promise((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));
const url = `https://127.0.0.1:${server.address().port}`;

const provider = new Provider(url, configuration(secretOf(args.dir)));
provider.on('grant.success', (ctx) => {
  const { entities, params } = ctx.oidc;
  const { access_token: access, refresh_token: refresh, scope, expires_in: expires } = ctx.body;
  say(`issued grant=${params.grant_type.split(':').pop()} client=${entities.Client.clientId} `
    + `user=${entities.Account?.accountId} spent=${digest(params.refresh_token)} access=${digest(access)} `
    + `refresh=${digest(refresh)} expires_in=${expires} scope=${JSON.stringify(scope ?? '')}`);
});
provider.on('grant.error', (ctx, error) => {
  if (error.error === 'authorization_pending') return;
  say(`refused grant=${ctx.oidc?.params?.grant_type?.split(':').pop()} client=${ctx.oidc?.client?.clientId} `
    + `spent=${digest(ctx.oidc?.params?.refresh_token)} error=${error.error} (${error.error_detail ?? error.error_description})`);
});
provider.on('grant.revoked', (ctx) => say(`revoked grant of client=${ctx.oidc?.client?.clientId}`));
provider.on('server_error', (_ctx, error) => say(`server error: ${error.message}`));
server.on('request', provider.callback());

function stop() {
  server.close(() => process.exit(0));
  server.closeAllConnections();
}
process.on('SIGTERM', stop).on('SIGINT', stop);
setTimeout(stop, runtime * 1000).unref();
process.stdout.write(`ready ${url}\n`);
