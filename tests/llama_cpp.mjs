// node tests/llama_cpp.mjs MODULES JOBS RESULTS: what llama.cpp makes of GGUF files. MODULES is a folder node_modules
// with node-llama-cpp; JOBS a JSON list of {path, text, tokens}; RESULTS gets, for each, the ids of `text` and the
// likeliest token after each of `tokens`. The cache is of float32, as ours: the default one rounds to 11 bits.
import fs from "fs";
import {pathToFileURL} from "url";

const [modules, jobs, results] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(`${modules}/node-llama-cpp/dist/index.js`));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", progressLogs: false});
const cache = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"};
const found = [];
for (const job of JSON.parse(fs.readFileSync(jobs))) {
    const model = await llama.loadModel({modelPath: job.path});
    const context = await model.createContext({contextSize: 256, sequences: 1, threads: 1, ...cache});
    const likeliest = {generateNext: {token: true, options: {temperature: 0}}};
    const read = await context.getSequence().controlledEvaluate(job.tokens.map((token) => [token, likeliest]));
    found.push({ids: model.tokenize(job.text), next: read.map((each) => each.next.token)});
    await model.dispose();
}
fs.writeFileSync(results, JSON.stringify(found));
process.exit(0);
