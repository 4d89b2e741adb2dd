// Loads GGUF files with llama.cpp (npm's node-llama-cpp) and prints the greedy continuation of a prompt.
//
//   node tools/dev/generate.mjs --tokens 64 --prompt "Once upon a time" a.gguf b.gguf
//
// One JSON line per file: {"path", "prompt": [ids], "tokens": [ids], "text"} or {"path", "error"}.
// The package is looked up under target/peers/npm, or under $GGFORGE_PEERS/npm.

import path from "node:path";
import {fileURLToPath, pathToFileURL} from "node:url";
import {parseArgs} from "node:util";

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const peers = process.env.GGFORGE_PEERS ?? path.join(root, "target/peers");
const packageFolder = path.join(peers, "npm/node_modules/node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.join(packageFolder, "dist/index.js")).href);

const {values, positionals} = parseArgs({
    allowPositionals: true,
    options: {
        tokens: {type: "string", default: "64"},
        prompt: {type: "string", default: "Once upon a time"}
    }
});

const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: LlamaLogLevel.error});
for (const file of positionals) {
    try {
        console.log(JSON.stringify({path: file, ...await greedy(file)}));
    } catch (error) {
        console.log(JSON.stringify({path: file, error: String(error?.message ?? error)}));
    }
}
await llama.dispose();

async function greedy(file) {
    const model = await llama.loadModel({modelPath: file});
    const context = await model.createContext({contextSize: 256, threads: 1});
    const sequence = context.getSequence();
    const prompt = model.tokenize(values.prompt, true);
    if (model.tokens.shouldPrependBosToken) prompt.unshift(model.tokens.bos);
    const tokens = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length >= Number(values.tokens)) break;
    }
    const text = model.detokenize(tokens);
    await context.dispose();
    await model.dispose();
    return {prompt, tokens, text};
}
