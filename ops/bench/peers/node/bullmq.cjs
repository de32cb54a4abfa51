// BullMQ over Redis.
"use strict";

const { Queue, Worker } = require("bullmq");
const { CONTENT, batches } = require("./run.cjs");
const tally = require("./tally.cjs");

const QUEUE = "bench";
const CONCURRENCY = 100;
const AT_ONCE = 1000;

const url = new URL(process.env.BENCH_REDIS_URL);
const connection = { host: url.hostname, port: Number(url.port), db: Number(url.pathname.slice(1)) };

exports.enqueue = async (count) => {
  const queue = new Queue(QUEUE, { connection });
  for (const size of batches(count, AT_ONCE)) {
    await queue.addBulk(Array.from({ length: size }, () => ({ name: "work", data: { content: CONTENT } })));
  }
  await queue.close();
};

exports.work = async () => {
  const worked = tally.open();
  const worker = new Worker(QUEUE, async () => worked.add(), {
    connection: { ...connection, maxRetriesPerRequest: null },
    concurrency: CONCURRENCY,
    removeOnComplete: { count: 0 },
  });
  worker.on("error", console.error);
  return () => worker.close();
};
