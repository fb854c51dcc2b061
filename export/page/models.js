// The families, a token at a time: each has reset(), features(token) and head(features). They compute what
// makemore/ and nanogpt/ do; the names of the weights are theirs.

const FLOOR = 1e-20; // the probability of what cannot come

const FAMILIES = { bigram, ngram: counts, mlp, cnn, rnn: recurrent, lstm: recurrent, gru: recurrent, transformer };

// The model of these settings, with read(token) -> logits.
function modelOf(settings, tensors) {
  const { family, options } = settings;
  if (!Object.hasOwn(FAMILIES, family)) throw new Error(`this page has no model ${family}`);
  const make = (weights) => FAMILIES[family](weights, settings);
  const model = options.mix_ngram ? mixture(tensors, make, settings) : make(named(tensors));
  return { ...model, read: (token) => model.head(model.features(token)) };
}

function bigram(weights, { vocab_size: size }) {
  const table = weights.get("table.weight").data;
  return { reset() {}, features: (token) => table.subarray(token * size, (token + 1) * size), head: (row) => row };
}

function mlp(weights, { options, specials }) {
  const wte = embedding(weights, options, specials), { order } = options, x = new Float32Array(order * wte.width);
  const act = activationOf(options.activation), head = linear(weights, "lm_head");
  const layers = Array.from({ length: options.n_layer }, (_, i) => [
    linear(weights, `layers.${i}`), norm(weights, `norms.${i}`, options.norm),
  ]);
  let tokens;
  return {
    reset() {
      wte.reset();
      tokens = new Array(order).fill(specials.pad); // oldest first
    },
    features(token) {
      tokens = [...tokens.slice(1), token];
      tokens.forEach((each, i) => x.set(i < order - 1 ? wte.row(each) : wte.read(each), i * wte.width));
      return layers.reduce((y, [layer, normed]) => each(act, normed(layer(y))), x);
    },
    head,
  };
}

// Each layer looks at its input now and `dilation` steps ago, which it keeps in a ring.
function cnn(weights, { options, specials }) {
  const wte = embedding(weights, options, specials), C = wte.width, MAX_DILATION = 512;
  const act = activationOf(options.activation), period = Math.log2(MAX_DILATION) + 1;
  const x = new Float32Array(C), skips = new Float32Array(C), both = new Float32Array(2 * C), y = new Float32Array(C);
  const layers = Array.from({ length: options.n_layer }, (_, i) => ({
    dilation: 2 ** (i % period),
    norm: norm(weights, `layers.${i}.norm`, options.norm),
    taps: linear(weights, `layers.${i}.taps`),
    out: linear(weights, `layers.${i}.out`),
  }));
  const mix = linear(weights, "mix"), last = norm(weights, "norm", options.norm), relu = ACTIVATIONS.relu;
  let time;
  return {
    reset() {
      wte.reset();
      time = 0;
      for (const layer of layers) layer.ring = new Float32Array(layer.dilation * C);
    },
    features(token) {
      x.set(wte.read(token));
      skips.fill(0);
      for (const { dilation, norm, taps, out, ring } of layers) {
        const past = ring.subarray((time % dilation) * C, ((time % dilation) + 1) * C), now = norm(x);
        both.set(past);
        both.set(now, C);
        past.set(now);
        const tapped = taps(both);
        for (let i = 0; i < C; i++) y[i] = act(tapped[i]) * sigmoid(tapped[C + i]);
        const found = out(y);
        for (let i = 0; i < C; i++) {
          x[i] += found[i];
          skips[i] += found[C + i];
        }
      }
      time++;
      y.set(last(skips));
      return each(relu, mix(each(relu, y)));
    },
    head: linear(weights, "lm_head"),
  };
}

// Each cell changes the hidden vector h (and the LSTM's memory c), given its products with the input and with h.
const CELLS = {
  rnn(act, x, u, h) {
    for (let i = 0; i < h.length; i++) h[i] = act(x[i] + u[i]);
  },
  lstm(act, x, u, h, c) {
    const H = h.length, gate = (n, i) => x[n * H + i] + u[n * H + i]; // in, forget, candidate, out
    for (let i = 0; i < H; i++) {
      c[i] = sigmoid(gate(1, i)) * c[i] + sigmoid(gate(0, i)) * Math.tanh(gate(2, i));
      h[i] = sigmoid(gate(3, i)) * Math.tanh(c[i]);
    }
  },
  gru(act, x, u, h) {
    const H = h.length; // reset, update, candidate
    for (let i = 0; i < H; i++) {
      const r = sigmoid(x[i] + u[i]), z = sigmoid(x[H + i] + u[H + i]);
      h[i] = (1 - z) * Math.tanh(x[2 * H + i] + r * u[2 * H + i]) + z * h[i];
    }
  },
};

function recurrent(weights, { family, options, specials }) {
  const wte = embedding(weights, options, specials), cell = CELLS[family], H = options.n_hidden;
  const act = activationOf(options.activation ?? "tanh");
  const layers = Array.from({ length: options.n_layer }, (_, i) => {
    const part = weights.below(`layers.${i}.`);
    return {
      input: product(part.get("weight_ih_l0"), part.get("bias_ih_l0")),
      hidden: product(part.get("weight_hh_l0"), part.get("bias_hh_l0")),
      norm: norm(weights, `norms.${i}`, options.norm),
      h: new Float32Array(H),
      c: new Float32Array(H),
    };
  });
  return {
    reset() {
      wte.reset();
      for (const { h, c } of layers) {
        h.fill(0);
        c.fill(0);
      }
    },
    features(token) {
      let x = wte.read(token);
      for (const { input, hidden, norm, h, c } of layers) {
        cell(act, input(x), hidden(h), h, c);
        x = norm(h);
      }
      return x;
    },
    head: linear(weights, "lm_head"),
  };
}

// Kneser-Ney counts: features(token) are the probabilities after it, and `confidence` says what they rest on.
function counts(weights, { vocab_size: size, specials }) {
  const levels = [];
  for (let k = 0; weights.may(`contexts_${k}`); k++) {
    const table = (name) => weights.get(`${name}_${k}`).data;
    levels.push({
      contexts: table("contexts"), grams: table("grams"), discounted: table("share"), backoff: table("freed"),
      total: table("total"),
    });
  }
  const order = levels.length, uniform = weights.get("base").data;
  const p = new Float32Array(size), confidence = new Float32Array(2 * order);
  let context;
  return {
    confidence,
    reset: () => (context = new Array(Math.max(0, order - 1)).fill(specials.bos)), // newest first
    features(token) {
      context = [token, ...context].slice(0, order - 1);
      confidence.forEach((_, i) => (confidence[i] = i % 2));
      p.set(uniform);
      let node = 0;
      for (let k = 0; k < order; k++) {
        const { contexts, grams, discounted, backoff, total } = levels[k];
        if (k) {
          const key = node * size + context[k - 1];
          node = firstNotBelow(contexts, key);
          if (contexts[node] !== key) break;
        }
        for (let i = 0; i < size; i++) p[i] *= backoff[node];
        const end = (node + 1) * size;
        for (let i = firstNotBelow(grams, node * size); i < grams.length && grams[i] < end; i++) {
          p[grams[i] - node * size] += discounted[i];
        }
        confidence[2 * k] = Math.log1p(total[node]);
        confidence[2 * k + 1] = backoff[node];
      }
      return p;
    },
    head: (probabilities) => probabilities.map((p_i) => Math.log(Math.max(p_i, FLOOR))),
  };
}

// The index of the first of the sorted `keys` that is at least `key`.
function firstNotBelow(keys, key) {
  let first = 0, end = keys.length;
  while (first < end) {
    const middle = (first + end) >> 1;
    if (keys[middle] < key) first = middle + 1;
    else end = middle;
  }
  return first;
}

// A neural model and counts, weighted by a gate (makemore/counts/mixture.py).
function mixture(tensors, make, settings) {
  const neural = make(named(tensors, "neural.")), counted = counts(named(tensors, "counts."), settings);
  const gate = named(tensors, "gate."), hiddenOf = linear(gate, "c_fc"), logitOf = linear(gate, "c_proj");
  const SLOWNESS = 0.1, MOST = 4, WEIGHT = 0.3; // GATE_LR_SCALE, GATE_LOGIT_MAX
  let known;
  return {
    from: neural.from,
    reset() {
      neural.reset();
      counted.reset();
    },
    // What the counts alone have to read: `neural` begins later.
    skip: (token) => counted.features(token),
    features(token) {
      known = counted.features(token);
      return neural.features(token);
    },
    head(features) {
      const x = Float32Array.of(...features, ...counted.confidence.map((number) => WEIGHT * number));
      const raw = SLOWNESS * logitOf(each(ACTIVATIONS.gelu, hiddenOf(x)))[0];
      const logit = MOST * Math.tanh(raw / MOST), logits = neural.head(features);
      const most = logits.reduce((a, b) => Math.max(a, b)), exp = (logit) => Math.exp(logit - most);
      const sum = logits.reduce((all, logit) => all + exp(logit), 0);
      return logits.map((logit_i, i) => {
        const one = exp(logit_i) / sum;
        return Math.log(sigmoid(-logit) * one + sigmoid(logit) * Math.max(known[i], FLOOR));
      });
    },
  };
}
