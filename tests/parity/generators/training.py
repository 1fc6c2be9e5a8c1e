"""Optimisers, learning-rate schedules and gradient clipping, step by step, in float64.

The gradients are given (a stored sequence), so that a trajectory tests the optimiser alone: step t's loss is
Σ gradient[t] · parameter.
"""

import torch

from .encoding import record, save

STEPS = 20
GENERATOR = torch.Generator().manual_seed(7)


def numbers(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64).to(torch.float32).to(torch.float64)


SHAPES = {"weight": [3, 4], "bias": [4]}

OPTIMIZERS = [
    # Nabla's name and options, PyTorch's class and options
    ("SGD", {"lr": 0.1}, torch.optim.SGD, {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weightDecay": 0.05}, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.3}, torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weightDecay": 0.01}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "maximize": True}, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "maximize": True}),
    ("Adam", {"lr": 0.01}, torch.optim.Adam, {"lr": 0.01}),
    ("Adam", {"lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-6, "weightDecay": 0.1}, torch.optim.Adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "amsgrad": True}, torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}, torch.optim.AdamW, {"lr": 0.01}),
    ("AdamW", {"lr": 0.02, "betas": [0.9, 0.95], "eps": 1e-8, "weightDecay": 0.1}, torch.optim.AdamW, {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01}, torch.optim.RMSprop, {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.9, "centered": True, "weightDecay": 0.01}, torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "momentum": 0.9, "centered": True, "weight_decay": 0.01}),
    ("Adagrad", {"lr": 0.1}, torch.optim.Adagrad, {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lrDecay": 0.01, "weightDecay": 0.01}, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.01}),
]


def optimizers():
    start = {name: numbers(*shape) for name, shape in SHAPES.items()}
    gradients = {name: numbers(STEPS, *shape) for name, shape in SHAPES.items()}
    cases = []
    for name, options, make, torch_options in OPTIMIZERS:
        parameters = {key: value.clone().requires_grad_() for key, value in start.items()}
        optimizer = make(parameters.values(), **torch_options)
        trajectory = {key: [] for key in SHAPES}
        for t in range(STEPS):
            optimizer.zero_grad()
            sum((gradients[key][t] * p).sum() for key, p in parameters.items()).backward()
            optimizer.step()
            for key, p in parameters.items():
                trajectory[key].append(p.detach().clone())
        kept = {key: torch.stack([steps[t] for t in (0, 1, 4, STEPS - 1)]) for key, steps in trajectory.items()}
        cases.append({"name": name, "options": options, "after": {key: record(value) for key, value in kept.items()}})
    return {
        "start": {key: record(value.float()) for key, value in start.items()},
        "gradients": {key: record(value.float()) for key, value in gradients.items()},
        "keptSteps": [1, 2, 5, STEPS],
        "cases": cases,
    }


def schedules():
    s = torch.optim.lr_scheduler
    table = [
        ("StepLR", {"stepSize": 5, "gamma": 0.5}, lambda o: s.StepLR(o, 5, 0.5)),
        ("MultiStepLR", {"milestones": [3, 7, 7, 15], "gamma": 0.1}, lambda o: s.MultiStepLR(o, [3, 7, 7, 15], 0.1)),
        ("ExponentialLR", {"gamma": 0.9}, lambda o: s.ExponentialLR(o, 0.9)),
        ("ConstantLR", {"factor": 0.25, "totalIters": 4}, lambda o: s.ConstantLR(o, 0.25, 4)),
        ("LinearLR", {"startFactor": 0.1, "endFactor": 1.0, "totalIters": 8}, lambda o: s.LinearLR(o, 0.1, 1.0, 8)),
        ("CosineAnnealingLR", {"tMax": 12, "etaMin": 0.001}, lambda o: s.CosineAnnealingLR(o, 12, 0.001)),
        ("CosineAnnealingWarmRestarts", {"t0": 5, "tMult": 2, "etaMin": 0.001}, lambda o: s.CosineAnnealingWarmRestarts(o, 5, 2, 0.001)),
        ("OneCycleLR", {"maxLr": 0.5, "totalSteps": 25}, lambda o: s.OneCycleLR(o, 0.5, 25, cycle_momentum=False)),
        ("OneCycleLR", {"maxLr": 0.5, "totalSteps": 25, "pctStart": 0.4, "annealStrategy": "linear", "threePhase": True}, lambda o: s.OneCycleLR(o, 0.5, 25, pct_start=0.4, anneal_strategy="linear", three_phase=True, cycle_momentum=False)),
        ("PolynomialLR", {"totalIters": 10, "power": 2}, lambda o: s.PolynomialLR(o, 10, 2)),
    ]
    cases = []
    for name, options, make in table:
        parameter = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=0.2)
        schedule = make(optimizer)
        rates = []
        for _ in range(24):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        cases.append({"name": name, "options": options, "lr": 0.2, "rates": rates})
    metrics = [5, 4, 4, 4, 4, 3.9999, 3.9999, 3.9999, 3, 3, 3, 3, 3, 3, 3, 3]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    schedule = s.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, cooldown=1, min_lr=0.02)
    rates = []
    for metric in metrics:
        schedule.step(metric)
        rates.append(optimizer.param_groups[0]["lr"])
    return {"cases": cases, "plateau": {"options": {"factor": 0.5, "patience": 2, "cooldown": 1, "minLr": 0.02}, "metrics": metrics, "rates": rates}}


def clipping():
    gradients = [numbers(3, 4), numbers(5)]
    cases = []
    for bound, kind in [(1.0, 2.0), (100.0, 2.0), (0.5, float("inf")), (2.0, 1.0)]:
        parameters = [torch.zeros_like(g, requires_grad=True) for g in gradients]
        for p, g in zip(parameters, gradients):
            p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, bound, kind)
        cases.append({"maxNorm": bound, "normType": "Infinity" if kind == float("inf") else kind, "norm": norm.item(), "clipped": [record(p.grad) for p in parameters]})
    parameters = [torch.zeros_like(g, requires_grad=True) for g in gradients]
    for p, g in zip(parameters, gradients):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_value_(parameters, 0.5)
    return {"gradients": [record(g.float()) for g in gradients], "byNorm": cases, "byValue": {"clipValue": 0.5, "clipped": [record(p.grad) for p in parameters]}}


def write(folder):
    save(folder / "training.json", {"torch": torch.__version__.split("+")[0], "optimizers": optimizers(), "schedules": schedules(), "clipping": clipping()})
