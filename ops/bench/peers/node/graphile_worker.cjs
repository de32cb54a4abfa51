// graphile-worker over PostgreSQL, set as its own page on performance sets it.
"use strict";

const { makeWorkerUtils, run, Logger } = require("graphile-worker");
const { CONTENT, batches } = require("./run.cjs");
const tally = require("./tally.cjs");

const AT_ONCE = 5000;

const connectionString = process.env.BENCH_DATABASE_URL;
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));

const withUtils = async (use) => {
  const utils = await makeWorkerUtils({ connectionString, logger });
  await use(utils);
  await utils.release();
};

exports.prepare = () => withUtils((utils) => utils.migrate());

exports.enqueue = (count) =>
  withUtils(async (utils) => {
    for (const size of batches(count, AT_ONCE)) {
      await utils.addJobs(
        Array.from({ length: size }, () => ({ identifier: "work", payload: { content: CONTENT } })),
      );
    }
  });

exports.work = async () => {
  const worked = tally.open();
  const runner = await run({
    preset: {
      worker: {
        connectionString,
        logger,
        concurrentJobs: 24,
        maxPoolSize: 25,
        localQueue: { size: 500 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      },
    },
    taskList: { work: async () => worked.add() },
    noHandleSignals: true,
  });
  return () => runner.stop();
};
