"""Hold `squisher fisher` to PyTorch on random networks: per-sample gradients in float64 by torch.func, squared and summed.

    python examples/pytorch/compare.py --squisher target/release/squisher --seeds 100 [--backend vulkan]

Each seed is another network (linear, embedding, convolutions of one to three dimensions with any stride, padding, dilation and groups,
transposed ones, every norm, layers used twice, at one size or two, parameters of several layers), batch size, loss, kind of label and split
into files. Prints the seeds that differ by more than 2e-5 of a tensor's largest magnitude, and exits with 1 if there are any.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.func import functional_call, grad

from capture import capture

CLASSES = 5
TOLERANCE = 2e-5


class LlamaRMSNorm(nn.Module):
    """As transformers' models of the Llama family norm: in float32, and with a class of their own."""

    def __init__(self, width, eps=1e-6, offset=0.0):
        super().__init__()
        self.weight, self.variance_epsilon, self.offset = nn.Parameter(torch.randn(width)), eps, offset

    def forward(self, x):
        wide = x.float()
        return (self.weight + self.offset) * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(x.dtype)


class GemmaRMSNorm(LlamaRMSNorm):
    """The same of 1 + weight, with an epsilon that is felt."""

    def __init__(self, width):
        super().__init__(width, 0.1, 1.0)


class Language(nn.Module):
    """Logits of every position; one layer is used twice, and so is one norm's input."""

    def __init__(self, choose):
        super().__init__()
        self.embedding, self.norm, self.twice = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.rms, self.head = choose([nn.RMSNorm, LlamaRMSNorm, GemmaRMSNorm])(8), nn.Linear(8, CLASSES, bias=False)

    def forward(self, x):
        h = self.embedding(x)
        h = h + torch.tanh(self.twice(self.norm(h)))
        return self.head(self.rms(h + torch.tanh(self.twice(h))))


class Tied(nn.Module):
    """One weight in an embedding, in a layer between and in the logits; one in two norms and two convolutions; one bias in two layers."""

    def __init__(self, choose):
        super().__init__()
        self.embedding, self.between = nn.Embedding(CLASSES, 8, padding_idx=choose([None, 1])), nn.Linear(8, CLASSES)
        self.first, self.second, self.head = nn.RMSNorm(8), nn.RMSNorm(8), nn.Linear(8, CLASSES, bias=choose([False, True]))
        self.near, self.far = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.between.weight = self.head.weight = self.embedding.weight
        self.second.weight, self.far.weight, self.far.bias = self.first.weight, self.near.weight, self.near.bias

    def forward(self, x):
        h = self.first(self.embedding(x % CLASSES))
        h = h + torch.tanh(self.near(h.mT) + self.far(h.mT)).mT
        return self.head(self.second(h + self.embedding(x % 3))) + self.between(h)


class Pyramid(nn.Module):
    """One convolution, and the norms behind it, on an image and on its half."""

    def __init__(self, choose):
        super().__init__()
        stride, groups = choose([1, 2]), choose([1, 3])
        self.conv, self.group = nn.Conv2d(3, 6, 3, stride, 1, groups=groups), nn.GroupNorm(2, 6)
        self.batch, self.head = nn.BatchNorm2d(6), nn.Linear(6, CLASSES)

    def forward(self, x):
        sizes = (x, F.avg_pool2d(x, 2))
        return self.head(sum(torch.tanh(self.batch(self.group(self.conv(x)))).mean((-2, -1)) for x in sizes))


def convolutional(choose, dim):
    conv, transposed, norm = ((nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d), (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
                              (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d))[dim - 1]
    kernel, stride, padding, dilation = choose([1, 2, 3]), choose([1, 2, 3]), choose([0, 1, 2]), choose([1, 2])
    groups, width = choose([1, 2, 4]), choose([4, 8])
    return nn.Sequential(
        conv(3, 8, kernel, stride, padding, dilation), nn.ReLU(inplace=True), nn.GroupNorm(2, 8),
        conv(8, width, kernel, 1, padding + 1, groups=groups), norm(width), nn.ReLU(inplace=True),
        transposed(width, 2 * width, 3, 2, 1, output_padding=choose([0, 1]), groups=groups), nn.Flatten(), nn.LazyLinear(CLASSES))


def network(seed):
    """(network, inputs, label shape) of a seed."""
    choose = random.Random(seed).choice
    torch.manual_seed(seed)
    n, kind = choose([1, 2, 5, 9]), choose(["language", "tied", "convolution", "perceptron", "pyramid"])
    if kind in ("language", "tied"):
        return (Language if kind == "language" else Tied)(choose), torch.randint(0, 11, (n, 7)), (n, 7)
    if kind == "perceptron":
        layers = nn.Linear(13, 17), nn.LayerNorm(17), nn.ReLU(inplace=True), nn.Linear(17, CLASSES)
        return nn.Sequential(*layers), torch.randn(n, 13), (n,)
    if kind == "pyramid":
        return Pyramid(choose), torch.randn(n, 3, 8, 6), (n,)
    dim = choose([1, 2, 3])
    return convolutional(choose, dim), torch.randn(n, 3, *(choose([7, 8, 10]) for _ in range(dim))), (n,)


def settle(net, x):
    """Evaluation mode, with running statistics that are not 0 and 1."""
    net(x)
    for module in net.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def definition(net, x, target, labels, loss_name):
    """Σ_n Σ_c w_nc g_nc², sample by sample in float64."""
    parameters = {name: p.detach().double() for name, p in net.named_parameters()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in net.named_buffers()}
    x = x.double() if x.is_floating_point() else x

    def logits(parameters, one):
        return functional_call(net, (parameters, buffers), (one[None],)).movedim(-1, 1)

    def loss(parameters, one, label):
        if loss_name == "gaussian":
            # The gradient at the outputs is the residual, which is what stands for the label.
            return (logits(parameters, one) * label).sum()
        return F.cross_entropy(logits(parameters, one), label[None], reduction="sum")

    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for one, label in zip(x, target):
        if loss_name == "gaussian":
            residual = (logits(parameters, one) - label).detach()
            weighted = [(1.0, e) for e in torch.eye(CLASSES).double()] if labels == "all" else [(1.0, residual)]
        elif labels == "data":
            weighted = [(1.0, label)]
        else:
            weighted = [(w, torch.tensor(c)) for c, w in enumerate(logits(parameters, one).softmax(1)[0])]
        for weight, label in weighted:
            for name, g in grad(loss)(parameters, one, label).items():
                total[name] += weight * g**2
    return total


def squisher(arguments, net, x, target, labels, loss, folder):
    """What the tool makes of the same batch, in two files."""
    files, cut = [], max(1, len(x) // 2)
    for part in (slice(0, cut), slice(cut, None)):
        if len(x[part]):
            files.append(folder / f"{len(files)}.safetensors")
            capture(net, x[part], files[-1], labels=labels, target=target[part], loss=loss)
    out = folder / "fisher.safetensors"
    command = [arguments.squisher, "fisher", *files, "-o", out, "--backend", arguments.backend, "--overwrite", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return load_file(out)


def error(got, want):
    """The largest difference, as a share of the tensor's largest magnitude."""
    assert got.keys() == want.keys(), f"tensors differ: {sorted(got.keys() ^ want.keys())}"
    return max(float((got[name].double() - want[name]).abs().max() / want[name].abs().max().clamp_min(1e-300)) for name in want)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squisher", default="squisher", help="the program")
    parser.add_argument("--backend", default="host")
    parser.add_argument("--seeds", type=int, default=100)
    arguments = parser.parse_args()
    worst, wrong = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            net, x, shape = network(seed)
            net = settle(net, x.repeat_interleave(2, 0))
            loss = "gaussian" if len(shape) == 1 and seed % 3 == 2 else "cross_entropy"
            target = torch.randn(*shape, CLASSES) if loss == "gaussian" else torch.randint(0, CLASSES, shape)
            labels = "all" if len(shape) == 1 and seed % 2 else "data"
            if len(shape) == 2 and seed % 2:
                target[:, 0] = -100
            got = squisher(arguments, net, x, target, labels, loss, Path(folder))
            off = error(got, definition(net, x, target, labels, loss))
            worst = max(worst, off)
            if off > TOLERANCE:
                wrong.append(seed)
                print(f"seed {seed}: {off:.1e} of the largest magnitude\n{net}")
    print(f"{arguments.seeds} networks on {arguments.backend}: {len(wrong)} wrong, largest difference {worst:.1e}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
