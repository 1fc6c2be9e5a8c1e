# The convolutional net, 1 → 32 → 64 channels, 3×3, pad 1, two max-pools, 3136-128-10, batch 64, Adam: cnn.py eager|compile STEPS
import sys

from common import fill, integers, serve_training, torch_or_absent, uniform

mode, STEPS = sys.argv[1], int(sys.argv[2])
torch = torch_or_absent(mode)
nn, F = torch.nn, torch.nn.functional
xs = [torch.from_numpy(uniform(10 + i, 64 * 784)).view(64, 1, 28, 28) for i in range(8)]
ys = [torch.from_numpy(integers(20 + i, 64, 10)) for i in range(8)]


def make(compile):
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    fill(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    run = compile(lambda x, y: F.cross_entropy(model(x), y))
    return lambda i: run(xs[i % 8], ys[i % 8]), optimizer


serve_training(mode, "cnn", make, STEPS)
