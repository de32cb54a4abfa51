// What a worker's handler does: it counts, as tally.py does, and shows the count to the bench.
"use strict";

const fs = require("node:fs");

const SHOWN_EVERY_MS = 10;

exports.open = () => {
  const file = fs.openSync(process.env.BENCH_TALLY, "r+");
  const memory = Buffer.alloc(16);
  let count = 0n;
  let shown = 0n;
  const show = () => {
    if (count === shown) return;
    shown = count;
    memory.writeBigUInt64LE(count, 8);
    fs.writeSync(file, memory, 0, 16, 0);
  };
  setInterval(show, SHOWN_EVERY_MS);
  return {
    add(tasks = 1) {
      if (count === 0n) memory.writeDoubleLE(Number(process.hrtime.bigint()) / 1e9, 0);
      count += BigInt(tasks);
    },
  };
};
