// node tests/hub_tokenizers.mjs MODULES JOBS RESULTS: what JavaScript's tokenizers make of exported folders. MODULES is a
// folder node_modules with @huggingface/tokenizers and @huggingface/jinja; JOBS a JSON list of {folder, messages} or
// {folder, text}; RESULTS gets the ids of each.
import fs from "fs";
import {pathToFileURL} from "url";

const [modules, jobs, results] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(`${modules}/@huggingface/${name}`));
const {Tokenizer} = await load("tokenizers/dist/tokenizers.mjs");
const {Template} = await load("jinja/dist/index.js");
const read = (path) => JSON.parse(fs.readFileSync(path));
fs.writeFileSync(results, JSON.stringify(read(jobs).map(({folder, messages, text}) => {
    const config = read(`${folder}/tokenizer_config.json`);
    const tokenizer = new Tokenizer(read(`${folder}/tokenizer.json`), config);
    if (text !== undefined) return tokenizer.encode(text).ids;
    const written = new Template(config.chat_template).render({messages, add_generation_prompt: true});
    return tokenizer.encode(written, {add_special_tokens: false}).ids;
})));
