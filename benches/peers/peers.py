"""Times squisher beside PyTorch, BackPACK and mergekit, on this machine, in one run, and prints a Markdown table of the ratios.

    cargo build --release
    python benches/peers/peers.py                                     # needs torch, safetensors, backpack-for-pytorch
    python benches/peers/peers.py --mergekit MERGEKIT/bin/mergekit-yaml --output peers.md
    python benches/peers/peers.py --adapter NVIDIA --device cuda      # on a GPU: squisher through wgpu, PyTorch through CUDA

Squisher and its peer take turns, round after round, and the medians are compared, so that whatever else the machine does hits both. Both use
the host, with the same number of threads, or with --adapter and --device one GPU. Kernels are timed by `squisher bench` at the peer's shapes; whole jobs as processes, from files to a
synced file. Every formulation of a peer is first held against a plain one on small inputs.

`mergekit` pins its own versions: install it into its own virtual environment (`python -m venv MERGEKIT`).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "examples" / "pytorch"))


# ---------------------------------------------------------------------------------------------------------------- timing

def settled(work):
    """Does the work, and waits until PyTorch's device has done it too."""
    work()
    device = torch.get_default_device().type
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def timed(work, least=0.3, runs=3):
    """Median seconds of at least `runs` runs and `least` seconds, after one that warms up."""
    settled(work)
    times, start = [], time.perf_counter()
    while len(times) < runs or time.perf_counter() - start < least:
        begin = time.perf_counter()
        settled(work)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def in_turns(contenders, rounds):
    """{name: median seconds} of callables that return their own time, called in turns."""
    times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            times[name].append(measure())
    return {name: statistics.median(seconds) for name, seconds in times.items()}


class Squisher:
    """The tool, on the host or an adapter."""

    def __init__(self, tool, threads, adapter=None):
        self.tool = str(tool)
        self.place = ["--adapter", adapter] if adapter else ["--backend", "host"]
        self.environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}

    def run(self, *arguments):
        """(seconds, result) of one command."""
        command = [self.tool, *map(str, arguments), *self.place, "--json", "--quiet"]
        begin = time.perf_counter()
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, check=True)
        return time.perf_counter() - begin, json.loads(done.stdout)

    def step(self, kernel, shape, size=None):
        """Seconds of one step of a kernel, by `squisher bench`."""
        sizes = ["--size", size] if size else []
        _, result = self.run("bench", "--only", kernel, *sizes, "--seconds", 2)
        found = [row for row in result["kernels"] if row["kernel"] == kernel and row["shape"].startswith(shape)]
        if len(found) != 1:
            raise SystemExit(f"squisher bench did not measure {kernel} at {shape} once: {result['kernels']}, {result['skipped']}")
        return found[0]["seconds"]


class Table:
    """Rows of the README's table."""

    def __init__(self):
        self.rows = []

    def add(self, what, peer, times):
        """`times` has "squisher" and the peer's name."""
        ours, theirs = times["squisher"], times[peer]
        self.rows.append((what, milliseconds(ours), peer, milliseconds(theirs), f"{theirs / ours:.2f}"))
        print(f"{what}: {self.rows[-1][1]}, {peer} {self.rows[-1][3]}, ratio {self.rows[-1][4]}", file=sys.stderr, flush=True)

    def memory(self, what, ours, peer, theirs):
        self.rows.append((what, f"{ours / 2**20:.0f} MiB", peer, f"{theirs / 2**20:.0f} MiB", f"{theirs / ours:.2f}"))

    def markdown(self):
        head = ["| what | squisher | peer | its figure | ratio |", "|---|---:|---|---:|---:|"]
        return "\n".join(head + [f"| {' | '.join(row)} |" for row in self.rows])


def milliseconds(seconds):
    return f"{1e3 * seconds:.1f} ms"


# --------------------------------------------------------------------------------------------------------------- kernels

def einsum(b, a):
    return (torch.einsum("nto,nti->noi", b, a) ** 2).sum(0)


def loop(b, a):
    out = torch.zeros(b.shape[2], a.shape[2])
    for n in range(len(b)):
        gradient = b[n].T @ a[n]
        out.addcmul_(gradient, gradient)
    return out


def unfolded(b, x):
    """A 3 x 3 convolution with padding 1: patches side by side, then as a linear layer."""
    patches = F.unfold(x, 3, padding=1)
    return (torch.einsum("nol,nkl->nok", b.flatten(2), patches) ** 2).sum(0)


def check_formulations():
    """Each form of the per-sample squares against autograd, one sample at a time."""
    b, a = (torch.randn(3, 5, width) for width in (4, 6))
    weight = torch.zeros(4, 6, requires_grad=True)
    wanted = sum(torch.autograd.grad((F.linear(a[n], weight) * b[n]).sum(), weight)[0] ** 2 for n in range(3))
    torch.testing.assert_close(einsum(b, a), wanted)
    torch.testing.assert_close(loop(b, a), wanted)
    x, g = torch.randn(3, 2, 5, 5), torch.randn(3, 4, 5, 5)
    kernel = torch.zeros(4, 2, 3, 3, requires_grad=True)
    samples = (torch.autograd.grad((F.conv2d(x[n:n + 1], kernel, padding=1) * g[n:n + 1]).sum(), kernel)[0] for n in range(3))
    torch.testing.assert_close(unfolded(g, x), sum(s**2 for s in samples).flatten(1))


def products(table, squisher, rounds):
    check_formulations()
    for n, t, o, i in [(32, 128, 512, 512), (16, 64, 1024, 1024)]:
        b, a = torch.randn(n, t, o), torch.randn(n, t, i)
        shape = f"n={n} t={t} {o}x{i} f32"
        times = in_turns({
            "squisher": lambda: squisher.step("fisher.linear_sq_shared", shape),
            "einsum, squared and summed": lambda: timed(lambda: einsum(b, a)),
            "loop of matmul and addcmul_": lambda: timed(lambda: loop(b, a)),
        }, rounds)
        for peer in list(times)[1:]:
            table.add(f"linear with positions, {shape}", peer, times)

    b, a = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = in_turns({
        "squisher": lambda: squisher.step("fisher.linear_sq", "n=1024 1024x1024 f32"),
        "(b*b).T @ (a*a)": lambda: timed(lambda: (b * b).T @ (a * a)),
    }, rounds)
    table.add("linear with one position, n=1024 1024x1024 f32", "(b*b).T @ (a*a)", times)

    x, g = torch.randn(16, 64, 28, 28), torch.randn(16, 64, 28, 28)
    times = in_turns({
        "squisher": lambda: squisher.step("fisher.conv_sq", "n=16 64 channels 3x3 on 28x28"),
        "unfold, einsum, squared and summed": lambda: timed(lambda: unfolded(g, x)),
    }, rounds)
    table.add("conv 3x3, n=16, 64 channels, 28x28 f32", "unfold, einsum, squared and summed", times)


def moving_average(table, squisher, rounds):
    n, beta = 64 << 20, 0.999
    v, g = torch.rand(n), torch.randn(n)
    times = in_turns({
        "squisher": lambda: squisher.step("optimizer.ema", f"{n} f32", n),
        "v.mul_().addcmul_()": lambda: timed(lambda: v.mul_(beta).addcmul_(g, g, value=1 - beta)),
    }, rounds)
    table.add("moving average of squares, 64 Mi f32", "v.mul_().addcmul_()", times)


def top_k(table, squisher, rounds):
    n = 64 << 20
    k = n // 200
    scores = torch.rand(n)
    times = in_turns({
        "squisher": lambda: squisher.step("record.top_k", f"{n} f32", n),
        "torch.topk": lambda: timed(lambda: torch.topk(scores, k, sorted=False), least=0.0),
    }, rounds)
    table.add("0.5 % largest of 64 Mi f32", "torch.topk", times)


# -------------------------------------------------------------------------------------------------------------- BackPACK

BACKPACK = """
import json, resource, sys, time
import torch
from backpack import backpack, extend
from backpack.extensions import SumGradSquared
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
n, t, o, i = 16, 64, 512, 512
torch.manual_seed(1)
layer, x, y = extend(torch.nn.Linear(i, o, bias=False)), torch.randn(n, t, i), torch.randint(0, o, (n, t))
loss_function = extend(torch.nn.CrossEntropyLoss(reduction="sum"))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def loss():
    return loss_function(layer(x).movedim(-1, 1), y)

def plain():
    layer.zero_grad()
    loss().backward()

def squares():
    layer.zero_grad()
    with backpack(SumGradSquared()):
        loss().backward()

def median(work):
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return sorted(times)[1]

alone = median(plain)
before = peak()
with_squares = median(squares)
torch.save((layer.weight.detach(), x, y, layer.weight.sum_grad_squared), folder + "/backpack.pt")
print(json.dumps({"seconds": with_squares - alone, "bytes": peak() - before}))
"""


def backpack(table, squisher, folder, threads):
    """One layer, the same numbers: BackPACK's extension on top of its backward pass, and the tool over a capture of that pass."""
    try:
        import backpack  # noqa: F401
    except ImportError as error:
        print(f"BackPACK left out: {error}", file=sys.stderr)
        return
    from capture import capture

    done = subprocess.run([sys.executable, "-c", BACKPACK, str(folder), str(threads)], stdout=subprocess.PIPE, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    weight, x, y, wanted = torch.load(folder / "backpack.pt")
    network = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)).eval()
    network[0].weight.data = weight
    capture(network, x, folder / "capture.safetensors", labels="data", target=y)
    out = folder / "fisher.safetensors"
    arguments = ["fisher", folder / "capture.safetensors", "--reduction", "sum", "-o", out, "--overwrite"]
    seconds = [squisher.run(*arguments)[0] for _ in range(3)]
    peak = peak_of([squisher.tool, *arguments, *squisher.place, "--quiet"], squisher.environment)
    with safe_open(out, "pt") as file:
        got = file.get_tensor("0.weight")
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())
    what = "linear 512x512, n=16, t=64"
    times = {"squisher": statistics.median(seconds), "BackPACK SumGradSquared": theirs["seconds"]}
    table.add(f"{what}: from a capture file to a synced Fisher; the extension beyond the backward pass", "BackPACK SumGradSquared", times)
    table.memory(f"{what}: peak memory of the whole process; what the extension adds", peak, "BackPACK SumGradSquared", theirs["bytes"])


def peak_of(command, environment):
    """The most memory that a process held, as Linux counts it. Not by `wait4`, which counts this script's own before the program starts."""
    peak = 0
    with subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))])
            time.sleep(0.001)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return peak


# ----------------------------------------------------------------------------------------------------------------- merge

HIDDEN, INNER, LAYERS, VOCABULARY = 768, 3072, 13, 64_000


def llama():
    """{name: shape} of a language model with 221 million parameters."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}self_attn.{name}.weight"] = (HIDDEN, HIDDEN)
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (HIDDEN,)
    return shapes


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}


def make_models(folder):
    """Two bf16 models with f32 Fishers: [(model's folder, Fisher's file)]."""
    made = []
    for m in range(2):
        generator = torch.Generator().manual_seed(m)
        model, fisher = folder / f"model{m}", folder / f"fisher{m}.safetensors"
        model.mkdir()
        weights = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in llama().items()}
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        (model / "config.json").write_text(json.dumps(CONFIG))
        save_file({name: torch.rand(shape, generator=generator) for name, shape in llama().items()}, fisher)
        made.append((model, fisher))
    os.sync()
    return made


def synced(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def copy(inputs, output):
    """Reads every input to memory, two files at a time, and writes as many bytes as the merged model has."""
    def read(paths):
        buffer = bytearray(8 << 20)
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    begin = time.perf_counter()
    threads = [threading.Thread(target=read, args=(inputs[part::2],)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    piece, left = bytes(8 << 20), inputs[0].stat().st_size
    with open(output, "wb", buffering=0) as file:
        while left > 0:
            left -= file.write(piece[:left])
        os.fsync(file.fileno())
    return time.perf_counter() - begin


def merge_with_torch(models, output):
    """Tensor by tensor, as one would write it: the sum of F times theta over the sum of F."""
    begin = time.perf_counter()
    merged = {}
    with safe_open(models[0][0] / "model.safetensors", "pt") as names:
        files = [(safe_open(model / "model.safetensors", "pt"), safe_open(fisher, "pt")) for model, fisher in models]
        for name in names.keys():
            above, below = 0.0, 0.0
            for model, fisher in files:
                weight = fisher.get_tensor(name)
                above = above + weight * model.get_tensor(name)
                below = below + weight
            merged[name] = (above / below).bfloat16()
    save_file(merged, output)
    synced(output)
    return time.perf_counter() - begin


def merge_with_mergekit(tool, models, folder, threads):
    """mergekit's linear merge of the same models: the Fishers are not read."""
    recipe, output = folder / "linear.yml", folder / "mergekit"
    listed = "".join(f"  - model: {model}\n    parameters:\n      weight: 1.0\n" for model, _ in models)
    recipe.write_text(f"merge_method: linear\nmodels:\n{listed}dtype: bfloat16\n")
    shutil.rmtree(output, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [str(tool), str(recipe), str(output), "--no-copy-tokenizer", "--quiet"]
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    for path in output.glob("*.safetensors"):
        synced(path)
    return time.perf_counter() - begin


def merges(table, squisher, folder, mergekit, threads, rounds):
    models = make_models(folder)
    inputs = [path for model, fisher in models for path in (model / "model.safetensors", fisher)]
    flags = [flag for model, fisher in models for flag in ("--model", model / "model.safetensors", "--fisher", fisher)]
    ours, torchs = folder / "ours.safetensors", folder / "torch.safetensors"
    contenders = {
        "squisher": lambda: squisher.run("merge", "--method", "fisher", *flags, "-o", ours, "--overwrite")[0],
        "reading the inputs, writing the output": lambda: copy(inputs, folder / "copy"),
        "PyTorch, tensor by tensor": lambda: merge_with_torch(models, torchs),
    }
    if mergekit:
        contenders["mergekit linear (reads no Fisher)"] = lambda: merge_with_mergekit(mergekit, models, folder, threads)
    times = in_turns(contenders, rounds)
    with safe_open(ours, "pt") as a, safe_open(torchs, "pt") as b:
        for name in a.keys():
            torch.testing.assert_close(a.get_tensor(name), b.get_tensor(name), rtol=2**-7, atol=1e-4)
    for peer in list(times)[1:]:
        table.add("Fisher merge, two models of 221 million bf16 parameters, f32 Fishers, synced", peer, times)


# ------------------------------------------------------------------------------------------------------------------ main

def machine(options):
    """Where and with what this was measured."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    versions = [f"PyTorch {torch.__version__}"]
    try:
        from importlib.metadata import version
        versions.append(f"BackPACK {version('backpack-for-pytorch')}")
    except ImportError:
        pass
    if options.mergekit:
        asked = [str(options.mergekit.parent / "python"), "-c", "from importlib.metadata import version; print(version('mergekit'))"]
        versions.append("mergekit " + subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    devices = [f"squisher on {options.adapter}"] if options.adapter else []
    if options.device != "cpu":
        devices.append(f"PyTorch on {torch.get_device_module(options.device).get_device_name()}")
    return ", ".join([model, f"{options.threads} threads", *devices, *versions, time.strftime("%Y-%m-%d")])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--squisher", type=Path, default=REPOSITORY / "target" / "release" / "squisher", help="the tool, a release build")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of an environment that has it")
    parser.add_argument("--adapter", help="squisher's, as `squisher adapters` has it; the host without")
    parser.add_argument("--device", default="cpu", help="PyTorch's; BackPACK and the merges stay on the host")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--only", default="", help="products, average, topk, backpack or merge")
    parser.add_argument("--output", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    squisher, table = Squisher(options.squisher, options.threads, options.adapter), Table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "products": (options.device, lambda: products(table, squisher, options.rounds)),
            "average": (options.device, lambda: moving_average(table, squisher, options.rounds)),
            "topk": (options.device, lambda: top_k(table, squisher, options.rounds)),
            "backpack": ("cpu", lambda: backpack(table, squisher, folder, options.threads)),
            "merge": ("cpu", lambda: merges(table, squisher, folder, options.mergekit, options.threads, options.rounds)),
        }
        for part, (device, measure) in parts.items():
            if options.only in part:
                with torch.device(device):
                    measure()
    text = f"{table.markdown()}\n\nA ratio above 1: squisher is that much faster, or takes that much less. {machine(options)}.\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
