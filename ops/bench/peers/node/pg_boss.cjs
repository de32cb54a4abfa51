// pg-boss over PostgreSQL.
"use strict";

const { PgBoss } = require("pg-boss");
const { CONTENT, batches } = require("./run.cjs");
const tally = require("./tally.cjs");

const QUEUE = "bench";
const BATCH = 1000;
const AT_ONCE = 5000;

const started = async () => {
  const boss = new PgBoss(process.env.BENCH_DATABASE_URL);
  boss.on("error", console.error);
  await boss.start();
  await boss.createQueue(QUEUE);
  return boss;
};

exports.prepare = async () => (await started()).stop();

exports.enqueue = async (count) => {
  const boss = await started();
  for (const size of batches(count, AT_ONCE)) {
    await boss.insert(QUEUE, Array.from({ length: size }, () => ({ data: { content: CONTENT } })));
  }
  await boss.stop();
};

exports.work = async () => {
  const worked = tally.open();
  const boss = await started();
  const options = { batchSize: BATCH, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
  await boss.work(QUEUE, options, async (jobs) => worked.add(jobs.length));
  return () => boss.stop();
};
