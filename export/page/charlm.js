// A run on a page: its settings, tokenizer and weights as a model that writes text. Runs in browsers and in node.

const TOLERANCE = 1e-3; // of the logits that the exporter computed: float32 sums in another order

// settings and tokenizer: JSON; buffer: an ArrayBuffer with model.safetensors.
function load(settings, tokenizer, buffer) {
  if (settings.format !== 1) throw new Error("settings.json is of another version than charlm.js: export the run again");
  const loaded = {
    settings,
    tokenizer: tokenizerOf(tokenizer, settings.specials),
    model: modelOf(settings, readTensors(buffer)),
    promptIds(prompt) {
      if (settings.single_lines && prompt.includes("\n")) throw new Error("the model writes single lines: no line end");
      const ids = loaded.tokenizer.encode(prompt); // throws for characters that the model does not know
      return settings.prefix.length || ids.length ? [...settings.prefix, ...ids] : settings.start;
    },
    generate: (prompt, options) => generate(loaded, prompt, options),
    logits: (ids) => {
      let found;
      for (const id of unread(loaded.model, ids)) found = loaded.model.read(id);
      return Float32Array.from(found);
    },
  };
  check(loaded);
  return loaded;
}

// That this computes what the exporter did: nothing is written wrongly without a word.
function check({ settings: { check }, logits }) {
  const found = logits(check.tokens);
  check.ids.forEach((id, n) => {
    const difference = Math.abs(found[id] - check.logits[n]);
    if (!(difference <= TOLERANCE * Math.max(1, Math.abs(check.logits[n])))) {
      throw new Error(`the model computes something else here: a logit is off by ${difference.toPrecision(2)}`);
    }
  });
}

// The bytes of base64, an ArrayBuffer.
function fromBase64(text) {
  const decoded = atob(text), bytes = new Uint8Array(decoded.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = decoded.charCodeAt(i);
  return bytes.buffer;
}
