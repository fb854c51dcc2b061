// Text to token ids and back, from a run's tokenizer.json (data/tokenizers.py, data/bpe.py).
//
// A tokenizer has encode(text) -> ids, which throws an Error for characters that it does not know, decoder(), whose
// feed(id) and flush() give text that never ends in part of a character, and for BPE `bytes`, those of each id.

const FIRST = 6; // ids after the six specials
const WORDS = // GPT-2's pattern; \s is Unicode's white space
  /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

function tokenizerOf(stored, specials) {
  if (stored.type === "char") return characters([...stored.characters]);
  const bytes = new Map(); // of each id
  if (stored.type === "byte") {
    for (let byte = 0; byte < 256; byte++) bytes.set(FIRST + byte, String.fromCharCode(byte));
    const encode = (text) => Array.from(new TextEncoder().encode(text), (byte) => FIRST + byte);
    return { encode, decoder: () => byteDecoder(bytes, specials.unk) };
  }
  if (stored.type !== "bpe" && stored.type !== "gpt2") throw new Error(`this page has no tokenizer ${stored.type}`);
  const ids = new Map(), first = stored.type === "bpe" ? FIRST : 0;
  stored.tokens.forEach((token, rank) => {
    bytes.set(first + rank, atob(token));
    ids.set(atob(token), first + rank);
  });
  const known = new Map(); // words that were encoded before
  function encode(text) {
    return (text.match(WORDS) ?? []).flatMap((word) => {
      if (!known.has(word)) known.set(word, encodeWord(binary(new TextEncoder().encode(word)), ids));
      return known.get(word);
    });
  }
  return { encode, bytes, decoder: () => byteDecoder(bytes, specials.unk) };
}

function characters(alphabet) {
  const ids = new Map(alphabet.map((character, n) => [character, FIRST + n]));
  return {
    encode(text) {
      const unknown = new Set([...text].filter((character) => !ids.has(character)));
      if (unknown.size) throw new Error(`the model does not know ${[...unknown].map((c) => JSON.stringify(c)).join(", ")}`);
      return [...text].map((character) => ids.get(character));
    },
    decoder: () => ({
      feed: (id) => (id >= FIRST ? alphabet[id - FIRST] : id === 3 ? "\ufffd" : ""),
      flush: () => "",
    }),
  };
}

// Bytes as a string of as many characters, and back.
const binary = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
const bytesOf = (text) => Uint8Array.from(text, (byte) => byte.charCodeAt(0));

// A word's ids: of all neighbours the pair with the lowest id becomes one, again and again.
function encodeWord(word, ids) {
  const parts = [...word];
  while (parts.length > 1) {
    let best = Infinity, index = -1;
    for (let i = 0; i + 1 < parts.length; i++) {
      const id = ids.get(parts[i] + parts[i + 1]);
      if (id < best) [best, index] = [id, i];
    }
    if (index < 0) break;
    parts.splice(index, 2, parts[index] + parts[index + 1]);
  }
  return parts.map((part) => ids.get(part));
}

function byteDecoder(bytes, unk) {
  let utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  const flush = () => {
    const rest = utf8.decode();
    utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return rest;
  };
  return {
    feed(id) {
      if (id === unk) return flush() + "\ufffd";
      return utf8.decode(bytesOf(bytes.get(id) ?? ""), { stream: true });
    },
    flush,
  };
}
