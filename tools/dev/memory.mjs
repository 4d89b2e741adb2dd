// What llama.cpp (npm's node-llama-cpp) takes for keys and values, and for buffers, with flash attention.
//
//   node tools/dev/memory.mjs < jobs.jsonl
//
// A job is a JSON line {"path", "ctx", "kv": "F16" or "Q8_0"}; the answer is {"path", "cache_bytes", "buffers_bytes"}, both as
// llama.cpp prints them, to a hundredth of a MiB, or {"path", "error"}. The package is looked up under target/peers/npm, or under
// $GGFORGE_PEERS/npm.

import fs from "node:fs";
import path from "node:path";
import {fileURLToPath, pathToFileURL} from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const peers = process.env.GGFORGE_PEERS ?? path.join(root, "target/peers");
const packageFolder = path.join(peers, "npm/node_modules/node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.join(packageFolder, "dist/index.js")).href);

let lines = [];
const logger = (level, text) => lines.push(text);
const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: LlamaLogLevel.debug, logger});

for (const line of fs.readFileSync(0, "utf8").split("\n").filter(Boolean)) {
    const job = JSON.parse(line);
    try {
        console.log(JSON.stringify({path: job.path, ...await memory(job)}));
    } catch (error) {
        console.log(JSON.stringify({path: job.path, error: String(error?.message ?? error)}));
    }
}
await llama.dispose();

async function memory({path: file, ctx, kv}) {
    const model = await llama.loadModel({modelPath: file});
    lines = [];
    const context = await model.createContext({
        contextSize: ctx, batchSize: 512, threads: 1, flashAttention: true,
        experimentalKvCacheKeyType: kv, experimentalKvCacheValueType: kv
    });
    await context.dispose();
    await model.dispose();
    const text = lines.join("\n");
    const bytes = (pattern) => [...text.matchAll(pattern)].reduce((sum, [, mib]) => sum + Number(mib) * (1 << 20), 0);
    return {
        cache_bytes: bytes(/llama_kv_cache: size = +([0-9.]+) MiB/g),
        buffers_bytes: bytes(/sched_reserve: .*compute buffer size = +([0-9.]+) MiB/g)
    };
}
