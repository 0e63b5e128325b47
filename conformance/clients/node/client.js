// A program on eureka-js-client that tells over HTTP what it sees: BASES APP ID PORT VARIANT (json).
'use strict';

const http = require('http');
const { Eureka } = require('eureka-js-client');

const [bases, app, instanceId, port] = process.argv.slice(2);

const eureka = new Eureka({
  shouldUseDelta: true, // at the top level: the library looks for it nowhere else
  // The library sets no time limit, so a server that hangs would never be left.
  requestMiddleware: (request, done) => done({ ...request, timeout: 3000 }),
  instance: {
    app,
    instanceId,
    hostName: 'localhost',
    ipAddr: '127.0.0.1',
    vipAddress: app.toLowerCase(),
    port: { $: Number(port), '@enabled': 'true' },
    dataCenterInfo: { '@class': 'com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo', name: 'MyOwn' },
    leaseInfo: { renewalIntervalInSecs: 1, durationInSecs: 30 },
  },
  eureka: {
    serviceUrls: { default: bases.split(',').map((base) => `${base}/apps/`) },
    heartbeatInterval: 1000,
    registryFetchInterval: 1000,
    // All retries fit between two heartbeats: each retry turns the list of servers, for every call.
    maxRetries: 2,
    requestRetryDelay: 200,
  },
});
eureka.logger.level('error');

// By VIP, because a delta changes the wrong instance in the library's list by application. The
// status, because a delta leaves an instance that is no longer UP in both lists.
const up = (service) =>
  eureka.getInstancesByVipAddress(service.toLowerCase()).filter((instance) => instance.status === 'UP');

async function choose(service) {
  const found = up(service);
  const { hostName, port: { $: number } } = found[Math.floor(Math.random() * found.length)];
  const reply = await fetch(`http://${hostName}:${number}/whoami`, { signal: AbortSignal.timeout(3000) });
  if (!reply.ok) throw new Error(`status ${reply.status}`);
  return reply.text();
}

http.createServer(async (request, response) => {
  const answer = (status, type, text) => response.writeHead(status, { 'Content-Type': type }).end(text);
  const [, command, service] = request.url.split('/');
  if (command === 'whoami') {
    answer(200, 'text/plain', instanceId);
  } else if (command === 'instances' && service) {
    const ids = up(service).map((instance) => instance.instanceId).sort();
    answer(200, 'application/json', JSON.stringify(ids));
  } else if (command === 'choose' && service) {
    try {
      answer(200, 'text/plain', await choose(service));
    } catch (error) { // nobody to choose, or the chosen one did not answer
      answer(503, 'text/plain', String(error));
    }
  } else {
    answer(404, 'text/plain', '');
  }
}).listen(Number(port), '127.0.0.1');

// The library gives up when its first registration fails. Once registered it goes on by itself, and
// a second start would leave it with two loops.
let registered = false;
eureka.once('registered', () => { registered = true; });
function start() {
  eureka.start((error) => {
    if (error && !registered) setTimeout(start, 1000);
  });
}
start();

// Ends also without an answer to the DELETE; a pending heartbeat might register again.
process.once('SIGTERM', () => eureka.stop(() => process.exit(0)));
