# What the peers share: the conversation with the bench (support/protocol.ts), the numbers that both sides compute
# (support/numbers.ts), and the choice of the number of threads that suits the peer best.
import json
import os
import resource
import sys
import time


def say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def absent(reason):
    say({"absent": reason})
    sys.exit(0)


try:
    import numpy as np
except ImportError:
    absent(f"{sys.executable} has no numpy")


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def resident(field):
    """VmRSS or VmHWM in bytes."""
    try:
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def hashed(seed, n):
    with np.errstate(over="ignore"):
        x = np.arange(n, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))


def uniform(seed, n, bound=1.0):
    return ((2 * (hashed(seed, n) / 2.0**32) - 1) * bound).astype(np.float32)


def integers(seed, n, below):
    return (hashed(seed, n) % np.uint32(below)).astype(np.int64)


def median(values):
    return sorted(values)[len(values) // 2]


def serve(title, check, lines, imported=None):
    """check() gives numbers to compare; lines are (steps a sample, function that takes a sample)."""
    say({"ready": title})
    for text in sys.stdin:
        request = json.loads(text)
        if request["do"] == "check":
            say({"values": [float(v) for v in check()]})
        elif request["do"] == "round":
            per, run = lines[request["line"]]
            run()
            ms, now = [], time.perf_counter()
            end = now + request["seconds"]
            while not ms or now < end:
                run()
                after = time.perf_counter()
                ms.append(1e3 * (after - now) / per)
                now = after
            say({"ms": ms})
        elif request["do"] == "memory":
            per, run = lines[0]
            for _ in range(0, request["steps"], per):
                run()
            say({"imported": imported, "peak": resident("VmHWM")})


def torch_or_absent(mode):
    try:
        import torch
    except ImportError:
        absent(f"{sys.executable} has no torch")
    if mode == "compile":
        import shutil

        if not any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++"))):
            absent("torch.compile needs a C++ compiler, and there is none")
    return torch


def fill(model, inputs_first=lambda name: False):
    """The weights of support/weights.ts; `inputs_first`: our side stores this matrix transposed."""
    import torch

    with torch.no_grad():
        for index, (name, p) in enumerate(model.named_parameters()):
            values = uniform(1000 + index, p.numel(), 1 / np.sqrt(p.numel() / p.shape[0]) if p.ndim > 1 else 0.1)
            if p.ndim == 1 and "ln_" in name and name.endswith("weight"):
                values += 1
            if inputs_first(name):
                values = values.reshape(tuple(reversed(p.shape))).T
            p.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(p.shape))


def serve_training(mode, name, make, steps, checked=6):
    """make(compile) builds model and optimiser anew and gives loss(i) and optimiser; the faster number of threads is kept."""
    torch = torch_or_absent(mode)
    imported = resident("VmRSS")

    def built(threads):
        torch.set_num_threads(threads)
        if mode == "compile":
            torch._dynamo.reset()
            torch._inductor.config.cpp.threads = threads
        loss, optimizer = make(torch.compile if mode == "compile" else lambda f: f)
        counter = [0]

        def step():
            value = loss(counter[0])
            counter[0] += 1
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value.detach()

        return step

    if mode == "compile":
        import torch._inductor.config  # noqa: F401
    candidates = sorted({1, 2, cores()} & set(range(1, cores() + 1)), reverse=True)
    if os.environ.get("NABLA_BENCH_THREADS"):
        candidates = [int(os.environ["NABLA_BENCH_THREADS"])]
    times = {}
    if len(candidates) > 1 and not os.environ.get("NABLA_BENCH_MEMORY"):
        for threads in candidates:
            step = built(threads)
            for _ in range(3):
                step()
            samples, end = [], time.perf_counter() + 1.5
            while len(samples) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                step()
                samples.append(time.perf_counter() - start)
            times[threads] = median(samples)
            del step
    best = min(times, key=times.get) if times else candidates[0]
    step = built(best)

    def sample():
        for _ in range(steps):
            value = step()
        return value.item()

    how = "torch.compile" if mode == "compile" else "eager"
    title = f"PyTorch {torch.__version__} {how}, {best} thread{'s' if best > 1 else ''}"
    serve(title, lambda: [step().item() for _ in range(checked)], [(steps, sample)], imported)
