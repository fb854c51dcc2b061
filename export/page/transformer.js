// The Transformer, a token at a time, with the keys and values of the tokens before it (nanogpt/).

const ROPE_BASE = 10000;

function transformer(weights, { options, specials }) {
  const wte = embedding(weights, options, specials), C = wte.width, { n_head, positions, window } = options;
  const n_kv_head = options.n_kv_head ?? n_head, size = C / n_head;
  const bounded = !window || positions === "learned"; // then half of a full context is encoded anew
  const context = bounded ? options.context : Infinity;
  const capacity = Math.min(context, window ?? context); // of keys: a ring, of which the oldest is overwritten
  const wpe = positions === "learned" ? weights.get("wpe.weight").data : null;
  const shared = { values: null }; // of the token, in the first layer
  const blocks = Array.from({ length: options.n_layer }, (_, i) =>
    block(weights.below(`h.${i}.`), options, { C, n_head, n_kv_head, size, capacity, added: addedValues(weights, options, i), shared }));
  const last = norm(weights, "ln_f", options.norm), x = new Float32Array(C);
  const lm_head = options.tie_head ? product(weights.get("wte.weight")) : linear(weights, "lm_head");
  const frequencies = rotary(size / 2, size, 2), waves = rotary(Math.ceil(C / 2), Math.ceil(C / 2), 1);
  const cos = new Float32Array(size / 2), sin = new Float32Array(size / 2);
  let tokens, time;

  function reset() {
    wte.reset();
    tokens = [];
    time = 0;
  }

  function features(token) {
    if (time === context) {
      const kept = tokens.slice(context - Math.floor(context / 2));
      reset();
      for (const each of kept) step(each);
    }
    return step(token);
  }

  function step(token) {
    x.set(wte.read(token));
    if (wpe) for (let i = 0; i < C; i++) x[i] += wpe[time * C + i];
    if (positions === "sinusoidal") {
      for (let i = 0; i < C; i++) {
        const angle = Math.fround(time * waves[i % waves.length]);
        x[i] += i < waves.length ? Math.sin(angle) : Math.cos(angle);
      }
    }
    if (positions === "rope") {
      for (let i = 0; i < size / 2; i++) {
        const angle = Math.fround(time * frequencies[i]);
        cos[i] = Math.cos(angle);
        sin[i] = Math.sin(angle);
      }
    }
    for (const run of blocks) run(x, time, positions === "rope" ? [cos, sin] : null, token);
    if (bounded) tokens.push(token);
    time++;
    return last(x);
  }

  function head(features) {
    const logits = lm_head(features), cap = options.logit_cap;
    return cap ? each((logit) => cap * Math.tanh(logit / cap), logits) : logits;
  }

  // The first token that the features after `length` tokens depend on.
  function from(length) {
    const dropped = context - Math.floor(context / 2);
    return length <= context ? 0 : dropped * (1 + Math.floor((length - 1 - context) / dropped));
  }

  return { reset, features, head, from };
}

// The table of what the values of each token get besides in this layer: in the last one, and every other one before it.
function addedValues(weights, options, layer) {
  return options.value_embeddings && (options.n_layer - 1 - layer) % 2 === 0 ? weights.get(`vte.${layer}.weight`).data : null;
}

// Frequencies of positions, in the precision that torch has.
function rotary(number, width, step) {
  return Array.from({ length: number }, (_, i) =>
    Math.fround(ROPE_BASE ** Math.fround(-Math.fround(step * i) / width)));
}

// x += attention(norm(x)), then x += mlp(norm(x)).
function block(weights, options, sizes) {
  const first = norm(weights, "ln_1", options.norm), second = norm(weights, "ln_2", options.norm);
  const attend = attention(weights, options, sizes);
  const widen = linear(weights, "mlp.c_fc"), project = linear(weights, "mlp.c_proj");
  const gated = options.activation === "swiglu", act = activationOf(gated ? "silu" : options.activation);
  const inner = new Float32Array(weights.get("mlp.c_proj.weight").shape[1]);
  return (x, time, rotation, token) => {
    add(x, attend(first(x), time, rotation, token));
    const wide = widen(second(x));
    for (let i = 0; i < inner.length; i++) inner[i] = gated ? wide[i] * act(wide[inner.length + i]) : act(wide[i]);
    add(x, project(inner));
  };
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

function attention(weights, options, { C, n_head, n_kv_head, size, capacity, added, shared }) {
  const c_attn = linear(weights, "attn.c_attn"), c_proj = linear(weights, "attn.c_proj");
  const gate = added ? linear(weights, "attn.value_gate") : null;
  const mix = weights.may("attn.value_mix");
  const alibi = options.positions === "alibi", cap = options.attention_cap, width = n_kv_head * size;
  const y = new Float32Array(C);
  let keys = new Float32Array(0), values = keys, scores = new Float64Array(0); // grown up to `capacity`

  function grow(length) {
    const old = [keys, values], room = Math.min(capacity, Math.max(64, 2 * length));
    [keys, values] = old.map((part) => {
      const grown = new Float32Array(room * width);
      grown.set(part);
      return grown;
    });
    scores = new Float64Array(room);
  }

  return (x, time, rotation, token) => {
    const qkv = c_attn(x), count = Math.min(time + 1, capacity), place = time % capacity;
    for (let head = 0; head < n_head + n_kv_head; head++) {
      const part = qkv.subarray(head * size, (head + 1) * size);
      if (options.qk_norm) normalise(part);
      if (rotation) rotate(part, ...rotation);
    }
    if (count > scores.length) grow(count);
    keys.set(qkv.subarray(C, C + width), place * width);
    values.set(qkv.subarray(C + width, C + 2 * width), place * width);
    if (added) {
      const gates = gate(x); // of the first columns of x
      for (let i = 0; i < width; i++)
        values[place * width + i] += 2 * sigmoid(gates[Math.floor(i / size)]) * added[token * width + i];
    }
    const own = values.subarray(place * width, (place + 1) * width);
    if (mix) for (let i = 0; i < width; i++) own[i] = mix.data[0] * own[i] + mix.data[1] * shared.values[i];
    else shared.values = own;
    y.fill(0);
    for (let head = 0; head < n_head; head++) {
      const offset = Math.floor(head / (n_head / n_kv_head)) * size, slope = 2 ** ((-8 * (head + 1)) / n_head);
      let most = -Infinity, sum = 0;
      for (let n = 0; n < count; n++) {
        let score = 0;
        const at = n * width + offset;
        for (let i = 0; i < size; i++) score += qkv[head * size + i] * keys[at + i];
        score /= Math.sqrt(size);
        if (cap) score = cap * Math.tanh(score / cap);
        if (alibi) score -= slope * ((place - n + capacity) % capacity);
        scores[n] = score;
        most = Math.max(most, score);
      }
      for (let n = 0; n < count; n++) sum += scores[n] = Math.exp(scores[n] - most);
      for (let n = 0; n < count; n++) {
        const weight = scores[n] / sum, at = n * width + offset;
        for (let i = 0; i < size; i++) y[head * size + i] += weight * values[at + i];
      }
    }
    return c_proj(y);
  };
}

function normalise(x) {
  let square = 0;
  for (const value of x) square += value * value;
  const scale = 1 / Math.sqrt(square / x.length + RMS_EPS);
  for (let i = 0; i < x.length; i++) x[i] *= scale;
}

// RoPE: each pair (i, i + half) by its angle.
function rotate(x, cos, sin) {
  const half = x.length / 2;
  for (let i = 0; i < half; i++) {
    const a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}
