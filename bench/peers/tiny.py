# A perceptron 2-16-1 with tanh, batch 32, binary cross-entropy, SGD: tiny.py eager|compile STEPS
import sys

from common import fill, integers, serve_training, torch_or_absent, uniform

mode, STEPS = sys.argv[1], int(sys.argv[2])
torch = torch_or_absent(mode)
nn, F = torch.nn, torch.nn.functional
xs = [torch.from_numpy(uniform(10 + i, 64)).view(32, 2) for i in range(8)]
ys = [torch.from_numpy(integers(20 + i, 32, 2)).float().view(32, 1) for i in range(8)]


def make(compile):
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    fill(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    run = compile(lambda x, y: F.binary_cross_entropy_with_logits(model(x), y))
    return lambda i: run(xs[i % 8], ys[i % 8]), optimizer


serve_training(mode, "tiny", make, STEPS)
