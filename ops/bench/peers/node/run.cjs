// A peer's process: `node run.cjs NAME VERB`.
"use strict";

const [name, verb, count] = process.argv.slice(2);

exports.CONTENT = "x".repeat(100);

// So many jobs, in batches.
exports.batches = function* (total, size) {
  for (let done = 0; done < total; done += size) yield Math.min(size, total - done);
};

(async () => {
  const stop = await require(`./${name}.cjs`)[verb](Number(count));
  if (verb === "work") process.on("SIGTERM", () => stop().finally(() => process.exit(0)));
  else process.exit(0);
})().catch((error) => {
  console.error(error.stack);
  console.error(String(error)); // last, where the bench looks for it
  process.exit(1);
});
