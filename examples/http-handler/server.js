// An HTTP handler: a server in any language, in the same pod as the worker.
//
//     PORT=8080 node server.js
//     workqueue run --http http://localhost:8080/jobs --queue letters --declare
//     workqueue send --queue letters 'turn me round'
//
// The status code is the outcome: 2xx done, 429 or 503 try again later, any other 4xx never try again (dead letter), 5xx
// try again later. With Retry-After, 429 and 503 cost no attempt.
'use strict';

const http = require('node:http');

let overloaded = true; // when the first message 'busy' comes

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => {
    const text = Buffer.concat(pieces).toString('utf8');
    if (text === '') {
      response.writeHead(422).end('the message is empty');
    } else if (text === 'busy' && overloaded) {
      overloaded = false;
      response.writeHead(503, { 'Retry-After': '1' }).end('busy');
    } else {
      console.log([...text].reverse().join(''));
      response.writeHead(204).end();
    }
  });
});

server.listen(Number(process.env.PORT || 8080), '127.0.0.1');
// The worker stops first and still needs this server for its last messages: end after the last response.
process.on('SIGTERM', () => server.close());
