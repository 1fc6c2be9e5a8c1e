/**
 * Order and memory on random graphs of units, checked by brute force: nothing runs before what it needs, what prepares a
 * unit runs beside other work one phase earlier, and two temporaries that are alive in a common phase never overlap.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { arrange, type Buffer, planMemory, relieve, schedule, type Unit } from "../../src/compiler/schedule.ts";

const numRuns = process.env["NABLA_LONG"] === "1" ? 5_000 : 500;

interface RandomUnit extends Unit {
  readonly after: RandomUnit[];
  readonly lead: RandomUnit[];
}

interface Graph {
  readonly units: RandomUnit[];
  readonly buffers: Buffer[];
}

/** Each unit reads some earlier results (and now and then memory of the caller's), writes one or two, and may have a lead. */
const graphs: fc.Arbitrary<Graph> = fc
  .array(
    fc.record({
      reads: fc.array(fc.nat(), { maxLength: 4 }),
      bytes: fc.array(fc.constantFrom(0, 4, 60, 64, 100, 1000, 4096), { minLength: 1, maxLength: 2 }),
      after: fc.array(fc.nat(), { maxLength: 1 }),
      isLed: fc.boolean(),
      toCaller: fc.integer({ min: 0, max: 4 }),
    }),
    { minLength: 1, maxLength: 24 },
  )
  .map((specs) => {
    const units: RandomUnit[] = [];
    const buffers: Buffer[] = [];
    const made: Buffer[] = [0, 1].map((slot) => ({ bytes: 64, slot, offset: 0, label: `memory ${slot}` }));
    const mains: RandomUnit[] = [];
    specs.forEach((spec, i) => {
      const reads = [...new Set(spec.reads.map((n) => made[n % made.length]))];
      const writes = spec.bytes.map((bytes, k): Buffer => {
        const b = { bytes, slot: spec.toCaller === 0 ? 2 + i : -1, offset: 0, label: `%${i}.${k}` };
        buffers.push(b);
        return b;
      });
      const after = mains.length ? spec.after.map((n) => mains[n % mains.length]) : [];
      const lead: RandomUnit[] = [];
      if (spec.isLed && reads.length) {
        const packed: Buffer = { bytes: 256, slot: -1, offset: 0, label: `packed for %${i}` };
        buffers.push(packed);
        const pack: RandomUnit = { label: `pack for %${i}`, reads: [reads[0]], writes: [packed], after: [], lead: [] };
        lead.push(pack);
        units.push(pack);
        reads.push(packed);
      }
      const unit: RandomUnit = { label: `%${i}`, reads, writes, after, lead };
      mains.push(unit);
      units.push(unit);
      made.push(...writes);
    });
    return { units, buffers };
  });

function phasesOf(units: readonly RandomUnit[], late = false): { phases: RandomUnit[][]; at: Map<Unit, number> } {
  const phases = schedule(units, late);
  const at = new Map<Unit, number>();
  phases.forEach((phase, i) => {
    for (const u of phase) {
      assert.ok(!at.has(u), `${u.label} runs twice`);
      at.set(u, i);
    }
  });
  return { phases, at };
}

/** First and last phase of every temporary. */
function lives(phases: readonly (readonly Unit[])[]): Map<Buffer, [number, number]> {
  const life = new Map<Buffer, [number, number]>();
  phases.forEach((units, i) => {
    for (const u of units)
      for (const b of [...u.reads, ...u.writes]) if (b.slot < 0) life.set(b, [life.get(b)?.[0] ?? i, i]);
  });
  return life;
}

/** Bytes of temporaries in the phase that has the most. */
const most = (phases: readonly (readonly Unit[])[]): number => {
  const life = [...lives(phases)];
  return Math.max(
    0,
    ...phases.map((_, i) =>
      life.filter(([, [from, to]]) => from <= i && i <= to).reduce((sum, [b]) => sum + b.bytes, 0),
    ),
  );
};

describe("schedule", () => {
  test("runs every unit once, after everything it reads and everything it waits for", () => {
    fc.assert(
      fc.property(graphs, fc.boolean(), ({ units }, late) => {
        const { at } = phasesOf(units, late);
        assert.equal(at.size, units.length);
        const writer = new Map<Buffer, Unit>();
        for (const u of units) for (const b of u.writes) writer.set(b, u);
        for (const u of units) {
          const mine = at.get(u) as number;
          const needs = [...u.after, ...u.reads.flatMap((b) => writer.get(b) ?? [])];
          for (const w of needs) assert.ok((at.get(w) as number) < mine, `${u.label} runs before ${w.label} is done`);
        }
      }),
      { numRuns },
    );
  });

  test("runs what prepares a unit exactly one phase before it", () => {
    fc.assert(
      fc.property(graphs, fc.boolean(), ({ units }, late) => {
        const { at } = phasesOf(units, late);
        for (const u of units) for (const l of u.lead) assert.equal(at.get(l), (at.get(u) as number) - 1, l.label);
      }),
      { numRuns },
    );
  });

  test("leaves no phase empty", () => {
    fc.assert(
      fc.property(graphs, fc.boolean(), ({ units }, late) => {
        for (const phase of phasesOf(units, late).phases) assert.ok(phase.length > 0);
      }),
      { numRuns },
    );
  });

  test("puts units that need nothing of each other side by side", () => {
    const units = [0, 1, 2].map(
      (i): RandomUnit => ({
        label: `%${i}`,
        reads: [],
        writes: [{ bytes: 64, slot: i, offset: 0, label: "" }],
        after: [],
        lead: [],
      }),
    );
    assert.deepEqual(
      schedule(units).map((p) => p.length),
      [3],
    );
  });

  test("a phase is cut only where fewer bytes are needed at once, and keeps its place", () => {
    let cuts = 0;
    fc.assert(
      fc.property(graphs, ({ units }) => {
        const { phases, at } = phasesOf(units);
        const relieved = relieve(phases, 1);
        assert.equal(relieved.flat().length, units.length);
        assert.ok(relieved.every((phase) => phase.length > 0));
        const order = relieved.flat().map((u) => at.get(u) as number);
        assert.deepEqual(
          order,
          order.toSorted((x, y) => x - y),
        );
        if (relieved.length > phases.length) {
          cuts++;
          assert.ok(most(relieved) < most(phases));
        } else assert.deepEqual(relieved, phases);
        assert.deepEqual(relieve(phases, Number.POSITIVE_INFINITY), phases);
      }),
      { numRuns },
    );
    assert.ok(cuts > numRuns / 20, `only ${cuts} graphs were relieved`);
  });

  test("refuses units that wait for one another", () => {
    const a: RandomUnit = { label: "a", reads: [], writes: [], after: [], lead: [] };
    const b: RandomUnit = { label: "b", reads: [], writes: [], after: [a], lead: [] };
    a.after.push(b);
    assert.throws(() => schedule([a, b]), /wait for one another/);
  });

  test("takes of the ready units the one that frees most", () => {
    const buffer = (bytes: number, label: string): Buffer => ({ bytes, slot: -1, offset: 0, label });
    const [small, large] = [buffer(64, "small"), buffer(4096, "large")];
    const out = (slot: number): Buffer => ({ bytes: 4, slot, offset: 0, label: "" });
    const source: RandomUnit = { label: "source", reads: [], writes: [small, large], after: [], lead: [] };
    const keeps: RandomUnit = { label: "keeps", reads: [small], writes: [out(1)], after: [source], lead: [] };
    const frees: RandomUnit = { label: "frees", reads: [large], writes: [out(2)], after: [source], lead: [] };
    const order = schedule([source, keeps, frees]).flat();
    assert.ok(order.indexOf(frees) < order.indexOf(keeps));
  });
});

describe("arrange", () => {
  test("never needs more than the usual order, and keeps every unit", () => {
    fc.assert(
      fc.property(graphs, ({ units }) => {
        const phases = arrange(units, 1);
        assert.equal(new Set(phases.flat()).size, units.length);
        assert.ok(most(phases) <= most(relieve(schedule(units), 1)));
      }),
      { numRuns },
    );
  });

  test("chunks go one after another to their end, over weights that are packed once for all of them", () => {
    const buffer = (bytes: number, label: string): Buffer => ({ bytes, slot: -1, offset: 0, label });
    const unit = (label: string, reads: Buffer[], writes: Buffer[]): RandomUnit => ({
      ...{ label, reads, writes, after: [], lead: [] },
    });
    const chunks = 16;
    const [turned, plain] = [buffer(300, "turned"), buffer(300, "plain")];
    const units = [unit("pack the head", [], [turned])];
    const behind = [unit("pack it again", [], [plain])];
    for (let i = 0; i < chunks; i++) {
      const [logits, gradient] = [buffer(100, `logits ${i}`), buffer(100, `gradient ${i}`)];
      const result: Buffer = { bytes: 4, slot: i, offset: 0, label: `result ${i}` };
      units.push(
        unit(`head ${i}`, [turned], [logits, gradient]),
        unit(`loss ${i}`, [logits], [buffer(4, `loss ${i}`)]),
      );
      behind.push(unit(`back ${i}`, [gradient, plain], [result]));
    }
    units.push(...behind);
    const usual = most(relieve(schedule(units), 1));
    const least = most(arrange(units, 1));
    assert.ok(usual > 300 + 100 * chunks, `${usual}`);
    assert.ok(least < 600 + 2 * 200 + 4 * chunks, `${least}`);
    assert.equal(most(arrange(units, usual)), usual, "not where it is not worth it");
  });
});

describe("planMemory", () => {
  test("never lets two temporaries share a byte while both are alive", () => {
    fc.assert(
      fc.property(graphs, ({ units }) => {
        const { phases } = phasesOf(units);
        const size = planMemory(phases);
        const all = [...lives(phases)];
        for (const [i, [a, [a0, a1]]] of all.entries()) {
          assert.equal(a.offset % 64, 0, "64-byte aligned");
          assert.ok(a.offset >= 0 && a.offset + Math.max(1, a.bytes) <= size, `${a.label} leaves the arena`);
          for (const [b, [b0, b1]] of all.slice(i + 1)) {
            const meet = a0 <= b1 && b0 <= a1;
            const overlap = a.offset < b.offset + Math.max(1, b.bytes) && b.offset < a.offset + Math.max(1, a.bytes);
            assert.ok(!(meet && overlap), `${a.label} and ${b.label} overlap`);
          }
        }
      }),
      { numRuns },
    );
  });

  test("takes no more than the temporaries laid end to end, and no less than the fullest phase holds", () => {
    fc.assert(
      fc.property(graphs, ({ units }) => {
        const { phases } = phasesOf(units);
        const size = planMemory(phases);
        const life = [...lives(phases)];
        const room = (b: Buffer): number => Math.ceil(Math.max(1, b.bytes) / 64) * 64;
        assert.ok(size <= life.reduce((sum, [b]) => sum + room(b), 0));
        phases.forEach((_, i) => {
          const alive = life.filter(([, [from, to]]) => from <= i && i <= to);
          assert.ok(size >= alive.reduce((sum, [b]) => sum + room(b), 0));
        });
      }),
      { numRuns },
    );
  });

  test("gives memory back as soon as a chain has moved on", () => {
    const buffers = Array.from(
      { length: 10 },
      (_, i): Buffer => ({ bytes: 1 << 20, slot: -1, offset: 0, label: `%${i}` }),
    );
    const units = buffers.map(
      (b, i): RandomUnit => ({ label: b.label, reads: i ? [buffers[i - 1]] : [], writes: [b], after: [], lead: [] }),
    );
    assert.equal(planMemory(schedule(units)), 2 << 20);
  });

  test("leaves memory that the caller brings alone", () => {
    const given: Buffer = { bytes: 64, slot: 3, offset: 0, label: "" };
    assert.equal(planMemory([[{ label: "", reads: [given], writes: [given], after: [], lead: [] }]]), 0);
  });
});
