// A safetensors file as tensors, {shape, data}, by name: rounded ones (engine/run/quantised.py) as float32.

const GROUP = 32; // numbers of a row that share a scale
const ZERO = 8; // of a 4-bit number

const READ = {
  F32: (bytes) => new Float32Array(bytes),
  BF16: (bytes) => new Float32Array(Uint32Array.from(new Uint16Array(bytes), (half) => half << 16).buffer),
  I8: (bytes) => new Int8Array(bytes),
  U8: (bytes) => new Uint8Array(bytes),
  U16: (bytes) => new Uint16Array(bytes),
  U32: (bytes) => new Uint32Array(bytes),
  I64: (bytes) => Float64Array.from(new BigInt64Array(bytes), Number),
};

// The tensors of `buffer`, an ArrayBuffer. Throws an Error for what is no such file, or has other types.
function readTensors(buffer) {
  const size = buffer.byteLength < 8 ? Infinity : Number(new DataView(buffer).getBigUint64(0, true));
  if (size > buffer.byteLength - 8) throw new Error("model.safetensors is damaged, or was not loaded whole");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  delete header.__metadata__;
  const stored = new Map();
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    if (!Object.hasOwn(READ, dtype)) throw new Error(`${name} has the type ${dtype}, which this page does not read`);
    const data = READ[dtype](buffer.slice(8 + size + begin, 8 + size + end));
    if (data.length !== shape.reduce((a, b) => a * b, 1)) throw new Error(`${name} is not ${shape.join(" x ")} numbers`);
    stored.set(name, { shape, data });
  }
  return restored(stored);
}

function restored(stored) {
  const found = new Map();
  for (const [name, tensor] of stored) {
    const dot = name.lastIndexOf("."), base = name.slice(0, dot), form = name.slice(dot + 1);
    if (form === "int8" || form === "int4") {
      const numbers = form === "int8" ? tensor : apart(tensor);
      found.set(base, scaled(numbers, stored.get(`${base}.scale`), base));
    } else if (form === "steps") {
      let sum = 0;
      found.set(base, { shape: tensor.shape, data: Float64Array.from(tensor.data, (step) => (sum += step)) });
    } else if (form !== "scale") {
      found.set(name, tensor);
    }
  }
  return found;
}

// The two 4-bit numbers of each byte.
function apart({ shape: [rows, columns], data }) {
  const numbers = new Int8Array(2 * data.length);
  for (let i = 0; i < data.length; i++) {
    numbers[2 * i] = (data[i] & 15) - ZERO;
    numbers[2 * i + 1] = (data[i] >> 4) - ZERO;
  }
  return { shape: [rows, 2 * columns], data: numbers };
}

function scaled({ shape: [rows, columns], data }, scale, name) {
  const groups = Math.ceil(columns / GROUP), found = new Float32Array(data.length);
  if (!scale || scale.data.length !== rows * groups) throw new Error(`${name} has not the scales that it needs`);
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, i++) {
      found[i] = data[i] * scale.data[row * groups + Math.floor(column / GROUP)];
    }
  }
  return { shape: [rows, columns], data: found };
}
