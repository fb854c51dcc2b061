// What models are made of, for one token: products, activations, norms, embeddings. Each layer owns its result, a
// Float32Array, which is good until the layer is called again.

const NORM_EPS = 1e-5, RMS_EPS = 2 ** -23;

// The weights by name, below a prefix; a missing one is an error, but not where it may be.
function named(tensors, prefix = "") {
  const find = (name) => tensors.get(prefix + name);
  return {
    may: find,
    get(name) {
      if (!find(name)) throw new Error(`model.safetensors lacks ${prefix}${name}`);
      return find(name);
    },
    below: (more) => named(tensors, prefix + more),
  };
}

// x (columns) -> weight (rows, columns) times x, plus bias (rows) if there is one. Eight rows at a time: a processor adds
// to eight sums side by side, and each number of x is loaded once for all.
function product(weight, bias) {
  const [rows, C] = weight.shape, w = weight.data, out = new Float32Array(rows);
  const added = bias ? bias.data : out.slice();
  return (x) => {
    let row = 0;
    for (; row < rows - 7; row += 8) {
      let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0, at = row * C;
      for (let i = 0; i < C; i++, at++) {
        const y = x[i];
        a += w[at] * y;
        b += w[at + C] * y;
        c += w[at + 2 * C] * y;
        d += w[at + 3 * C] * y;
        e += w[at + 4 * C] * y;
        f += w[at + 5 * C] * y;
        g += w[at + 6 * C] * y;
        h += w[at + 7 * C] * y;
      }
      out[row] = a + added[row];
      out[row + 1] = b + added[row + 1];
      out[row + 2] = c + added[row + 2];
      out[row + 3] = d + added[row + 3];
      out[row + 4] = e + added[row + 4];
      out[row + 5] = f + added[row + 5];
      out[row + 6] = g + added[row + 6];
      out[row + 7] = h + added[row + 7];
    }
    for (; row < rows; row++) {
      let sum = added[row];
      for (let i = 0, at = row * C; i < C; i++, at++) sum += w[at] * x[i];
      out[row] = sum;
    }
    return out;
  };
}

// torch's Linear of this name.
const linear = (weights, name) => product(weights.get(`${name}.weight`), weights.may(`${name}.bias`));

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// The error function to 1.5e-7 (Abramowitz and Stegun 7.1.26).
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const ACTIVATIONS = {
  sigmoid,
  tanh: Math.tanh,
  relu: (x) => Math.max(0, x),
  leaky_relu: (x) => (x < 0 ? 0.01 * x : x),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  silu: (x) => x * sigmoid(x),
  relu2: (x) => Math.max(0, x) ** 2,
};

function activationOf(name) {
  if (!Object.hasOwn(ACTIVATIONS, name)) throw new Error(`this page has no activation ${name}`);
  return ACTIVATIONS[name];
}

// x, changed in place.
function each(f, x) {
  for (let i = 0; i < x.length; i++) x[i] = f(x[i]);
  return x;
}

// The norm of this name and kind.
function norm(weights, name, kind) {
  if (kind === "none") return (x) => x;
  const { data: gain } = weights.get(`${name}.weight`), out = new Float32Array(gain.length);
  const shift = (weights.may(`${name}.bias`) ?? { data: new Float32Array(gain.length) }).data;
  if (kind === "batch") {
    const mean = weights.get(`${name}.running_mean`).data, variance = weights.get(`${name}.running_var`).data;
    return (x) => {
      for (let i = 0; i < out.length; i++) {
        out[i] = ((x[i] - mean[i]) / Math.sqrt(variance[i] + NORM_EPS)) * gain[i] + shift[i];
      }
      return out;
    };
  }
  if (kind !== "layer" && kind !== "rms") throw new Error(`this page has no norm ${kind}`);
  return (x) => {
    let mean = 0, square = 0;
    if (kind === "layer") {
      for (const value of x) mean += value;
      mean /= x.length;
    }
    for (const value of x) square += (value - mean) ** 2;
    const scale = 1 / Math.sqrt(square / x.length + (kind === "layer" ? NORM_EPS : RMS_EPS));
    for (let i = 0; i < out.length; i++) out[i] = (x[i] - mean) * scale * gain[i] + shift[i];
    return out;
  };
}

// A token's embedding, with those of the hashed n-grams that end in it (makemore/hashing.py).
function embedding(weights, options, special) {
  const { shape: [, width], data } = weights.get("wte.weight"), out = new Float32Array(width);
  const n = options.hash_ngrams, hashed = n ? weights.get("ngrams.table.weight").data : null;
  let history;
  function addNgrams() {
    let hash = 0n;
    history.forEach((token, k) => {
      hash = BigInt.asIntN(64, hash * 1_000_003n + BigInt(token) + 1n);
      if (!k) return;
      const rows = BigInt(options.hash_rows);
      const mixed = BigInt.asIntN(64, (hash ^ (hash >> 15n)) * 2_654_435_761n + BigInt(k));
      const row = Number(((mixed % rows) + rows) % rows) + (k - 1) * options.hash_rows;
      for (let i = 0; i < width; i++) out[i] += hashed[row * width + i];
    });
  }
  return {
    width,
    reset: () => (history = new Array(n || 0).fill(special.pad)),
    read(token) {
      out.set(data.subarray(token * width, (token + 1) * width));
      if (n) {
        history = [token, ...history.slice(0, -1)]; // newest first
        addNgrams();
      }
      return out;
    },
    row: (token) => data.subarray(token * width, (token + 1) * width),
  };
}
