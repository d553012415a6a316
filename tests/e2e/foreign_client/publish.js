"use strict";
// Registers somebody from outside: knows RabbitMQ and one flat JSON object, nothing else.
//
//   QUEUE_URL=amqp://user:password@host:5672/%2F node publish.js '{"name": …}'
//
// Exits with 0 once the broker has the message safe, with 1 and a reason otherwise.

const amqp = require("amqplib");

const EXCHANGE = "user.registration";

async function publish(url, body) {
  const connection = await amqp.connect(url);
  try {
    const channel = await connection.createConfirmChannel();
    let returned = false;
    channel.on("return", () => { returned = true; });
    // mandatory: without a queue behind the exchange the broker says so instead of dropping it.
    channel.publish(EXCHANGE, "", Buffer.from(body), { mandatory: true, persistent: true });
    await channel.waitForConfirms();
    if (returned) throw new Error(`no queue is bound to ${EXCHANGE}; nothing was kept`);
  } finally {
    await connection.close();
  }
}

publish(process.env.QUEUE_URL, process.argv[2]).then(
  () => console.log("The broker has it."),
  (error) => {
    console.error(`Not published: ${error.message}`);
    process.exitCode = 1;
  },
);
