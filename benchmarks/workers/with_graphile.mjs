// graphile-worker, with the settings of its page on performance: 24 jobs at once, a local queue of 500, completion in batches.
//
//   node with_graphile.mjs URL FOLDER [--default]
//
// FOLDER is where package.json was installed. --default leaves its defaults, but for the 24 jobs at once.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import path from "node:path";

const [url, folder, plain] = process.argv.slice(2);
const require = createRequire(path.resolve(folder) + "/");
const { run, makeWorkerUtils, Logger } = require("graphile-worker");

const BULK = 1000;
const batching = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});
const preset = {
  worker: {
    connectionString: url, concurrentJobs: 24, maxPoolSize: 25, logger,
    ...(plain ? {} : batching),
  },
};

const say = (word) => process.stdout.write(word + "\n");
const monotonic = () => Number(process.hrtime.bigint()) / 1e9;
let first = null;
let runner, since;
const taskList = {
  work: async () => {
    if (first === null) first = monotonic();
  },
};

const utils = await makeWorkerUtils({ preset });
await utils.migrate();
say("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const [word, count] = line.split(" ");
  if (word === "fill") {
    for (let begin = 0; begin < Number(count); begin += BULK) {
      const numbers = Array.from({ length: Math.min(BULK, Number(count) - begin) }, (_, index) => begin + index);
      await utils.addJobs(numbers.map((i) => ({ identifier: "work", payload: { i } })));
    }
    say("filled");
  } else if (word === "go") {
    since = process.cpuUsage();
    runner = await run({ preset, taskList, noHandleSignals: true });
    say("going");
  } else if (word === "stop") {
    const { user, system } = process.cpuUsage(since);
    await runner.stop();
    await utils.release();
    say(JSON.stringify({ first, cpu: (user + system) / 1e6 }));
    process.exit(0);
  }
}
