/**
 * Decoding at batch 1 from GGUF files whose weights are at least four times the last cache, in every type that stays as it is stored: how
 * much of the memory's bandwidth is reached (a sum over float32 numbers, measured in turn with the tokens), and node-llama-cpp on the same
 * files, from the folder NABLA_LLAMACPP. NABLA_DECODE_TYPES chooses types ("f32,q8_0"). Files of up to 1.3 GB each are written meanwhile.
 */
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { generate } from "../src/generate/index.ts";
import { getDevice, noGrad, type Tensor, tensor } from "../src/index.ts";
import { type CausalLM, fromPretrained } from "../src/models/index.ts";
import { type Benchmark, openAll, type Result } from "./support/benchmark.ts";
import {
  type DecodedType,
  decodedTypes,
  lastLevelCache,
  threads,
  weightBytes,
  writeDecoder,
} from "./support/decoder-file.ts";
import { median } from "./support/numbers.ts";
import { llamacpp, ours } from "./support/sides.ts";

/** Tokens a sample, and of the greedy text that both sides give. */
const [perSample, checked] = [8, 6];
const context = 1024;

/** Of float32, well beyond the caches. */
const streamed = 2 ** 27;

const chosen = (): DecodedType[] => {
  const wanted = process.env["NABLA_DECODE_TYPES"]?.split(",");
  return decodedTypes.filter((type) => wanted === undefined || wanted.includes(type));
};

const oneModel = (load: (file: string) => Promise<CausalLM>) => {
  let current: { file: string; model: CausalLM } | null = null;
  return async (file: string): Promise<CausalLM> => {
    if (current?.file !== file) {
      current = null; // its memory is free before the next is read
      current = { file, model: await load(file) };
    }
    return current.model;
  };
};

/** Continues by the likeliest tokens at runtime positions; what a user's `generate` does after the prompt. */
function decoder(modelOf: (file: string) => Promise<CausalLM>): (file: string, count: number) => Promise<void> {
  let state: { model: CausalLM; cache: ReturnType<CausalLM["createCache"]> } | null = null;
  let token = 1;
  return async (file, count) => {
    const model = await modelOf(file);
    if (state?.model !== model) state = { model, cache: model.createCache({ capacity: context }) };
    const { cache } = state;
    if (cache.length + count > context) cache.truncate(0);
    for (let i = 0; i < count; i++) {
      const ids = tensor(Int32Array.of(token), { shape: [1, 1] });
      [token] = await noGrad(() => model.decodeGreedy(ids, cache)).data();
    }
  };
}

export const benchmark: Benchmark = {
  name: "decode",
  title: "Decoding at batch 1, weights beyond the caches",
  ours: async (files) => {
    const modelOf = oneModel(async (file) => (await fromPretrained(file, { keepQuantized: true })) as CausalLM);
    const decode = decoder(modelOf);
    let numbers: Tensor | null = null;
    return {
      title: `Nabla, ${getDevice()}`,
      check: async () => {
        const tokens: number[] = [];
        for (const file of files)
          tokens.push(...(await generate(await modelOf(file), [1], { maxNewTokens: checked, temperature: 0 })));
        return tokens;
      },
      lines: [
        // a sample of either reads the same: a short one would find better moments of a machine that is not alone
        ...files.map((file) => {
          const per = Math.max(1, Math.round((perSample * statSync(file).size) / streamed));
          return {
            name: `bandwidth, ${file}`,
            per,
            run: async () => {
              numbers ??= tensor(new Float32Array(streamed / 4).fill(1));
              for (let i = 0; i < per; i++) await numbers.sum().item();
            },
          };
        }),
        ...files.map((file) => ({ name: file, per: perSample, run: () => decode(file, perSample) })),
      ],
    };
  },
  run: async ({ rounds, scale, say }) => {
    const folder = mkdtempSync(join(tmpdir(), "nabla-decode-"));
    const types = chosen();
    try {
      const files = types.map((type) => join(folder, `${type}.gguf`));
      for (const [i, type] of types.entries()) await writeDecoder(files[i], type);
      const sides = [ours("decode", ...files), llamacpp(threads(), perSample, checked, files)] as const;
      const { sessions, reasons } = await openAll(sides, say);
      const [own, peer] = sessions;
      if (!own) throw new Error("our side must be there");
      try {
        const [tokens, theirs] = [await own.check(), peer && (await peer.check())];
        const results: Result[] = [];
        for (const [i, type] of types.entries()) {
          const [stream, mine, other]: number[][] = [[], [], []];
          for (let round = 0; round < rounds; round++) {
            stream.push(...(await own.round(i, scale)).ms);
            if (round % 2 === 0) mine.push(...(await own.round(types.length + i, scale)).ms);
            if (peer) other.push(...(await peer.round(i, scale)).ms);
            if (round % 2 === 1) mine.push(...(await own.round(types.length + i, scale)).ms);
          }
          const bytes = weightBytes(type);
          const speed = (ms: readonly number[], of: number): number => of / Math.min(...ms) / 1e6;
          const share = speed(mine, bytes) / speed(stream, streamed);
          const size = `${(bytes / 2 ** 20).toFixed(0)} MiB, ${(bytes / lastLevelCache()).toFixed(1)} × the cache`;
          const medians = (bytes / median(mine) / (streamed / median(stream))).toFixed(2);
          const rates = `${speed(mine, bytes).toFixed(1)} of ${speed(stream, streamed).toFixed(1)} GB/s`;
          const wanted = type === "f32" || type === "bf16" || type === "q8_0";
          results.push({
            line: `${type}, share of the bandwidth`,
            peer: null,
            unit: "×",
            ours: share,
            note: `${rates}; ${size}; minima, by medians ${medians}`,
            ...(wanted ? { target: { atLeast: 0.8 } } : {}),
          });
          const common = { line: `${type}, a token`, unit: "ms", target: { atLeast: 1 } };
          if (!peer) results.push({ ...common, peer: sides[1].name, ours: median(mine), absent: reasons[1] as string });
          else {
            const part = (list: readonly number[]): number[] => list.slice(i * checked, (i + 1) * checked);
            const same = part(tokens).every((token, k) => token === part(theirs as number[])[k]);
            results.push({
              ...common,
              peer: peer.title,
              ours: median(mine),
              theirs: median(other),
              ratio: median(other) / median(mine),
              ratioOfMinima: Math.min(...other) / Math.min(...mine),
              note: same ? "the same greedy tokens" : "greedy tokens differ",
            });
          }
        }
        return results;
      } finally {
        for (const session of sessions) await session?.close();
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
};
