# The perceptron for MNIST's shapes, 784-128-10, batch 128, Adam: mlp.py eager|compile STEPS
import sys

from common import fill, integers, serve_training, torch_or_absent, uniform

mode, STEPS = sys.argv[1], int(sys.argv[2])
torch = torch_or_absent(mode)
nn, F = torch.nn, torch.nn.functional
xs = [torch.from_numpy(uniform(10 + i, 128 * 784)).view(128, 784) for i in range(8)]
ys = [torch.from_numpy(integers(20 + i, 128, 10)) for i in range(8)]


def make(compile):
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    fill(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    run = compile(lambda x, y: F.cross_entropy(model(x), y))
    return lambda i: run(xs[i % 8], ys[i % 8]), optimizer


serve_training(mode, "mlp", make, STEPS)
