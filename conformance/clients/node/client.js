// A program on eureka-js-client that tells over HTTP what it sees: BASES APP ID PORT VARIANT.
'use strict';

const http = require('http');
const { Eureka } = require('eureka-js-client');

const [bases, app, instanceId, port] = process.argv.slice(2);
const hosts = bases.split(',').map((base) => `${base}/apps/`);

const eureka = new Eureka({
  shouldUseDelta: true, // at the top level: the library looks for it nowhere else
  requestMiddleware: (request, done) => done({ ...request, timeout: 3000 }),
  instance: {
    app,
    instanceId,
    hostName: 'localhost',
    ipAddr: '127.0.0.1',
    vipAddress: app,
    status: 'UP',
    port: { $: Number(port), '@enabled': 'true' },
    dataCenterInfo: { '@class': 'com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo', name: 'MyOwn' },
    leaseInfo: { renewalIntervalInSecs: 1, durationInSecs: 10 },
  },
  eureka: {
    serviceUrls: { default: hosts },
    heartbeatInterval: 1000,
    registryFetchInterval: 1000,
    maxRetries: 2,
    requestRetryDelay: 200,
  },
});
eureka.logger.level('error');

// A delta leaves an instance that is no longer UP in the library's list, so its user has to look.
const known = (service) => (eureka.getInstancesByVipAddress(service) || []).filter((i) => i.status === 'UP');

function call(service, answer) {
  const found = known(service);
  if (found.length === 0) {
    answer(503, 'none');
    return;
  }
  const chosen = found[Math.floor(Math.random() * found.length)];
  http.get({ host: chosen.hostName, port: chosen.port.$, path: '/whoami', timeout: 3000 }, (reply) => {
    const parts = [];
    reply.on('data', (part) => parts.push(part));
    reply.on('end', () => answer(reply.statusCode, Buffer.concat(parts).toString()));
  }).on('error', (error) => answer(503, String(error)));
}

http.createServer((request, response) => {
  const answer = (status, text) => {
    response.writeHead(status, { 'Content-Type': 'text/plain' });
    response.end(text);
  };
  const [, command, service] = request.url.split('/');
  if (command === 'whoami') answer(200, instanceId);
  else if (command === 'instances') answer(200, JSON.stringify(known(service).map((i) => i.instanceId).sort()));
  else if (command === 'choose') call(service, answer);
  else answer(404, '');
}).listen(Number(port), '127.0.0.1');

// The library gives up where its first registration or fetch fails, so its user has to try again.
function start() {
  eureka.start((error) => {
    if (error) setTimeout(start, 500);
  });
}
start();

process.on('SIGTERM', () => eureka.stop((error) => process.exit(error ? 1 : 0)));
