# Matrix products of numpy (its OpenBLAS) or torch: gemm.py numpy|torch SHAPES, which are "mode:M:N:K:count" with mode nn, nt or tn
import os
import sys

which = sys.argv[1]
from common import absent, cores, np, serve, uniform

threads = cores()
shapes = [(s.split(":")[0], *map(int, s.split(":")[1:])) for s in sys.argv[2].split(",")]
if which == "torch":
    try:
        import torch
    except ImportError:
        absent(f"{sys.executable} has no torch")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


def line(mode, M, N, K, count):
    """count products with left sides of their own and one right side."""
    lefts = [uniform(100 + i, M * K).reshape((K, M) if mode == "tn" else (M, K)) for i in range(count)]
    right = uniform(99, K * N).reshape((N, K) if mode == "nt" else (K, N))
    views = [a.T if mode == "tn" else a for a in lefts], right.T if mode == "nt" else right
    outs = [np.empty((M, N), np.float32) for _ in range(count)]
    if which == "torch":
        lefts, right = [torch.from_numpy(a) for a in views[0]], torch.from_numpy(views[1])
        results = [torch.from_numpy(o) for o in outs]

        def run():
            for a, o in zip(lefts, results):
                torch.mm(a, right, out=o)
    else:
        lefts, right = views

        def run():
            for a, o in zip(lefts, outs):
                np.matmul(a, right, out=o)

    def check():
        run()
        return [float(np.abs(outs[-1]).mean()), float(outs[-1][0, 0]), float(outs[-1][-1, -1])]

    return (count, run), check


made = [line(*shape) for shape in shapes]
title = f"PyTorch {torch.__version__}" if which == "torch" else f"numpy {np.__version__} (OpenBLAS)"
serve(f"{title}, {threads} threads", lambda: [v for _, check in made for v in check()], [m[0] for m in made])
