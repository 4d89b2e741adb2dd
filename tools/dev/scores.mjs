// Scores by llama.cpp (npm's node-llama-cpp), with keys and values in F32.
//
//   node tools/dev/scores.mjs < jobs.jsonl
//
// A job is a JSON line {"path", "tokens": [ids], "positions": [indices]}; the answer is {"path", "logits": {position: [per token]}} or
// {"path", "error"}. The package is looked up under target/peers/npm, or under $GGFORGE_PEERS/npm.

import fs from "node:fs";
import path from "node:path";
import {fileURLToPath, pathToFileURL} from "node:url";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const peers = process.env.GGFORGE_PEERS ?? path.join(root, "target/peers");
const packageFolder = path.join(peers, "npm/node_modules/node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.join(packageFolder, "dist/index.js")).href);

const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: LlamaLogLevel.error});
for (const line of fs.readFileSync(0, "utf8").split("\n").filter(Boolean)) {
    const job = JSON.parse(line);
    try {
        console.log(JSON.stringify({path: job.path, logits: await scores(job)}));
    } catch (error) {
        console.log(JSON.stringify({path: job.path, error: String(error?.message ?? error)}));
    }
}
await llama.dispose();

async function scores({path: file, tokens, positions}) {
    const model = await llama.loadModel({modelPath: file});
    const context = await model.createContext({
        contextSize: 256,
        threads: 1,
        flashAttention: false,
        experimentalKvCacheKeyType: "F32",
        experimentalKvCacheValueType: "F32"
    });
    const wanted = {generateNext: {logits: true, options: {temperature: 0}}};
    const input = tokens.map((token, at) => (positions.includes(at) ? [token, wanted] : token));
    const output = await context.getSequence().controlledEvaluate(input);
    const found = {};
    for (const at of positions) {
        const logits = output[at].next.logits;
        found[at] = Array.from({length: logits.size}, (_, token) => logits.get(token));
    }
    await context.dispose();
    await model.dispose();
    return found;
}
