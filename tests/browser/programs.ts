/** Trainings that use much of the library, to run with the library as it is and as browsers get it: same seeds, same bits. */
type Index = typeof import("../../src/index.ts");
type Models = typeof import("../../src/models/index.ts");
type Generate = typeof import("../../src/generate/index.ts");

/** The library, from wherever it was loaded. */
export interface Library extends Index {
  readonly models: Models;
  readonly generate: Generate["generate"];
}

/** What a training gives: a loss a step, and the names under which the model and the optimiser keep their values. */
export interface Trained {
  readonly losses: readonly number[];
  readonly keys: readonly string[];
  readonly text: string;
}

type Tensor = import("../../src/index.ts").Tensor;
type Module = import("../../src/index.ts").nn.Module;
type Optimizer = import("../../src/index.ts").optim.Optimizer;

const steps = 4;

async function train(
  model: Module,
  optimizer: Optimizer,
  loss: () => Tensor,
  after: () => void = () => {},
): Promise<Trained> {
  const losses: number[] = [];
  for (let i = 0; i < steps; i++) {
    optimizer.zeroGrad();
    const value = loss();
    value.backward();
    await optimizer.step();
    after();
    losses.push(await value.item());
  }
  const { state } = optimizer.stateDict() as unknown as { readonly state: Readonly<Record<string, object>> };
  const kept = Object.entries(state).map(([name, values]) => `${name}: ${Object.keys(values)}`);
  return { losses, keys: [...Object.keys(model.stateDict()), ...kept], text: String(model) };
}

/** Trainings by name. */
export const programs: Readonly<Record<string, (library: Library) => Promise<Trained>>> = {
  "an MLP with dropout and AdamW under a schedule": ({ models, nn, optim, randn, randint }) => {
    const model = new models.MLP({ sizes: [12, 24, 5], activation: "gelu", dropout: 0.1 });
    const optimizer = new optim.AdamW(model.parameters(), { lr: 0.01 });
    const schedule = new optim.CosineAnnealingLR(optimizer, { tMax: 4 });
    const [x, y] = [randn([16, 12]), randint(0, 5, [16])];
    return train(
      model,
      optimizer,
      () => nn.functional.crossEntropy(model.forward(x), y),
      () => schedule.step(),
    );
  },
  "a convolutional network with momentum": ({ models, nn, optim, randn, randint }) => {
    const model = new models.ConvNet({ imageSize: [8, 8], channels: [4, 8], hiddenSize: 16, dropout: 0.2 });
    const optimizer = new optim.SGD(model.parameters(), { lr: 0.05, momentum: 0.9 });
    const [x, y] = [randn([6, 1, 8, 8]), randint(0, 10, [6])];
    return train(model, optimizer, () => nn.functional.crossEntropy(model.forward(x), y));
  },
  "batch norm, pooling and a module of one's own": ({ nn, optim, randn }) => {
    class Own extends nn.Module {
      first = new nn.Conv2d(2, 4, 3, { padding: 1 });
      norm = new nn.BatchNorm2d(4);
      rest = new nn.Sequential(new nn.AvgPool2d(2), new nn.Flatten(), new nn.Linear(64, 3));
      forward(x: Tensor): Tensor {
        return this.rest.forward(nn.functional.silu(this.norm.forward(this.first.forward(x))));
      }
    }
    const model = new Own();
    const optimizer = new optim.RMSprop(model.parameters(), { lr: 0.01 });
    const [x, y] = [randn([4, 2, 8, 8]), randn([4, 3])];
    return train(model, optimizer, () => nn.functional.mseLoss(model.forward(x), y));
  },
  "an LSTM with Adam": ({ nn, optim, randn }) => {
    class Reader extends nn.Module {
      lstm = new nn.LSTM(6, 10, { batchFirst: true, numLayers: 2 });
      head = new nn.Linear(10, 2);
      forward(x: Tensor): Tensor {
        return this.head.forward(this.lstm.forward(x)[0].mean({ dim: 1 }));
      }
    }
    const model = new Reader();
    const optimizer = new optim.Adam(model.parameters(), { lr: 0.01 });
    const [x, y] = [randn([3, 7, 6]), randn([3, 2])];
    return train(model, optimizer, () => nn.functional.smoothL1Loss(model.forward(x), y));
  },
  "a small GPT, and what it writes": async ({ models, optim, generate, randint }) => {
    const model = new models.GPT2({ vocabSize: 31, contextLength: 16, numLayers: 2, numHeads: 2, hiddenSize: 16 });
    const optimizer = new optim.AdamW(model.parameters(), { lr: 0.01, weightDecay: 0.1 });
    const ids = randint(0, 31, [2, 17]);
    const [x, y] = [ids.narrow(1, 0, 16), ids.narrow(1, 1, 16)];
    const trained = await train(model, optimizer, () => model.forward(x, y));
    const written = await generate(model, [1, 2, 3], { maxNewTokens: 8, temperature: 0.8, topK: 5 });
    return { ...trained, losses: [...trained.losses, ...written] };
  },
};
