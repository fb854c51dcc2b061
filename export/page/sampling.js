// Text from a model: the next token is drawn from its logits, as engine/run/generate.py does, until an end.

const HEALED = 3; // tokens before a dropped one that may have the beginning of its first character

// Random numbers in [0, 1): sfc32, from any whole number.
function randomOf(seed) {
  let a = seed >>> 0, b = Math.floor(seed / 2 ** 32) >>> 0, c = 0x9e3779b9, d = 1;
  function next() {
    const t = (a + b + d++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + t) | 0;
    return (t >>> 0) / 2 ** 32;
  }
  for (let i = 0; i < 12; i++) next();
  return next;
}

// One id, drawn by `random` from `logits`; `allowed(id)` says which may be.
function draw(logits, { temperature = 1, top_k = 0, top_p = 1, min_p = 0 }, random, allowed) {
  let ids = [];
  for (let id = 0; id < logits.length; id++) if (allowed(id)) ids.push(id);
  if (!temperature) return ids.reduce((best, id) => (logits[id] > logits[best] ? id : best));
  if ((top_k && top_k < ids.length) || top_p < 1) ids.sort((i, j) => logits[j] - logits[i]);
  if (top_k) ids = ids.slice(0, top_k);
  const most = ids.reduce((best, id) => Math.max(best, logits[id]), -Infinity);
  let p = ids.map((id) => Math.exp((logits[id] - most) / temperature));
  if (min_p) p = p.map((q) => (q < min_p ? 0 : q)); // the likeliest is 1
  if (top_p < 1) {
    const enough = top_p * p.reduce((a, b) => a + b, 0);
    let before = 0;
    p = p.map((q, n) => {
      const kept = n === 0 || before < enough ? q : 0;
      before += q;
      return kept;
    });
  }
  let point = random() * p.reduce((a, b) => a + b, 0), last = 0;
  for (let n = 0; n < p.length; n++) {
    if (!p[n]) continue;
    last = n;
    point -= p[n];
    if (point < 0) break;
  }
  return ids[last];
}

// A sample after `prompt`, as a generator: yields the text that is final so far in pieces, some of them empty, and
// returns why it ended: "eos", "stop" or "length". Options besides those of `draw`: seed, stop (a text), max_new.
function* generate(loaded, prompt, options = {}) {
  const { settings, tokenizer, model } = loaded, { eos } = settings.specials;
  const random = randomOf(options.seed ?? Math.floor(Math.random() * 2 ** 53));
  const limit = options.max_new ?? settings.longest, suppressed = new Set(settings.suppressed);
  let ids = loaded.promptIds(prompt), decoder = tokenizer.decoder(), required = "", hidden = 0;
  if (prompt && tokenizer.bytes?.has(ids.at(-1))) ({ ids, required, hidden, decoder } = heal(loaded, ids));
  const text = writer(options.stop, hidden);
  let logits;
  for (const id of unread(model, ids)) {
    logits = model.read(id);
    yield "";
  }
  for (let count = 0; count < limit; ) {
    const id = draw(logits, options, random, allowed(tokenizer, suppressed, required));
    if (id === eos) {
      yield text.write(decoder.flush(), true);
      return text.stopped ? "stop" : "eos";
    }
    const bytes = required && tokenizer.bytes.get(id);
    if (!required || bytes.length > required.length) count++;
    if (required) required = required.slice(bytes.length);
    yield text.write(decoder.feed(id));
    if (text.stopped) return "stop";
    if (count < limit) logits = model.read(id);
  }
  yield text.write(decoder.flush(), true);
  return text.stopped ? "stop" : "length";
}

// The ids that have to be read: what lies before the model's context only counts know. The model begins anew.
function* unread(model, ids) {
  model.reset();
  const first = model.from ? model.from(ids.length) : 0;
  if (model.skip) ids.slice(0, first).forEach(model.skip);
  yield* ids.slice(first);
}

// Token healing (engine/run/healing.py): the last token of a prompt is drawn again, so that its bytes may be the
// beginning of a longer one. `hidden`: characters that are shown already.
function heal(loaded, ids) {
  const { tokenizer } = loaded, required = tokenizer.bytes.get(ids.at(-1));
  const shortened = ids.length > 1 ? ids.slice(0, -1) : loaded.promptIds("");
  const fed = (decoder, some) => some.map((id) => decoder.feed(id)).join("");
  const decoder = tokenizer.decoder(), whole = tokenizer.decoder(), before = shortened.slice(-HEALED);
  const shown = fed(decoder, before), all = fed(whole, [...before, ids.at(-1)]) + whole.flush();
  return { ids: shortened, required, hidden: [...all].length - [...shown].length, decoder };
}

// Which ids may be drawn while the bytes `required` are missing: those that begin with them, and of white space also
// those that are a part of them.
function allowed(tokenizer, suppressed, required) {
  if (!required) return (id) => !suppressed.has(id);
  const blank = !new TextDecoder().decode(bytesOf(required)).replaceAll("\ufffd", "").trim();
  return (id) => {
    const bytes = tokenizer.bytes.get(id);
    return bytes !== undefined && (bytes.startsWith(required) || (blank && required.startsWith(bytes)));
  };
}

// Text up to `stop`, without the first `hidden` characters; what may be the beginning of `stop` waits.
function writer(stop, hidden) {
  let pending = "";
  return {
    stopped: false,
    write(text, isEnd = false) {
      const shown = [...text], cut = Math.min(hidden, shown.length);
      hidden -= cut;
      text = pending + shown.slice(cut).join("");
      if (!stop) return text;
      const found = text.indexOf(stop);
      this.stopped = found >= 0;
      const waiting = this.stopped || isEnd ? 0 : overlap(text, stop);
      pending = text.slice(text.length - waiting);
      return text.slice(0, this.stopped ? found : text.length - waiting);
    },
  };
}

function overlap(text, stop) {
  for (let n = Math.min(stop.length - 1, text.length); n > 0; n--) if (stop.startsWith(text.slice(-n))) return n;
  return 0;
}
